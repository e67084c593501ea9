"""What a worker does of a block of images: through networks to the disk, all of it overlapping.

A few decoded photographs wait for the networks, a few results for the disk, both counted in bytes, because one
4000 x 6000 photograph is 0.9 GB of logits. A GPU computes the next image while the last one is copied from it; those
that encode and write are threads. What is computed and written is the blocks' own (`dump_block`, `predict_block`).
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
from .transfer import MOST_WAITING, ByteBudget, HostCopy, StageTimes

WRITE_BYTES = 2**30


@dataclass
class ComputedImage:
    """What a network made of an image.

    Attributes:
        bytes: that wait for the disk.
        write: writes them, in a thread of its own.
        fallback: how it was made if the device's memory was too small at first.
    """

    bytes: int
    write: Callable[[], None]
    fallback: str | None = None


class ImageBlock(ABC):
    """Some images of one job.

    Attributes:
        root: the folder that the photographs' paths are relative to.
        entries: the images.
        setting: how they are computed.
        exif: whether photographs are turned as EXIF says.
    """

    root: Path
    entries: tuple[ImageEntry, ...]
    setting: InferenceSettings
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
        self, images: Sequence[tuple[ImageEntry, Tensor]], courier: HostCopy
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        """What the networks make of photographs (3, H, W) uint8: their paths, each with it, or with why it failed."""

    @abstractmethod
    def take_notes(self) -> list[str]:
        """What the networks have to say to the user since the last time."""

    def run(self, report: ProgressReporter) -> BlockResult:
        """Make every image complete that is not; one that fails is tried again, then listed."""
        begun = time.monotonic()
        if self.setting.threads is not None:
            torch.set_num_threads(self.setting.threads)
        todo = self.incomplete(self.entries)
        for _ in range(len(self.entries) - len(todo)):
            report.settle()
        outcome, times, todo_at_first = BlockResult(), StageTimes(), bool(todo)
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
        except LostLockError as error:
            outcome.problem = str(error)
        except DiskError as error:
            outcome.disk = str(error)
        unsettled = [entry for entry in self.entries if entry.path not in outcome.failed]
        outcome.left = tuple(entry.path for entry in self.incomplete(unsettled))
        outcome.seconds, outcome.times = time.monotonic() - begun, times.seconds
        outcome.notes = tuple(self.take_notes()) if todo_at_first else ()
        return outcome

    def _make(
        self,
        todo: Sequence[ImageEntry],
        together: int,
        report: ProgressReporter,
        outcome: BlockResult,
        times: StageTimes,
    ) -> dict[str, str]:
        """Make the images, as far as the run is not told to stop; path -> reason of those that failed."""
        budget = ByteBudget(WRITE_BYTES, MOST_WAITING)
        writes: dict[Future[None], str] = {}
        failed: dict[str, str] = {}
        device, hands = torch.device(self.setting.device), self.setting.hands
        courier = HostCopy(device)

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
                    raise disk_error(self.place, error) from error
                else:
                    report.settle()

        def write(path: str, made: ComputedImage) -> None:
            try:
                with report.at_work(path):
                    made.write()
            finally:
                budget.release(made.bytes)

        photographs = prefetch_images(
            self.root, todo, report, threads=hands, pinned=device.type == "cuda", exif=self.exif
        )
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
