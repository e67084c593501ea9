"""Thresholds from counts, and the precision that they have, against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hmsa_pipeline.pipeline.autolabel.settings import NOTHING, level_threshold, threshold_level
from hmsa_pipeline.pipeline.autolabel.thresholds import (
    FitCounts,
    count_levels,
    keep_levels,
    wilson_interval,
)
from hypothesis import given
from hypothesis import strategies as st

LEVELS = 65536


def row(*levels: int) -> np.ndarray:
    """The counts (1, 65536) of a class' pixels at these levels."""
    return np.bincount(levels, minlength=LEVELS)[None]


@pytest.mark.parametrize(
    ("share", "level"), [(0.1, 90), (0.2, 90), (0.21, 80), (0.4, 80), (0.5, 70), (0.6, 70), (0.61, 10), (1.0, 10)]
)
def test_a_share_is_kept_by_the_highest_level_that_keeps_it(share: float, level: int) -> None:
    assert keep_levels(row(10, 10, 70, 80, 90), share) == (level,)


def test_a_class_that_nobody_sees_has_no_threshold() -> None:
    assert keep_levels(np.zeros((1, LEVELS), np.int64), 0.5) == (NOTHING,)


@given(st.lists(st.integers(0, LEVELS - 1), min_size=1, max_size=40), st.floats(0.01, 1))
def test_no_higher_level_keeps_the_share(levels: list[int], share: float) -> None:
    (found,) = keep_levels(row(*levels), share)
    many = sum(level >= found for level in levels)
    assert many >= share * len(levels) - 1e-6
    assert sum(level > found for level in levels) < max(1, share * len(levels))


def test_pixels_are_counted_by_class_and_level() -> None:
    label = np.array([[0, 2], [2, 1]], np.uint8)
    confidence = np.array([[5, 65535], [65535, 0]], np.uint16)
    counts = count_levels(label, confidence, None, 3)
    assert counts.shape == (3, LEVELS) and counts.sum() == 4
    assert (counts[0, 5], counts[1, 0], counts[2, 65535]) == (1, 1, 2)
    chosen = np.array([[True, False], [True, False]])
    assert count_levels(label, confidence, chosen, 3).sum() == 2


def fitted(*images: tuple[list[int], list[int]]) -> FitCounts:
    """Counts of images: the levels of their right pixels, and of their wrong ones."""
    counts = FitCounts(1)
    for right, wrong in images:
        counts.add(row(*right, *wrong), row(*right))
    return counts


def test_the_lowest_level_of_the_target_is_taken() -> None:
    counts = fitted(([20, 30, 40], [10]), ([50], [35]))
    # From 0 on 4 of 6 are right, from 11 on 4 of 5, from 31 on 2 of 3, from 36 on all of two.
    assert counts.levels(0.6) == (0,)
    assert counts.levels(0.7) == (11,)
    assert counts.levels(0.81) == (36,)
    assert fitted(([], [10])).levels(0.1) == (NOTHING,)
    assert fitted(([], [10])).best(0) == (0.0, 0)
    assert counts.best(0) == (1.0, 36)
    assert FitCounts(1).best(0) is None


def test_a_precision_has_the_interval_of_its_images() -> None:
    counts = fitted(([20] * 90, [20] * 10), ([20] * 40, [20] * 60))
    found = counts.precision(0, 0)
    assert found is not None
    assert (found.share, found.pixels, found.images) == (0.65, 200, 2)
    # v = 2 / 1 * (25^2 + 25^2) / 200^2 = 0.0625: as many as 0.2275 / 0.0625 = 3.64 independent pixels.
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.65, 3.64))
    alike = fitted(([20] * 65, [20] * 35), ([20] * 65, [20] * 35)).precision(0, 0)
    assert alike is not None and (alike.low, alike.high) == pytest.approx(wilson_interval(0.65, 2))
    assert counts.precision(0, NOTHING) is None and counts.precision(0, 21) is None


@pytest.mark.parametrize(
    ("share", "number", "low", "high"),
    # Agresti and Coull, The American Statistician 1998, give Wilson's interval for 0 and 10 of 10 as 0 to 0.278
    # and 0.722 to 1; 8 of 10 is 0.490 to 0.943.
    [(0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.8, 10, 0.4902, 0.9433)],
)
def test_wilsons_interval(share: float, number: float, low: float, high: float) -> None:
    assert wilson_interval(share, number) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.5, 0.9, 0.99, 0.996, 0.9961, 0.999, 0.9999])
def test_a_threshold_as_a_level_is_rounded_up(threshold: float) -> None:
    level = threshold_level(threshold)
    back = level_threshold(level)
    assert back is not None and back >= threshold
    step = 1 / 256 if threshold <= 255 / 256 else 1 / 65536
    assert back - threshold < step
    assert math.isclose(back / step, round(back / step))
    assert level_threshold(NOTHING) is None
