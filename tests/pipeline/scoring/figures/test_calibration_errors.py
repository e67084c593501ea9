"""Calibration errors against slow versions, pixel by pixel, and numbers of other packages."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hmsa_pipeline.pipeline.scoring.figures.calibration_errors import adaptive_ece, mce, smooth_ece
from hmsa_pipeline.pipeline.scoring.metrics import ece, level_counts
from hmsa_pipeline.pipeline.scoring.resampling.coarse import STARTS, coarse_scale


def drawn(pixels: int, bias: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    confidence = (draw.beta(6, 2, pixels) * 65536).astype(np.uint16)
    return draw.random(pixels) < (confidence + 0.5) / 65536 + bias, confidence


def slow_smooth_ece(right: np.ndarray, confidence: np.ndarray) -> float:
    """The definition, with mirrored Gaussians in the plane of pixels and points."""
    sure = (confidence.astype(np.float64) + 0.5) / 65536
    points = (np.arange(4000) + 0.5) / 4000

    def smoothed(width: float) -> float:
        total = np.zeros(len(points))
        for place, gap in zip(sure, right - sure, strict=True):
            for mirrored in (place, -place, 2 - place, place - 2, place + 2):
                total += gap * np.exp(-0.5 * ((points - mirrored) / width) ** 2)
        return float(np.abs(total).mean() / (len(sure) * width * math.sqrt(2 * math.pi)))

    low, high = 1e-3, 0.5
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
    return low


@pytest.mark.parametrize(("pixels", "bias"), [(60, 0.0), (60, -0.2), (60, 0.1), (3, 0.0), (150, 0.02)])
def test_the_smooth_error_is_that_of_its_definition(pixels: int, bias: float) -> None:
    right, confidence = drawn(pixels, bias)
    assert smooth_ece(level_counts(right, confidence)) == pytest.approx(slow_smooth_ece(right, confidence), abs=2e-5)


def test_the_smooth_error_of_joined_levels_is_close() -> None:
    right, confidence = drawn(20_000, -0.1)
    counts = level_counts(right, confidence)
    joined = np.add.reduceat(counts, STARTS, axis=1)
    assert smooth_ece(joined, coarse_scale(counts)) == pytest.approx(smooth_ece(counts), abs=1e-4)
    assert smooth_ece(counts) == pytest.approx(0.1, abs=0.01)


def test_what_is_always_as_sure_as_right_has_no_error() -> None:
    counts = np.zeros((2, 65536), np.int64)
    counts[:, 32767] = counts[:, 32768] = 10
    assert smooth_ece(counts) < 1e-4  # 1/131072 beside one half
    assert adaptive_ece(counts) < 1e-4
    counts[1] = 0
    for figure in (smooth_ece, adaptive_ece, mce, ece):
        assert figure(counts) == pytest.approx(0.5, abs=0.01)


def test_bins_of_equal_mass_are_those_of_sorted_pixels() -> None:
    draw = np.random.default_rng(3)
    confidence = draw.permutation(65536)[:3000].astype(np.uint16)
    right = draw.random(3000) < 0.7
    order = np.argsort(confidence)
    sure = (confidence[order] + 0.5) / 65536
    gaps = [abs((right[order][part] - sure[part]).sum()) for part in np.array_split(np.arange(3000), 15)]
    assert adaptive_ece(level_counts(right, confidence)) == pytest.approx(sum(gaps) / 3000, abs=1e-12)


def test_pixels_of_one_confidence_are_divided_between_bins() -> None:
    """Thirty pixels of two levels in fifteen bins of two: the level in the middle of a bin counts in both halves."""
    counts = np.zeros((2, 65536), np.int64)
    counts[:, 10000], counts[:, 50000] = (9, 2), (1, 18)
    low, high = 2 - 11 * 10000.5 / 65536, 18 - 19 * 50000.5 / 65536
    # Five bins hold ten of the eleven low ones; the sixth holds one of them and one of the high ones.
    wanted = abs(low) * 10 / 11 + abs(low / 11 + high / 19) + abs(high) * 18 / 19
    assert adaptive_ece(counts) == pytest.approx(wanted / 30, abs=1e-12)


def test_the_worst_bin_is_the_maximum() -> None:
    right, confidence = drawn(5000, 0.05)
    bins = np.digitize(confidence, np.round(np.linspace(0, 65536, 16))[1:-1])
    sure = (confidence + 0.5) / 65536
    gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) for b in set(bins.tolist())]
    assert mce(level_counts(right, confidence)) == pytest.approx(max(gaps), abs=1e-12)


def test_no_pixels_no_figure() -> None:
    nothing = np.zeros((2, 65536), np.int64)
    for figure in (smooth_ece, adaptive_ece, mce):
        assert math.isnan(figure(nothing)), figure
