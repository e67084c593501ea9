"""The stage ``ensemble``: logit stores to fused class maps and confidences.

What was fused, and how, stands in ``ensemble.json`` beside the predictions of a dataset (see `ensemble_record`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ManifestError, StoreError, disk_error
from ..config.manifest import FusionFunctions, Manifest
from ..config.member import Member
from ..storage.filesystem import file_system
from ..storage.output_folder import predictions_path
from ..storage.run_record import failures
from ..storage.writer_lock import require_free, writer_lock
from ..store.logit_store import LogitStore
from ..workers.jobs import JobImage, JobResult, JobSummary
from ..workers.protocol import Workers
from ..workers.recorded_jobs import run_recorded_jobs
from .dataset_stores import DatasetStores, open_dataset
from .ensemble_block import EnsembleBlock
from .ensemble_record import make_record, read_record
from .member_stores import require_max_logits
from .prediction_files import prediction_names
from .prediction_folder import (
    PredictionJob,
    begin_predictions,
    existing_predictions,
    remove_predictions,
    require_same_work,
)


@dataclass
class EnsemblePlan:
    """The work on one dataset, checked and ready to run.

    Attributes:
        folder: of the predictions.
        members: the manifest's members of a weight above 0, with their stores (None where one has none yet).
        record: the content of ``ensemble.json``.
        stores: the images of all members' stores.
        tasks: images still to fuse: position in ``stores`` -> the members that have it.
        skipped: number of images that were fused before from the same stores in the same way.
        absent: images that no member has -> reason, as far as it is known.
        partial: images fused from fewer than all members -> names of the members that took part.
    """

    dataset: str
    folder: Path
    members: list[tuple[Member, LogitStore | None]]
    record: dict[str, Any]
    stores: DatasetStores
    tasks: dict[int, tuple[int, ...]] = field(default_factory=dict)
    skipped: int = 0
    absent: dict[str, str] = field(default_factory=dict)
    partial: dict[str, list[str]] = field(default_factory=dict)


@dataclass(kw_only=True)
class EnsembleResult(JobResult):
    """Result of one dataset; ``partial`` is the number of images fused from fewer than all members."""

    partial: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the counts for ``--json``."""
        names = ("dataset", "done", "skipped", "partial", "failed", "seconds")
        return {name: getattr(self, name) for name in names}

    def record(self) -> dict[str, Any]:
        """Return the entries for ``run.json``."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "partial": self.partial,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
        }


def plan_ensemble(
    manifest: Manifest, *, limit: int | None = None, overwrite: bool = False, allow_missing: bool = False
) -> list[EnsemblePlan]:
    """Check every dataset's stores against one another and list what is to be fused.

    Args:
        manifest: its models, datasets and ensemble functions.
        limit: images per dataset, from the first; None for all.
        overwrite: make existing predictions again.
        allow_missing: fuse an image that some members lack from the others.

    Raises:
        ManifestError: all models have weight 0.
        StoreError: no store, stores that do not belong together, images that some members lack, or
            predictions made from other stores or in another way.
    """
    if not any(member.weight for member in manifest.models):
        raise ManifestError("--models: all selected models have weight 0; select another one or weigh them")
    require_max_logits(manifest, "ensemble.confidence", [manifest.ensemble.confidence])
    return [_plan_dataset(manifest, d.name, limit, overwrite, allow_missing) for d in manifest.datasets]


def _plan_dataset(
    manifest: Manifest, dataset: str, limit: int | None, overwrite: bool, allow_missing: bool
) -> EnsemblePlan:
    found = open_dataset(manifest, dataset, limit=limit, allow_missing=allow_missing)
    members = found.members
    folder = predictions_path(manifest.output, dataset)
    require_free(folder)
    before = {} if overwrite else read_record(folder)
    identities = [(m, store.identity if store else None) for m, store in members]
    record = make_record(manifest.ensemble, identities, before, manifest.class_set)
    require_same_work(folder, before, record)
    known_partial = before.get("partial", {})
    plan = EnsemblePlan(dataset, folder, members, record, found)
    reasons = failures(manifest.output, dataset)
    existing = existing_predictions(folder) if before else {}
    # Object stores give times in whole seconds, where an equal time may be later.
    grain = 1 if file_system(folder).has_exact_times else 0
    has = found.has
    everybody = tuple(range(len(members)))
    counts, last = has.sum(axis=0), found.written.max(axis=0).tolist()
    for position, path in enumerate(found.paths):
        who = everybody if counts[position] == len(members) else tuple(np.flatnonzero(has[:, position]).tolist())
        if not who:
            plan.absent[path] = reasons.get(path, "is in no member's store yet; run 'hmsa-pipeline dump'")
            continue
        names = [members[i][0].name for i in who]
        label, confidence = prediction_names(path)
        there = label in existing and confidence in existing
        used = known_partial.get(path, [m.name for m, _ in members])
        if there and set(names) <= set(used) and last[position] < existing[label] + grain:
            plan.skipped += 1
            names = used
        else:
            plan.tasks[position] = who
        if len(names) < len(members):
            plan.partial[path] = names
    # For images beyond --limit the old record is kept.
    listed = set(found.paths) if known_partial else set()
    plan.partial |= {path: names for path, names in known_partial.items() if path not in listed}
    return plan


def run_ensemble(
    manifest: Manifest,
    plans: list[EnsemblePlan],
    workers: Workers,
    on_result: Callable[[EnsembleResult], None],
    *,
    overwrite: bool = False,
) -> list[EnsembleResult]:
    """Fuse what the plans list; damaged images are reported, and the others are fused. Raises what `run_jobs` does.

    Args:
        manifest: the manifest that was planned.
        plans: see `plan_ensemble`.
        workers: who does it.
        on_result: called with each dataset's result when it ends.
        overwrite: remove existing predictions before the first image is fused.
    """
    if overwrite:
        # All of them now: otherwise the same command without the flag could not resume after an interruption.
        for plan in plans:
            remove_predictions(plan.folder)
    return run_recorded_jobs(
        "ensemble",
        [EnsembleJob(plan, manifest.ensemble) for plan in plans],
        workers,
        on_result,
        todo=sum(len(plan.tasks) for plan in plans),
        output=manifest.output,
        manifest=manifest.resolved(),
    )


class EnsembleJob(PredictionJob):
    """The scheduler's job of fusing one dataset."""

    def __init__(self, plan: EnsemblePlan, functions: FusionFunctions) -> None:
        super().__init__(plan.dataset, plan.folder, key=plan.dataset)
        self._plan, self._functions = plan, functions
        self._positions = {plan.stores.paths[position]: position for position in plan.tasks}
        self._is_opened = False

    def open(self) -> list[JobImage]:
        """Lock the folder, begin the predictions, and return the images that are not fused."""
        plan = self._plan
        self._is_opened = True
        try:
            self._token = self._held.enter_context(writer_lock(plan.folder))
            begin_predictions(plan.folder, plan.record, plan.partial, self._positions)
        except OSError as error:
            raise disk_error(plan.folder, error) from error
        sides = plan.stores.facts[:, 1] * plan.stores.facts[:, 2]
        return [JobImage(path, int(sides[position])) for path, position in self._positions.items()]

    def block(self, paths: Sequence[str]) -> EnsembleBlock:
        members = tuple((member, store.path if store else None) for member, store in self._plan.members)
        positions = [self._positions[path] for path in paths]
        tasks = tuple(self._plan.stores.task(position, self._plan.tasks[position]) for position in positions)
        return EnsembleBlock(self._plan.folder, members, self._functions, tasks, self._token)

    def result(self, summary: JobSummary) -> EnsembleResult:
        """Make the dataset's result; a problem, unlike one of the jobs of a dump, which are many, ends the run."""
        if summary.problem:
            raise StoreError(summary.problem)
        plan = self._plan
        result = EnsembleResult(name=plan.dataset, dataset=plan.dataset, **vars(summary))
        if self._is_opened:
            result.skipped, result.partial = plan.skipped, len(plan.partial)
            result.failed = plan.absent | result.failed
        return result
