"""By how much BRAVO's means of confidences in 1,024 levels can differ from those of all 65,536."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...scoring.bravo_protocol import summary
from ..levels import LevelTable, tied_pairs
from ..objective import View, bravo_figures

Ends = tuple[float, float]
"""The worst and the best that a figure can be."""


def mean_errors(views: Sequence[View], means: Sequence[str]) -> dict[str, float]:
    """The largest possible difference of each mean; NaN where it is not defined.

    The pixels of a level may have any order. A figure is best for one order of them and worst for another, and a
    harmonic mean is best where all its figures are.

    Args:
        views: of the subsets that ``means`` are of, with axes ().
        means: names of `bravo_protocol.MEANS`.
    """
    if not means:
        return {}
    given = bravo_figures(views)
    worst, best = ({name: dict(found) for name, found in given.items()} for _ in range(2))
    for view in views:
        subset = view.subset or ""
        for name, ends in _ends(view, given[subset]).items():
            worst[subset][name], best[subset][name] = map(np.asarray, ends)
    low, middle, high = (summary(one) for one in (worst, given, best))
    return {name: float(max(high[name] - middle[name], middle[name] - low[name])) for name in means}


def _ends(view: View, given: dict[str, np.ndarray]) -> dict[str, Ends]:
    """The ends of the figures that depend on the order of confidences, by the toolkit's names."""
    levels, table = view.totals.levels, view.table
    ending, rising = ("ood", False) if view.ood else ("valid", True)
    error = tied_pairs(levels, table)
    found = {"auroc": _around(given[f"auroc_{ending}"], error), "fpr95": _fpr95(levels, table, rising=rising)}
    if view.ood:
        found["auprc"] = _aupr(levels, table, rising=False)
    else:
        found["ece"] = _around(given["ece_valid"], -table.ece_error)
        found["auprc_success"] = _aupr(levels, table, rising=True)
        found["auprc_error"] = _aupr(levels, table, rising=False)
    return {f"{name}_{ending}": ends for name, ends in found.items()}


def _around(value: np.ndarray, error: float) -> Ends:
    low, high = (float(np.clip(value + step, 0.0, 1.0)) for step in (-error, error))
    return low, high


def _from_the_top(
    levels: np.ndarray, table: LevelTable, *, rising: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Negatives and positives (1024,) float64 of each level, and which levels are of one confidence.

    Levels whose pixels are taken for positive first come first.

    Args:
        levels: (2, 1024).
        table: of the levels.
        rising: whether row 1 is to be found, by high confidence; else row 0, by low confidence.
    """
    negatives, positives = (levels[:, ::-1] if rising else levels[::-1]).astype(np.float64)
    return negatives, positives, table.alone[::-1] if rising else table.alone


def _fpr95(levels: np.ndarray, table: LevelTable, *, rising: bool) -> Ends:
    """The rates at both ends of the level in which 95 % of the positives are reached."""
    negatives, positives, alone = _from_the_top(levels, table, rising=rising)
    if not negatives.sum() or not positives.sum():
        return float("nan"), float("nan")
    false, true = negatives.cumsum() / negatives.sum(), positives.cumsum() / positives.sum()
    at = int(np.searchsorted(true, 0.95))
    before = false[at] if alone[at] else false[at - 1] if at else 0.0
    return float(false[at]), float(before)


def _aupr(levels: np.ndarray, table: LevelTable, *, rising: bool) -> Ends:
    """Average precision with the negatives of each level before its positives, and after them.

    The first is the sum over the positives of a level of (P + i) / (P + i + N), P those of the levels above and N the
    negatives up to this one; the harmonic numbers in it are not above the logarithm.
    """
    negatives, positives, alone = _from_the_top(levels, table, rising=rising)
    seen, found = negatives.cumsum(), positives.cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        tied = np.where(positives > 0, positives * found / (found + seen), 0.0)
        worst = positives - np.where(seen > 0, seen * np.log((found + seen) / (found - positives + seen)), 0.0)
        best = np.where(positives > 0, positives * found / (found + seen - negatives), 0.0)
        low, high = (np.where(alone, tied, end).sum() / found[-1] for end in (worst, best))
    return float(low), float(high)
