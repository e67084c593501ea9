"""Component figures of one dataset that says what is out of distribution; see `components`.

A pixel is predicted where its score, 1 - confidence, reaches the threshold of the best F1 of all the dataset's
pixels. So the images are read twice: their pixels are counted first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from ....datasets.layout.image_mask_pairs import ImageMaskPair
from ....errors import DatasetError, StoreError
from ...config.manifest import FusionFunctions
from ...fusion.member_stores import ENSEMBLE, MemberStore, predict_from_stores
from ...fusion.prediction_files import CONFIDENCE_LEVELS, prediction_names, read_prediction
from ...runtime.device import one_thread
from ...text import without_nan
from ..each_image import count_each_image
from ..figures.totals import Totals
from ..ground_truth import GroundTruth
from ..pixel_counts import PixelCounts, count_ood
from ..resampling.bootstrap import Bootstrap, Resampling, draws, interval
from .components import ANOMALIES, OBSTACLES, ComponentCounts, LeastSizes, best_f1, count_components
from .lines import lines_with_ends, with_ends

AUTO = "auto"
"""The track that is the toolkit's for the dataset."""
_SIZES = {"anomaly": ANOMALIES, "obstacle": OBSTACLES}


@dataclass(frozen=True)
class ComponentPlan:
    """One dataset whose components are counted.

    Attributes:
        dataset: its name, for the progress line.
        folder: the predictions of the ensemble.
        truth: its labels, which say what is out of distribution.
        members: with their stores; none where no subject needs them.
        subjects: besides the ensemble, name -> positions of the members that are fused.
        functions: of the manifest.
        least: the sizes below which components are left out.
    """

    dataset: str
    folder: Path
    truth: GroundTruth
    members: tuple[MemberStore, ...]
    subjects: Mapping[str, tuple[int, ...]]
    functions: FusionFunctions
    least: LeastSizes


@dataclass
class ComponentScores:
    """Components of each subject.

    Attributes:
        least: the sizes below which components are left out.
        best: by subject, the best F1 of pixels and the level of the score that reaches it.
        counts: by subject.
        failed: images whose components were not counted -> reasons.
        intervals: by subject, the ends of each figure's interval; empty if images were not resampled.
    """

    least: LeastSizes
    best: dict[str, tuple[float, int]]
    counts: dict[str, ComponentCounts]
    failed: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)

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
        found: dict[str, Any] = {
            "least_predicted": self.least.predicted,
            "least_truth": self.least.truth,
            "scores": {name: without_nan(one) for name, one in self.figures().items()},
        }
        if self.intervals:
            found["intervals"] = {name: without_nan(one) for name, one in self.intervals.items()}
        return found

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """A flat row for each subject of ``dataset``."""
        return [
            {"dataset": dataset, "subject": f"{name}, components"}
            | without_nan(with_ends(one, self.intervals.get(name, {})))
            for name, one in self.figures().items()
        ]

    def lines(self) -> list[str]:
        """A line for each subject, and the ends of intervals below it."""
        sizes = f"at least {self.least.truth} labelled and {self.least.predicted} predicted pixels"
        return [f"components of {sizes}", *lines_with_ends("components", self.figures(), self.intervals)]


def least_sizes(truth: GroundTruth, track: str) -> LeastSizes | None:
    """Find the sizes below which components of a dataset are left out; None if the toolkit's are not known.

    Args:
        truth: labels of the dataset.
        track: ``anomaly``, ``obstacle``, or `AUTO`.
    """
    return _SIZES.get((truth.track or "") if track == AUTO else track)


def score_components(
    plan: ComponentPlan,
    counts: Mapping[str, PixelCounts],
    failed: Collection[str],
    workers: int | None = None,
    resampling: Resampling | None = None,
) -> ComponentScores:
    """Count the components of the images whose pixels were counted.

    Args:
        plan: of the dataset.
        counts: of the pixels of all images, by subject.
        failed: images that were not counted.
        workers: how many processes work; None for one a usable core.
        resampling: how images are resampled for intervals; None for no intervals. Components keep the threshold of
            all images, and the best F1 of pixels is that of each resampling's own threshold.

    Raises:
        DatasetError: a process was ended from outside.
    """
    best = {name: best_f1(one.levels) for name, one in counts.items()}
    levels = {name: level for name, (_, level) in best.items()}
    found = ComponentScores(plan.least, best, {name: ComponentCounts() for name in levels})
    pairs = plan.truth.pairs
    drawn = draws(len(pairs), resampling) if resampling else repeat(None)
    times = (one for pair, one in zip(pairs, drawn, strict=False) if pair.image not in failed)
    counted = [pair for pair in pairs if pair.image not in failed]
    work = partial(_counted, replace(plan, truth=plan.truth.without_pairs()), levels, resampling is not None)
    sums: dict[str, np.ndarray] = {}
    pixels = Bootstrap(list(levels), len(pairs), resampling) if resampling else None
    for one in count_each_image(f"{plan.dataset}, components", counted, work, workers, found.failed):
        weights = next(times)
        for name, (more, _) in (one or {}).items():
            found.counts[name] += more
            if weights is not None:
                sums[name] = sums.get(name, 0.0) + np.outer(weights, more.row())
        if pixels and one:
            pixels.add({name: of_pixels for name, (_, of_pixels) in one.items() if of_pixels}, weights)
    for name, one in sums.items():
        f1 = pixels.replicates(name, counts[name], figures=_best) if pixels else None
        if f1 is not None:
            found.intervals[name] = _intervals(f1) | _component_intervals(one)
    return found


def _best(totals: Totals) -> dict[str, float]:
    return {"best_f1": best_f1(totals.levels)[0]}


def _intervals(drawn: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: interval(values).tolist() for name, values in drawn.items()}


def _component_intervals(sums: np.ndarray) -> dict[str, list[float]]:
    """The ends of each figure's interval, of rows (B, D) of `ComponentCounts.row`."""
    drawn = [ComponentCounts.of_row(row).figures() for row in sums]
    return _intervals({name: np.array([one[name] for one in drawn]) for name in drawn[0]})


Counted = tuple[ComponentCounts, PixelCounts | None]
"""Components of an image, and its pixels by their levels where images are resampled."""


@one_thread()
def _counted(
    plan: ComponentPlan, levels: Mapping[str, int], resampled: bool, pair: ImageMaskPair
) -> dict[str, Counted] | str:
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
        name: (
            count_components(CONFIDENCE_LEVELS - 1 - one >= levels[name], mask, plan.least),
            count_ood(one, mask, len(plan.truth.classes)) if resampled else None,
        )
        for name, one in confidences.items()
    }
