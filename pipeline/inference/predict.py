"""The stage ``predict``: `dump` and `ensemble` in one pass, without logits on the disk.

The predictions are those of the two stages, in the same folder with the same record, so that each can resume the
other's work; on a GPU the last digits may differ, since the fusion is computed there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...errors import ManifestError
from ..config.manifest import Manifest
from ..fusion.ensemble_record import make_record, read_record
from ..fusion.member_stores import require_max_logits
from ..fusion.prediction_files import prediction_names
from ..fusion.prediction_folder import existing_predictions, require_same_work, require_unchanged
from ..storage.output_folder import predictions_path
from ..storage.writer_lock import require_free
from ..workers.protocol import Workers
from .inputs import Survey
from .member_check import identity_for_dataset
from .plan import InferencePlan, InferenceResult, run_inference
from .predict_job import DatasetPlan, PredictJob


@dataclass(frozen=True, kw_only=True)
class PredictPlan(InferencePlan):
    """The datasets to predict."""

    subject = "dataset"
    jobs: tuple[DatasetPlan, ...] = ()

    def lines(self, workers: Sequence[str]) -> list[str]:
        """Describe the plan for people; ``workers`` are described in a line each."""
        names = [member.name for member, _ in self.members]
        kept = [store.member.name for store in self.jobs[0].stores]
        return [
            *super().lines(workers),
            f"{self.todo} images to do with {len(names)} models ({', '.join(names)}) on {self.device} in "
            f"{self.precisions}; logits kept: {', '.join(kept) or 'none'}",
        ]


def plan_predict(
    manifest: Manifest,
    device: torch.device,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: Iterable[str] = (),
) -> PredictPlan:
    """Check everything that a prediction needs, and list the work of each dataset.

    Args:
        manifest, device, limit, overwrite: see `InferencePlan`.
        keep: names of models whose logits are stored, too.

    Raises:
        HmsaError: a device, checkpoint, dataset, store or folder cannot be used.
    """
    kept = [manifest.member(name).name for name in keep]
    members = [member for member in manifest.models if member.weight or member.name in kept]
    if not any(member.weight for member in members):
        raise ManifestError("--models: all selected models have weight 0; select another one or weigh them")
    require_max_logits(manifest, "ensemble.confidence", [manifest.ensemble.confidence])
    for member in members:
        if member.external:
            raise ManifestError(
                f"model {member.name!r}: is external, there is no network to run; leave it out with --models, or use "
                "'hmsa-pipeline dump' and 'hmsa-pipeline ensemble'"
            )
    plan = PredictPlan.check(manifest, members, device, limit=limit, overwrite=overwrite)
    return replace(plan, jobs=tuple(_plan_dataset(plan, looked, kept) for looked in plan.surveys))


def _plan_dataset(plan: PredictPlan, looked: Survey, kept: Sequence[str]) -> DatasetPlan:
    dataset = looked.dataset.name
    folder = predictions_path(plan.manifest.output, dataset)
    members = [
        (member.on(dataset), identity_for_dataset(identity, looked.dataset)) for member, identity in plan.members
    ]
    require_free(folder)
    before = {} if plan.overwrite else read_record(folder)
    voting = [(m, i) for m, i in members if m.weight]
    record = make_record(plan.manifest.ensemble, voting, before, plan.manifest.class_set)
    require_same_work(folder, before, record)
    existing = existing_predictions(folder) if before else {}
    partial = dict(before.get("partial", {}))
    stores = tuple(plan.plan_store(*member, looked) for member in plan.members if member[0].name in kept)
    wanted = looked.photographs[: plan.limit]
    predicted = {}
    for photo in wanted:
        of_all_members = partial.pop(photo.path, None) is None
        if of_all_members and all(name in existing for name in prediction_names(photo.path)):
            predicted[photo.path] = photo.bytes
    require_unchanged(folder, predicted)
    is_predicted = np.array([photo.path in predicted for photo in wanted], bool)
    return DatasetPlan(
        name=dataset,
        dataset=dataset,
        root=looked.dataset.root_path(),
        wanted=wanted,
        complete=np.logical_and.reduce([is_predicted, *(store.complete for store in stores)]),
        folder=folder,
        functions=plan.manifest.ensemble,
        members=tuple(members),
        stores=stores,
        record=record,
        partial=partial,
    )


def run_predict(
    plan: PredictPlan, workers: Workers, on_result: Callable[[InferenceResult], None]
) -> list[InferenceResult]:
    """Predict the plan's datasets.

    Args:
        plan: see `plan_predict`.
        workers, on_result: see `run_inference`, which raises the same errors.
    """
    return run_inference("predict", plan, PredictJob, workers, on_result)
