"""The loss of a training step: blended scores, auxiliary scores, and what each scale says alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from ..hmsa import TrainingOutput
from .batch_labels import BatchTotals
from .cross_entropy import cross_entropy, image_weighted_cross_entropy
from .rmi import rmi_loss


class Criterion(NamedTuple):
    """Two losses of class scores (N, C, H, W), labels (N, H, W) and the whole batch, each a scalar."""

    main: Callable[..., Tensor]
    """For the scores that the network stands by."""
    side: Callable[..., Tensor]
    """For the terms that help it there."""
    is_softmax: bool = True
    """True if it takes ``border_relaxation`` and ``weights``: a sum over pixels whose classes exclude each other."""


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        # The region term is for the blended scores alone: the others would cost as much again.
        "rmi": Criterion(rmi_loss, partial(rmi_loss, region=False), is_softmax=False),
        "cross_entropy": Criterion(cross_entropy, cross_entropy),
        "image_weighted": Criterion(image_weighted_cross_entropy, image_weighted_cross_entropy),
    }
)


class LossTerms(NamedTuple):
    """A training loss and what it is the sum of; all scalars, the terms before their weights."""

    total: Tensor
    main: Tensor
    auxiliary: Tensor
    scales: dict[float, Tensor]
    """By scale; empty if scales have no weight."""
    distillation: Tensor | None = None
    """Added to the total by who has soft targets; None without them."""


def training_loss(
    output: TrainingOutput,
    labels: Tensor,
    criterion: str = "rmi",
    auxiliary_weight: float = 0.4,
    scale_weight: float = 0.05,
    totals: BatchTotals | None = None,
    border_relaxation: int = 0,
    weights: Tensor | None = None,
) -> LossTerms:
    """main + ``auxiliary_weight`` * auxiliary + ``scale_weight`` * the sum over the scales.

    Args:
        output: of a network's forward pass in training; scores of C classes.
        labels, totals: as for `cross_entropy.cross_entropy`.
        criterion: a key of `CRITERIA`.
        auxiliary_weight: of the scores that define OCR's regions (arXiv 1909.11065, section 4.1).
        scale_weight: of each scale's own scores.
        border_relaxation, weights: of all terms, as for `cross_entropy.cross_entropy`.

    Raises:
        ValueError: there is no such criterion, or it cannot be relaxed at borders or weighed; or as
            `batch_labels.labelled` and `rmi.rmi_loss`.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"there is no criterion '{criterion}': {', '.join(CRITERIA)}")
    main_loss, side_loss, is_softmax = CRITERIA[criterion]
    if border_relaxation or weights is not None:
        if not is_softmax:
            raise ValueError(f"a cross entropy over the classes is relaxed and weighed, not '{criterion}'")
        main_loss, side_loss = (
            partial(loss, border_relaxation=border_relaxation, weights=weights) for loss in (main_loss, side_loss)
        )
    main = main_loss(output.scores, labels, totals)
    auxiliary = side_loss(output.auxiliary, labels, totals)
    of_scales = output.scales.items() if scale_weight else ()
    scales = {scale: side_loss(scores, labels, totals) for scale, scores in of_scales}
    total = main + auxiliary_weight * auxiliary
    for loss in scales.values():
        total = total + scale_weight * loss
    return LossTerms(total, main, auxiliary, scales)
