"""Fuses a block of images of one dataset, in a worker."""

from __future__ import annotations

import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import DiskError, StoreError, disk_error
from ..config.manifest import Member
from ..storage.writer_lock import require_held
from ..store.image_table import ImageEntry
from ..store.logit_store import LogitStore
from ..store.zarr_backend import DamagedShardError
from ..workers.protocol import BlockResult, ProgressReporter
from .fuse import fuse, quantise
from .prediction_folder import write_prediction

# Each image in work holds about 60 MB at 1024x2048, of which each member has 5.
THREADS = min(4, os.cpu_count() or 1)
_CACHED_PIXELS = 16384


@dataclass(frozen=True)
class FusionTask:
    """One image to fuse: its entry and the members that have it (positions in `Fusion.members`)."""

    entry: ImageEntry
    members: tuple[int, ...]


@dataclass(frozen=True)
class EnsembleBlock:
    """Some images of one dataset.

    Attributes:
        folder: where the predictions go.
        members: with the paths of their stores, None where one has none.
        functions: of the label and of the confidence.
        tasks: the images.
        token: of the run's lock on the folder.
    """

    folder: Path
    members: tuple[tuple[Member, Path | None], ...]
    functions: tuple[str, str]
    tasks: tuple[FusionTask, ...]
    token: str

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(task.entry.path for task in self.tasks)

    def run(self, report: ProgressReporter) -> BlockResult:
        """Fuse the images, several at a time; one that fails is tried again, then listed."""
        begun = time.monotonic()
        outcome = BlockResult()
        done: set[str] = set()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            stores = [None if path is None else _open_store(path) for _, path in self.members]
            self._fuse_all(stores, report, outcome, done)
        except DiskError as error:
            outcome.disk = str(error)
        except StoreError as error:
            outcome.problem = str(error)
        finally:
            torch.set_num_threads(threads)
        outcome.left = tuple(path for path in self.paths if path not in done and path not in outcome.failed)
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _fuse_all(
        self, stores: list[LogitStore | None], report: ProgressReporter, outcome: BlockResult, done: set[str]
    ) -> None:
        waiting: dict[Future[None], str] = {}

        def collect() -> None:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                path = waiting.pop(future)
                try:
                    future.result()
                except DiskError:
                    raise
                except StoreError as error:
                    outcome.failed[path] = str(error)
                except MemoryError:
                    outcome.failed[path] = "does not fit into memory"
                except OSError as error:
                    raise disk_error(self.folder, error) from error
                else:
                    done.add(path)
                report.settle()

        with ThreadPoolExecutor(THREADS, "fuse") as pool:
            try:
                for task in self.tasks:
                    if report.stopping:
                        break
                    require_held(self.folder, self.token)
                    waiting[pool.submit(self._twice, stores, task, report)] = task.entry.path
                    if len(waiting) >= 2 * THREADS:
                        collect()
            finally:
                while waiting:
                    collect()

    def _twice(self, stores: list[LogitStore | None], task: FusionTask, report: ProgressReporter) -> None:
        with report.at_work(task.entry.path):
            try:
                _fuse_image(self, stores, task)
            except DiskError:
                raise
            except StoreError:
                _fuse_image(self, stores, task)


_opened_stores: dict[str, LogitStore] = {}


def _open_store(path: Path) -> LogitStore:
    """The store, opened once for as many blocks as find it unchanged."""
    store = _opened_stores.get(str(path))
    if store is None or not store.is_current():
        store = _opened_stores[str(path)] = LogitStore.open(path)
    return store


def _fuse_image(block: EnsembleBlock, all_stores: list[LogitStore | None], task: FusionTask) -> None:
    """Fuse one image and write its two files, the class map last: it says that both are there."""
    entry = task.entry
    members = [block.members[i][0] for i in task.members]
    stores = [store for store in (all_stores[i] for i in task.members) if store is not None]
    rows = [(store, store.index[entry.path]) for store in stores]
    if entry.height is None or entry.width is None:
        raise StoreError(f"{entry.path}: has logits but no size in the table of images")
    label = np.empty((entry.height, entry.width), np.uint8)
    confidence = np.empty((entry.height, entry.width), np.uint16)
    rooms = [store.room_for_strip(entry) for store in stores]
    for start, stop in stores[0].strips(rows[0][1]):
        strips = [store.read(row, start, stop, room) for (store, row), room in zip(rows, rooms, strict=True)]
        # All classes of so few pixels stay in a core's cache.
        step = max(1, _CACHED_PIXELS // entry.width)
        for y in range(0, stop - start, step):
            fused = fuse(
                [torch.from_numpy(strip[:, y : y + step]) for strip in strips],
                [member.weight for member in members],
                [member.temperature for member in members],
                label=block.functions[0],
                confidence=block.functions[1],
            )
            if not bool(fused.confidence.isfinite().all()):
                raise DamagedShardError(
                    f"{entry.path}: a member's logits are not finite; find it with 'hmsa-pipeline verify'"
                )
            place = slice(start + y, min(start + y + step, stop))
            label[place] = fused.label.numpy()
            confidence[place] = quantise(fused.confidence).numpy()
    write_prediction(block.folder, entry.path, label, confidence)
