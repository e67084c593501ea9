"""The figure that is searched for: a metric, or a weighted sum of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import HmsaError, nearest
from ..scoring.averages import Average
from ..scoring.figures.calibration_errors import adaptive_ece, mce, smooth_ece
from ..scoring.figures.names import LISTS
from ..scoring.figures.selective import augrc, aurc, coverage_at_risk, eaurc, risk_at_coverage
from .counts import Totals
from .levels import SCALE, coarse_ece


def _mean(parts: np.ndarray, wholes: np.ndarray, totals: Totals, average: Average) -> np.ndarray:
    """Mean of ratios (..., C), (...) float64, over the classes that ``average`` counts and where there is a whole.

    NaN if there is none.
    """
    counted = totals.labelled > 0
    if average.rule != "labelled":
        counted = counted | (totals.predicted > 0)
    if average.classes is not None:
        counted = counted & np.isin(np.arange(counted.shape[-1]), average.classes)
    counted = counted & (wholes > 0)
    return _ratio(np.where(counted, _ratio(parts, wholes), 0.0).sum(-1), counted.sum(-1))


def _iou(totals: Totals, average: Average) -> np.ndarray:
    """Mean IoU, (...) float64."""
    return _mean(totals.hits, totals.labelled + totals.predicted - totals.hits, totals, average)


def _each(figure: Callable[[np.ndarray], float]) -> Callable[[Totals, Average], np.ndarray]:
    """The metric that is a figure of counts (2, 1024), one combination or resample after the other."""

    def of(totals: Totals, _: Average) -> np.ndarray:
        levels = totals.levels
        found = [figure(one) for one in levels.reshape(-1, *levels.shape[-2:])]
        return np.array(found, np.float64).reshape(levels.shape[:-2])

    return of


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole


def _auroc(levels: np.ndarray) -> np.ndarray:
    negatives, positives = levels[..., 0, :].astype(np.float64), levels[..., 1, :].astype(np.float64)
    below = negatives.cumsum(-1) - negatives / 2
    return _ratio((positives * below).sum(-1), negatives.sum(-1) * positives.sum(-1))


def _aupr(levels: np.ndarray) -> np.ndarray:
    above = levels[..., ::-1].cumsum(-1).astype(np.float64)
    negatives, positives = above[..., 0, :], above[..., 1, :]
    precision = np.nan_to_num(_ratio(positives, positives + negatives), nan=1.0)
    return (np.diff(_ratio(positives, positives[..., -1:]), prepend=0.0) * precision).sum(-1)


def _fpr95(levels: np.ndarray) -> np.ndarray:
    above = levels[..., ::-1].cumsum(-1).astype(np.float64)
    rates = _ratio(above, above[..., -1:])
    first = (rates[..., 1, :] >= 0.95).argmax(-1)
    found = np.take_along_axis(rates[..., 0, :], first[..., None], -1)[..., 0]
    return np.where(np.isnan(rates[..., 1, -1]), math.nan, found)


def _errors_first(levels: np.ndarray) -> np.ndarray:
    return levels[..., ::-1, ::-1]


@dataclass(frozen=True)
class Metric:
    """A figure of `Totals`.

    Attributes:
        of: totals (...) and which classes a mean IoU runs over -> (...) float64, NaN where it is not defined.
        better: 1 if higher is better, -1 if lower is.
        ood: whether it needs labels of what is out of distribution.
    """

    of: Callable[[Totals, Average], np.ndarray]
    better: int = 1
    ood: bool = False


METRICS: dict[str, Metric] = {
    "miou": Metric(_iou),
    "accuracy": Metric(lambda t, _: _ratio(t.hits.sum(-1), t.labelled.sum(-1))),
    "ece": Metric(lambda t, _: coarse_ece(t.levels), -1),
    "auroc": Metric(lambda t, _: _auroc(t.levels)),
    "auprc_success": Metric(lambda t, _: _aupr(t.levels)),
    "auprc_error": Metric(lambda t, _: _aupr(_errors_first(t.levels))),
    "fpr95": Metric(lambda t, _: _fpr95(t.levels), -1),
    "mean_precision": Metric(lambda t, average: _mean(t.hits, t.predicted, t, average)),
    "mean_recall": Metric(lambda t, average: _mean(t.hits, t.labelled, t, average)),
    "adaptive_ece": Metric(_each(lambda levels: adaptive_ece(levels, SCALE)), -1),
    "smooth_ece": Metric(_each(lambda levels: smooth_ece(levels, SCALE)), -1),
    "mce": Metric(_each(lambda levels: mce(levels, SCALE)), -1),
    "aurc": Metric(_each(aurc), -1),
    "eaurc": Metric(_each(eaurc), -1),
    "augrc": Metric(_each(augrc), -1),
    "risk_at_80_coverage": Metric(_each(risk_at_coverage), -1),
    "coverage_at_5_risk": Metric(_each(lambda levels: coverage_at_risk(levels, between=True))),
    "nll": Metric(lambda t, _: _ratio(t.nll, t.labelled.sum(-1)), -1),
    "ood_auroc": Metric(lambda t, _: _auroc(_errors_first(t.levels)), ood=True),
    "ood_auprc": Metric(lambda t, _: _aupr(_errors_first(t.levels)), ood=True),
    "ood_fpr95": Metric(lambda t, _: _fpr95(_errors_first(t.levels)), -1, ood=True),
}
"""By name, as `scoring.figures.totals.figures_of` defines them; ``ood_`` stands before those of unknown objects."""
_SUMS = "needs the probabilities of all classes, and search sums up only those of the classes that could be chosen"
_PIXELS = "is counted at pixels and objects of the class map, and search keeps only counts of each class"
_LIST = "is one figure for each class, and a choice needs a single one"
_ELSEWHERE = {
    "brier": (_SUMS, "nll"),
    "classwise_ece": (_SUMS, "ece or adaptive_ece"),
    "category_miou": ("needs which class was taken for which, and search keeps only counts of each class", "miou"),
    "boundary_miou": (_PIXELS, "miou"),
    "miiou": (_PIXELS, "miou"),
    "auprc": (
        "is of what is out of distribution",
        "ood_auprc, or auprc_error and auprc_success where classes are known",
    ),
    "miou_classes": ("only says how many classes miou is the mean of", "miou"),
    **dict.fromkeys(LISTS, (_LIST, "miou, mean_precision or mean_recall")),
}
"""Figures of `evaluate` that cannot be searched for: why, and what to search for instead."""
ALWAYS = ("miou", "auroc", "ece", "ood_auroc")
"""Metrics that are always printed, where they are defined."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of metrics, to be as high as possible.

    Attributes:
        text: as it was asked for.
        weights: metric -> its weight.
    """

    text: str
    weights: Mapping[str, float]

    @property
    def is_one_metric(self) -> bool:
        """True if the figure is a metric as it is, and not a sum."""
        return len(self.weights) == 1

    def score(self, figures: Mapping[str, np.ndarray]) -> np.ndarray:
        """(...) float64, higher is better, of figures (...) by metric."""
        return np.sum([weight * figures[name] for name, weight in self.weights.items()], axis=0)

    @property
    def better(self) -> str:
        """``higher`` or ``lower``: which `shown` figure is the better one."""
        return "lower" if self.is_one_metric and next(iter(self.weights.values())) < 0 else "higher"

    def shown(self, figures: Mapping[str, np.ndarray]) -> np.ndarray:
        """The figure that people read, of figures (...): the metric itself where there is one, the sum else."""
        return figures[next(iter(self.weights))] if self.is_one_metric else self.score(figures)


def read_objective(text: str) -> Objective:
    """Read ``miou``, ``miou,ece`` or ``miou:1,ece:-1``.

    A metric without a weight has 1 if higher is better, and -1 if lower is.

    Raises:
        HmsaError: an unknown metric, one twice, or a weight that is no number or 0.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = (word.strip() for word in part.partition(":"))
        if name == "bravo_index":
            raise HmsaError(
                f"--by {text}: bravo_index is one figure of nine sets of images, scored from the challenge's archive "
                "by a protocol of its own and not from labels of datasets; search by miou or auroc, and score the "
                "chosen manifest with evaluate --ground-truth"
            )
        if not name:
            raise HmsaError(f"--by {text}: a name is missing{_where(text)}; write it as in miou,ece or miou:1,ece:-1")
        if name in _ELSEWHERE:
            why, instead = _ELSEWHERE[name]
            raise HmsaError(f"--by {text}: {name} {why}; search by {instead}, and score the choice with evaluate")
        if name not in METRICS:
            raise HmsaError(f"--by {text}: {name} is no metric; {nearest(name, list(METRICS))}")
        if name in weights:
            raise HmsaError(f"--by {text}: names {name} twice; name it once")
        try:
            weights[name] = float(number) if colon else float(METRICS[name].better)
        except ValueError:
            raise HmsaError(f"--by {text}: {number or 'nothing'} is no weight of {name}; use a number") from None
        if not math.isfinite(weights[name]) or not weights[name]:
            raise HmsaError(f"--by {text}: {number} is no weight of {name}; use a number that is not 0")
    return Objective(text, weights)


def _where(text: str) -> str:
    """Where a name is missing."""
    parts = [part.partition(":")[0].strip() for part in text.split(",")]
    if len(parts) == 1:
        return ""
    between = "" in parts[1:-1]
    return " between commas" if between else " before the first comma" if not parts[0] else " after the last comma"


def figures(
    totals: Sequence[Totals], averages: Sequence[Average], ood: Sequence[bool], metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Metric -> (...) float64, the mean over the sets of images that define it; NaN if none does.

    Args:
        totals: of each set, with axes (...).
        averages: of each set, which classes a mean IoU runs over.
        ood: of each set, whether its labels say what is out of distribution.
        metrics: names of `METRICS`.
    """
    found = {}
    for name in metrics:
        metric = METRICS[name]
        values = [
            metric.of(total, average)
            for total, average, is_ood in zip(totals, averages, ood, strict=True)
            if metric.ood == is_ood
        ]
        if not values:
            continue
        stack = np.stack(values)
        known = ~np.isnan(stack)
        found[name] = _ratio(np.where(known, stack, 0.0).sum(0), known.sum(0))
    return found
