"""Component figures of one dataset that says what is out of distribution; see `components`.

A pixel is predicted where its score, 1 - confidence, reaches the threshold of the best F1 of all the dataset's
pixels. So the images are read twice: their pixels are counted first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ....datasets.layout.image_mask_pairs import ImageMaskPair
from ....errors import DatasetError, StoreError
from ...fusion.member_stores import ENSEMBLE, predict_from_stores
from ...fusion.prediction_files import CONFIDENCE_LEVELS, prediction_names, read_prediction
from ...text import figure, without_nan
from ..each_image import count_each_image
from ..evaluate import EvaluationPlan, EvaluationResult
from .components import ANOMALIES, OBSTACLES, ComponentCounts, LeastSizes, best_f1, count_components


@dataclass
class ComponentScores:
    """Components of each subject.

    Attributes:
        least: the sizes below which components are left out.
        best: by subject, the best F1 of pixels and the level of the score that reaches it.
        counts: by subject.
        failed: images whose components were not counted -> reasons.
    """

    least: LeastSizes
    best: dict[str, tuple[float, int]]
    counts: dict[str, ComponentCounts]
    failed: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, float]]:
        """``best_f1`` of pixels, its ``threshold``, and components' ``siou``, ``ppv`` and ``f1``."""
        return {
            name: {
                "best_f1": self.best[name][0],
                "threshold": self.best[name][1] / CONFIDENCE_LEVELS,
                **counts.figures(),
            }
            for name, counts in self.counts.items()
        }

    def as_json(self) -> dict[str, Any]:
        """Figures by subject, null where one is not defined; and the sizes."""
        found: dict[str, Any] = {name: without_nan(one) for name, one in self.figures().items()}
        return {"least_predicted": self.least.predicted, "least_truth": self.least.truth, "scores": found}

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """A flat row for each subject of ``dataset``."""
        scores = self.as_json()["scores"]
        return [{"dataset": dataset, "subject": f"{name}, components", **one} for name, one in scores.items()]

    def lines(self) -> list[str]:
        """A line for each subject."""
        found = self.figures()
        wide = max(map(len, [*found, "components"]))
        columns = list(next(iter(found.values())))
        head = f"{'components':{wide}}  " + "  ".join(f"{name:>13}" for name in columns)
        return [
            f"components of at least {self.least.truth} labelled and {self.least.predicted} predicted pixels",
            head,
            *(
                f"{name:{wide}}  " + "  ".join(f"{figure(one[column]):>13}" for column in columns)
                for name, one in found.items()
            ),
        ]


def least_sizes(plan: EvaluationPlan, track: str) -> LeastSizes:
    """Find the sizes below which components of a dataset are left out.

    Args:
        plan: of the dataset.
        track: ``anomaly``, ``obstacle``, or ``auto`` for that of the toolkit for this dataset.

    Raises:
        DatasetError: the toolkit's is not known.
    """
    track = (plan.truth.track or "") if track == "auto" else track
    if track not in _SIZES:
        raise DatasetError(
            f"--components auto: {plan.dataset} may be SMIYC's anomaly track or its obstacle track, whose "
            "smallest components differ; choose 'anomaly' or 'obstacle'"
        )
    return _SIZES[track]


_SIZES = {"anomaly": ANOMALIES, "obstacle": OBSTACLES}


def score_components(
    plan: EvaluationPlan, result: EvaluationResult, least: LeastSizes, workers: int | None = None
) -> ComponentScores:
    """Count the components of the images that were scored.

    Args:
        plan: of the dataset, whose labels say what is out of distribution.
        result: its counts of pixels.
        least: the sizes below which components are left out.
        workers: how many processes work; None for one a usable core.
    """
    best = {name: best_f1(counts.levels) for name, counts in result.counts.items()}
    levels = {name: level for name, (_, level) in best.items()}
    found = ComponentScores(least, best, {name: ComponentCounts() for name in levels})
    pairs = [pair for pair in plan.truth.pairs if pair.image not in result.failed]
    work = partial(_counted, plan, levels, least)
    for one in count_each_image(f"{plan.dataset}, components", pairs, work, workers, found.failed):
        for name, counts in (one or {}).items():
            found.counts[name] += counts
    return found


def _counted(
    plan: EvaluationPlan, levels: Mapping[str, int], least: LeastSizes, pair: ImageMaskPair
) -> dict[str, ComponentCounts] | str:
    try:
        label, confidence = read_prediction(plan.folder, prediction_names(pair.image), None)
        mask = plan.truth.reader.read(pair, (label.shape[0], label.shape[1]))
        confidences: dict[str, np.ndarray] = {ENSEMBLE: confidence}
        if plan.subjects:
            answers = predict_from_stores(plan.members, pair.image, plan.subjects, plan.functions)
            confidences |= {name: answer[1] for name, answer in answers.items()}
    except (DatasetError, StoreError) as error:
        return str(error)
    return {
        name: count_components(CONFIDENCE_LEVELS - 1 - one >= levels[name], mask, least)
        for name, one in confidences.items()
    }
