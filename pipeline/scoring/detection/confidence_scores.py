"""Scores several confidence functions of the ensemble, from one look at the stores of each image.

For pixels with classes: how well a confidence tells right from wrong pixels; the class map is that of the manifest's
label function, and the same for all. For sets that say what is out of distribution: how well low confidence finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ....datasets.layout.image_mask_pairs import ImageMaskPair
from ....datasets.taxonomy import IGNORE
from ....errors import DatasetError, StoreError
from ...config.manifest import Manifest
from ...fusion.member_stores import ENSEMBLE, MemberStore, confidences_from_stores, stores_of
from ...fusion.prediction_files import CONFIDENCE_LEVELS
from ...text import figure, without_nan
from ..each_image import count_each_image
from ..evaluate import EvaluationPlan
from ..ground_truth import GroundTruth
from ..metrics import aupr, auroc, errors_first, fpr95, level_counts


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
    """Counts (2, 65536) int64 of each function as `PixelCounts.levels`; images that were not scored -> reasons."""

    plan: ConfidencePlan
    levels: dict[str, np.ndarray]
    failed: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, float]]:
        """Figures by function, the same names as those of `evaluate`; NaN where one is not defined."""
        return {name: _figures(levels, self.plan.truth.ood) for name, levels in self.levels.items()}

    def as_json(self) -> dict[str, Any]:
        """Figures by function; null where one is not defined."""
        return {name: without_nan(one) for name, one in self.figures().items()}

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each function."""
        dataset = self.plan.dataset
        return [{"dataset": dataset, "subject": f"{ENSEMBLE}, {name}", **one} for name, one in self.as_json().items()]

    def lines(self) -> list[str]:
        """A line for each function."""
        found = self.figures()
        wide = max(map(len, found))
        columns = list(next(iter(found.values())))
        head = f"{'confidence':{wide}}  " + "  ".join(f"{name:>13}" for name in columns)
        return [head] + [
            f"{name:{wide}}  " + "  ".join(f"{figure(one[column]):>13}" for column in columns)
            for name, one in found.items()
        ]


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


def _figures(levels: np.ndarray, ood: bool) -> dict[str, float]:
    if ood:
        return {"auroc": auroc(levels), "auprc": aupr(levels), "fpr95": fpr95(levels)}
    wrong = errors_first(levels)
    return {
        "auroc": auroc(levels),
        "auprc_success": aupr(levels),
        "auprc_error": aupr(wrong),
        "fpr95": fpr95(levels),
    }


def score_confidences(plan: ConfidencePlan, workers: int | None = None) -> ConfidenceScores:
    """Score one dataset; an image that cannot be read is listed, the others are counted.

    Args:
        plan: the dataset and the functions.
        workers: how many processes work; None for one a usable core.
    """
    zeros = {name: np.zeros((2, CONFIDENCE_LEVELS), np.int64) for name in plan.confidences}
    result = ConfidenceScores(plan, zeros)
    for levels in count_each_image(plan.dataset, plan.truth.pairs, partial(_scored, plan), workers, result.failed):
        for name, counted in (levels or {}).items():
            result.levels[name] += counted
    return result


def _scored(plan: ConfidencePlan, pair: ImageMaskPair) -> dict[str, np.ndarray] | str:
    try:
        label, maps = confidences_from_stores(plan.members, pair.image, plan.label, plan.confidences)
        truth = plan.truth.reader.read(pair, (label.shape[0], label.shape[1]))
    except (DatasetError, StoreError) as error:
        return str(error)
    known = truth != IGNORE
    if plan.truth.ood:
        foreign = truth[known] == 1
        return {name: level_counts(foreign, CONFIDENCE_LEVELS - 1 - found[known]) for name, found in maps.items()}
    right = label[known] == truth[known]
    return {name: level_counts(right, found[known]) for name, found in maps.items()}
