"""Fuses members: M sets of logits to one class map and one confidence. Pure functions.

With logits z of member m divided by its temperature, p = softmax(z) and weights w that sum to one:

=============  ==========================================================================
label          argmax over the classes of
=============  ==========================================================================
mean-softmax   sum w p: deep ensembles, Lakshminarayanan et al., NeurIPS 2017 (arXiv 1612.01474)
max-softmax    the members' maximum of p: the most convinced member decides (Kittler et al.,
               On Combining Classifiers, PAMI 1998, max rule)
min-softmax    the members' minimum of p: the class that no member rejects (ibid., min rule)
mean-logit     sum w z: the product of experts (Hinton, Neural Computation 2002)
=============  ==========================================================================

=============  ==========================================================================
confidence     formula, all within [0, 1]
=============  ==========================================================================
mean-softmax   max over classes of sum w p (Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136)
mean-logit     max over classes of softmax(sum w z)
min-softmax    max over classes of the members' minimum of p
entropy        1 - H(sum w p) / log C, H the entropy
energy         E = log sum exp(sum w z) (Liu et al., NeurIPS 2020, arXiv 2010.03759), as
               0.5 + 0.5 E / (1 + abs(E))
rba            S = sum over classes of tanh(sum w z): the negative of "rejected by all"
               (Nayal et al., ICCV 2023, arXiv 2211.14293), as (S + C) / (2 C)
=============  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Pixels beyond the last full vector would be computed by other instructions, and differ in the last digit. With
# padding, a pixel's result does not depend on which other pixels are fused with it.
_VECTOR = 64
UNWEIGHTED = frozenset({"max-softmax", "min-softmax"})


class Fused(NamedTuple):
    """``label`` (...) uint8 train ids and ``confidence`` (...) float32 in [0, 1]."""

    label: Tensor
    confidence: Tensor


def fuse(
    logits: Iterable[Tensor],
    weights: Sequence[float],
    temperatures: Sequence[float] | None = None,
    *,
    label: str = "mean-softmax",
    confidence: str = "mean-softmax",
) -> Fused:
    """Fuse the members' logits, one member at a time, to a class map (...) uint8 and a confidence (...) float32.

    Args:
        logits: M tensors of shape (C, ...), float16 or float32; may be lazy.
        weights: M numbers, non-negative, not all zero; scaled to sum to one.
        temperatures: M positive divisors of the logits; all one if None.
        label, confidence: names of the functions, see the module.

    Raises:
        ValueError: an unknown function, members of different shapes or another number of them than
            weights, weights or temperatures out of range, or unequal weights for a function without.
    """
    if label not in LABELS or confidence not in CONFIDENCES:
        raise ValueError(f"unknown function: label {label!r}, confidence {confidence!r}")
    temperatures = [1.0] * len(weights) if temperatures is None else temperatures
    if (
        len(temperatures) != len(weights)
        or not all(math.isfinite(number) for number in (*weights, *temperatures))
        or not sum(weights) > 0
        or min(weights) < 0
        or min(temperatures) <= 0
    ):
        raise ValueError(f"weights {list(weights)} or temperatures {list(temperatures)} are out of range")
    if {label, confidence} & UNWEIGHTED and len(set(weights)) > 1:
        raise ValueError(f"weights have no meaning for {label} with {confidence}")

    needed = {_NEEDS[label], _NEEDS[confidence]}
    mean: Tensor | None = None
    mean_logits: Tensor | None = None
    lowest: Tensor | None = None
    highest: Tensor | None = None
    total = float(sum(weights))
    # Reused by every member: to allocate memory takes longer than to fill it.
    z = p = place = torch.empty(0)
    members = iter(logits)
    for i, (weight, temperature) in enumerate(zip(weights, temperatures, strict=True)):
        if (given := next(members, None)) is None:
            raise ValueError(f"{len(weights)} weights, but only {i} members")
        if i == 0:
            z = torch.zeros(len(given), -(-given[0].numel() // _VECTOR) * _VECTOR, device=given.device)
            p, place = torch.empty_like(z), z[:, : given[0].numel()].view(given.shape)
        elif given.shape != place.shape:
            raise ValueError(f"members differ in shape: {tuple(place.shape)} and {tuple(given.shape)}")
        place.copy_(given)
        del given  # otherwise it would be kept while the next one is read
        if temperature != 1.0:
            z.div_(temperature)
        share = weight / total
        if "logits" in needed:
            mean_logits = _add(mean_logits, z, share)
        if needed == {"logits"}:
            continue
        torch.softmax(z, 0, out=p)
        if "minimum" in needed:
            lowest = p.clone() if lowest is None else torch.minimum(lowest, p, out=lowest)
        if "maximum" in needed:
            highest = p.clone() if highest is None else torch.maximum(highest, p, out=highest)
        if "softmax" in needed:
            mean = _add(mean, p, share)
    if next(members, None) is not None:
        raise ValueError(f"{len(weights)} weights, but more members")
    found = {"softmax": mean, "logits": mean_logits, "minimum": lowest, "maximum": highest}

    def one(function: str) -> Tensor:
        value = found[_NEEDS[function]]
        if value is None:
            raise ValueError("there is no member to fuse")
        return value

    found_label, maximum = _first_maximum(one(label))
    if confidence in _MAXIMA and _NEEDS[confidence] == _NEEDS[label]:
        sure = maximum
    else:
        sure = _confidence(confidence, one(confidence))
    pixels = place[0].numel()
    return Fused(*(found[:pixels].view(place.shape[1:]) for found in (found_label, sure.clamp_(0.0, 1.0))))


_NEEDS = {
    "mean-softmax": "softmax",
    "max-softmax": "maximum",
    "min-softmax": "minimum",
    "mean-logit": "logits",
    "entropy": "softmax",
    "energy": "logits",
    "rba": "logits",
}
LABELS = ("mean-softmax", "max-softmax", "min-softmax", "mean-logit")
_MAXIMA = frozenset({"mean-softmax", "min-softmax"})
"""Confidences that are a plain maximum over the classes."""
CONFIDENCES = ("mean-softmax", "mean-logit", "min-softmax", "entropy", "energy", "rba")


def _add(total: Tensor | None, value: Tensor, share: float) -> Tensor:
    return value * share if total is None else total.add_(value, alpha=share)


def _first_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first class with the highest score, (...) uint8, and that score, of scores (C, ...).

    Ten times as fast as `argmax`: vector units compare and multiply whole maps.
    """
    maximum = scores.amax(0)
    classes = len(scores)
    rank = torch.arange(classes, 0, -1, dtype=torch.uint8, device=scores.device)
    is_highest = (scores == maximum).view(torch.uint8)
    ranked = is_highest.mul_(rank.view(-1, *[1] * maximum.ndim))
    return classes - ranked.amax(0), maximum


def _confidence(function: str, value: Tensor) -> Tensor:
    classes = value.shape[0]
    if function == "mean-logit":
        return value.softmax(0).amax(0)
    if function == "entropy":
        return 1.0 - torch.special.entr(value).sum(0) / math.log(classes)
    if function == "energy":
        energy = value.logsumexp(0)
        return 0.5 + 0.5 * energy / (1.0 + energy.abs())
    if function == "rba":
        return (value.tanh().sum(0) + classes) / (2.0 * classes)
    return value.amax(0)


def quantise(confidence: Tensor) -> Tensor:
    """Convert a confidence in [0, 1] of any shape to uint16: floor(p * 65536), at most 65535."""
    return (confidence * 65536.0).clamp_(0.0, 65535.0).to(torch.int32).to(torch.uint16)
