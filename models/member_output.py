"""Outputs of networks, turned into logits whose softmax is what the network believes.

A fusion of members takes the softmax of what each put out. That is right for logits. A network that ends in
probabilities would be softmaxed twice, and one that classifies masks (MaskFormer, Cheng et al., NeurIPS 2021, arXiv
2107.06278) gives scores: sums over its queries of class probability times mask probability, which add up to anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import StoreError

KINDS = ("logits", "probabilities", "scores")
FLOOR = 1e-7
"""Smallest probability that is kept: its logarithm, -16.1, has three digits in float16."""
_ROWS = 64
_SUM_TOLERANCE = 0.02  # probabilities that went through float16 or 8 bits do not add up to one


class MemberLogits(NamedTuple):
    """Logits of an image.

    Attributes:
        values: (C, H, W) float32.
        uniform: number of pixels that no class had a score for, and that became uniform.
        other: mean share of the probability of channels that were not taken; None if all were.
    """

    values: Tensor
    uniform: int
    other: float | None = None


def to_logits(values: Tensor, kind: str, channels: list[int] | None = None) -> MemberLogits:
    """Turn a network's output into logits.

    Args:
        values: (K, H, W) of any floating dtype.
        kind: one of `KINDS`. ``logits`` are left as they are, of ``probabilities`` the logarithm is taken, ``scores``
            are divided by their sum over the classes first.
        channels: the C of the K channels to take, in the order of the classes; None for all. Probabilities and scores
            of the others are lost, and the rest is divided by its sum.

    Raises:
        StoreError: probabilities or scores are negative or not finite, or probabilities do not add up to one.
    """
    other = None
    if channels is not None and len(channels) < len(values) and torch.isfinite(values).all():
        other = round(share_of_others(values[None], kind, channels).mean().item(), 6)
    if kind == "logits":
        return MemberLogits(values if channels is None else values[channels], 0, other)
    values = values.float()
    if not torch.isfinite(values).all():
        raise StoreError(f"not all {kind} are finite")
    if (lowest := values.min().item()) < -1e-6:
        raise StoreError(f"{kind} of {lowest:.4g}, below zero; are they logits?")
    if kind == "probabilities":
        total = values.sum(0)
        low, high = total.min().item(), total.max().item()
        if low < 1 - _SUM_TOLERANCE or high > 1 + _SUM_TOLERANCE:
            raise StoreError(f"probabilities that add up to {low:.3f} to {high:.3f} instead of 1; are they scores?")
    belief, empty = normalised(values if channels is None else values[channels])
    return MemberLogits(belief.clamp(min=FLOOR).log(), int(empty.sum().item()), other)


def share_of_others(values: Tensor, kind: str, used: Sequence[int]) -> Tensor:
    """Compute the probability of all channels that are not used, (N, 1, H, W) float32; 0 where all scores are 0.

    Args:
        values: (N, K, H, W) of any floating dtype.
        kind: one of `KINDS`.
        used: channels.
    """
    strips = []
    for rows in values.split(_ROWS, -2):  # in float32, all channels of all rows would need much memory
        belief = rows.float()
        belief = belief.softmax(1) if kind == "logits" else belief.clamp(min=0)
        total = belief.sum(1, keepdim=True)
        strips.append((total - belief[:, list(used)].sum(1, keepdim=True)) / total.clamp(min=FLOOR))
    return torch.cat(strips, -2).clamp(0, 1)


def normalised(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Divide scores (..., C, H, W) by their sum over the classes, and mark where it is zero: there all are 1 / C.

    Returns:
        the probabilities, and the marks (..., 1, H, W) bool.
    """
    taken = scores.clamp(min=0)
    total = taken.sum(-3, keepdim=True)
    empty = total <= FLOOR
    return torch.where(empty, 1 / scores.shape[-3], taken / total.clamp(min=FLOOR)), empty


def from_class_map(label: Tensor, confidence: Tensor, classes: int) -> Tensor:
    """Probabilities (C, H, W) float32 of a class map: its confidence for the class, the rest spread evenly.

    Args:
        label: (H, W) of integers; what is no class, such as 255, becomes uniform.
        confidence: (H, W) in 0..1. One below 1 / C would prefer the other classes, and counts as slightly above it.
        classes: C.
    """
    sure = confidence.float().clamp(min=(1 + 1e-3) / classes)
    known = label < classes
    rest = torch.where(known, (1 - sure) / (classes - 1), 1 / classes)
    belief = rest.expand(classes, *label.shape).clone()
    place = torch.where(known, label, 0).long()[None]
    return belief.scatter_(0, place, torch.where(known, sure, 1 / classes)[None])


def enlarge(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge (K, h, w) to (K, H, W) float32 bilinearly, corners not aligned, as networks do it."""
    return nn.functional.interpolate(values[None].float(), size, mode="bilinear", align_corners=False)[0]


def reduction(size: tuple[int, int], small: tuple[int, int]) -> int | None:
    """Return by which power of two ``small`` (h, w) is smaller than ``size`` (H, W), however rounded; else None."""
    for step in (1, 2, 4, 8, 16, 32):
        if all(part in (whole // step, math.ceil(whole / step)) for whole, part in zip(size, small, strict=True)):
            return step
    return None
