"""Runs a block of images in a worker: reading, the forward pass and writing overlap.

A few decoded photographs wait for the networks and a few results wait for the disk, both bounded in bytes, because
one 4000 x 6000 photograph has 0.9 GB of logits. A GPU computes the next image while the last one is copied from it;
encoding and writing happen in threads.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import DatasetError, DiskError, StoreError, disk_error
from ..config.manifest import FusionFunctions
from ..fusion.fuse import quantise
from ..fusion.prediction_folder import without_prediction, write_prediction
from ..runtime.device import is_out_of_memory
from ..store.image_table import ImageEntry
from ..workers.protocol import BlockResult, ProgressReporter
from .image_prefetch import prefetch_images
from .networks import BlockMember, ComputedImage, FailedImage, Missing, Networks, load_networks
from .predictor import InferenceSettings
from .store_writes import LostLockError, require_place
from .transfer import MAX_WAITING, ByteBudget, StageTimes

WRITE_BYTES = 2**30
MAX_SAME_ERRORS = 5
"""Number of images in a row on which a network may raise the same error before it is given up."""


class NetworkGivenUpError(Exception):
    """A network raised the same error on image after image; ``failed`` has those images and their reasons."""

    def __init__(self, reason: str, failed: dict[str, str]) -> None:
        super().__init__(
            f"{reason}, on {MAX_SAME_ERRORS} images in a row; fix the network or its checkpoint, and run the same "
            "command again"
        )
        self.failed = failed


@dataclass(frozen=True)
class PredictionTarget:
    """The folder of a dataset's predictions, the token of the run's lock on it, and how they are fused."""

    folder: Path
    token: str
    functions: FusionFunctions


@dataclass(frozen=True)
class ImageBlock:
    """Some images of one dataset, whose logits are stored, or which are predicted, or both.

    Attributes:
        root: folder that the photographs' paths are relative to.
        members: the members; of those of weight 0 only the logits are kept.
        exif: turn photographs as their EXIF orientation says.
        prediction_target: takes the predictions; None to keep logits only.
    """

    root: Path
    entries: tuple[ImageEntry, ...]
    members: tuple[BlockMember, ...]
    settings: InferenceSettings
    exif: bool = False
    prediction_target: PredictionTarget | None = None

    def run(self, report: ProgressReporter) -> BlockResult:
        """Complete every image that is not complete; an image that fails is tried once more, then listed."""
        begun = time.monotonic()
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        functions = None if self.prediction_target is None else self.prediction_target.functions
        result, times, networks = BlockResult(), StageTimes(), None
        missing = self._missing(self.entries)
        todo = [entry for entry in self.entries if missing[entry.path]]
        for _ in range(len(self.entries) - len(todo)):
            report.image_done()
        try:
            if todo:
                with report.working_on(", ".join(one.member.name for one in self.members)):
                    networks = load_networks(self.settings, self.members, functions)
                for _ in ("first try", "second try"):
                    result.failed = self._make(todo, missing, networks, report, result, times)
                    todo = [entry for entry in todo if entry.path in result.failed]
                    if not todo or report.is_stopping:
                        break
                    missing = self._missing(todo)
            for _ in result.failed:
                report.image_done()
        except NetworkGivenUpError as error:
            result.network_problem, result.failed = str(error), error.failed
        except LostLockError as error:
            result.problem = str(error)
        except DiskError as error:
            result.disk_problem = str(error)
        missing = self._missing([entry for entry in self.entries if entry.path not in result.failed])
        result.left = tuple(path for path, what in missing.items() if what)
        result.seconds, result.times = time.monotonic() - begun, times.seconds
        result.notes = tuple(networks.take_notes()) if networks is not None else ()
        return result

    def _missing(self, entries: Sequence[ImageEntry]) -> Missing:
        """Look up what is missing of each image."""
        paths = [entry.path for entry in entries]
        missing: dict[str, set[str | None]] = {path: set() for path in paths}
        if self.prediction_target is not None:
            for path in without_prediction(self.prediction_target.folder, paths):
                missing[path].add(None)
        for one in self.members:
            if one.logits_target is not None:
                for path in one.logits_target.incomplete(paths):
                    missing[path].add(one.member.name)
        return missing

    def _make(
        self,
        todo: Sequence[ImageEntry],
        missing: Missing,
        networks: Networks,
        report: ProgressReporter,
        result: BlockResult,
        times: StageTimes,
    ) -> dict[str, str]:
        """Make the images until the run is told to stop; return path -> reason of those that failed."""
        budget = ByteBudget(WRITE_BYTES, MAX_WAITING)
        writes: dict[Future[dict[str, float]], str] = {}
        failed: dict[str, str] = {}
        same_errors: list[str] = []
        device, threads = torch.device(self.settings.device), self.settings.io_threads
        at_once = networks.images_at_once(self.entries)
        folders = [] if self.prediction_target is None else [self.prediction_target.folder]
        folders += [one.logits_target.writer.path for one in self.members if one.logits_target is not None]

        def collect(finished: Iterable[Future[dict[str, float]]]) -> None:
            for future in finished:
                path = writes.pop(future)
                try:
                    if shares := future.result():
                        result.others[path] = shares
                except (LostLockError, DiskError):
                    raise
                except StoreError as error:
                    failed[path] = str(error)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failed[path] = "its logits do not fit into memory"
                except OSError as error:
                    raise disk_error(folders[0], error) from error
                else:
                    report.image_done()

        def write(path: str, computed: ComputedImage, size: int) -> dict[str, float]:
            try:
                with report.working_on(path):
                    self._write(path, computed)
                return {name: round(share.item(), 6) for name, share in computed.others.items()}
            finally:
                budget.release(size)

        photographs = prefetch_images(
            self.root, todo, report, threads=threads, pinned=device.type == "cuda", exif=self.exif
        )
        with contextlib.closing(photographs), ThreadPoolExecutor(threads, "write") as writers:
            try:
                while not report.is_stopping:
                    with times.measure("read"):
                        taken = list(itertools.islice(photographs, at_once))
                    if not taken:
                        break
                    failed |= {entry.path: str(image) for entry, image in taken if isinstance(image, DatasetError)}
                    sound = [(entry, image) for entry, image in taken if not isinstance(image, DatasetError)]
                    answers = networks.compute(sound, missing)
                    while True:
                        with times.measure("forward"), contextlib.ExitStack() as in_work:
                            for entry, _ in sound:
                                in_work.enter_context(report.working_on(entry.path))
                            answer = next(answers, None)
                        if answer is None:
                            break
                        entry, computed = answer
                        if isinstance(computed, FailedImage):
                            failed[entry.path] = computed.reason
                            same_errors = [one for one in same_errors if one == computed.network_error]
                            if computed.network_error:
                                same_errors.append(computed.network_error)
                            if len(same_errors) == MAX_SAME_ERRORS:
                                raise NetworkGivenUpError(computed.reason, failed)
                            continue
                        same_errors.clear()
                        if computed.fallbacks:
                            ways = computed.fallbacks.items()
                            result.fallbacks[entry.path] = "; ".join(
                                f"{name} {way}" if self.prediction_target else way for name, way in ways
                            )
                        size = entry.pixels * (2 * len(self.settings.classes) * len(computed.logits) + 5)
                        with times.measure("write"):
                            budget.acquire(size)
                        writes[writers.submit(write, entry.path, computed, size)] = entry.path
                        collect([future for future in writes if future.done()])
            finally:
                with times.measure("write"):
                    while writes:
                        collect(wait(writes, return_when=FIRST_COMPLETED).done)
        return failed

    def _write(self, path: str, computed: ComputedImage) -> None:
        """Write kept logits, then the prediction: ``ensemble`` would repeat one that is older than its logits."""
        for one in self.members:
            if one.logits_target is not None and one.member.name in computed.logits:
                logits = computed.logits[one.member.name]()
                one.logits_target.write(path, logits, self.settings.io_threads)
        if self.prediction_target is None or computed.prediction is None:
            return
        label, confidence = (fetch() for fetch in computed.prediction)
        if not bool(confidence.isfinite().all()):
            used = {one.member.options(self.settings.options).precision for one in self.members}
            raise StoreError(
                f"{path}: a member's logits are not finite in {', '.join(sorted(used))}; try --precision fp32"
            )
        folder = self.prediction_target.folder
        require_place(folder, self.prediction_target.token)
        write_prediction(folder, path, label.numpy(), quantise(confidence).numpy())
