"""Thresholds per class from counts of pixels by confidence, and the precision that they have on labelled images.

A class' counts are a row of 65536 levels of confidence. With n(t) pixels of a class at level t or above, k(t) of them
right:

=========  ==========================================================================
keep s     the highest t with n(t) >= s n(0): class-balanced self-training (Zou et al., Unsupervised Domain
           Adaptation for Semantic Segmentation via Class-Balanced Self-Training, ECCV 2018, section 3.2)
precision  the lowest t with k(t) / n(t) >= the target, measured on labelled images
=========  ==========================================================================

Pixels of one image are much alike, so that an interval for as many independent pixels would be far too narrow. Images
are the independent units: the variance of the ratio p = sum k_i / sum n_i over M images that show the class is

    v = M / (M - 1) sum (k_i - p n_i)^2 / (sum n_i)^2                (Cochran, Sampling Techniques, 1977, chapter 6)

and p (1 - p) / v the number of independent pixels that would have it (Kish, Survey Sampling, 1965), M where v is 0.
The interval is Wilson's (JASA 1927) of 95 % for that number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..fusion.prediction_files import CONFIDENCE_LEVELS
from .settings import NOTHING

_Z = 1.959963984540054
"""Quantile of the normal distribution for 95 %."""

Counts = NDArray[np.int64]


def count_levels(
    label: NDArray[np.uint8], confidence: NDArray[np.uint16], chosen: NDArray[np.bool_] | None, classes: int
) -> Counts:
    """Count an image's pixels by class and level, (C, 65536) int64.

    Args:
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
        chosen: (H, W) bool, pixels that count; None for all.
        classes: C.
    """
    places = (label.astype(np.int32) * CONFIDENCE_LEVELS) + confidence
    flat = places.ravel() if chosen is None else places[chosen]
    return np.bincount(flat, minlength=classes * CONFIDENCE_LEVELS).reshape(classes, CONFIDENCE_LEVELS)


def at_or_above(counts: Counts) -> Counts:
    """Sum counts (C, L) over all higher levels: n(t) of each level t."""
    return counts[:, ::-1].cumsum(1)[:, ::-1]


def keep_levels(counts: Counts, share: float) -> tuple[int, ...]:
    """Find each class' highest level that keeps at least ``share`` of its pixels; `NOTHING` where it has none.

    Args:
        counts: (C, 65536) int64.
        share: above 0 and at most 1.
    """
    above = at_or_above(counts)
    # Of floating point, 0.1 * 30 is a little more than 3.
    wanted = [math.ceil(share * int(total) - 1e-9) for total in above[:, 0]]
    return tuple(
        int(np.flatnonzero(row >= max(1, need))[-1]) if row[0] else NOTHING
        for row, need in zip(above, wanted, strict=True)
    )


@dataclass(frozen=True)
class Precision:
    """Precision of a class' pixels at a threshold: ``share`` of ``pixels`` in ``images`` are right.

    ``low`` and ``high`` are the ends of its interval of 95 %.
    """

    share: float
    low: float
    high: float
    pixels: int
    images: int


class FitCounts:
    """Counts of labelled pixels over images, at every level: all that thresholds and intervals need.

    Args:
        classes: C; five arrays (C, 65536) int64 are kept, whatever the number of images.
    """

    def __init__(self, classes: int) -> None:
        shape = classes, CONFIDENCE_LEVELS
        self._n, self._k = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._nn, self._nk, self._kk = (np.zeros(shape, np.int64) for _ in range(3))
        self._images = np.zeros(shape, np.int64)

    def add(self, counts: Counts, right: Counts) -> None:
        """Add an image: its labelled pixels (C, 65536) by predicted class and level, and those that are right."""
        n, k = at_or_above(counts), at_or_above(right)
        self._n += n
        self._k += k
        self._nn += n * n
        self._nk += n * k
        self._kk += k * k
        self._images += n > 0

    def levels(self, target: float) -> tuple[int, ...]:
        """Find each class' lowest level whose pixels have the target precision; `NOTHING` where none has it."""
        found = (self._n > 0) & (self._k >= target * self._n)
        return tuple(int(np.argmax(row)) if row.any() else NOTHING for row in found)

    def best(self, place: int) -> tuple[float, int] | None:
        """Find a class' highest precision, and the lowest level that has it; None if the class is not predicted."""
        n, k = self._n[place], self._k[place]
        if not n[0]:
            return None
        shares = k[n > 0] / n[n > 0]
        level = int(np.argmax(shares))
        return float(shares[level]), level

    def precision(self, place: int, level: int) -> Precision | None:
        """Measure a class' precision from a level on; None if no labelled pixel is there."""
        if level >= NOTHING or not self._n[place, level]:
            return None
        n, k, nn, nk, kk, images = (
            int(counts[place, level]) for counts in (self._n, self._k, self._nn, self._nk, self._kk, self._images)
        )
        p = k / n
        squares = kk - 2 * p * nk + p * p * nn
        variance = images / (images - 1) * squares / n**2 if images > 1 else 0.0
        independent = min(float(n), p * (1 - p) / variance) if variance > 0 and 0 < p < 1 else float(images)
        low, high = wilson_interval(p, max(1.0, independent))
        return Precision(p, low, high, n, images)


def wilson_interval(share: float, number: float) -> tuple[float, float]:
    """Compute Wilson's interval of 95 % for a share of ``number`` independent observations."""
    z2 = _Z * _Z
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    half = _Z / (1 + z2 / number) * math.sqrt(share * (1 - share) / number + z2 / (4 * number * number))
    return max(0.0, middle - half), min(1.0, middle + half)
