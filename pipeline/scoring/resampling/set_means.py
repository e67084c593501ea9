"""Intervals of the coverage and the size of prediction sets, whose means are taken over images."""

from __future__ import annotations

import numpy as np

from ..figures.set_coverage import COVERED, IMAGES
from .bootstrap import interval

_FIGURES = ("coverage", "size", "empty")


def set_intervals(drawn: np.ndarray) -> list[dict[str, list[float]]]:
    """Compute the ends of the intervals of ``coverage``, ``size`` and ``empty``, of each class and of all pixels.

    A class's means run over the images of a resampling that have it; the ends are NaN if no resampling has one.

    Args:
        drawn: (B, 4, C + 1), of each resampling the sum of `SetCoverage.shares` over its images.
    """
    count = drawn[:, IMAGES]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(count[:, None] > 0, drawn[:, COVERED:] / count[:, None], np.nan)
    ends = interval(means.reshape(len(means), -1)).reshape(2, len(_FIGURES), -1)
    return [
        {name: ends[:, row, column].tolist() for row, name in enumerate(_FIGURES)} for column in range(ends.shape[2])
    ]
