"""Runs a block of images in a worker: reading, the forward pass and writing overlap.

A few decoded photographs wait for the networks and a few results wait for the disk, both bounded in bytes, because
one 4000 x 6000 photograph has 0.9 GB of logits. A GPU computes the next image while the last one is copied from it;
encoding and writing happen in threads. Subclasses say what is computed and written (`dump_block`, `predict_block`).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DatasetError, DiskError, StoreError, disk_error
from ..runtime.device import is_out_of_memory
from ..store.image_table import ImageEntry
from ..workers.protocol import BlockResult, ProgressReporter
from .image_prefetch import prefetch_images
from .predictor import InferenceSettings
from .store_writes import LostLockError
from .transfer import MAX_WAITING, ByteBudget, HostCopy, StageTimes

WRITE_BYTES = 2**30


@dataclass
class ComputedImage:
    """Result of the networks for one image.

    Attributes:
        bytes: bytes that wait for the disk.
        write: writes them, in a thread of its own.
        fallback: how it was computed if the device's memory was too small at first.
    """

    bytes: int
    write: Callable[[], None]
    fallback: str | None = None


class ImageBlock(ABC):
    """Some images of one job.

    Attributes:
        root: folder that the photographs' paths are relative to.
        entries: the images.
        settings: settings of the networks.
        exif: turn photographs as their EXIF orientation says.
    """

    root: Path
    entries: tuple[ImageEntry, ...]
    settings: InferenceSettings
    exif: bool

    @property
    def paths(self) -> tuple[str, ...]:
        """The images, in the order in which they are done."""
        return tuple(entry.path for entry in self.entries)

    @property
    @abstractmethod
    def target(self) -> Path:
        """Store or folder that is written to."""

    @property
    @abstractmethod
    def model_names(self) -> str:
        """Names of the networks that are loaded, for people."""

    @abstractmethod
    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Return the images that are not complete."""

    @abstractmethod
    def load(self) -> int:
        """Load the networks and return the number of images that are computed together."""

    @abstractmethod
    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], host_copy: HostCopy
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        """Run the networks.

        Args:
            images: photographs (3, H, W) uint8 with their entries.
            host_copy: copies results to the CPU.

        Yields:
            each path with its result, or with the reason why it failed.
        """

    @abstractmethod
    def take_notes(self) -> list[str]:
        """Return the networks' new lines for the user."""

    def run(self, report: ProgressReporter) -> BlockResult:
        """Complete every image that is not complete; an image that fails is tried once more, then listed."""
        begun = time.monotonic()
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        todo = self.incomplete(self.entries)
        for _ in range(len(self.entries) - len(todo)):
            report.image_done()
        result, times, has_work = BlockResult(), StageTimes(), bool(todo)
        try:
            if todo:
                with report.working_on(self.model_names):
                    together = self.load()
                for _ in ("first try", "second try"):
                    failed = self._make(todo, together, report, result, times)
                    todo = [entry for entry in todo if entry.path in failed]
                    result.failed = failed
                    if not todo or report.is_stopping:
                        break
            for _ in result.failed:
                report.image_done()
        except LostLockError as error:
            result.problem = str(error)
        except DiskError as error:
            result.disk_problem = str(error)
        not_failed = [entry for entry in self.entries if entry.path not in result.failed]
        result.left = tuple(entry.path for entry in self.incomplete(not_failed))
        result.seconds, result.times = time.monotonic() - begun, times.seconds
        result.notes = tuple(self.take_notes()) if has_work else ()
        return result

    def _make(
        self,
        todo: Sequence[ImageEntry],
        together: int,
        report: ProgressReporter,
        result: BlockResult,
        times: StageTimes,
    ) -> dict[str, str]:
        """Make the images until the run is told to stop; return path -> reason of those that failed."""
        budget = ByteBudget(WRITE_BYTES, MAX_WAITING)
        writes: dict[Future[None], str] = {}
        failed: dict[str, str] = {}
        device, threads = torch.device(self.settings.device), self.settings.io_threads
        host_copy = HostCopy(device)

        def collect(finished: Iterable[Future[None]]) -> None:
            for future in finished:
                path = writes.pop(future)
                try:
                    future.result()
                except (LostLockError, DiskError):
                    raise
                except StoreError as error:
                    failed[path] = str(error)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failed[path] = "its logits do not fit into memory"
                except OSError as error:
                    raise disk_error(self.target, error) from error
                else:
                    report.image_done()

        def write(path: str, computed: ComputedImage) -> None:
            try:
                with report.working_on(path):
                    computed.write()
            finally:
                budget.release(computed.bytes)

        photographs = prefetch_images(
            self.root, todo, report, threads=threads, pinned=device.type == "cuda", exif=self.exif
        )
        with contextlib.closing(photographs), ThreadPoolExecutor(threads, "write") as writers:
            try:
                while not report.is_stopping:
                    with times.measure("read"):
                        taken = list(itertools.islice(photographs, together))
                    if not taken:
                        break
                    failed |= {entry.path: str(image) for entry, image in taken if isinstance(image, DatasetError)}
                    sound = [(entry, image) for entry, image in taken if not isinstance(image, DatasetError)]
                    answers = self.compute(sound, host_copy)
                    while True:
                        with times.measure("forward"), contextlib.ExitStack() as in_work:
                            for entry, _ in sound:
                                in_work.enter_context(report.working_on(entry.path))
                            answer = next(answers, None)
                        if answer is None:
                            break
                        path, computed = answer
                        if isinstance(computed, str):
                            failed[path] = computed
                            continue
                        if computed.fallback is not None:
                            result.fallbacks[path] = computed.fallback
                        with times.measure("write"):
                            budget.acquire(computed.bytes)
                        writes[writers.submit(write, path, computed)] = path
                        collect([future for future in writes if future.done()])
            finally:
                with times.measure("write"):
                    while writes:
                        collect(wait(writes, return_when=FIRST_COMPLETED).done)
        return failed


def too_large(entry: ImageEntry, error: Exception) -> str:
    """Say that an image does not fit into the device's memory, or raise ``error`` again if that is not its cause."""
    if not is_out_of_memory(error):
        raise error
    return f"{entry.height}x{entry.width} does not fit into the device's memory"
