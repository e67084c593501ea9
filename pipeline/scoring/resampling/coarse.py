"""Counts of an image in a short row, so that sums of many resamplings of the images can be kept.

A histogram of 65,536 levels for each of a thousand resamplings would take a gigabyte. Levels are joined where they
are far from both ends: there are single levels up to 64 from an end, then 32 steps for each doubling of the distance,
and the bins of the calibration error are kept apart. So a step is at most 1/32 as wide as its distance from 0 or 1.
"""

from __future__ import annotations

import math

import numpy as np

from ...fusion.prediction_files import CONFIDENCE_LEVELS
from ..figures.totals import Totals
from ..metrics import FINE, Levels
from ..pixel_counts import OPTIONAL, PixelCounts

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


class Row:
    """The order of an image's counts in a row of D numbers.

    Args:
        counts: of which every image has the same kinds.
    """

    def __init__(self, counts: PixelCounts) -> None:
        self._ood = counts.ood
        self._shapes = {name: values.shape for name, values in _parts(counts).items()}
        self.length = sum(math.prod(shape) for shape in self._shapes.values())

    def pack(self, counts: PixelCounts) -> np.ndarray:
        """Write counts as a row, (D,) float64; what only some images have is left out."""
        parts = _parts(counts)
        return np.concatenate([parts[name].ravel() for name in self._shapes], dtype=np.float64)

    def unpack(self, row: np.ndarray, scale: Levels) -> Totals:
        """Read a row, or a weighted sum of rows.

        Args:
            row: (D,).
            scale: of `coarse_scale`.
        """
        found, start = {}, 0
        for name, shape in self._shapes.items():
            end = start + math.prod(shape)
            found[name], start = row[start:end].reshape(shape), end
        images = float(found.pop("images")[0])
        return Totals(ood=self._ood, images=images, scale=scale, **found)


def _parts(counts: PixelCounts) -> dict[str, np.ndarray]:
    totals = counts.totals()
    sums = ("hit", "labelled", "predicted", "categories", *OPTIONAL)
    found = {name: getattr(totals, name) for name in sums if getattr(totals, name) is not None}
    levels = np.add.reduceat(totals.levels, STARTS, axis=1)
    return {"images": np.array([totals.images]), "levels": levels, **found}
