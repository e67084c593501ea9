"""The stage ``predict``: `dump` and `ensemble` in one pass, for those who want only the result.

Predictions are those that the two would leave, in the same folder with the same record, so that either may go on
where the other stopped; on a GPU the last digits may differ, since the fusion is computed there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ManifestError
from ..config.manifest import Manifest, Member
from ..fusion.ensemble_record import make_record, read_record
from ..fusion.prediction_files import prediction_names
from ..fusion.prediction_folder import existing_predictions, remove_predictions, require_same_work, require_unchanged
from ..runtime.device import resolve_device, resolve_precision, resolve_speed
from ..runtime.progress import Progress
from ..storage.output_folder import PREDICTIONS, store_path
from ..storage.run_record import record_gone, record_run
from ..storage.writer_lock import require_free
from ..store.identity import Identity
from ..store.image_table import ImageEntry
from ..workers.jobs import JobSummary
from ..workers.protocol import WorkerPool
from ..workers.scheduler import run_jobs
from .inputs import Survey, remarks, survey
from .predict_job import DatasetPlan, PredictJob, PredictResult
from .predictor import InferenceSettings
from .store_job import StorePlan, complete_in, identities_of, identity_for_dataset, require_writable, set_aside


@dataclass(frozen=True)
class PredictPlan:
    """The work on all datasets, and on what; with ``overwrite`` what is there is removed first."""

    manifest: Manifest
    predictions: tuple[DatasetPlan, ...]
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
    identities, said = identities_of(manifest, members, precision, compile)
    pairs = tuple(zip(members, identities, strict=True))
    surveys = [survey(manifest, dataset, afresh=overwrite) for dataset in manifest.datasets]
    predictions = tuple(
        _plan_dataset(
            manifest,
            looked,
            root,
            [(m, identity_for_dataset(i, looked.dataset)) for m, i in pairs],
            kept,
            limit,
            overwrite,
        )
        for looked, root in zip(surveys, roots, strict=True)
    )
    said = (*([note] if note else ()), *notes, *said, *remarks(surveys))
    return PredictPlan(manifest, predictions, target, precision, said, overwrite)


def _plan_dataset(
    manifest: Manifest,
    looked: Survey,
    root: Path,
    members: Sequence[tuple[Member, Identity]],
    kept: Sequence[str],
    limit: int | None,
    overwrite: bool,
) -> DatasetPlan:
    dataset, photos = looked.dataset.name, looked.photographs
    folder = manifest.output / PREDICTIONS / dataset
    require_free(folder)
    before = {} if overwrite else read_record(folder)
    record = make_record(manifest.ensemble, [(m, i) for m, i in members if m.weight], before)
    require_same_work(folder, before, record)
    existing = existing_predictions(folder) if before else {}
    partial = dict(before.get("partial", {}))
    keeps = tuple(
        StorePlan(member, dataset, root, store_path(manifest.output, dataset, member.name), identity, photos, limit)
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
    return DatasetPlan(dataset, root, folder, tuple(members), keeps, record, partial, tuple(wanted), skipped)


def run_predict(
    plan: PredictPlan,
    crew: WorkerPool,
    ended: Callable[[PredictResult], None],
    *,
    patience: float,
    threads: int | None = None,
) -> list[PredictResult]:
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
    setting = InferenceSettings.of(manifest.inference, plan.device, plan.precision, threads)
    works = [PredictJob(one, manifest, setting) for one in plan.predictions]
    results: list[PredictResult] = []

    def ended_work(position: int, tally: JobSummary) -> None:
        result = works[position].result(tally)
        results.append(result)
        _record_result(plan, works[position], result)
        with progress.aside():
            ended(result)

    checkpoints = (member.checkpoint_path() for member, _ in plan.predictions[0].members)
    places = (manifest.output, *dict.fromkeys(one.root for one in plan.predictions), *dict.fromkeys(checkpoints))
    with Progress(plan.todo) as progress:
        interrupted = run_jobs(works, crew, progress, ended_work, places=places, patience=patience)
    if interrupted and not any(result.interrupted for result in results):
        results.append(PredictResult(plan.predictions[-1].dataset, interrupted=True))
    return results


def _record_result(plan: PredictPlan, work: PredictJob, result: PredictResult) -> None:
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
