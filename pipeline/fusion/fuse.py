"""Fuses members: M sets of logits to one class map and one confidence. Pure functions.

With logits z of member m, calibrated (see `calibrated_logits`) and divided by its temperature, p = softmax(z) and
weights w that sum to one:

=============  ==========================================================================
label          argmax over the classes of
=============  ==========================================================================
mean-softmax   sum w p: deep ensembles, Lakshminarayanan et al., NeurIPS 2017 (arXiv 1612.01474)
max-softmax    the members' maximum of p: the most convinced member decides (Kittler et al.,
               On Combining Classifiers, PAMI 1998, max rule)
min-softmax    the members' minimum of p: the class that no member rejects (ibid., min rule)
mean-logit     sum w z: the product of experts (Hinton, Neural Computation 2002)
=============  ==========================================================================

====================  ===================================================================
confidence            formula, all within [0, 1], high where the members are sure
====================  ===================================================================
mean-softmax          max over classes of sum w p (Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136)
mean-logit            max over classes of softmax(sum w z)
min-softmax           max over classes of the members' minimum of p
margin                highest minus second highest class of sum w p (Scheffer, Decomain & Wrobel, Active
                      Hidden Markov Models for Information Extraction, IDA 2001)
entropy               1 - H(sum w p) / log C, H the entropy: total uncertainty
expected-entropy      1 - sum w H(p) / log C: what every member is unsure of by itself (Depeweg et al.,
                      ICML 2018, arXiv 1710.07283)
mutual-information    I = H(sum w p) - sum w H(p): what the members contradict one another in (Houlsby
                      et al., arXiv 1112.5745; Smith & Gal, UAI 2018, arXiv 1803.08533), as
                      1 - sqrt(I / log C)
variation-ratio       highest over classes of the summed w of the members that say it: 1 - the variation
                      ratio (Freeman, Elementary Applied Statistics, 1965; Gal, thesis, Cambridge 2016)
disagreement          share of the pairs of members that say the same, a pair weighing w w': 1 - the
                      disagreement (Kuncheva & Whitaker, Machine Learning 51, 2003)
max-logit             L = max over classes of sum w z (Hendrycks et al., ICML 2022, arXiv 1911.11132),
                      as 0.5 + 0.5 L / (1 + abs(L))
standardised-max-     S = sum w (u_k - mean_k) / deviation_k, with k the label and u a member's logits, neither
logit                 calibrated nor divided (Jung et al., ICCV 2021, arXiv 2107.11264, of one member;
                      the mean over members is ours), as 0.5 + 0.5 S / (1 + abs(S))
energy                E = log sum exp(sum w z) (Liu et al., NeurIPS 2020, arXiv 2010.03759), as
                      0.5 + 0.5 E / (1 + abs(E))
rba                   S = sum over classes of tanh(sum w z): the negative of "rejected by all"
                      (Nayal et al., ICCV 2023, arXiv 2211.14293), as (S + C) / (2 C)
====================  ===================================================================

What a member says is the class of its highest logit, the first of equal ones. A single member contradicts nobody:
mutual-information, variation-ratio and disagreement are 1. Mutual information is taken as its root, which is a metric
between distributions (Endres & Schindelin, IEEE Transactions on Information Theory 49, 2003): of 19 classes and 16
bits, 1207 levels lie below 0.001 nats, which would be 22 without the root.

Mean and deviation of standardised-max-logit are those of a member's highest logits where it says class k, on images
that were given to `calibrate --max-logits`. No temperature changes it: that would divide u, mean and deviation alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import nearest
from ..config.calibration_field import MaxLogits
from .kernel.library import library
from .member_sums import LogitMap, MemberSums, entropy, make_sums

UNWEIGHTED = frozenset({"max-softmax", "min-softmax"})
STANDARDISED = "standardised-max-logit"
"""The confidence that needs numbers of every member, see `Member.max_logits`."""


class Fused(NamedTuple):
    """``label`` (...) uint8 train ids and ``confidence`` (...) float32 in [0, 1]."""

    label: Tensor
    confidence: Tensor


def fuse(
    logits: Iterable[Tensor],
    weights: Sequence[float],
    temperatures: Sequence[float] | None = None,
    maps: Sequence[LogitMap | None] = (),
    standards: Sequence[MaxLogits | None] = (),
    *,
    label: str = "mean-softmax",
    confidence: str = "mean-softmax",
) -> Fused:
    """Fuse the members' logits, one member at a time, to a class map (...) uint8 and a confidence (...) float32.

    Args:
        logits: M tensors of shape (C, ...), float16 or float32; may be lazy.
        weights: M numbers, non-negative, not all zero; scaled to sum to one.
        temperatures: M positive divisors of the logits; all one if None.
        maps: M changes of the logits before they are divided, None for none; empty for none at all.
        standards: M means and deviations of max logits, None for none; empty for none at all. Only `STANDARDISED`
            needs them.
        label, confidence: names of the functions, see the module.

    Raises:
        ValueError: an unknown function, members of different shapes or another number of them than
            weights, weights or temperatures out of range, unequal weights for a function without, or a member
            without the numbers that a function needs.
    """
    found = fuse_several(logits, weights, temperatures, maps, standards, label=label, confidences=(confidence,))
    return Fused(found.label, found.confidences[confidence])


def is_one_pass(label: str, confidence: str, maps: Sequence[LogitMap | None] = ()) -> bool:
    """Say whether `fuse` computes these on a CPU without going back to memory, so that it takes any number of pixels.

    Args:
        label, confidence, maps: see `fuse`.
    """
    return library() is not None and _MAXIMA.get(confidence) == _LABEL_NEEDS[label] and not any(maps)


class FusedSeveral(NamedTuple):
    """Several confidences of the same members.

    Attributes:
        label: (...) uint8 train ids.
        confidences: by name (...) float32 in [0, 1].
        probabilities: (C, ...) float32 that sum to one, whose highest is the label; None if they were not wanted.
    """

    label: Tensor
    confidences: dict[str, Tensor]
    probabilities: Tensor | None = None


def fuse_several(
    logits: Iterable[Tensor],
    weights: Sequence[float],
    temperatures: Sequence[float] | None = None,
    maps: Sequence[LogitMap | None] = (),
    standards: Sequence[MaxLogits | None] = (),
    *,
    label: str = "mean-softmax",
    confidences: Sequence[str] = ("mean-softmax",),
    probabilities: bool = False,
) -> FusedSeveral:
    """Fuse as `fuse` does, with several confidences from one look at every member: each to the bits of `fuse`.

    Args:
        logits, weights, temperatures, maps, standards, label: see `fuse`.
        confidences: names of the functions, at least one.
        probabilities: whether those that the label is the highest of are wanted; only with one of `PROBABLE`.

    Raises:
        ValueError: as `fuse`; ``label`` is not the highest of probabilities, and these are wanted.
    """
    if label not in LABELS or not confidences or not set(confidences) <= set(CONFIDENCES):
        raise ValueError(f"unknown function: label {label!r}, confidence {', '.join(map(repr, confidences))}")
    temperatures = [1.0] * len(weights) if temperatures is None else temperatures
    maps, standards = maps or [None] * len(weights), standards or [None] * len(weights)
    if (
        not len(temperatures) == len(maps) == len(standards) == len(weights)
        or not all(math.isfinite(number) for number in (*weights, *temperatures))
        or not sum(weights) > 0
        or min(weights) < 0
        or min(temperatures) <= 0
    ):
        raise ValueError(f"weights {list(weights)} or temperatures {list(temperatures)} are out of range")
    if probabilities and label not in PROBABLE:
        raise ValueError(f"label {label!r} is not the highest of probabilities")
    if {label, *confidences} & UNWEIGHTED and len(set(weights)) > 1:
        raise ValueError(f"weights have no meaning for {label} with {', '.join(confidences)}")
    if STANDARDISED in confidences and None in standards:
        raise ValueError(f"{STANDARDISED} needs mean and deviation of the max logits of every member")

    total = float(sum(weights))
    shares = [weight / total for weight in weights]
    labelled = _LABEL_NEEDS[label]
    known = {name for name in confidences if _MAXIMA.get(name) == labelled}
    looked_at = {labelled} if probabilities else set()
    looked_at.update(*(_CONFIDENCES[name].needs for name in confidences if name not in known))
    together = isinstance(logits, Sequence) and not any(maps)
    members = iter(logits)
    sums: MemberSums | None = None
    numbers = zip(shares, temperatures, maps, standards, strict=True)
    for i, (share, temperature, change, standard) in enumerate(numbers):
        if (given := next(members, None)) is None:
            raise ValueError(f"{len(weights)} weights, but only {i} members")
        if sums is None:
            sums = make_sums(given, shares, labelled, looked_at, together=together)
            if any(one is not None and len(one.mean) != len(given) for one in standards):
                raise ValueError(f"max logits' mean and deviation are not of {len(given)} classes")
        elif given.shape != sums.shape:
            raise ValueError(f"members differ in shape: {tuple(sums.shape)} and {tuple(given.shape)}")
        sums.add(given, share, temperature, change, standard)
        del given  # otherwise it would be kept while the next one is read
    if sums is None or next(members, None) is not None:
        raise ValueError(f"{len(weights)} weights, but more members")

    shape, pixels = sums.shape[1:], sums.pixels
    found_label, maximum = sums.highest()
    found = {}
    for name in confidences:
        sure = maximum if name in known else _CONFIDENCES[name].formula(sums)
        found[name] = sure.clamp_(0.0, 1.0)[:pixels].view(shape)
    chances = None
    if probabilities:
        chances = sums["logits"].softmax(0) if label == "mean-logit" else sums["softmax"]
        chances = chances[:, :pixels].view(sums.shape)
    return FusedSeveral(found_label[:pixels].view(shape), found, chances)


def _margin(sums: MemberSums) -> Tensor:
    highest, second = sums["softmax"][0], torch.zeros_like(sums["softmax"][0])
    for score in sums["softmax"][1:]:
        second = torch.maximum(second, torch.minimum(highest, score))
        highest = torch.maximum(highest, score)
    return highest - second


def _mutual_information(sums: MemberSums) -> Tensor:
    if sums.is_alone:
        return 1.0 + 0.0 * sums["entropies"].float()  # NaN stays
    information = (entropy(sums["exact"], sums.rooms[1]) - sums["entropies"]).clamp_(min=0.0)
    return 1.0 - (information / math.log(len(sums["exact"]))).sqrt_().float()


def _agreement(sums: MemberSums) -> Tensor:
    if sums.is_alone:
        return sums["votes"].sum(0).float()
    alone = math.fsum(share * share for share in sums.shares)
    return ((sums["votes"].square().sum(0) - alone) / (1.0 - alone)).float()


def _within_one(score: Tensor) -> Tensor:
    """Map all real numbers to (0, 1), rising; far from 0 it is finer than a sigmoid."""
    return 0.5 + 0.5 * score / (1.0 + score.abs())


def _standardised(sums: MemberSums) -> Tensor:
    label, highest = sums.highest()
    label = label.clamp(max=len(sums["standardised"]) - 1)  # NaN equals no class
    score = sums["standardised"].gather(0, label.long()[None])[0]
    # A class whose logit is not finite may be another one than the label.
    return _within_one(score + 0.0 * highest)


def _rba(sums: MemberSums) -> Tensor:
    classes = len(sums["logits"])
    return (sums["logits"].tanh().sum(0) + classes) / (2.0 * classes)


class _Confidence(NamedTuple):
    needs: frozenset[str]
    formula: Callable[[MemberSums], Tensor]


def _of(needs: str, formula: Callable[[MemberSums], Tensor]) -> _Confidence:
    return _Confidence(frozenset(needs.split()), formula)


_LABEL_NEEDS = {
    "mean-softmax": "softmax",
    "max-softmax": "maximum",
    "min-softmax": "minimum",
    "mean-logit": "logits",
}
LABELS = tuple(_LABEL_NEEDS)
PROBABLE = ("mean-softmax", "mean-logit")
"""Functions of the label that take the highest of probabilities, which sum to one."""
_CONFIDENCES = {
    "mean-softmax": _of("softmax", lambda sums: sums["softmax"].amax(0)),
    "mean-logit": _of("logits", lambda sums: sums["logits"].softmax(0).amax(0)),
    "min-softmax": _of("minimum", lambda sums: sums["minimum"].amax(0)),
    "margin": _of("softmax", _margin),
    "entropy": _of(
        "softmax", lambda sums: 1.0 - torch.special.entr(sums["softmax"]).sum(0) / math.log(len(sums["softmax"]))
    ),
    "expected-entropy": _of(
        "entropies softmax", lambda sums: (1.0 - sums["entropies"] / math.log(len(sums["softmax"]))).float()
    ),
    "mutual-information": _of("entropies exact", _mutual_information),
    "variation-ratio": _of("votes", lambda sums: sums["votes"].amax(0).float()),
    "disagreement": _of("votes", _agreement),
    "max-logit": _of("logits", lambda sums: _within_one(sums["logits"].amax(0))),
    STANDARDISED: _of("standardised", _standardised),
    "energy": _of("logits", lambda sums: _within_one(sums["logits"].logsumexp(0))),
    "rba": _of("logits", _rba),
}
CONFIDENCES = tuple(_CONFIDENCES)
_ALSO_CALLED = {
    "predictive-entropy": "entropy",
    "total-entropy": "entropy",
    "msp": "mean-softmax",
    "max-probability": "mean-softmax",
    "bald": "mutual-information",
    "aleatoric-entropy": "expected-entropy",
    "sml": STANDARDISED,
    "standardized-max-logit": STANDARDISED,
    "standardized-max-logits": STANDARDISED,
}
"""Names that others use for confidences."""
_MAXIMA = {"mean-softmax": "softmax", "min-softmax": "minimum"}
"""Confidences that are a plain maximum over the classes, of which sums."""


def nearest_function(name: str, known: Sequence[str]) -> str:
    """Suggest which of ``known`` an unknown name of a function may have meant, as `errors.nearest` does."""
    meant = _ALSO_CALLED.get(name.lower().replace("_", "-"))
    return f"did you mean '{meant}'?" if meant in known else nearest(name, known)


def quantise(confidence: Tensor) -> Tensor:
    """Convert a confidence in [0, 1] of any shape to uint16: floor(p * 65536), at most 65535."""
    return (confidence * 65536.0).clamp_(0.0, 65535.0).to(torch.int32).to(torch.uint16)
