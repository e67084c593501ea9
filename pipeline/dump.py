"""One job of ``dump``: the photographs of one dataset through one model into one store.

Reading, forward pass and writing overlap: a few decoded photographs wait for the network, a few
logits for the disk, both counted in bytes, because one 4000 x 6000 photograph is 0.9 GB of logits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..datasets.images import decode_image, normalise
from ..errors import DatasetError, StoreError, disk_error
from ..models.checkpoint import load_weights
from ..models.registry import build
from .device import AUTOCAST, is_out_of_memory
from .lock import writer_lock
from .manifest import Member
from .progress import Progress
from .store import Identity, ImageEntry, LogitStore, Photograph

READ_BYTES = 256 * 2**20
WRITE_BYTES = 2**30
READERS = 2
WRITERS = 2


@dataclass(frozen=True)
class Job:
    """One model over one dataset.

    Attributes:
        member: whose network runs.
        dataset: the dataset's name.
        root: the folder that the photographs' paths are relative to.
        store: where the logits go.
        identity: what they are made with.
        photographs: the whole dataset, sorted; they make the table of images.
        limit: how many of them are dumped, from the first; None for all.
    """

    member: Member
    dataset: str
    root: Path
    store: Path
    identity: Identity
    photographs: tuple[Photograph, ...]
    limit: int | None = None

    @property
    def name(self) -> str:
        """``<dataset>/<model>``."""
        return f"{self.dataset}/{self.member.name}"

    @property
    def wanted(self) -> tuple[Photograph, ...]:
        """The photographs that are to be complete afterwards."""
        return self.photographs[: self.limit]


@dataclass
class JobResult:
    """What became of a job's photographs.

    Attributes:
        failed: path -> reason.
        settled: paths that are complete now.
        gone: paths that the store lists and the dataset no longer holds.
        problem: why the job could not be done at all; None if it was.
    """

    job: Job
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    gone: frozenset[str] = frozenset()
    problem: str | None = None
    seconds: float = 0.0
    interrupted: bool = False


class ByteBudget:
    """Bounds the bytes that wait in a queue; one item larger than the bound may pass alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._freed = threading.Condition()

    def acquire(self, count: int) -> None:
        """Wait until ``count`` bytes fit."""
        with self._freed:
            self._freed.wait_for(lambda: self._used == 0 or self._used + count <= self._limit)
            self._used += count

    def release(self, count: int) -> None:
        """Give ``count`` bytes back."""
        with self._freed:
            self._used -= count
            self._freed.notify_all()


class Predictor:
    """A device with at most one network on it, kept from job to job."""

    def __init__(self, device: torch.device, precision: str, scales: tuple[float, ...], flip: bool) -> None:
        self._device, self._precision = device, precision
        self._scales, self._flip = scales, flip
        self._member: Member | None = None
        self._model: nn.Module | None = None
        # On a GPU "fp32" would else be computed in TF32, with the mantissa of fp16; and of several equal
        # algorithms always the same one gives the same bytes.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True

    def load(self, member: Member) -> None:
        """Put the network of ``member`` on the device.

        Raises:
            CheckpointError: its checkpoint does not fit.
        """
        if self._member == member:
            return
        self._model = self._member = None
        model = build(member.arch)
        load_weights(model, member.checkpoint_path(), member.arch)
        self._model, self._member = model.to(self._device), member

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Logits (19, H, W) float16, on the device, of an image (3, H, W) uint8."""
        dtype = AUTOCAST.get(self._precision)
        pixels = normalise(image[None].to(self._device))
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            logits = self._model.predict(pixels, self._scales, flip=self._flip)  # type: ignore[union-attr, operator]
        return logits[0].to(torch.float16)


def run_job(job: Job, predictor: Predictor, progress: Progress) -> JobResult:
    """Make every wanted image of the job complete, and say what became of each.

    An interrupt (KeyboardInterrupt) lets the images in flight be finished and sets ``interrupted``.

    Raises:
        StoreError: the store is locked, made with other settings, or the disk cannot be written.
        CheckpointError: the model's checkpoint does not fit.
    """
    begun = time.monotonic()
    result = JobResult(job)
    with writer_lock(job.store):
        try:
            versions = {"package_version": __version__, "torch_version": torch.__version__}
            store = LogitStore.for_writing(job.store, job.identity, versions)
            store.register(job.photographs)
        except OSError as error:
            raise disk_error(job.store, error) from error
        result.gone = frozenset(store.index.keys() - {photo.path for photo in job.photographs})
        complete = store.complete()
        wanted = [store.index[photo.path] for photo in job.wanted]
        todo = [i for i in wanted if not complete[i]]
        result.settled = {store.images[i].path for i in wanted if complete[i]}
        result.skipped = len(result.settled)
        progress.job(job.name, len(todo))
        if todo:
            predictor.load(job.member)
            _run(job, store, todo, predictor, progress, result)
    result.seconds = time.monotonic() - begun
    return result


def _run(
    job: Job, store: LogitStore, todo: list[int], predictor: Predictor, progress: Progress, result: JobResult
) -> None:
    budget = ByteBudget(WRITE_BYTES)
    writes: dict[Future[None], str] = {}

    def failed(path: str, reason: object) -> None:
        result.failed[path] = str(reason)
        progress.advance()

    def collect(finished: set[Future[None]]) -> None:
        for future in finished:
            path = writes.pop(future)
            try:
                future.result()
            except StoreError as error:
                failed(path, error)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed(path, "its logits do not fit into memory")
            except OSError as error:
                raise disk_error(job.store, error) from error
            else:
                result.done += 1
                result.settled.add(path)
                progress.advance()

    def write(index: int, logits: Tensor) -> None:
        try:
            store.write(index, logits.cpu().numpy())
        finally:
            budget.release(logits.nbytes)

    with ThreadPoolExecutor(READERS, "read") as readers, ThreadPoolExecutor(WRITERS, "write") as writers:
        try:
            for index, entry, image in _decoded(job.root, store, todo, readers):
                if isinstance(image, DatasetError):
                    failed(entry.path, image)
                    continue
                try:
                    logits = predictor(image)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failed(entry.path, f"{entry.height}x{entry.width} does not fit into the device's memory")
                    continue
                budget.acquire(logits.nbytes)
                writes[writers.submit(write, index, logits)] = entry.path
                collect({future for future in writes if future.done()})
        except KeyboardInterrupt:
            result.interrupted = True
            progress.note("interrupted: the images in flight are being finished")
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            while writes:
                collect(wait(writes, return_when=FIRST_COMPLETED).done)


def _decoded(
    root: Path, store: LogitStore, todo: list[int], readers: ThreadPoolExecutor
) -> Iterator[tuple[int, ImageEntry, Tensor | DatasetError]]:
    """The images in order, decoded ahead of the network as far as the memory for it goes."""
    waiting: deque[tuple[int, ImageEntry, int, Future[Tensor | DatasetError]]] = deque()
    held = 0
    for index in todo:
        entry = store.images[index]
        size = 3 * (entry.height or 0) * (entry.width or 0)
        while waiting and (held + size > READ_BYTES or len(waiting) >= 4 * READERS):
            first, first_entry, first_size, future = waiting.popleft()
            yield first, first_entry, future.result()
            held -= first_size
        held += size
        waiting.append((index, entry, size, readers.submit(_decode, root, entry)))
    for index, entry, _, future in waiting:
        yield index, entry, future.result()


def _decode(root: Path, entry: ImageEntry) -> Tensor | DatasetError:
    try:
        image = decode_image(root / entry.path)
    except DatasetError as error:
        return error
    except MemoryError:
        return DatasetError(f"{root / entry.path}: does not fit into memory")
    if tuple(image.shape[1:]) != (entry.height, entry.width):
        return DatasetError(
            f"{root / entry.path}: is {image.shape[1]}x{image.shape[2]} and was {entry.height}x{entry.width} "
            "when the store was begun; put the old file back, or start afresh with --overwrite"
        )
    return image
