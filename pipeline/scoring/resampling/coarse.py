"""Counts of an image in a short row, so that sums of many resamplings of the images can be kept.

A histogram of 65,536 levels for each of a thousand resamplings would take a gigabyte. Levels are joined where they
are far from both ends: there are single levels up to 64 from an end, then 32 steps for each doubling of the distance,
and the bins of the calibration error are kept apart. So a step is at most 1/32 as wide as its distance from 0 or 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ...fusion.prediction_files import CONFIDENCE_LEVELS
from ..figures.totals import Totals
from ..metrics import FINE, Levels
from ..pixel_counts import PixelCounts

_STEPS = 32


def _first_levels() -> np.ndarray:
    """(K,) int64: the first of the levels that are counted together, ascending from 0."""
    half = CONFIDENCE_LEVELS // 2
    distances = list(range(2 * _STEPS))
    start = 2 * _STEPS
    while start < half:
        distances += range(start, 2 * start, start // _STEPS)
        start *= 2
    low = np.array(distances)
    # The last level is as far from the upper end as the first is from the lower one.
    high = CONFIDENCE_LEVELS - low[1:]
    return np.unique(np.concatenate([low, [half], high, FINE.bins]))


STARTS = _first_levels()


def coarse_scale(levels: np.ndarray) -> Levels:
    """Describe the joined levels of counts (2, 65536): each stands for the mean confidence of its pixels there."""
    every = levels.sum(0)
    pixels, sure = (np.add.reduceat(what, STARTS) for what in (every, every * FINE.sure))
    middle = np.add.reduceat(FINE.sure, STARTS) / np.diff(np.append(STARTS, CONFIDENCE_LEVELS))
    return Levels(np.where(pixels > 0, sure / np.maximum(pixels, 1), middle), np.searchsorted(STARTS, FINE.bins))


@dataclass(frozen=True)
class Row:
    """The order of an image's counts in a row of D numbers.

    Attributes:
        ood: whether the labels say what is out of distribution.
        classes: C.
    """

    ood: bool
    classes: int

    @property
    def _lengths(self) -> tuple[int, ...]:
        return (1, self.classes, self.classes, self.classes, 2 * len(STARTS))

    @property
    def length(self) -> int:
        """D."""
        return sum(self._lengths)

    def pack(self, counts: PixelCounts) -> np.ndarray:
        """Write counts as a row, (D,) float64."""
        totals = counts.totals()
        levels = np.add.reduceat(totals.levels, STARTS, axis=1).ravel()
        parts = ([totals.images], totals.hit, totals.labelled, totals.predicted, levels)
        return np.concatenate(parts, dtype=np.float64)

    def unpack(self, row: np.ndarray, scale: Levels) -> Totals:
        """Read a row, or a weighted sum of rows.

        Args:
            row: (D,).
            scale: of `coarse_scale`.
        """
        ends = list(itertools.accumulate(self._lengths))
        images, hit, labelled, predicted, levels = np.split(row, ends[:-1])
        return Totals(self.ood, float(images[0]), hit, labelled, predicted, levels.reshape(2, -1), scale)
