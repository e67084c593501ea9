"""Temperatures and weights, against a slow search for the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.scoring.calibration.temperature_fit import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    LabelledPixels,
    fit,
    fit_temperature,
)
from scipy.special import softmax
from torch.nn.functional import cross_entropy


def drawn(temperature: float, count: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of which, divided by ``temperature``, the softmax is the truth."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (count, 19))
    chances = np.exp(logits)
    chances /= chances.sum(1, keepdims=True)
    labels = (chances.cumsum(1) < draw.random((count, 1))).sum(1).clip(max=18)
    return torch.from_numpy(temperature * logits), torch.from_numpy(labels)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 2.5, 9.0])
def test_the_temperature_is_the_best_on_a_fine_grid(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    grid = found * np.geomspace(0.5, 2, 401)
    losses = [cross_entropy(logits / t, labels).item() for t in grid]
    assert grid[int(np.argmin(losses))] == pytest.approx(found, rel=0.002)


def test_half_precision_logits_are_enough() -> None:
    logits, labels = drawn(3.0)
    assert fit_temperature(logits.half(), labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-3)


def test_many_pixels_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(1.7)
    whole = fit_temperature(logits, labels)
    monkeypatch.setattr("hmsa_pipeline.pipeline.scoring.calibration.temperature_fit.PIXELS_AT_ONCE", 333)
    assert fit_temperature(logits, labels) == pytest.approx(whole, rel=1e-9)


def test_who_is_always_right_gets_the_coldest_and_who_never_is_the_hottest() -> None:
    labels = torch.arange(19)
    right = 5 * torch.eye(19)
    assert fit_temperature(right, labels) == pytest.approx(MIN_TEMPERATURE, rel=1e-3)
    assert fit_temperature(right.roll(1, 1), labels) == pytest.approx(MAX_TEMPERATURE, rel=1e-3)
    assert math.isfinite(fit_temperature(torch.zeros(19, 19), labels))


def ensemble(count: int = 3000) -> LabelledPixels:
    """Three members that know the truth more or less, and say so more or less loudly."""
    truth, labels = drawn(1.0, count)
    draw = np.random.default_rng(1)
    noise = [torch.from_numpy(draw.normal(0, s, truth.shape)) for s in (0.3, 1.0, 3.0)]
    members = [loud * (truth + n) for loud, n in zip((4.0, 1.0, 0.5), noise, strict=True)]
    return LabelledPixels(torch.stack(members), labels)


def loss(
    pixels: LabelledPixels, temperatures: Sequence[float], weights: Sequence[float], mean_of_logits: bool
) -> float:
    """Pixel by pixel as the definition says."""
    shares = np.array(weights) / sum(weights)
    scaled = [z.numpy() / t for z, t in zip(pixels.logits, temperatures, strict=True)]
    if mean_of_logits:
        mean = sum(share * z for share, z in zip(shares, scaled, strict=True))
        fused = softmax(np.asarray(mean), 1)
    else:
        fused = np.asarray(sum(share * softmax(z, 1) for share, z in zip(shares, scaled, strict=True)))
    return float(-np.log(fused[np.arange(len(fused)), pixels.labels.numpy()]).mean())


@pytest.mark.parametrize("mean_of_logits", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_no_neighbour_is_better(mean_of_logits: bool, weights: bool) -> None:
    pixels = ensemble()
    before = [1.0, 2.0, 1.0]
    heat, shares = fit(pixels, before, [1.0, 1.0, 1.0], mean_of_logits=mean_of_logits, weights=weights)
    best = loss(pixels, heat, shares, mean_of_logits)
    assert best < loss(pixels, [1.0, 1.0, 1.0], before, mean_of_logits)
    if weights:
        assert sum(shares) == pytest.approx(3.0)
        assert shares[0] > shares[2]
    else:
        assert shares == before
    draw = np.random.default_rng(2)
    for spread in (0.01, 0.1, 0.5):
        for _ in range(60):
            other = (
                (np.array(heat) * np.exp(draw.normal(0, spread, 3))).clip(MIN_TEMPERATURE, MAX_TEMPERATURE).tolist()
            )
            near = [float(w) for w in np.array(shares) * np.exp(draw.normal(0, spread, 3))] if weights else shares
            assert best <= loss(pixels, other, near, mean_of_logits) + 1e-7


def test_members_fitted_alone_are_too_unsure_together() -> None:
    """Why the temperatures are fitted together."""
    pixels = ensemble()
    alone = [fit_temperature(z, pixels.labels) for z in pixels.logits]
    heat, shares = fit(pixels, [1.0, 1.0, 1.0], alone, mean_of_logits=False, weights=False)
    assert loss(pixels, heat, shares, False) < loss(pixels, alone, shares, False)


def test_one_member_is_fitted_as_it_would_be_alone() -> None:
    logits, labels = drawn(2.0)
    heat, shares = fit(LabelledPixels(logits[None], labels), [3.0], [1.0], mean_of_logits=False, weights=True)
    assert heat[0] == pytest.approx(fit_temperature(logits, labels), rel=1e-4)
    assert shares == [1.0]


@pytest.mark.parametrize("weights", [False, True])
def test_many_images_outvote_what_is_believed_beforehand(weights: bool) -> None:
    """Temperatures around 1 and the weights of before; the more images, the nearer to what the pixels say."""
    pixels, before = ensemble(), [1.0, 1.0, 1.0]

    def fitted(images: int) -> tuple[np.ndarray, float]:
        given = LabelledPixels(pixels.logits, pixels.labels, images)
        numbers = fit(given, before, before, mean_of_logits=False, weights=weights)
        return np.log(np.concatenate(numbers)), loss(pixels, *numbers, False)

    numbers, losses = zip(*(fitted(images) for images in (1, 10, 100, 100_000, 0)), strict=True)
    assert list(losses) == sorted(losses, reverse=True)
    assert losses[-2] == pytest.approx(losses[-1], abs=1e-4)
    assert losses[0] > losses[-1] + 0.01
    assert np.abs(numbers[0]).max() < np.abs(numbers[-1]).max()
