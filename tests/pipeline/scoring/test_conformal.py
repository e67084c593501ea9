"""Thresholds of prediction sets: those of MAPIE, and the guarantee on images whose pixels are alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.fusion.prediction_sets import in_set
from hmsa_pipeline.pipeline.scoring.calibration.conformal import conformal_quantile

MAPIE = [
    (30, 0.7, 0.9020876496266517, 1354),
    (30, 0.9, 0.9937738718302422, 5789),
    (30, 0.95, 0.9981205441063935, 7554),
    (200, 0.7, 0.9021620445552154, 1355),
    (200, 0.9, 0.9663866266365675, 2789),
    (200, 0.95, 0.9840983781012564, 4100),
    (1000, 0.7, 0.8961855727151066, 1291),
    (1000, 0.9, 0.9695667319669501, 2938),
    (1000, 0.95, 0.9834806351013882, 4029),
]
"""Observations, confidence level, quantile, classes in the sets of 500 others: MAPIE 1.6.0, conformity score lac."""


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 19), and labels that are drawn from them."""
    draw = np.random.default_rng(seed)
    p = np.exp(draw.normal(0, 2, (count, 19)))
    p /= p.sum(1, keepdims=True)
    return p, (p.cumsum(1) < draw.random((count, 1))).sum(1).clip(max=18)


@pytest.mark.parametrize(("count", "coverage", "quantile", "size"), MAPIE)
def test_with_one_pixel_an_image_it_is_the_quantile_of_mapie(
    count: int, coverage: float, quantile: float, size: int
) -> None:
    p, labels = drawn(count, count)
    scores = 1 - p[np.arange(count), labels]
    found = conformal_quantile(scores, np.arange(count), 1 - coverage)
    assert found == pytest.approx(quantile, abs=1e-8)
    others, _ = drawn(500, 7)
    assert in_set(torch.from_numpy(others.T), [1 - found - 1e-9] * 19).sum() == size


def test_too_few_images_put_every_class_into_the_set() -> None:
    scores = np.linspace(0.1, 0.5, 8000)
    images = np.arange(8000) // 1000
    assert conformal_quantile(scores, images, 0.1) == 1.0, "8 images give no 90 %, however many pixels they have"
    assert conformal_quantile(scores, images, 0.12) < 0.5
    assert conformal_quantile(scores[:0], images[:0], 0.5) == 1.0


def test_each_image_counts_as_much_as_any_other() -> None:
    scores = np.concatenate([np.full(1000, 0.9), [0.1], [0.2], [0.3]])
    images = np.concatenate([np.zeros(1000, int), [1], [2], [3]])
    assert conformal_quantile(scores, images, 0.4) == 0.3  # three fifths
    assert conformal_quantile(scores, images, 0.5) == 0.3
    assert conformal_quantile(scores, images, 0.61) == 0.2
    assert conformal_quantile(scores, images, 0.2) == 0.9


def test_coverage_holds_over_images_whose_pixels_are_alike() -> None:
    """Pixels of an image share its difficulty: pooled as if each stood alone, they promise what they do not hold."""
    draw = np.random.default_rng(0)
    count, pixels = 12, 200
    held = {"images": 0.0, "pixels": 0.0}
    for _ in range(1500):
        hard = draw.beta(0.6, 1.5, count + 1)[:, None]
        scores = (hard + 0.05 * draw.random((count + 1, pixels))).clip(0, 1)
        known, new = scores[:-1].ravel(), scores[-1]
        for name, images in (("images", np.repeat(np.arange(count), pixels)), ("pixels", np.arange(known.size))):
            held[name] += (new <= conformal_quantile(known, images, 0.1)).mean() / 1500
    assert held["images"] >= 0.9 - 0.015
    assert held["pixels"] < 0.9
