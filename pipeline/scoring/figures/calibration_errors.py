"""Calibration errors beside the ECE: of bins of equal mass, of the worst bin, and without bins."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

import numpy as np

from ..metrics import BINS, FINE, Levels, reliability

_GRID = 1024
"""Cells of the unit interval in which the smooth error of joined levels is computed."""
_WIDTHS, _FEWER_WIDTHS = 1 << 26, 1 << 16
"""Widths from 0 to 1 among which the smooth error is searched: to 1.5e-8, and to 1.5e-5 for joined levels."""

_SECANTS = 8
"""Steps of the search that use secants."""


def adaptive_ece(counts: np.ndarray, scale: Levels = FINE) -> float:
    """Calibration error of 15 bins of as many pixels each, of counts (2, L); NaN without pixels.

    Where pixels of one confidence belong to two bins, they are divided between them, right and wrong ones in the same
    share, so that no order of pixels matters.

    Nguyen and O'Connor, EMNLP 2015 (arXiv 1508.05154), section 3; with the absolute instead of the squared difference
    Nixon et al., CVPR Workshops 2019 (arXiv 1904.01685), as the adaptive calibration error of the predicted class.

    Args:
        counts: of `metrics.level_counts`.
        scale: the levels.
    """
    every = counts.sum(0)
    held = every > 0
    pixels = every[held].astype(np.float64)
    if not pixels.size:
        return math.nan
    ends = np.append(0.0, pixels.cumsum())
    gaps = np.append(0.0, (counts[1, held] - pixels * scale.sure[held]).cumsum())
    cuts = np.linspace(0.0, ends[-1], BINS + 1)
    return float(np.abs(np.diff(np.interp(cuts, ends, gaps))).sum() / ends[-1])


def mce(counts: np.ndarray, scale: Levels = FINE) -> float:
    """Maximum calibration error of counts (2, L): the largest |confidence - accuracy| of 15 bins of equal width.

    One pixel alone in its bin can decide it. NaN without pixels.

    Naeini et al., AAAI 2015; Guo et al., ICML 2017 (arXiv 1706.04599), equation 5.

    Args:
        counts: of `metrics.level_counts`.
        scale: the levels.
    """
    pixels, confidence, accuracy = reliability(counts, scale)
    held = pixels > 0
    return float(np.abs(confidence - accuracy)[held].max()) if held.any() else math.nan


def smooth_ece(counts: np.ndarray, scale: Levels = FINE) -> float:
    """Smooth calibration error of counts (2, L), which has no bins; NaN without pixels.

    The differences between outcome and confidence are smoothed by a Gaussian of width s that is reflected at 0 and 1,
    and their absolute values integrated; the error is the one that equals its own width s. Reflection makes smoothing
    a product with exp(-(pi k s)^2 / 2) in the k-th term of the cosine series. Levels lie in the middle of as many
    equal cells, so the series of the sums at these levels is exact; joined levels are counted in 1,024 cells.

    Blasiok and Nakkiran, ICLR 2024 (arXiv 2309.12236), definition 3 and equation 9.

    Args:
        counts: of `metrics.level_counts`.
        scale: the levels.
    """
    every = counts.sum(0)
    total = float(every.sum())
    if not total:
        return math.nan
    gaps = (counts[1] - every * scale.sure) / total
    cells, widths = len(gaps), _WIDTHS
    if scale is not FINE:
        cells, widths = _GRID, _FEWER_WIDTHS
        gaps = np.bincount((scale.sure * cells).astype(np.int64).clip(0, cells - 1), gaps, cells)
    terms = np.arange(cells)
    mirrored = np.fft.rfft(np.concatenate([gaps, gaps[::-1]]))[:cells]
    series = (mirrored * np.exp(-0.5j * np.pi * terms / cells)).real / 2

    def error(width: float) -> float:
        # Later terms are below exp(-50) of their size.
        kept = min(cells, 2 + int(10.0 / (np.pi * width)))
        smoothed = _cosines(series[:kept] * np.exp(-0.5 * (np.pi * width * terms[:kept]) ** 2))
        return float(np.abs(smoothed).mean())

    return _own_width(error, widths)


def _own_width(error: Callable[[float], float], widths: int) -> float:
    """The middle between the two neighbours of 0, 1 / n, ..., 1 between which a falling error equals its width.

    It falls, so it equals its width between any width and the error there. Secants through the last two differences
    find the place in few steps; where they do not, halving does.

    Args:
        error: of a width above 0.
        widths: n.
    """
    low, high, place = 0, widths, widths // 16
    before: tuple[int, float] | None = None
    for step in count():
        above = error(place / widths) * widths - place
        if above > 0:
            low, high = place, min(high, math.ceil(place + above))
        else:
            low, high = max(low, min(place - 1, math.floor(place + above))), place
        if high - low <= 1:
            break
        guess = (low + high) / 2
        if before and before[1] != above and step < _SECANTS:
            guess = place - above * (place - before[0]) / (above - before[1])
        before = place, above
        place = min(max(math.floor(guess), low + 1), high - 1)
    return (low + high) / 2 / widths


def _cosines(series: np.ndarray) -> np.ndarray:
    """Values of A_0 + 2 sum A_k cos(pi k t) in the middles of cells, at least eight times as many as terms."""
    points = max(256, 1 << (8 * len(series) - 1).bit_length())
    turned = np.zeros(points + 1, complex)
    turned[: len(series)] = 2 * points * series * np.exp(0.5j * np.pi * np.arange(len(series)) / points)
    return np.fft.irfft(turned, 2 * points)[:points]
