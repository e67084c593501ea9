"""Scores several confidence functions of the ensemble, from one look at the stores of each image.

For pixels with classes: how well a confidence tells right from wrong pixels; the class map is that of the manifest's
label function, and the same for all. For sets that say what is out of distribution: how well low confidence finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ....datasets.layout.image_mask_pairs import ImageMaskPair
from ....datasets.taxonomy import IGNORE
from ....errors import DatasetError, StoreError
from ...config.manifest import Manifest
from ...fusion.member_stores import ENSEMBLE, MemberStore, confidences_from_stores, stores_of
from ...fusion.prediction_files import CONFIDENCE_LEVELS
from ...runtime.device import one_thread
from ...text import without_nan
from ..each_image import count_each_image
from ..evaluate import EvaluationPlan
from ..figures.totals import Totals
from ..ground_truth import GroundTruth
from ..metrics import FINE, aupr, auroc, errors_first, fpr95, level_counts
from ..pixel_counts import PixelCounts
from ..resampling.bootstrap import Bootstrap, Resampling, intervals
from .lines import lines_with_ends, with_ends


@dataclass(frozen=True)
class ConfidencePlan:
    """One dataset, ready to be scored.

    Attributes:
        dataset: its name.
        truth: images with masks.
        members: whose stores are fused.
        label: function of the class map.
        confidences: names of the functions.
    """

    dataset: str
    truth: GroundTruth
    members: tuple[MemberStore, ...]
    label: str
    confidences: tuple[str, ...]


@dataclass
class ConfidenceScores:
    """Figures of several functions on one dataset.

    Attributes:
        plan: of the dataset.
        counts: by function; only `PixelCounts.levels` and the number of images count.
        failed: images that were not scored -> reasons.
        intervals: by function, the ends of each figure's interval; empty if images were not resampled.
    """

    plan: ConfidencePlan
    counts: dict[str, PixelCounts]
    failed: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, float]]:
        """Figures by function, the same names as those of `evaluate`; NaN where one is not defined."""
        return {name: _figures(counts.totals()) for name, counts in self.counts.items()}

    def as_json(self) -> dict[str, Any]:
        """``confidences``, and ``confidence_intervals`` if images were resampled; null where one is not defined."""
        found = {"confidences": {name: without_nan(one) for name, one in self.figures().items()}}
        if self.intervals:
            found["confidence_intervals"] = {name: without_nan(one) for name, one in self.intervals.items()}
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each function."""
        return [
            {"dataset": self.plan.dataset, "subject": f"{ENSEMBLE}, {name}"}
            | without_nan(with_ends(one, self.intervals.get(name, {})))
            for name, one in self.figures().items()
        ]

    def lines(self) -> list[str]:
        """A line for each function, and the ends of intervals below it."""
        return lines_with_ends("confidence", self.figures(), self.intervals)


def plan_confidences(manifest: Manifest, plan: EvaluationPlan, confidences: Sequence[str]) -> ConfidencePlan:
    """Check that the stores hold the images of a dataset that is scored.

    Args:
        manifest: its members and stores.
        plan: of the dataset.
        confidences: names of the functions.

    Raises:
        StoreError: stores are missing, or lack images.
    """
    images = [pair.image for pair in plan.truth.pairs]
    stores = stores_of(manifest, plan.dataset.partition("/")[0], images)
    return ConfidencePlan(plan.dataset, plan.truth, stores, manifest.ensemble.label, tuple(confidences))


def _figures(totals: Totals) -> dict[str, float]:
    levels = totals.levels
    area, false = auroc(levels), fpr95(levels, between=totals.scale is not FINE)
    if totals.ood:
        return {"auroc": area, "auprc": aupr(levels), "fpr95": false}
    wrong = errors_first(levels)
    return {"auroc": area, "auprc_success": aupr(levels), "auprc_error": aupr(wrong), "fpr95": false}


def score_confidences(
    plan: ConfidencePlan, workers: int | None = None, resampling: Resampling | None = None
) -> ConfidenceScores:
    """Score one dataset; an image that cannot be read is listed, the others are counted.

    Args:
        plan: the dataset and the functions.
        workers: how many processes work; None for one a usable core.
        resampling: how images are resampled for intervals; None for no intervals.
    """
    ood, classes = plan.truth.ood, len(plan.truth.classes)
    result = ConfidenceScores(plan, {name: PixelCounts.none(ood, classes) for name in plan.confidences})
    bootstrap = Bootstrap(plan.confidences, len(plan.truth.pairs), resampling) if resampling else None
    for found in count_each_image(plan.dataset, plan.truth.pairs, partial(_scored, plan), workers, result.failed):
        for name, counted in (found or {}).items():
            result.counts[name] += counted
        if bootstrap:
            bootstrap.add(found)
    if bootstrap:
        result.intervals = {
            name: intervals(bootstrap.replicates(name, counts, figures=_figures))
            for name, counts in result.counts.items()
        }
    return result


@one_thread()
def _scored(plan: ConfidencePlan, pair: ImageMaskPair) -> dict[str, PixelCounts] | str:
    try:
        label, maps = confidences_from_stores(plan.members, pair.image, plan.label, plan.confidences)
        truth = plan.truth.reader.read(pair, (label.shape[0], label.shape[1]))
    except (DatasetError, StoreError) as error:
        return str(error)
    known = truth != IGNORE
    positive = truth[known] == 1 if plan.truth.ood else label[known] == truth[known]
    counts = {}
    for name, found in maps.items():
        one = counts[name] = PixelCounts.none(plan.truth.ood, len(plan.truth.classes))
        one.levels = level_counts(positive, CONFIDENCE_LEVELS - 1 - found[known] if plan.truth.ood else found[known])
        one.images = 1
    return counts
