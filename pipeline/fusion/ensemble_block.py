"""Fuses a block of images of one dataset, in a worker."""

from __future__ import annotations

import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DiskError, StoreError, disk_error
from ..config.manifest import FusionFunctions
from ..config.member import Member
from ..runtime.device import one_thread
from ..storage.writer_lock import require_held
from ..store.image_table import ImageEntry
from ..store.logit_store import LogitStore
from ..store.zarr_backend import DamagedShardError
from ..workers.protocol import BlockResult, ProgressReporter
from .fuse import quantise
from .member_stores import fused_strips, open_store
from .prediction_folder import write_prediction

# Each image in work holds about 60 MB at 1024x2048, of which each member has 5.
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class FusionTask:
    """One image to fuse.

    Attributes:
        entry: its path and size.
        members: the members that have it (positions in `EnsemblePlan.members`).
        rows: where it stands in the tables of their stores.
    """

    entry: ImageEntry
    members: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class EnsembleBlock:
    """Some images of one dataset, to be fused.

    Attributes:
        folder: of the predictions.
        members: with the paths of their stores, None where a member has none.
        token: token of the run's lock on the folder.
    """

    folder: Path
    members: tuple[tuple[Member, Path | None], ...]
    functions: FusionFunctions
    tasks: tuple[FusionTask, ...]
    token: str

    def run(self, report: ProgressReporter) -> BlockResult:
        """Fuse the images, several at a time; an image that fails is tried once more, then listed."""
        begun = time.monotonic()
        result = BlockResult()
        done: set[str] = set()
        try:
            stores = [None if path is None else open_store(path) for _, path in self.members]
            self._expect_rows(stores)
            with one_thread():
                self._fuse_all(stores, report, result, done)
        except DiskError as error:
            result.disk_problem = str(error)
        except StoreError as error:
            result.problem = str(error)
        paths = [task.entry.path for task in self.tasks]
        result.left = tuple(path for path in paths if path not in done and path not in result.failed)
        result.seconds = time.monotonic() - begun
        return result

    def _expect_rows(self, stores: list[LogitStore | None]) -> None:
        """Let each store hold the rows of the block's images alone, instead of its whole table."""
        rows: dict[int, list[int]] = {}
        for task in self.tasks:
            for member, row in zip(task.members, task.rows, strict=True):
                rows.setdefault(member, []).append(row)
        for member, expected in rows.items():
            if (store := stores[member]) is not None:
                store.index.expect(expected)

    def _fuse_all(
        self, stores: list[LogitStore | None], report: ProgressReporter, result: BlockResult, done: set[str]
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
                    result.failed[path] = str(error)
                except MemoryError:
                    result.failed[path] = "does not fit into memory"
                except OSError as error:
                    raise disk_error(self.folder, error) from error
                else:
                    done.add(path)
                report.image_done()

        with ThreadPoolExecutor(THREADS, "fuse") as pool:
            try:
                for task in self.tasks:
                    if report.is_stopping:
                        break
                    require_held(self.folder, self.token)
                    waiting[pool.submit(self._try_twice, stores, task, report)] = task.entry.path
                    if len(waiting) >= 2 * THREADS:
                        collect()
            finally:
                while waiting:
                    collect()

    def _try_twice(self, stores: list[LogitStore | None], task: FusionTask, report: ProgressReporter) -> None:
        with report.working_on(task.entry.path):
            try:
                self.fuse_image(stores, task)
            except DiskError:
                raise
            except StoreError:
                self.fuse_image(stores, task)

    def fuse_image(self, stores: list[LogitStore | None], task: FusionTask) -> None:
        """Fuse one image and write its two files."""
        entry = task.entry
        if entry.height is None or entry.width is None:
            raise StoreError(f"{entry.path}: has logits but no size in the table of images")
        label = np.empty((entry.height, entry.width), np.uint8)
        confidence = np.empty((entry.height, entry.width), np.uint16)
        members = [self.members[i][0] for i in task.members]
        having = [store for store in (stores[i] for i in task.members) if store is not None]
        everybody = {"": range(len(members))}
        for rows, fused in fused_strips(members, having, entry.path, everybody, self.functions):
            if not bool(fused[""].confidence.isfinite().all()):
                raise DamagedShardError(
                    f"{entry.path}: a member's logits are not finite; find it with 'hmsa-pipeline verify'"
                )
            label[rows] = fused[""].label.numpy()
            confidence[rows] = quantise(fused[""].confidence).numpy()
        write_prediction(self.folder, entry.path, label, confidence)
