"""What a worker does of a block of images: through networks to the disk, all of it overlapping.

A few decoded photographs wait for the networks, a few results for the disk, both counted in bytes, because one
4000 x 6000 photograph is 0.9 GB of logits. A GPU computes the next image while the last one is copied from it; those
that encode and write are threads. What is computed and written is the blocks' own (`dump_block`, `predict_block`).
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, DatasetError, DiskError, StoreError, disk_error
from ..files import sha256
from .block import Outcome, Report
from .device import is_out_of_memory, resolve_speed
from .figures import as_size
from .lock import require_held
from .manifest import Inference, Member, Tile
from .places import free_bytes
from .predictor import Predictor
from .reading import decoded
from .store import ImageEntry, ShardWriter

WRITE_BYTES = 2**30
# With those that are decoded and the one in the network fewer than `foreman.IN_FLIGHT`.
_WRITING = 16
_COMPUTING = 2
_MOST_HANDS = 8
RESERVE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Setting:
    """How a worker computes.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``, as the worker numbers its devices.
        precision: fp16, bf16 or fp32.
        scales: inference scales.
        flip: whether mirrored images are averaged in.
        tile: tiles for images that do not fit into the device's memory otherwise; None to give them up.
        threads: of the CPU, None to leave them as they are.
        cuda_graphs: whether each image size is captured once and replayed.
        compile: mode of torch.compile, or ``off``.
    """

    device: str
    precision: str
    scales: tuple[float, ...]
    flip: bool
    tile: Tile | None = None
    threads: int | None = None
    cuda_graphs: bool = False
    compile: str = "off"

    @classmethod
    def of(cls, inference: Inference, device: torch.device, precision: str, threads: int | None) -> Setting:
        """The manifest's way to look at images, on a device that is known to be there."""
        name = device.type if device.index is None else str(device)
        cuda_graphs, compile, _ = resolve_speed(inference.cuda_graphs, inference.compile, device)
        return cls(name, precision, inference.scales, inference.flip, inference.tile, threads, cuda_graphs, compile)

    def predictor(self) -> Predictor:
        """A device set up like this, without a network yet."""
        return Predictor(
            torch.device(self.device),
            self.precision,
            self.scales,
            self.flip,
            self.tile,
            cuda_graphs=self.cuda_graphs,
            compile=self.compile,
        )

    @property
    def hands(self) -> int:
        """Threads that decode, and as many that write: beside a GPU all cores of the worker, beside a CPU two."""
        if torch.device(self.device).type == "cpu":
            return 2
        return max(2, min(_MOST_HANDS, torch.get_num_threads() // 2))


def require_checkpoint(member: Member, digest: str | None) -> Path:
    """The checkpoint of ``member``; CheckpointError if it is not the file that the run began with."""
    path = member.checkpoint_path()
    if not path.is_file() or sha256(path) != digest:
        raise CheckpointError(
            f"{path}: is not the file that the run began with, on this machine; all machines need the same one"
        )
    return path


class ByteBudget:
    """Bounds the bytes and the items that wait in a queue; one item larger than the bound may pass alone."""

    def __init__(self, limit: int, items: int = _WRITING) -> None:
        self._limit, self._used = limit, 0
        self._items, self._held = items, 0
        self._freed = threading.Condition()

    def acquire(self, count: int) -> None:
        """Wait until ``count`` bytes fit."""
        with self._freed:
            self._freed.wait_for(
                lambda: self._held == 0 or (self._used + count <= self._limit and self._held < self._items)
            )
            self._used += count
            self._held += 1

    def release(self, count: int) -> None:
        """Give ``count`` bytes back."""
        with self._freed:
            self._used -= count
            self._held -= 1
            self._freed.notify_all()


class Courier:
    """Brings what a GPU computed to the CPU beside what it computes next; on a CPU there is nothing to bring.

    Args:
        device: where it is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._computing: deque[torch.cuda.Event] = deque()

    def send(self, result: Tensor) -> Callable[[], Tensor]:
        """Take ``result``, of which nothing may be computed yet, on its way.

        Waits while more than a few results are still being computed, so that a GPU has enough to do and its memory
        does not fill.

        Returns:
            what waits for it, and gives it on the CPU.
        """
        if self._stream is None or result.device.type == "cpu":
            return lambda: result
        computed, arrived = torch.cuda.Event(), torch.cuda.Event()
        computed.record(torch.cuda.current_stream(result.device))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            here = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            here.copy_(result, non_blocking=True)
            arrived.record(self._stream)
        result.record_stream(self._stream)
        self._computing.append(computed)
        if len(self._computing) > _COMPUTING:
            self._computing.popleft().synchronize()

        def fetch() -> Tensor:
            arrived.synchronize()
            return here

        return fetch


class Times:
    """Where a block's time goes, as its main thread sees it: each wait of it is somebody's limit."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "forward": 0.0, "write": 0.0}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Whatever happens inside counts as ``part``."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - begun


class LostError(StoreError):
    """The lock of the store is no longer the run's: nothing more may be written there."""


def write_shard(writer: ShardWriter, token: str, entry: ImageEntry, fetch: Callable[[], Tensor], hands: int) -> None:
    """Store an image's logits, if there is room, and the store's lock is still the run's.

    Args:
        writer: of the store.
        token: of the run's lock on it.
        entry: the image.
        fetch: waits for its logits (C, H, W) float16.
        hands: that may write at the same time, as many bytes each.

    Raises:
        DiskError: the disk is nearly full.
        LostError: somebody else has the lock.
        StoreError, OSError: see `ShardWriter.write`.
    """
    logits = fetch()
    require_room(writer.path, RESERVE_BYTES + 4 * hands * logits.nbytes)
    require_ours(writer.path, token)
    writer.write(entry, logits.numpy())


def require_room(place: Path, needed: int) -> None:
    """Raise DiskError if fewer than ``needed`` bytes are free where ``place`` lies."""
    free = free_bytes(place)
    if free is not None and free < needed:
        raise DiskError(
            f"{place}: only {as_size(free)} are free on its disk, too few to go on safely; "
            "free some space and run the same command again, what is complete is kept"
        )


def require_ours(target: Path, token: str) -> None:
    """Raise LostError unless the lock of ``target`` is still the run's."""
    try:
        require_held(target, token)
    except StoreError as error:
        raise LostError(str(error)) from error


@dataclass
class Made:
    """What a network made of an image.

    Attributes:
        bytes: that wait for the disk.
        write: writes them, in a thread of its own.
        fallback: how it was made if the device's memory was too small at first.
    """

    bytes: int
    write: Callable[[], None]
    fallback: str | None = None


class NetworkBlock(ABC):
    """Some images of one job.

    Attributes:
        root: the folder that the photographs' paths are relative to.
        entries: the images.
        setting: how they are computed.
        exif: whether photographs are turned as EXIF says.
    """

    root: Path
    entries: tuple[ImageEntry, ...]
    setting: Setting
    exif: bool

    @property
    def paths(self) -> tuple[str, ...]:
        """The images, in the order in which they are done."""
        return tuple(entry.path for entry in self.entries)

    @property
    @abstractmethod
    def place(self) -> Path:
        """What is written to, for people."""

    @property
    @abstractmethod
    def loads(self) -> str:
        """What is loaded, for people."""

    @abstractmethod
    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Those of the images that are not complete."""

    @abstractmethod
    def load(self) -> int:
        """Put the networks on the device; how many images are computed together."""

    @abstractmethod
    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], courier: Courier
    ) -> Iterator[tuple[str, Made | str]]:
        """What the networks make of photographs (3, H, W) uint8: their paths, each with it, or with why it failed."""

    @abstractmethod
    def take_notes(self) -> list[str]:
        """What the networks have to say to the user since the last time."""

    def run(self, report: Report) -> Outcome:
        """Make every image complete that is not; one that fails is tried again, then listed."""
        begun = time.monotonic()
        if self.setting.threads is not None:
            torch.set_num_threads(self.setting.threads)
        todo = self.incomplete(self.entries)
        for _ in range(len(self.entries) - len(todo)):
            report.settle()
        outcome, times, todo_at_first = Outcome(), Times(), bool(todo)
        try:
            if todo:
                with report.at_work(self.loads):
                    together = self.load()
                for _ in ("first try", "second"):
                    failed = self._make(todo, together, report, outcome, times)
                    todo = [entry for entry in todo if entry.path in failed]
                    outcome.failed = failed
                    if not todo or report.stopping:
                        break
            for _ in outcome.failed:
                report.settle()
        except LostError as error:
            outcome.problem = str(error)
        except DiskError as error:
            outcome.disk = str(error)
        unsettled = [entry for entry in self.entries if entry.path not in outcome.failed]
        outcome.left = tuple(entry.path for entry in self.incomplete(unsettled))
        outcome.seconds, outcome.times = time.monotonic() - begun, times.seconds
        outcome.notes = tuple(self.take_notes()) if todo_at_first else ()
        return outcome

    def _make(
        self, todo: Sequence[ImageEntry], together: int, report: Report, outcome: Outcome, times: Times
    ) -> dict[str, str]:
        """Make the images, as far as the run is not told to stop; path -> reason of those that failed."""
        budget = ByteBudget(WRITE_BYTES, _WRITING)
        writes: dict[Future[None], str] = {}
        failed: dict[str, str] = {}
        device, hands = torch.device(self.setting.device), self.setting.hands
        courier = Courier(device)

        def collect(finished: Iterable[Future[None]]) -> None:
            for future in finished:
                path = writes.pop(future)
                try:
                    future.result()
                except (LostError, DiskError):
                    raise
                except StoreError as error:
                    failed[path] = str(error)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failed[path] = "its logits do not fit into memory"
                except OSError as error:
                    raise disk_error(self.place, error) from error
                else:
                    report.settle()

        def write(path: str, made: Made) -> None:
            try:
                with report.at_work(path):
                    made.write()
            finally:
                budget.release(made.bytes)

        photographs = decoded(self.root, todo, report, threads=hands, pinned=device.type == "cuda", exif=self.exif)
        with contextlib.closing(photographs), ThreadPoolExecutor(hands, "write") as writers:
            try:
                while not report.stopping:
                    with times.of("read"):
                        taken = list(itertools.islice(photographs, together))
                    if not taken:
                        break
                    failed |= {entry.path: str(image) for entry, image in taken if isinstance(image, DatasetError)}
                    sound = [(entry, image) for entry, image in taken if not isinstance(image, DatasetError)]
                    answers = self.compute(sound, courier)
                    while True:
                        with times.of("forward"), contextlib.ExitStack() as at_work:
                            for entry, _ in sound:
                                at_work.enter_context(report.at_work(entry.path))
                            answer = next(answers, None)
                        if answer is None:
                            break
                        path, made = answer
                        if isinstance(made, str):
                            failed[path] = made
                            continue
                        if made.fallback is not None:
                            outcome.fallbacks[path] = made.fallback
                        with times.of("write"):
                            budget.acquire(made.bytes)
                        writes[writers.submit(write, path, made)] = path
                        collect([future for future in writes if future.done()])
            finally:
                with times.of("write"):
                    while writes:
                        collect(wait(writes, return_when=FIRST_COMPLETED).done)
        return failed


def too_large(entry: ImageEntry, error: Exception) -> str:
    """Why an image failed whose computing raised ``error``, which is raised again if it is no lack of memory."""
    if not is_out_of_memory(error):
        raise error
    return f"{entry.height}x{entry.width} does not fit into the device's memory"
