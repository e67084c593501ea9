"""The stage ``predict``: `dump` and `ensemble` in one pass, without logits on the disk.

The predictions are those of the two stages, in the same folder with the same record, so that each can resume the
other's work; on a GPU the last digits may differ, since the fusion is computed there, too.
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
from ..storage.output_folder import predictions_path, store_path
from ..storage.writer_lock import require_free
from ..store.identity import StoreIdentity
from ..store.image_table import ImageEntry
from ..workers.protocol import WorkerPool
from ..workers.recorded_jobs import run_recorded_jobs
from .inputs import Survey, remarks, survey
from .predict_job import DatasetPlan, PredictJob, PredictResult
from .predictor import InferenceSettings
from .store_job import (
    InferencePlan,
    StorePlan,
    complete_in,
    identities_of,
    identity_for_dataset,
    require_writable,
    set_aside,
)


@dataclass(frozen=True, kw_only=True)
class PredictPlan(InferencePlan):
    """The datasets to predict, in the order in which they are begun."""

    datasets: tuple[DatasetPlan, ...]

    @property
    def todo(self) -> int:
        """Number of images of all datasets that are not complete."""
        return sum(dataset.todo for dataset in self.datasets)

    def lines(self, workers: Sequence[str]) -> list[str]:
        """Describe the plan for people; ``workers`` are described in a line each."""
        names = [member.name for member, _ in self.datasets[0].members]
        kept = [store.member.name for store in self.datasets[0].stores]
        return [
            *(f"{one.dataset}: {one.todo} to do, {one.skipped} complete" for one in self.datasets),
            *(f"worker {worker}" for worker in workers),
            f"{self.todo} images to do with {len(names)} models ({', '.join(names)}) on {self.device} in "
            f"{self.precision}; logits kept: {', '.join(kept) or 'none'}",
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the plan for ``--json``, dataset by dataset."""
        return [{"dataset": o.dataset, "images": len(o.wanted), "complete": o.skipped} for o in self.datasets]


def plan_predict(
    manifest: Manifest,
    *,
    device: str | torch.device = "auto",
    limit: int | None = None,
    overwrite: bool = False,
    keep: Iterable[str] = (),
) -> PredictPlan:
    """Check everything that a prediction needs, and list the work of each dataset.

    Args:
        manifest: its models, datasets and ensemble functions.
        device: see `resolve_device`; or a device that is known to be there, such as a worker's.
        limit: images per dataset, from the first; None for all.
        overwrite: make existing predictions, and stores of ``keep``, again.
        keep: names of models whose logits are stored, too.

    Raises:
        HmsaError: a device, checkpoint, dataset, store or folder cannot be used.
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
    datasets = tuple(
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
    return PredictPlan(
        manifest=manifest, datasets=datasets, device=target, precision=precision, notes=said, overwrite=overwrite
    )


def _plan_dataset(
    manifest: Manifest,
    looked: Survey,
    root: Path,
    members: Sequence[tuple[Member, StoreIdentity]],
    kept: Sequence[str],
    limit: int | None,
    overwrite: bool,
) -> DatasetPlan:
    dataset, photos = looked.dataset.name, looked.photographs
    folder = predictions_path(manifest.output, dataset)
    require_free(folder)
    before = {} if overwrite else read_record(folder)
    record = make_record(manifest.ensemble, [(m, i) for m, i in members if m.weight], before)
    require_same_work(folder, before, record)
    existing = existing_predictions(folder) if before else {}
    partial = dict(before.get("partial", {}))
    stores = tuple(
        StorePlan(member, dataset, root, store_path(manifest.output, dataset, member.name), identity, photos, limit)
        for member, identity in members
        if member.name in kept
    )
    for store in stores:
        require_free(store.store)
    stored = [set() if overwrite else complete_in(store) for store in stores]
    wanted, skipped, seen = [], 0, {}
    for photo in photos[:limit]:
        height, width = photo.size or (None, None)
        wanted.append(ImageEntry(photo.path, photo.bytes, height, width, None, None))
        of_all_members = partial.pop(photo.path, None) is None
        is_there = of_all_members and all(name in existing for name in prediction_names(photo.path))
        if is_there:
            seen[photo.path] = photo.bytes
        skipped += is_there and all(photo.path in complete for complete in stored)
    require_unchanged(folder, seen)
    return DatasetPlan(
        dataset=dataset,
        root=root,
        folder=folder,
        members=tuple(members),
        stores=stores,
        record=record,
        partial=partial,
        wanted=tuple(wanted),
        skipped=skipped,
    )


def run_predict(
    plan: PredictPlan,
    pool: WorkerPool,
    on_result: Callable[[PredictResult], None],
    *,
    image_timeout: float,
    threads: int | None = None,
) -> list[PredictResult]:
    """Predict the plan's datasets; one whose folder cannot be used has a ``problem``, and the others are predicted.

    Args:
        plan: see `plan_predict`.
        pool: the workers.
        on_result: called with each dataset's result when it ends.
        image_timeout: seconds after which an image that is still in work is given up.
        threads: CPU threads of each worker; None to leave them as they are.

    Raises:
        DiskError: the disk cannot be written, or is nearly full; complete images are kept.
        HmsaError: the workers are gone for good.
    """
    manifest = plan.manifest
    require_writable(manifest.output)
    if plan.overwrite:
        # All of them now: otherwise the same command without the flag could not resume after an interruption.
        for dataset in plan.datasets:
            remove_predictions(dataset.folder)
            for store in dataset.stores:
                set_aside(store.store)
    settings = InferenceSettings.of(manifest.inference, plan.device, plan.precision, threads)
    checkpoints = [member.checkpoint_path() for member, _ in plan.datasets[0].members]
    return run_recorded_jobs(
        "predict",
        [PredictJob(dataset, manifest.ensemble, settings) for dataset in plan.datasets],
        pool,
        on_result,
        todo=plan.todo,
        output=manifest.output,
        manifest=manifest.resolved(),
        required_paths=[*(dataset.root for dataset in plan.datasets), *checkpoints],
        image_timeout=image_timeout,
    )
