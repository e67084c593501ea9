"""Temperatures and weights that make labelled pixels most likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
PIXELS_AT_ONCE = 2**16
_NEWTON_STEPS = 50
_LBFGS_ROUNDS = 60
# What is believed before anything is seen: numbers are within a factor of two or so of those of a network that learnt
# by likelihood. An image counts as a few observations, however many pixels it has: they are much alike.
PRIOR_SPREAD = math.log(2)
_OBSERVATIONS_PER_IMAGE = 3


@dataclass(frozen=True)
class LabelledPixels:
    """Some labelled pixels.

    Attributes:
        logits: (M, N, C) float16 as stored, or float32 calibrated, of each member.
        labels: (N,) int64 train ids.
        images: how many they are of; 0 if each stands for itself.
        parts: name of the dataset, and number of pixels, of each image in turn.
    """

    logits: Tensor
    labels: Tensor
    images: int = 0
    parts: tuple[tuple[str, int], ...] = ()

    @property
    def observations(self) -> float:
        """Number of independent observations that they count as: neighbouring pixels are much alike."""
        return self.images * _OBSERVATIONS_PER_IMAGE if self.images else math.inf


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of least negative log likelihood, between 0.05 and 20, of logits (N, C) and labels (N,) int64.

    With b = 1 / T the likelihood's negative logarithm is convex in b: Newton's method, within what is known to hold
    the minimum.
    """
    b, low, high = 1.0, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(_NEWTON_STEPS):
        slope = bend = 0.0
        for z, y in zip(logits.split(PIXELS_AT_ONCE), labels.split(PIXELS_AT_ONCE), strict=True):
            z = z.double()
            p = (b * z).softmax(1)
            mean = (p * z).sum(1)
            slope += (mean - z.gather(1, y[:, None])[:, 0]).sum().item()
            bend += ((p * z.square()).sum(1) - mean.square()).sum().item()
        low, high = (low, b) if slope > 0 else (b, high)
        new = b - slope / bend if bend > 0 else high
        if not low < new < high:
            new = math.sqrt(low * high)
        if abs(new - b) < 1e-9 * b:
            break
        b = new
    return 1.0 / b


def fit(
    pixels: LabelledPixels,
    weights_before: Sequence[float],
    temperatures_before: Sequence[float],
    *,
    mean_of_logits: bool,
    weights: bool,
) -> tuple[list[float], list[float]]:
    """The temperatures, and weights, of the ensemble of least negative log likelihood.

    Found by L-BFGS from where the manifest stands and from each member's own best; the better end counts. A few
    images do not say much about seven numbers: to their likelihood comes that of temperatures of about 1 and of
    weights like those before (log-normal, a factor of two), which many images outvote.

    Args:
        pixels: to fit to.
        weights_before: M, above 0.
        temperatures_before: M.
        mean_of_logits: whether logits are averaged, and not probabilities.
        weights: whether weights are fitted; else they are given back as they are.

    Returns:
        M temperatures between 0.05 and 20; M weights, fitted ones with a mean of 1 and at least 1e-6.
    """
    alone = [fit_temperature(logits, pixels.labels) for logits in pixels.logits]
    ends = [
        _minimise(pixels, start, weights_before, mean_of_logits, weights) for start in (temperatures_before, alone)
    ]
    _, heat, level = min(ends, key=lambda end: end[0])
    if not weights:
        return heat, list(weights_before)
    total = sum(level)
    return heat, [max(1e-6, len(level) * share / total) for share in level]


def _minimise(
    pixels: LabelledPixels, start: Sequence[float], shares: Sequence[float], mean_of_logits: bool, weights: bool
) -> tuple[float, list[float], list[float]]:
    """The loss that is reached from ``start``, with the temperatures and weights there."""
    heat = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    level = torch.tensor(shares, dtype=torch.float64).log().requires_grad_(weights)
    given = level.detach().clone()
    free = [heat, level] if weights else [heat]
    optimiser = torch.optim.LBFGS(free, max_iter=_LBFGS_ROUNDS, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def temperature() -> Tensor:
        return heat.clamp(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)).exp()

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        parts = zip(pixels.logits.split(PIXELS_AT_ONCE, 1), pixels.labels.split(PIXELS_AT_ONCE), strict=True)
        for z, y in parts:
            part = -log_likelihood(z, temperature(), level.log_softmax(0), y, mean_of_logits).sum() / len(
                pixels.labels
            )
            part.backward()
            total += part.detach()
        moved = level - given
        believed = heat.square().sum() + ((moved - moved.mean()).square().sum() if weights else 0.0)
        prior = believed / (2 * PRIOR_SPREAD**2 * pixels.observations)
        prior.backward()
        return total + prior.detach()

    optimiser.step(loss)
    reached = loss().item()
    return reached, temperature().tolist(), level.detach().softmax(0).tolist()


def log_likelihood(
    z: Tensor, temperatures: Tensor, log_shares: Tensor, labels: Tensor, mean_of_logits: bool
) -> Tensor:
    """The logarithm of what the ensemble gives to each label.

    Args:
        z: (M, N, C) logits.
        temperatures: (M,) float64.
        log_shares: (M,) float64, logarithms of numbers that sum to one.
        labels: (N,) int64.
        mean_of_logits: whether logits are averaged, and not probabilities.

    Returns:
        (N,) float64.
    """
    scaled = z.double() / temperatures[:, None, None]
    if mean_of_logits:
        fused = (log_shares.exp()[:, None, None] * scaled).sum(0).log_softmax(1)
        return fused.gather(1, labels[:, None])[:, 0]
    own = scaled.gather(2, labels[None, :, None].expand(len(z), -1, 1))[..., 0] - scaled.logsumexp(2)
    return (log_shares[:, None] + own).logsumexp(0)
