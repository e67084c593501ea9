"""Chooses on some images and judges on others: nested cross-validation, with bootstrap intervals.

A figure of the best of many combinations, on the images that made it the best one, is too good (Cawley and Talbot,
On Over-fitting in Model Selection, JMLR 11, 2010). So the images are divided into K folds, the choice is made K
times, on all folds but one, and its counts on that one are kept: the figure of all K together is that of choosing so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from .counts import Counts, Totals, weighted
from .objective import Objective, View, figures
from .plan import SearchPlan

Figures = dict[str, np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval of 95 %; all NaN where it is not defined."""

    value: float
    low: float
    high: float


class Judge:
    """Scores candidates on folds, by their counts.

    Args:
        plan: whose sets, folds and objective.
    """

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        draw = np.random.default_rng([plan.settings.seed, 1])
        self._draws = []
        for one in plan.sets:
            number = len(one.groups.folds)
            share = np.full(number, 1 / number)
            self._draws.append(draw.multinomial(number, share, size=plan.settings.resamples).astype(np.float64))

    @property
    def objective(self) -> Objective:
        """The figure to be as high as possible."""
        return self.plan.settings.objective

    def views(self, totals: Sequence[Totals]) -> list[View]:
        """Return what figures are computed from, of totals (...) of each set."""
        return [view for one, total in zip(self.plan.sets, totals, strict=True) for view in one.views(total)]

    def figures(self, totals: Sequence[Totals], metrics: Sequence[str] | None = None) -> Figures:
        """Metric -> (...), of totals (...) of each set."""
        return figures(self.views(totals), metrics or self.plan.metrics)

    def scores(self, counts: Sequence[Counts]) -> tuple[np.ndarray, list[Totals]]:
        """Score every candidate without each fold, and on all images.

        Args:
            counts: of N candidates, for each set.

        Returns:
            (K + 1, N) float64, higher is better, the last row on all images; -inf where it is not defined. And for
            each set the counts of all images, with axes (N,).
        """
        folds = range(self.plan.settings.folds)
        parts = [
            [part.total(one.groups.folds == fold) for fold in folds]
            for part, one in zip(counts, self.plan.sets, strict=True)
        ]
        metrics = tuple(self.objective.weights)
        rows = []
        for without in [*folds, None]:
            kept = [[total for fold, total in enumerate(one) if fold != without] for one in parts]
            rows.append(self.objective.score(self.figures([reduce(Totals.plus, one) for one in kept], metrics)))
        found = np.stack(rows)
        return np.where(np.isnan(found), -np.inf, found), [reduce(Totals.plus, one) for one in parts]

    def held_out(self, counts: Sequence[Counts], chosen: Sequence[int]) -> list[Totals]:
        """Counts of each group, (G,) for each set, of the candidate that was chosen without its fold.

        Args:
            counts: of N candidates, for each set.
            chosen: (K,) the candidate of each fold.
        """
        numbers = np.asarray(chosen)
        return [part.of(numbers[one.groups.folds]) for part, one in zip(counts, self.plan.sets, strict=True)]

    def resampled(self, groups: Sequence[Totals]) -> tuple[Figures, Figures]:
        """Figures of all groups together, and of each resample (B,): the same groups are drawn for everyone."""
        whole = [total.sum() for total in groups]
        drawn = [weighted(total, draws) for total, draws in zip(groups, self._draws, strict=True)]
        return self.figures(whole), self.figures(drawn)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """The percentile interval of 95 % of resamples (B,)."""
    known = drawn[~np.isnan(drawn)]
    if not known.size or np.isnan(value):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def best(scores: np.ndarray, order: Callable[[int], tuple[float, int]]) -> int:
    """The candidate of the highest score (N,); of equal ones the first by ``order``."""
    return min(np.flatnonzero(scores == scores.max()).tolist(), key=order)
