"""Confidences in 1,024 levels: coarse enough to keep them of every combination and group of images.

The levels lie within the 15 bins of the expected calibration error, so that a pixel's bin is the one that `evaluate`
counts it in: 40 levels of equal width in each of the lower 14 bins, and 464 in the highest one, where most pixels
are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..scoring.metrics import BINS, Levels

_IN_A_LOWER_BIN = 40
LEVELS = 1024
_IN_THE_HIGHEST = LEVELS - (BINS - 1) * _IN_A_LOWER_BIN
_ALONE = 128


@dataclass(frozen=True)
class LevelTable:
    """Which level each stored confidence is counted in.

    Attributes:
        cuts: (1024,) int64 ascending: the first stored confidence of each level.
        level_of: (65536,) int64: stored confidence -> its level.
        place_of: (131072,) int64: stored confidence, and 65536 more for a right pixel -> its place in (2, 1024).
        scale: the levels for functions of `scoring.figures`.
        alone: (1024,) bool: levels of a single stored confidence, which nothing is lost in.
        ece_error: by how much `coarse_ece` differs from `metrics.ece` at most, as the other calibration errors of
            equal bins do: half the width of the widest level.
    """

    cuts: np.ndarray
    level_of: np.ndarray = field(init=False)
    place_of: np.ndarray = field(init=False)
    scale: Levels = field(init=False)
    alone: np.ndarray = field(init=False)
    ece_error: float = field(init=False)

    def __post_init__(self) -> None:
        level_of = np.searchsorted(self.cuts, np.arange(CONFIDENCE_LEVELS), side="right") - 1
        ends = np.append(self.cuts[1:], CONFIDENCE_LEVELS)
        made = {
            "level_of": level_of,
            "place_of": np.concatenate([level_of, level_of + LEVELS]),
            "scale": Levels((self.cuts + ends) / 2 / CONFIDENCE_LEVELS, np.arange(BINS) * _IN_A_LOWER_BIN),
            "alone": ends - self.cuts == 1,
            "ece_error": float((ends - self.cuts).max() / 2 / CONFIDENCE_LEVELS),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)


_starts = np.round(np.linspace(0, CONFIDENCE_LEVELS, BINS + 1)).astype(np.int64)
_evenly = [
    np.round(np.linspace(start, stop, (_IN_A_LOWER_BIN if stop < CONFIDENCE_LEVELS else _IN_THE_HIGHEST) + 1)[:-1])
    for start, stop in itertools.pairwise(_starts)
]
EVEN = LevelTable(np.concatenate(_evenly).astype(np.int64))
"""Levels of equal width in each bin."""
_falling = CONFIDENCE_LEVELS - np.geomspace(CONFIDENCE_LEVELS - _starts[-2], _ALONE, _IN_THE_HIGHEST - _ALONE + 1)
FINE_AT_TOP = LevelTable(
    np.concatenate([*_evenly[:-1], np.round(_falling), np.arange(CONFIDENCE_LEVELS - _ALONE + 1, CONFIDENCE_LEVELS)])
    .astype(np.int64)
)  # fmt: skip
"""In the highest bin, levels that become narrower towards 1; the 128 highest confidences have one each.

Where a threshold has to find nearly all pixels that are out of distribution, many of them have a confidence of nearly
1, and thousands of pixels the very highest one.
"""


def coarse_ece(counts: np.ndarray, table: LevelTable = EVEN) -> np.ndarray:
    """Expected calibration error of counts (..., 2, 1024), (...) float64; NaN without pixels.

    The mean confidence of a level is taken to be its centre, which moves the figure by at most ``ece_error``.
    """
    every = counts.sum(-2)
    right, sure = (
        np.add.reduceat(what, table.scale.bins, axis=-1) for what in (counts[..., 1, :], every * table.scale.sure)
    )
    with np.errstate(invalid="ignore"):
        return np.abs(sure - right).sum(-1) / every.sum(-1)


def tied_pairs(counts: np.ndarray, table: LevelTable = EVEN) -> float:
    """By how much the AUROC of counts (2, 1024) differs at most from that of 65,536 levels, as a share of 1.

    That is half the share of pairs of a right and a wrong pixel that lie in one level of several confidences; NaN
    with one kind only.
    """
    negatives, positives = counts.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    tied = np.where(table.alone, 0.0, negatives * positives)
    return float(tied.sum() / pairs / 2) if pairs else math.nan
