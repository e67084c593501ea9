"""From logit stores to fused class maps and confidences, image by image, a strip of rows at a time.

What went in stands in ``ensemble.json`` beside the predictions of a dataset (see `fusion_record`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.layouts import output_stem
from ..errors import DiskError, ManifestError, StoreError, disk_error
from .block import Outcome, Report
from .crew import Crew
from .foreman import Item, Tally, run_works
from .fusion_record import describe, read_record
from .lock import require_free, require_held, writer_lock
from .manifest import Manifest, Member
from .places import is_remote, remove_partials
from .prediction_folder import (
    begin_predictions,
    existing_predictions,
    remove_predictions,
    require_same_work,
    without_prediction,
    write_prediction,
)
from .predictions import prediction_names
from .progress import Progress
from .record import failures, gone, record_run
from .scores import fuse, quantise
from .store import DamagedShardError, ImageEntry, LogitStore
from .survey import PREDICTIONS, store_path

# Each image in work holds about 60 MB at 1024x2048, of which each member has 5.
THREADS = min(4, os.cpu_count() or 1)
_CACHED_PIXELS = 16384


@dataclass(frozen=True)
class Task:
    """One image to fuse: its entry and the members that have it (positions in `Fusion.members`)."""

    entry: ImageEntry
    members: tuple[int, ...]


@dataclass
class Fusion:
    """The work on one dataset, checked and ready to run.

    Attributes:
        dataset: its name.
        members: the manifest's members of a weight above 0, with their stores (None where one has none yet).
        tasks: images still to fuse.
        skipped: how many lie there already, made from the same stores in the same way.
        absent: images that no member has -> why, as far as is known.
        partial: images fused with fewer than all members -> names of those that took part.
    """

    dataset: str
    folder: Path
    members: list[tuple[Member, LogitStore | None]]
    record: dict[str, Any]
    tasks: list[Task] = field(default_factory=list)
    skipped: int = 0
    absent: dict[str, str] = field(default_factory=dict)
    partial: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class FusionResult:
    """What became of one dataset's images; ``failed`` maps paths to reasons."""

    dataset: str
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    partial: int = 0
    seconds: float = 0.0
    interrupted: bool = False


def plan_ensemble(
    manifest: Manifest, *, limit: int | None = None, overwrite: bool = False, allow_missing: bool = False
) -> list[Fusion]:
    """Check every dataset's stores against one another and list what is to be fused.

    Args:
        manifest: its models, datasets and ensemble functions.
        limit: images per dataset, from the first; None for all.
        overwrite: whether predictions that lie there are made again.
        allow_missing: whether an image that some members lack is fused from the others.

    Raises:
        StoreError: no store, stores that do not belong together, images that some members lack, or
            predictions made from other stores or in another way.
    """
    if not any(member.weight for member in manifest.models):
        raise ManifestError("--models: all selected models have weight 0; select another one or weigh them")
    return [_plan(manifest, d.name, limit, overwrite, allow_missing) for d in manifest.datasets]


def _plan(manifest: Manifest, dataset: str, limit: int | None, overwrite: bool, allow_missing: bool) -> Fusion:
    members: list[tuple[Member, LogitStore | None]] = []
    for member in manifest.models:
        if not member.weight:
            continue
        path = store_path(manifest.output, dataset, member.name)
        there = LogitStore.exists(path)
        if not there and not allow_missing:
            raise StoreError(f"{path}: there is no store; make it with '{_filler(member)}', or pass --allow-missing")
        members.append((member, LogitStore.open(path) if there else None))
    stores = [store for _, store in members if store is not None]
    for store in stores:
        store.require_arrays()
    if not stores:
        raise StoreError(f"{dataset}: no member has a store; make them with 'hmsa-pipeline dump'")
    entries = _common_table(dataset, stores, gone(manifest.output, dataset))
    if limit is not None:
        entries = dict(list(entries.items())[:limit])

    # Of every member's complete images when their logits were written.
    complete = [
        {e.path: f.modified for e, f in zip(s.images, s.shards(), strict=True) if f and f.bytes} if s else {}
        for _, s in members
    ]
    has = {path: tuple(i for i, there in enumerate(complete) if path in there) for path in entries}
    lacking = {
        member.name: sum(1 for path, who in has.items() if who and i not in who)
        for i, (member, _) in enumerate(members)
    }
    if any(lacking.values()) and not allow_missing:
        counts = ", ".join(f"{name} lacks {count}" for name, count in lacking.items() if count)
        raise StoreError(
            f"{dataset}: of {len(entries)} images {counts}; finish 'hmsa-pipeline dump' (or import-logits), "
            "or pass --allow-missing"
        )

    folder = manifest.output / PREDICTIONS / dataset
    require_free(folder)
    before = {} if overwrite else read_record(folder)
    record = describe(manifest.ensemble, [(m, store.identity if store else None) for m, store in members], before)
    require_same_work(folder, before, record)
    known_partial = before.get("partial", {})
    plan = Fusion(dataset, folder, members, record)
    reasons = failures(manifest.output, dataset)
    existing = existing_predictions(folder) if before else {}
    # Of times in whole seconds one that is equal may be later.
    grain = 0 if is_remote(folder) else 1
    for path, who in has.items():
        if not who:
            plan.absent[path] = reasons.get(path, "is in no member's store yet; run 'hmsa-pipeline dump'")
            continue
        names = [members[i][0].name for i in who]
        label, confidence = prediction_names(path)
        there = label in existing and confidence in existing
        used = known_partial.get(path, [m.name for m, _ in members])
        if there and set(names) <= set(used) and all(complete[i][path] < existing[label] + grain for i in who):
            plan.skipped += 1
            names = used
        else:
            plan.tasks.append(Task(entries[path], who))
        if len(names) < len(members):
            plan.partial[path] = names
    # Images beyond --limit keep what is known of them.
    for path, names in known_partial.items():
        if path not in has:
            plan.partial[path] = names
    return plan


def _filler(member: Member) -> str:
    return "hmsa-pipeline import-logits" if member.external else "hmsa-pipeline dump"


def _common_table(dataset: str, stores: list[LogitStore], left_out: set[str]) -> dict[str, ImageEntry]:
    """All members' images by path, sorted; StoreError if two members mean different photographs.

    Those that the dataset no longer holds are ``left_out``: nobody could make them complete.
    """
    first = stores[0]
    entries: dict[str, ImageEntry] = {}
    for store in stores:
        if store.identity.classes != first.identity.classes:
            raise StoreError(f"{store.path}: has other classes than {first.path}; only equal ones can be fused")
        for entry in store.images:
            if entry.path in left_out:
                continue
            known = entries.setdefault(entry.path, entry)
            if None in (known.height, entry.height):
                entries[entry.path] = entry if known.height is None else known
            elif (known.bytes, known.height, known.width) != (entry.bytes, entry.height, entry.width):
                raise StoreError(
                    f"{dataset}: the members saw different photographs under one name (first: {entry.path}, "
                    f"{known.height}x{known.width} and {entry.height}x{entry.width}); "
                    "start the older store over with 'hmsa-pipeline dump --overwrite'"
                )
    stems: dict[str, str] = {}
    for path in sorted(entries):
        other = stems.setdefault(output_stem(path), path)
        if other != path:
            raise StoreError(f"{dataset}: {other} and {path} would write the same prediction; rename one of them")
    return {path: entries[path] for path in sorted(entries)}


def run_ensemble(
    manifest: Manifest,
    plans: list[Fusion],
    crew: Crew,
    ended: Callable[[FusionResult], None],
    *,
    overwrite: bool = False,
    patience: float = 1800.0,
) -> list[FusionResult]:
    """Fuse what the plans list with the crew.

    A member's damaged image is reported and the rest goes on. After an interrupt a result says
    ``interrupted``.

    Args:
        manifest: what the plans were made of.
        plans: see `plan_ensemble`.
        crew: who does the work.
        ended: called with each dataset's result when it ends.
        overwrite: whether the predictions that are there are removed before the first is fused.
        patience: seconds after which an image that is still in work is given up.

    Raises:
        StoreError: the output cannot be written, or another run works on the same predictions.
    """
    results: list[FusionResult] = []
    if overwrite:
        # All of them now: else the same command without the flag could not go on after an interruption.
        for plan in plans:
            remove_predictions(plan.folder)
    works = [_FolderWork(plan) for plan in plans]

    def ended_work(position: int, tally: Tally) -> None:
        if tally.problem:  # unlike a dump's jobs, which are many, one that cannot be done ends the run
            raise StoreError(tally.problem)
        plan = plans[position]
        result = FusionResult(
            plan.dataset,
            done=tally.done,
            skipped=plan.skipped,
            failed=plan.absent | tally.failed,
            partial=len(plan.partial),
            seconds=tally.seconds,
            interrupted=tally.interrupted,
        )
        results.append(result)
        _record(manifest, result)
        with progress.aside():
            ended(result)

    with Progress(sum(len(plan.tasks) for plan in plans)) as progress:
        interrupted = run_works(works, crew, progress, ended_work, places=(manifest.output,), patience=patience)
    if interrupted and not any(result.interrupted for result in results):
        results.append(FusionResult(plans[-1].dataset, interrupted=True))
    return results


def _record(manifest: Manifest, result: FusionResult) -> None:
    record_run(
        manifest.output,
        "ensemble",
        result.dataset,
        manifest.resolved(),
        done=result.done,
        skipped=result.skipped,
        partial=result.partial,
        failed=result.failed,
        idle=not result.done and not result.failed,
        interrupted=result.interrupted,
        seconds=round(result.seconds, 3),
    )


class _FolderWork:
    """The predictions of one dataset as the foreman sees them."""

    def __init__(self, plan: Fusion) -> None:
        self._plan = plan
        self._held = contextlib.ExitStack()
        self._tasks = {task.entry.path: task for task in plan.tasks}

    @property
    def name(self) -> str:
        return self._plan.dataset

    @property
    def key(self) -> str:
        return self._plan.dataset

    def open(self) -> list[Item]:
        try:
            self._token = self._held.enter_context(writer_lock(self._plan.folder))
            begin_predictions(self._plan.folder, self._plan.record, self._plan.partial, self._tasks)
        except OSError as error:
            raise disk_error(self._plan.folder, error) from error
        return [Item(t.entry.path, max(1, (t.entry.height or 0) * (t.entry.width or 0))) for t in self._plan.tasks]

    def block(self, paths: Sequence[str]) -> FusionBlock:
        plan = self._plan
        members = tuple((member, store.path if store else None) for member, store in plan.members)
        tasks = tuple(self._tasks[path] for path in paths)
        functions = plan.record["label"], plan.record["confidence"]
        return FusionBlock(plan.folder, members, functions, tasks, self._token)

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        return without_prediction(self._plan.folder, paths)

    def sweep(self) -> None:
        remove_partials(self._plan.folder)

    def close(self) -> None:
        self._held.close()


@dataclass(frozen=True)
class FusionBlock:
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
    tasks: tuple[Task, ...]
    token: str

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(task.entry.path for task in self.tasks)

    def run(self, report: Report) -> Outcome:
        """Fuse the images, several at a time; one that fails is tried again, then listed."""
        begun = time.monotonic()
        outcome = Outcome()
        done: set[str] = set()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            stores = [None if path is None else _opened(path) for _, path in self.members]
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

    def _fuse_all(self, stores: list[LogitStore | None], report: Report, outcome: Outcome, done: set[str]) -> None:
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

    def _twice(self, stores: list[LogitStore | None], task: Task, report: Report) -> None:
        with report.at_work(task.entry.path):
            try:
                _fuse_image(self, stores, task)
            except DiskError:
                raise
            except StoreError:
                _fuse_image(self, stores, task)


_known: dict[str, LogitStore] = {}


def _opened(path: Path) -> LogitStore:
    """The store, opened once for as many blocks as find it unchanged."""
    store = _known.get(str(path))
    if store is None or not store.is_current():
        store = _known[str(path)] = LogitStore.open(path)
    return store


def _fuse_image(block: FusionBlock, all_stores: list[LogitStore | None], task: Task) -> None:
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
