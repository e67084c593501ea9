"""Work of ``evaluate`` on detection: several confidences, components, and whole images of another distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from ....errors import DatasetError, HmsaError
from ..shared.confidences import require_confidences
from ..shared.options import UNLABELLED, refuse_without_effect, require_track, split_names
from ..shared.output import end_command, print_failed, write_rows

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ...scoring.detection.score_components import ComponentPlan
    from ...scoring.evaluate import EvaluationPlan, EvaluationResult
    from ...scoring.resampling.bootstrap import Resampling
    from ..shared.output import Output


def check_detection_options(context: typer.Context) -> None:
    """Raise an HmsaError that names the first option on detection that does not go with the others."""
    given = context.params
    if given["components"] is not None:
        require_track(given["components"])
    if given["confidences"] is not None and given["predictions"] is not None:
        raise HmsaError(
            "--confidences: come from the manifest's stores, not from --predictions; leave one of them out"
        )
    if given["ood_datasets"] is None:
        refuse_without_effect(context, "without --ood-datasets", "aggregate")
        return
    others = {
        "--predictions": "predictions",
        "--per-model": "per_model",
        "--leave-one-out": "leave_one_out",
        "--compare": "compare",
        "--components": "components",
        "--confusion": "confusion",
        "--processes": "processes",
        "--ground-truth": "ground_truth",
        "--samples": "samples",
        "--submission": "submission",
        UNLABELLED: "allow_unlabelled",
    }
    if wrong := [flag for flag, name in others.items() if given[name]]:
        raise HmsaError(
            f"{wrong[0]}: does not go with --ood-datasets, which scores whole images by the ensemble's uncertainty; "
            "leave one of them out"
        )
    refuse_without_effect(context, "beside --ood-datasets, whose figures are those of images", "average", "figures")
    if not given["bootstrap"]:
        refuse_without_effect(context, "beside --ood-datasets without --bootstrap", "seed")
    if given["confidences"] is None:
        refuse_without_effect(context, "beside --ood-datasets without --confidences", "models")


def _chosen_confidences(manifest: Manifest, text: str | None) -> list[str] | None:
    names = split_names("--confidences", text)
    return None if names is None else require_confidences(manifest, "--confidences", names)


def evaluate_images(manifest: Manifest, say: Output, given: Mapping[str, Any]) -> None:
    """Do the work of ``--ood-datasets``.

    Args:
        manifest: its datasets.
        say: where results are printed.
        given: the command's options by name.
    """
    from ...scoring.detection.aggregates import is_aggregate, nearest_aggregate
    from ...scoring.detection.image_scores import (
        detection_lines,
        image_detections,
        plan_image_scores,
        score_images,
    )
    from ...scoring.resampling.bootstrap import Resampling

    aggregates = split_names("--aggregate", given["aggregate"]) or []
    if unknown := [name for name in aggregates if not is_aggregate(name)]:
        raise HmsaError(f"--aggregate {unknown[0]}: is none; {nearest_aggregate(unknown[0])}")
    plans = plan_image_scores(
        manifest,
        split_names("--ood-datasets", given["ood_datasets"]) or [],
        confidences=_chosen_confidences(manifest, given["confidences"]),
        aggregates=list(dict.fromkeys(aggregates)),
        limit=given["limit"],
    )
    results = [score_images(plan) for plan in plans]
    for result in results:
        print_failed(result.dataset, result.failed)
    resampling = Resampling(given["bootstrap"], given["seed"]) if given["bootstrap"] else None
    found = image_detections(results, resampling)
    say.lines(detection_lines(found))
    say.figures(
        {
            "figures": [one.as_json() for one in found],
            "failed": {result.dataset: result.failed for result in results},
            **({"bootstrap": resampling.as_json()} if resampling else {}),
        }
    )
    if given["csv_file"]:
        write_rows(given["csv_file"], [one.row() for one in found], "--csv")
    end_command(sum(len(result.failed) for result in results))


class Detection:
    """Scores of ``--confidences`` and ``--components`` beside those of each dataset.

    Args:
        manifest: its members and stores.
        plans: all datasets that are scored.
        given: the command's options by name.
        resampling: how images are resampled for intervals; None for no intervals.

    Raises:
        HmsaError: an option names what there is not, or the labels have nothing to count.
        StoreError: stores are missing, or lack images.
    """

    def __init__(
        self,
        manifest: Manifest,
        plans: Sequence[EvaluationPlan],
        given: Mapping[str, Any],
        resampling: Resampling | None,
    ) -> None:
        from ...scoring.detection.confidence_scores import plan_confidences

        self._processes: int | None = given["processes"]
        self._resampling = resampling
        names = _chosen_confidences(manifest, given["confidences"])
        self._confidences = [plan_confidences(manifest, plan, names) for plan in plans] if names else []
        track = given["components"]
        self._components = (
            [_component_plan(plan, track) if plan.truth.ood else None for plan in plans] if track else []
        )
        if track and not any(self._components):
            raise HmsaError("--components: the labels of no dataset say what is out of distribution; leave it out")

    def score(self, number: int, result: EvaluationResult) -> More:
        """Score one dataset.

        Args:
            number: of its plan.
            result: the scores of its pixels.
        """
        from ...scoring.detection.confidence_scores import score_confidences
        from ...scoring.detection.score_components import score_components

        more = More()
        if self._confidences:
            confidences = score_confidences(self._confidences[number], self._processes, self._resampling)
            more.failed |= confidences.failed
            more.lines += confidences.lines()
            more.figures |= confidences.as_json()
            more.rows += confidences.rows()
        if self._components and (plan := self._components[number]):
            components = score_components(plan, result.counts, result.failed, self._processes, self._resampling)
            more.failed |= components.failed
            more.lines += components.lines()
            more.figures["components"] = components.as_json()
            more.rows += components.rows(result.dataset)
        more.failed = {image: why for image, why in more.failed.items() if image not in result.failed}
        return more


def _component_plan(plan: EvaluationPlan, track: str) -> ComponentPlan:
    """Plan the components of a dataset; DatasetError if the sizes of ``auto`` are not known for it."""
    from ...scoring.detection.score_components import ComponentPlan, least_sizes

    least = least_sizes(plan.truth, track)
    if least is None:
        raise DatasetError(
            f"--components auto: {plan.dataset} may be SMIYC's anomaly track or its obstacle track, whose "
            "smallest components differ; choose 'anomaly' or 'obstacle'"
        )
    return ComponentPlan(plan.dataset, plan.folder, plan.truth, plan.members, plan.subjects, plan.functions, least)


class More:
    """Lines, figures for JSON, rows for CSV, and images that failed, of one dataset."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.figures: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}
