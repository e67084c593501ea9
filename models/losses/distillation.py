"""Distillation: a network learns the probabilities of a teacher, not only its most likely class.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531). Both distributions
are softened by a temperature T; the loss is multiplied by T^2, because the gradients of softened distributions fall
by that factor, so that its weight against the labels' loss means the same at every temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch_labels import in_float32


def taught(targets: Tensor) -> Tensor:
    """Where soft targets say something, (N, H, W) bool.

    Args:
        targets: (N, C, H, W) probabilities, 0 for all classes where nothing is said.
    """
    return targets.amax(1) > 0


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
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must be of one shape")
    if not temperature > 0:
        raise ValueError(f"a temperature of {temperature}; it must be above 0")
    with torch.autocast(logits.device.type, enabled=False):
        scores = in_float32(logits)
        known = taught(targets)
        # Rounded to half precision they do not quite sum to 1, and the least loss would not be 0.
        probabilities = targets.to(scores.dtype)
        probabilities = probabilities / probabilities.sum(1, keepdim=True).where(known[:, None], 1)
        logarithms = (scores / temperature).log_softmax(1)
        divergences = (torch.xlogy(probabilities, probabilities) - probabilities * logarithms).sum(1)
        count = known.sum().clamp(min=1) if pixels is None else max(1, pixels)
        return temperature**2 * divergences.masked_fill(~known, 0).sum() / count
