"""Selective prediction against sorted pixels: averages over all orders of ties, and other packages' numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
from hmsa_pipeline.pipeline.scoring.figures.selective import (
    augrc,
    aurc,
    best_aurc,
    coverage_at_risk,
    eaurc,
    risk_at_coverage,
    risk_coverage,
)
from hmsa_pipeline.pipeline.scoring.metrics import auroc, level_counts


def slow(right: np.ndarray, confidence: np.ndarray) -> tuple[float, float]:
    """AURC and AUGRC, the mean over all orders of pixels in which confidence does not rise."""
    found = []
    for order in itertools.permutations(range(len(right))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            errors = np.cumsum(~right[list(order)])
            found.append((np.mean(errors / np.arange(1, len(right) + 1)), np.mean(errors / len(right))))
    areas = np.mean(found, 0)
    return areas[0], areas[1]


@pytest.mark.parametrize("seed", range(8))
def test_areas_are_the_mean_over_all_orders_of_ties(seed: int) -> None:
    draw = np.random.default_rng(seed)
    right, confidence = draw.random(7) < 0.6, draw.choice([5, 900, 40000], 7).astype(np.uint16)
    counts = level_counts(right, confidence)
    assert (aurc(counts), augrc(counts)) == pytest.approx(slow(right, confidence), abs=1e-12)


def drawn(pixels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    confidence = (draw.beta(5, 1, pixels) * 65535).astype(np.uint16)
    return draw.random(pixels) < 0.3 + 0.6 * confidence / 65535, confidence


def test_areas_without_ties_are_sums_over_sorted_pixels() -> None:
    confidence = np.random.default_rng(1).permutation(65536)[:5000].astype(np.uint16)
    right = np.random.default_rng(2).random(5000) < 0.3 + 0.6 * confidence / 65535
    counts = level_counts(right, confidence)
    errors = np.cumsum(~right[np.argsort(-confidence.astype(int))])
    places = np.arange(1, 5001)
    assert aurc(counts) == pytest.approx(np.mean(errors / places), abs=1e-12)
    assert augrc(counts) == pytest.approx(np.mean(errors / 5000), abs=1e-12)
    wrong = errors[-1]
    best = np.mean(np.maximum(0, places - (5000 - wrong)) / places)
    assert best_aurc(counts) == pytest.approx(best, abs=1e-12)
    assert eaurc(counts) == pytest.approx(np.mean(errors / places) - best, abs=1e-12)
    # Geifman et al. give the limit of many pixels: r + (1 - r) ln(1 - r).
    rate = wrong / 5000
    assert best_aurc(counts) == pytest.approx(rate + (1 - rate) * math.log(1 - rate), abs=2e-4)
    coverage, risk = risk_coverage(counts)
    assert coverage == pytest.approx(places / 5000)
    assert risk == pytest.approx(errors / places)
    assert risk_at_coverage(counts) == pytest.approx(errors[3999] / 4000)
    assert risk_at_coverage(counts, 1.0) == pytest.approx(rate)
    reached = [k for k, e in zip(places, errors, strict=True) if e / k <= 0.25]
    assert coverage_at_risk(counts, 0.25) == max(reached) / 5000


def test_augrc_is_that_of_auroc() -> None:
    """Traub et al., NeurIPS 2024, equation 7, for many pixels: (1 - AUROC) r (1 - r) + r^2 / 2."""
    right, confidence = drawn(200_000)
    counts = level_counts(right, confidence)
    rate = 1 - right.mean()
    area = sklearn.metrics.roc_auc_score(right, confidence)
    assert auroc(counts) == pytest.approx(area, abs=1e-12)
    # A sum over n pixels is half a step above the integral.
    integral = (1 - area) * rate * (1 - rate) + rate**2 / 2
    assert augrc(counts) == pytest.approx(integral + rate / 400_000, abs=1e-12)


def test_many_pixels_of_many_images_lose_no_digits() -> None:
    counts = level_counts(*drawn(20_000))
    scaled = counts * 1_000_000
    assert aurc(scaled) == pytest.approx(aurc(counts), abs=2e-4)
    assert eaurc(scaled) >= 0
    one = np.array([[10**10, 0], [0, 3 * 10**10]])
    assert aurc(one) == pytest.approx(0.25 + 0.75 * math.log(0.75), abs=1e-9)
    assert eaurc(one) == 0.0


def test_groups_of_equal_confidence_stay_together_at_a_risk() -> None:
    counts = np.array([[10, 1, 0], [10, 9, 5]])
    assert coverage_at_risk(counts, 0.05) == 5 / 35
    assert coverage_at_risk(counts, 0.1) == 15 / 35
    assert coverage_at_risk(counts, 1.0) == 1.0
    assert coverage_at_risk(counts[:, :1], 0.05) == 0.0
    assert risk_at_coverage(counts, 10 / 35) == pytest.approx(0.5 / 10)


def test_the_order_alone_matters() -> None:
    right, confidence = drawn(3000)
    moved = (confidence // 2 + 7).astype(np.uint16)
    halved = level_counts(right, moved)
    for figure in (aurc, augrc, eaurc, risk_at_coverage, coverage_at_risk):
        assert figure(halved) == pytest.approx(figure(level_counts(right, (confidence // 2).astype(np.uint16))))


def test_no_pixels_no_figure() -> None:
    nothing = np.zeros((2, 65536), np.int64)
    for figure in (aurc, augrc, eaurc, risk_at_coverage, coverage_at_risk):
        assert math.isnan(figure(nothing)), figure
