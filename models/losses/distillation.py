"""Distillation: a network learns the probabilities of teachers, not only their most likely class.

`distillation_loss` teaches their mean: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015
(arXiv 1503.02531). Both distributions are softened by a temperature T; the loss is multiplied by T^2, because the
gradients of softened distributions fall by that factor, so that its weight against the labels' loss means the same at
every temperature.

`dirichlet_loss` teaches how far they differ, too: Malinin, Mlodozeniec, Gales, "Ensemble Distribution Distillation",
ICLR 2020 (arXiv 1905.00076). The network's scores z say a Dirichlet distribution of the teachers' probabilities, of
concentrations exp(z / T), under which these are likely.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .batch_labels import in_float32

SMOOTHING = 1e-4
"""Share of the uniform distribution that a teacher's probabilities are mixed with before their logarithm (arXiv
1905.00076)."""
MOST_SURE = 1e4
"""Bound of a concentration. Where teachers agree completely the likelihood would grow without one."""
LEAST_LOGARITHM = -60.0
"""Bound of z / T, far below any that is learnt: of more the gamma function's logarithm is infinite in float32."""


def taught(targets: Tensor) -> Tensor:
    """Where soft targets say something, (N, H, W) bool.

    Args:
        targets: (N, C, H, W) probabilities or their logarithms, 0 for all classes where nothing is said.
    """
    return (targets != 0).any(1)


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float, pixels: int | None = None) -> Tensor:
    """T^2 times the mean Kullback-Leibler divergence of the network's softened probabilities from the targets.

    Args:
        logits: (N, C, H, W) class scores, any floating dtype.
        targets: (N, C, H, W) probabilities of the teacher, already softened by the same temperature, any floating
            dtype; 0 for all classes where they say nothing.
        temperature: T, above 0.
        pixels: taught pixels of the whole batch that these are a part of; None if they are all of it.

    Returns:
        A scalar, float32 (float64 for float64 scores), 0 if nothing is taught; under autocast too.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
    """
    _check(logits, targets, temperature)
    with torch.autocast(logits.device.type, enabled=False):
        scores = in_float32(logits)
        known = taught(targets)
        # Rounded to half precision they do not quite sum to 1, and the least loss would not be 0.
        probabilities = targets.to(scores.dtype)
        probabilities = probabilities / probabilities.sum(1, keepdim=True).where(known[:, None], 1)
        logarithms = (scores / temperature).log_softmax(1)
        divergences = (torch.xlogy(probabilities, probabilities) - probabilities * logarithms).sum(1)
        return temperature**2 * divergences.masked_fill(~known, 0).sum() / _count(known, pixels)


def dirichlet_loss(logits: Tensor, targets: Tensor, temperature: float, pixels: int | None = None) -> Tensor:
    """Mean negative log-likelihood of teachers' probabilities under the network's Dirichlet distributions.

    The M teachers' probabilities p_m of a pixel have the mean negative log-likelihood

        sum_c lgamma(a_c) - lgamma(sum_c a_c) - sum_c (a_c - 1) t_c,   t_c = mean over m of log p_mc

    so that the mean of their logarithms is all that must be known. The concentrations are 1 / a_c =
    exp(-z_c / T) + 1 / `MOST_SURE`.

    Args:
        logits: (N, C, H, W) class scores z, any floating dtype.
        targets: (N, C, H, W) means over the teachers of log p, where p are their probabilities smoothed by
            `SMOOTHING`, any floating dtype; 0 for all classes where they say nothing.
        temperature: T, above 0, of the scores. The teachers' are already softened by it.
        pixels: taught pixels of the whole batch that these are a part of; None if they are all of it.

    Returns:
        A scalar, float32 (float64 for float64 scores), 0 if nothing is taught; under autocast too. A density may be
        above 1, so it may be negative.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
    """
    _check(logits, targets, temperature)
    with torch.autocast(logits.device.type, enabled=False):
        scores = in_float32(logits)
        known = taught(targets)
        bound = torch.full_like(scores[:1, :1, :1, :1], math.log(MOST_SURE))
        concentrations = (-torch.logaddexp(-(scores / temperature).clamp(min=LEAST_LOGARITHM), -bound)).exp()
        normaliser = concentrations.lgamma().sum(1) - concentrations.sum(1).lgamma()
        likelihood = ((concentrations - 1) * targets.to(scores.dtype)).sum(1) - normaliser
        return -likelihood.masked_fill(~known, 0).sum() / _count(known, pixels)


def _check(logits: Tensor, targets: Tensor, temperature: float) -> None:
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must be of one shape")
    if not temperature > 0:
        raise ValueError(f"a temperature of {temperature}; it must be above 0")


def _count(known: Tensor, pixels: int | None) -> Tensor | int:
    return known.sum().clamp(min=1) if pixels is None else max(1, pixels)
