"""Confidences in 1,024 levels: coarse enough to keep them of every combination and group of images.

The levels lie within the 15 bins of the expected calibration error, so that a pixel's bin is the one that `evaluate`
counts it in: 40 levels of equal width in each of the lower 14 bins, and 464 in the highest one, where most pixels
are.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..scoring.metrics import BINS, Levels

_IN_A_LOWER_BIN = 40
LEVELS = 1024

_starts = np.round(np.linspace(0, CONFIDENCE_LEVELS, BINS + 1)).astype(np.int64)
_cuts = np.concatenate(
    [
        np.round(np.linspace(start, stop, (_IN_A_LOWER_BIN if stop < CONFIDENCE_LEVELS else 464) + 1)[:-1])
        for start, stop in itertools.pairwise(_starts)
    ]
).astype(np.int64)
LEVEL_OF = np.searchsorted(_cuts, np.arange(CONFIDENCE_LEVELS), side="right") - 1
"""(65536,) int64: stored confidence -> its level."""
PLACE_OF = np.concatenate([LEVEL_OF, LEVEL_OF + LEVELS])
"""(131072,) int64: stored confidence, and 65536 more for a right pixel -> its place in counts (2, 1024)."""
_CENTRES = (_cuts + np.append(_cuts[1:], CONFIDENCE_LEVELS)) / 2 / CONFIDENCE_LEVELS
_FIRST_OF_BIN = np.arange(BINS) * _IN_A_LOWER_BIN
SCALE = Levels(_CENTRES, _FIRST_OF_BIN)
"""The levels for functions of `scoring.figures`."""
ECE_ERROR = float(np.diff(_cuts, append=CONFIDENCE_LEVELS).max() / 2 / CONFIDENCE_LEVELS)
"""By how much `coarse_ece` differs from `metrics.ece` at most, as the other calibration errors of equal bins do: half
the width of the widest level."""


def coarse_ece(counts: np.ndarray) -> np.ndarray:
    """Expected calibration error of counts (..., 2, 1024), (...) float64; NaN without pixels.

    The mean confidence of a level is taken to be its centre, which moves the figure by at most `ECE_ERROR`.
    """
    every = counts.sum(-2)
    right, sure = (np.add.reduceat(what, _FIRST_OF_BIN, axis=-1) for what in (counts[..., 1, :], every * _CENTRES))
    with np.errstate(invalid="ignore"):
        return np.abs(sure - right).sum(-1) / every.sum(-1)


def tied_pairs(counts: np.ndarray) -> float:
    """By how much the AUROC of counts (2, 1024) differs at most from that of 65,536 levels, as a share of 1.

    That is half the share of pairs of a right and a wrong pixel that lie in one level; NaN with one kind only.
    """
    negatives, positives = counts.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    return float((negatives * positives).sum() / pairs / 2) if pairs else math.nan
