"""The figure that is searched for: a metric, or a weighted sum of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from ...errors import HmsaError, nearest
from ..scoring.averages import PLAIN, Average
from ..scoring.bravo_protocol import INVALID, MEANS, VALID, summary
from ..scoring.figures.calibration_errors import adaptive_ece, mce, smooth_ece
from ..scoring.figures.names import LISTS
from ..scoring.figures.selective import augrc, aurc, coverage_at_risk, eaurc, risk_at_coverage
from .counts import Totals
from .levels import EVEN, LevelTable, coarse_ece


class View(NamedTuple):
    """Counts of a set of images that figures are computed from.

    Attributes:
        totals: with axes (...).
        average: which classes a mean IoU runs over.
        ood: whether the labels say what is out of distribution.
        table: of the levels.
        subset: of BRAVO's that the images are; None for others.
    """

    totals: Totals
    average: Average = PLAIN
    ood: bool = False
    table: LevelTable = EVEN
    subset: str | None = None


def _mean(parts: np.ndarray, wholes: np.ndarray, view: View) -> np.ndarray:
    """Mean of ratios (..., C), (...) float64, over the classes that the average counts and where there is a whole.

    NaN if there is none.
    """
    totals, average = view.totals, view.average
    counted = totals.labelled > 0
    if average.rule != "labelled":
        counted = counted | (totals.predicted > 0)
    if average.classes is not None:
        counted = counted & np.isin(np.arange(counted.shape[-1]), average.classes)
    counted = counted & (wholes > 0)
    return _ratio(np.where(counted, _ratio(parts, wholes), 0.0).sum(-1), counted.sum(-1))


def _iou(view: View) -> np.ndarray:
    """Mean IoU, (...) float64."""
    totals = view.totals
    return _mean(totals.hits, totals.labelled + totals.predicted - totals.hits, view)


def _each(figure: Callable[..., float], *, scaled: bool = False) -> Callable[[View], np.ndarray]:
    """The metric that is a figure of counts (2, 1024), one combination or resample after the other.

    Args:
        figure: of counts, and of their levels if ``scaled``.
        scaled: whether it depends on what the levels stand for.
    """

    def of(view: View) -> np.ndarray:
        levels, more = view.totals.levels, (view.table.scale,) if scaled else ()
        found = [figure(one, *more) for one in levels.reshape(-1, *levels.shape[-2:])]
        return np.array(found, np.float64).reshape(levels.shape[:-2])

    return of


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole


def _auroc(levels: np.ndarray) -> np.ndarray:
    negatives, positives = levels[..., 0, :].astype(np.float64), levels[..., 1, :].astype(np.float64)
    below = negatives.cumsum(-1) - negatives / 2
    return _ratio((positives * below).sum(-1), negatives.sum(-1) * positives.sum(-1))


def _aupr(view: View, *, reverse: bool = False) -> np.ndarray:
    """Average precision, of what row 0 counts as found by low confidence if ``reverse``.

    All positives of a level have the precision at its end. With another table than `EVEN` that is so for levels of a
    single confidence; in a wider one, of p positives and n negatives, the i-th positive comes after n i / (p + 1)
    negatives, as many as there are on average if all orders are alike, and the sum over i is an integral.
    """
    levels = _errors_first(view.totals.levels) if reverse else view.totals.levels
    above = levels[..., ::-1].cumsum(-1).astype(np.float64)
    negatives, positives = above[..., 0, :], above[..., 1, :]
    precision = np.nan_to_num(_ratio(positives, positives + negatives), nan=1.0)
    found = np.diff(_ratio(positives, positives[..., -1:]), prepend=0.0)
    if view.table is EVEN:
        return (found * precision).sum(-1)
    here = levels[..., ::-1].astype(np.float64)
    slope = 1.0 + here[..., 0, :] / (here[..., 1, :] + 1.0)
    before = positives - here[..., 1, :]
    seen = before + negatives - here[..., 0, :]
    first, last = seen + slope / 2, seen + slope * (here[..., 1, :] + 0.5)
    total = here[..., 1, :] / slope + (before - seen / slope) / slope * np.log(last / first)
    alone = view.table.alone if reverse else view.table.alone[::-1]
    spread = np.where(here[..., 1, :] > 0, _ratio(total, positives[..., -1:]), 0.0)
    return np.where(alone, found * precision, spread).sum(-1)


def _fpr95(view: View) -> np.ndarray:
    """FPR at 95 % TPR, by thresholds at the ends of levels, or, for another table than `EVEN`, between them.

    A level of a single confidence has nothing between its ends.
    """
    levels = _errors_first(view.totals.levels) if view.ood else view.totals.levels
    above = levels[..., ::-1].cumsum(-1).astype(np.float64)
    rates = _ratio(above, above[..., -1:])
    first = (rates[..., 1, :] >= 0.95).argmax(-1)[..., None]
    false, true = (np.take_along_axis(rates[..., kind, :], first, -1) for kind in (0, 1))
    if view.table is not EVEN:
        before = [np.take_along_axis(rates[..., kind, :], np.maximum(first - 1, 0), -1) for kind in (0, 1)]
        false_before, true_before = (np.where(first > 0, rate, 0.0) for rate in before)
        between = false_before + _ratio(0.95 - true_before, true - true_before) * (false - false_before)
        alone = view.table.alone if view.ood else view.table.alone[::-1]
        false = np.where(alone[first], false, between)
    return np.where(np.isnan(rates[..., 1, -1]), math.nan, false[..., 0])


def _classwise_ece(view: View) -> np.ndarray:
    totals = view.totals
    gaps = np.abs(totals.probabilities[..., 1:]).sum(-1) / totals.labelled.shape[-1]
    return _ratio(gaps, totals.labelled.sum(-1))


def _errors_first(levels: np.ndarray) -> np.ndarray:
    return levels[..., ::-1, ::-1]


@dataclass(frozen=True)
class Metric:
    """A figure of `Totals`.

    Attributes:
        of: counts of a set of images -> (...) float64, NaN where it is not defined.
        better: 1 if higher is better, -1 if lower is.
        ood: whether it needs labels of what is out of distribution.
    """

    of: Callable[[View], np.ndarray]
    better: int = 1
    ood: bool = False


METRICS: dict[str, Metric] = {
    "miou": Metric(_iou),
    "accuracy": Metric(lambda v: _ratio(v.totals.hits.sum(-1), v.totals.labelled.sum(-1))),
    "ece": Metric(lambda v: coarse_ece(v.totals.levels, v.table), -1),
    "auroc": Metric(lambda v: _auroc(v.totals.levels)),
    "auprc_success": Metric(_aupr),
    "auprc_error": Metric(partial(_aupr, reverse=True)),
    "fpr95": Metric(_fpr95, -1),
    "mean_precision": Metric(lambda v: _mean(v.totals.hits, v.totals.predicted, v)),
    "mean_recall": Metric(lambda v: _mean(v.totals.hits, v.totals.labelled, v)),
    "adaptive_ece": Metric(_each(adaptive_ece, scaled=True), -1),
    "smooth_ece": Metric(_each(smooth_ece, scaled=True), -1),
    "mce": Metric(_each(mce, scaled=True), -1),
    "aurc": Metric(_each(aurc), -1),
    "eaurc": Metric(_each(eaurc), -1),
    "augrc": Metric(_each(augrc), -1),
    "risk_at_80_coverage": Metric(_each(risk_at_coverage), -1),
    "coverage_at_5_risk": Metric(_each(lambda levels: coverage_at_risk(levels, between=True))),
    "nll": Metric(lambda v: _ratio(v.totals.nll, v.totals.labelled.sum(-1)), -1),
    "brier": Metric(lambda v: _ratio(v.totals.probabilities[..., 0], v.totals.labelled.sum(-1)), -1),
    "classwise_ece": Metric(_classwise_ece, -1),
    "ood_auroc": Metric(lambda v: _auroc(_errors_first(v.totals.levels)), ood=True),
    "ood_auprc": Metric(partial(_aupr, reverse=True), ood=True),
    "ood_fpr95": Metric(_fpr95, -1, ood=True),
}
"""By name, as `scoring.figures.totals.figures_of` defines them; ``ood_`` stands before those of unknown objects."""
OF_PROBABILITIES = ("brier", "classwise_ece")
"""Metrics that need the probabilities of all classes."""
_PIXELS = "is counted at pixels and objects of the class map, and search keeps only counts of each class"
_LIST = "is one figure for each class, and a choice needs a single one"
_ELSEWHERE = {
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
    for number, part in enumerate(text.split(","), start=1):
        name, colon, weight = (word.strip() for word in part.partition(":"))
        if not name:
            raise HmsaError(f"--by {text}: metric {number} has no name; write it as in miou,ece or miou:1,ece:-1")
        if name in _ELSEWHERE:
            why, instead = _ELSEWHERE[name]
            raise HmsaError(f"--by {text}: {name} {why}; search by {instead}, and score the choice with evaluate")
        if name not in METRICS and name not in MEANS:
            raise HmsaError(f"--by {text}: {name} is no metric; {nearest(name, [*METRICS, *MEANS])}")
        if name in weights:
            raise HmsaError(f"--by {text}: names {name} twice; name it once")
        try:
            weights[name] = float(weight) if colon else float(METRICS[name].better if name in METRICS else 1)
        except ValueError:
            raise HmsaError(f"--by {text}: {weight or 'nothing'} is no weight of {name}; use a number") from None
        if not math.isfinite(weights[name]) or not weights[name]:
            raise HmsaError(f"--by {text}: {weight} is no weight of {name}; use a number that is not 0")
    return Objective(text, weights)


_OF_BRAVO = {
    **{f"{name}_valid": METRICS[name] for name in VALID if name not in LISTS},
    **{f"{name}_ood": METRICS[f"ood_{name}"] for name in INVALID},
}
"""Figures of one of BRAVO's subsets, by the toolkit's names."""


def bravo_figures(views: Sequence[View]) -> dict[str, dict[str, np.ndarray]]:
    """Figures of each of BRAVO's subsets, (...) float64 by the toolkit's names; axes (...) are those of the views."""
    subsets: dict[str, dict[str, np.ndarray]] = {view.subset: {} for view in views if view.subset}
    for view in views:
        if view.subset:
            own = {name: metric.of(view) for name, metric in _OF_BRAVO.items() if metric.ood == view.ood}
            subsets[view.subset] |= own
    return subsets


def figures(views: Sequence[View], metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Metric -> (...) float64, the mean over the sets of images that define it; NaN if none does.

    Args:
        views: of all sets, with axes (...).
        metrics: names of `METRICS`, or of `MEANS` where the sets are all of those that these are means of.
    """
    means = summary(bravo_figures(views)) if any(name in MEANS for name in metrics) else {}
    found = {}
    for name in metrics:
        if name in MEANS:
            found[name] = means[name]
            continue
        metric = METRICS[name]
        values = [metric.of(view) for view in views if metric.ood == view.ood]
        if not values:
            continue
        stack = np.stack(values)
        known = ~np.isnan(stack)
        found[name] = _ratio(np.where(known, stack, 0.0).sum(0), known.sum(0))
    return found
