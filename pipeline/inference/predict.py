"""The stage ``predict``: `dump` and `ensemble` in one pass, for those who want only the result.

Predictions are those that the two would leave, in the same folder with the same record, so that either may go on
where the other stopped; on a GPU the last digits may differ, since the fusion is computed there too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import ManifestError, disk_error
from ..config.manifest import Manifest, Member
from ..fusion.ensemble_record import describe, read_record
from ..fusion.prediction_files import prediction_names
from ..fusion.prediction_folder import (
    begin_predictions,
    existing_predictions,
    note_sizes,
    remove_predictions,
    require_same_work,
    require_unchanged,
    without_prediction,
)
from ..runtime.device import resolve_device, resolve_precision, resolve_speed
from ..runtime.progress import Progress
from ..storage.filesystem import remove_partials
from ..storage.run_record import record_gone, record_run
from ..storage.writer_lock import require_free, writer_lock
from ..store.identity import Identity, ImageEntry
from ..workers.in_process import Crew
from ..workers.scheduler import Item, Tally, run_works
from .dump import Job, StoreWork, require_writable, set_aside
from .dump_plan import complete_in, identify, identity_on
from .image_block import Setting
from .inputs import PREDICTIONS, Survey, remarks, store_path, survey
from .predict_block import Kept, PredictBlock, Seat


@dataclass(frozen=True)
class Prediction:
    """The work on one dataset.

    Attributes:
        dataset: its name.
        root: the folder that the photographs' paths are relative to.
        folder: where the predictions go.
        members: whose networks run, with what their logits are made with.
        keeps: a dump's job for every member whose logits are stored, too.
        record: what goes into ``ensemble.json``.
        partial: images that were fused from fewer than all members and are not made again now.
        wanted: the images that are to be complete afterwards.
        skipped: how many of them are.
    """

    dataset: str
    root: Path
    folder: Path
    members: tuple[tuple[Member, Identity], ...]
    keeps: tuple[Job, ...]
    record: dict[str, Any]
    partial: dict[str, list[str]]
    wanted: tuple[ImageEntry, ...]
    skipped: int

    @property
    def todo(self) -> int:
        """Images still to be made."""
        return len(self.wanted) - self.skipped


@dataclass(frozen=True)
class PredictPlan:
    """The work on all datasets, and on what; with ``overwrite`` what is there is removed first."""

    manifest: Manifest
    predictions: tuple[Prediction, ...]
    device: torch.device
    precision: str
    notes: tuple[str, ...]
    overwrite: bool = False

    @property
    def todo(self) -> int:
        """Images still to be made, over all datasets."""
        return sum(one.todo for one in self.predictions)

    def lines(self, workers: Sequence[str]) -> list[str]:
        """The plan for people.

        Args:
            workers: who would do it.
        """
        names = [member.name for member, _ in self.predictions[0].members]
        kept = [job.member.name for job in self.predictions[0].keeps]
        return [
            *(f"{one.dataset}: {one.todo} to do, {one.skipped} complete" for one in self.predictions),
            *(f"worker {worker}" for worker in workers),
            f"{self.todo} images to do with {len(names)} models ({', '.join(names)}) on {self.device} in "
            f"{self.precision}; logits kept: {', '.join(kept) or 'none'}",
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Dataset by dataset."""
        return [{"dataset": o.dataset, "images": len(o.wanted), "complete": o.skipped} for o in self.predictions]


@dataclass
class Predicted:
    """What became of one dataset's images; ``failed`` and ``fallbacks`` map paths to reasons and to ways."""

    dataset: str
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    seconds: float = 0.0
    interrupted: bool = False
    hands: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its figures by name."""
        names = ("dataset", "done", "skipped", "failed", "fallbacks", "problem", "seconds", "times")
        return {name: getattr(self, name) for name in names}


def plan_predict(
    manifest: Manifest,
    *,
    device: str | torch.device = "auto",
    limit: int | None = None,
    overwrite: bool = False,
    keep: Iterable[str] = (),
) -> PredictPlan:
    """Check everything that a prediction needs, and list what there is to do.

    Args:
        manifest: its models, datasets, and how they are fused.
        device: see `resolve_device`; or one that is known to be there, such as a worker's.
        limit: images per dataset, from the first; None for all.
        overwrite: whether predictions, and stores of ``keep``, that are there are made again.
        keep: names of models whose logits are stored, too.

    Raises:
        HmsaError: a device, checkpoint, dataset, store or folder is not as it must be.
    """
    target = resolve_device(device) if isinstance(device, str) else device
    precision, note = resolve_precision(manifest.inference.precision, target)
    _, compile, notes = resolve_speed(manifest.inference.cuda_graphs, manifest.inference.compile, target)
    kept = [manifest.member(name).name for name in keep]
    members = [member for member in manifest.models if member.weight or member.name in kept]
    if not any(member.weight for member in members):
        raise ManifestError("--models: all selected models have weight 0; select another one or weigh them")
    for member in members:
        if member.external:
            raise ManifestError(
                f"model {member.name!r}: is external, there is no network to run; leave it out with --models, or use "
                "'hmsa-pipeline dump' and 'hmsa-pipeline ensemble'"
            )
    roots = [dataset.root_path() for dataset in manifest.datasets]
    identities, said = identify(manifest, members, precision, compile)
    pairs = tuple(zip(members, identities, strict=True))
    surveys = [survey(manifest, dataset, afresh=overwrite) for dataset in manifest.datasets]
    predictions = tuple(
        _plan(manifest, looked, root, [(m, identity_on(i, looked.dataset)) for m, i in pairs], kept, limit, overwrite)
        for looked, root in zip(surveys, roots, strict=True)
    )
    said = (*([note] if note else ()), *notes, *said, *remarks(surveys))
    return PredictPlan(manifest, predictions, target, precision, said, overwrite)


def _plan(
    manifest: Manifest,
    looked: Survey,
    root: Path,
    members: Sequence[tuple[Member, Identity]],
    kept: Sequence[str],
    limit: int | None,
    overwrite: bool,
) -> Prediction:
    dataset, photos = looked.dataset.name, looked.photographs
    folder = manifest.output / PREDICTIONS / dataset
    require_free(folder)
    before = {} if overwrite else read_record(folder)
    record = describe(manifest.ensemble, [(m, i) for m, i in members if m.weight], before)
    require_same_work(folder, before, record)
    existing = existing_predictions(folder) if before else {}
    partial = dict(before.get("partial", {}))
    keeps = tuple(
        Job(member, dataset, root, store_path(manifest.output, dataset, member.name), identity, photos, limit)
        for member, identity in members
        if member.name in kept
    )
    for job in keeps:
        require_free(job.store)
    stored = [set() if overwrite else complete_in(job) for job in keeps]
    wanted, skipped, seen = [], 0, {}
    for photo in photos[:limit]:
        height, width = photo.size or (None, None)
        wanted.append(ImageEntry(photo.path, photo.bytes, height, width, None, None))
        whole = partial.pop(photo.path, None) is None
        there = whole and all(name in existing for name in prediction_names(photo.path))
        if there:
            seen[photo.path] = photo.bytes
        skipped += there and all(photo.path in complete for complete in stored)
    require_unchanged(folder, seen)
    return Prediction(dataset, root, folder, tuple(members), keeps, record, partial, tuple(wanted), skipped)


def run_predict(
    plan: PredictPlan,
    crew: Crew,
    ended: Callable[[Predicted], None],
    *,
    patience: float,
    threads: int | None = None,
) -> list[Predicted]:
    """Do what the plan lists with the crew, and keep what became of each dataset in ``run.json``.

    A dataset whose folder cannot be used has a ``problem``, and the others go on. After an interrupt the datasets
    that were not begun are left out and a result says ``interrupted``.

    Args:
        plan: see `plan_predict`.
        crew: who does it.
        ended: called with each dataset's result when it ends.
        patience: seconds after which an image that is still in work is given up.
        threads: of the CPU that each worker computes with; None for as many as it is set up for.

    Raises:
        DiskError: the disk cannot be written, or is nearly full; what is complete is kept.
        HmsaError: the workers are gone for good.
    """
    manifest = plan.manifest
    require_writable(manifest.output)
    if plan.overwrite:
        # All of them now: else the same command without the flag could not go on after an interruption.
        for one in plan.predictions:
            remove_predictions(one.folder)
            for job in one.keeps:
                set_aside(job.store)
    setting = Setting.of(manifest.inference, plan.device, plan.precision, threads)
    works = [_FolderWork(one, manifest, setting) for one in plan.predictions]
    results: list[Predicted] = []

    def ended_work(position: int, tally: Tally) -> None:
        result = works[position].result(tally)
        results.append(result)
        _record(plan, works[position], result)
        with progress.aside():
            ended(result)

    checkpoints = (member.checkpoint_path() for member, _ in plan.predictions[0].members)
    places = (manifest.output, *dict.fromkeys(one.root for one in plan.predictions), *dict.fromkeys(checkpoints))
    with Progress(plan.todo) as progress:
        interrupted = run_works(works, crew, progress, ended_work, places=places, patience=patience)
    if interrupted and not any(result.interrupted for result in results):
        results.append(Predicted(plan.predictions[-1].dataset, interrupted=True))
    return results


def _record(plan: PredictPlan, work: _FolderWork, result: Predicted) -> None:
    output = plan.manifest.output
    record_gone(output, result.dataset, work.gone, work.present)
    record_run(
        output,
        "predict",
        result.dataset,
        plan.manifest.resolved(),
        failed=result.failed,
        looked_at=work.looked_at,
        idle=not result.done and not result.failed and not result.problem,
        done=result.done,
        skipped=result.skipped,
        problem=result.problem,
        interrupted=result.interrupted,
        seconds=round(result.seconds, 3),
        device=str(plan.device),
        precision=plan.precision,
        fallbacks=result.fallbacks,
        workers=result.hands,
        times={part: round(seconds, 3) for part, seconds in result.times.items()},
    )


class _FolderWork:
    """The predictions of one dataset as the foreman sees them, with the stores of the members that are kept."""

    def __init__(self, plan: Prediction, manifest: Manifest, setting: Setting) -> None:
        self._plan, self._setting = plan, setting
        self._functions = manifest.ensemble.label, manifest.ensemble.confidence
        self._keeps = {job.member.name: StoreWork(job, setting) for job in plan.keeps}
        self._held = contextlib.ExitStack()
        self._entries = {entry.path: entry for entry in plan.wanted}
        self._skipped = plan.skipped
        self.gone: frozenset[str] = frozenset()
        self.looked_at = self._entries.keys()
        self.present = {photo.path for job in plan.keeps for photo in job.photographs}

    @property
    def name(self) -> str:
        return self._plan.dataset

    @property
    def key(self) -> str:
        return "all models"

    def open(self) -> list[Item]:
        plan = self._plan
        try:
            self._token = self._held.enter_context(writer_lock(plan.folder))
            for work in self._keeps.values():
                self._held.callback(work.close)
                work.open()
            self.gone = frozenset().union(*(work.gone for work in self._keeps.values()))
            fewer = [path for path in read_record(plan.folder).get("partial", {}) if path in self._entries]
            begin_predictions(plan.folder, plan.record, plan.partial, fewer)
            note_sizes(plan.folder, {entry.path: entry.bytes for entry in plan.wanted})
        except OSError as error:
            raise disk_error(plan.folder, error) from error
        todo = self.incomplete(self._entries)
        self._skipped = len(self._entries) - len(todo)
        sizes = {path: (entry.height or 0) * (entry.width or 0) for path, entry in self._entries.items()}
        return [Item(path, max(1, sizes[path])) for path in todo]

    def block(self, paths: Sequence[str]) -> PredictBlock:
        plan = self._plan
        seats = tuple(
            Seat(member, identity.sha256, self._kept(member.name, paths)) for member, identity in plan.members
        )
        entries = tuple(self._entries[path] for path in paths)
        exif = any(identity.exif for _, identity in plan.members)
        return PredictBlock(plan.folder, self._token, plan.root, seats, self._functions, entries, self._setting, exif)

    def _kept(self, name: str, paths: Sequence[str]) -> Kept | None:
        if name not in self._keeps:
            return None
        block = self._keeps[name].block(paths)
        return Kept(block.writer, block.token, {entry.path: entry for entry in block.entries})

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        paths = list(paths)
        lacking = set(without_prediction(self._plan.folder, paths))
        for work in self._keeps.values():
            lacking |= set(work.incomplete(paths))
        return [path for path in paths if path in lacking]

    def sweep(self) -> None:
        remove_partials(self._plan.folder)
        for work in self._keeps.values():
            work.sweep()

    def close(self) -> None:
        self._held.close()

    def result(self, tally: Tally) -> Predicted:
        return Predicted(
            self._plan.dataset,
            done=tally.done,
            skipped=self._skipped,
            failed=tally.failed,
            fallbacks=tally.fallbacks,
            problem=tally.problem,
            seconds=tally.seconds,
            interrupted=tally.interrupted,
            hands=tally.hands,
            times=tally.times,
        )
