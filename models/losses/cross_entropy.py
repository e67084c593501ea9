"""Cross entropy, plain and with classes weighted by how rare they are in each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch_labels import IGNORE, BatchTotals, in_float32, labelled
from .border_relaxation import relaxed_pixel_losses


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    totals: BatchTotals | None = None,
    *,
    border_relaxation: int = 0,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of the labelled pixels of a batch, 0 if there are none.

    Args:
        logits: (N, C, H, W) class scores, any floating dtype.
        labels: (N, H, W) int64 train ids, 255 is ignored.
        totals: the batch that these are a part of; None if they are all of it.
        border_relaxation: pixels from a border of classes within which `relaxed_pixel_losses` are taken; 0 for none.
        weights: (N, H, W) float, factors of the pixels' losses, such as how certain their labels are; None for 1. The
            mean is still that over labelled pixels: uncertain ones pull less, and none the more for it.

    Returns:
        A scalar, float32 (float64 for float64 scores); under autocast too.

    Raises:
        ValueError: as `batch_labels.labelled`.
    """
    valid = labelled(logits, labels)
    pixels = valid.sum().clamp(min=1) if totals is None else max(1, totals.pixels)
    return _pixel_losses(logits, labels, border_relaxation, weights).sum() / pixels


def image_weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    totals: BatchTotals | None = None,
    *,
    border_relaxation: int = 0,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy with the weights of `image_class_weights`: their weighted mean within each image.

    Takes, returns and raises what `cross_entropy` does. The images' losses are averaged, one without labels counts
    as 0, so that the loss does not depend on how a batch is split over devices or accumulation steps. A pixel whose
    border is relaxed has the weight of its own class.

    The rule of the training code published with arXiv 1812.01593 and arXiv 2005.10821.

    Args:
        logits, labels, totals, border_relaxation, weights: as for `cross_entropy`.
    """
    valid = labelled(logits, labels)
    classes = labels.where(valid, 0)
    of_classes = image_class_weights(classes, valid, logits.shape[1]).to(in_float32(logits).dtype)
    of_pixels = of_classes.gather(1, classes.flatten(1)).masked_fill(~valid.flatten(1), 0)
    losses = _pixel_losses(logits, labels, border_relaxation, weights).flatten(1)
    # Weights are 1 at least: the sum of no pixels is the only one below 1.
    of_images = (of_pixels * losses).sum(1) / of_pixels.sum(1).clamp(min=1)
    return of_images.sum() / (len(logits) if totals is None else totals.images)


def image_class_weights(classes: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """One weight per image and class: 2 - share of the class among the labelled pixels.

    Args:
        classes, valid: (N, H, W) int64 in 0..``num_classes`` - 1, and bool, which of them count.
        num_classes: C.

    Returns:
        (N, C) float64, finite: 2 for classes that the image lacks.
    """
    counts = torch.zeros(len(classes), num_classes, dtype=torch.float64, device=classes.device)
    counts.scatter_add_(1, classes.flatten(1), valid.flatten(1).double())
    return 1 + (1 - counts / counts.sum(1, keepdim=True).clamp(min=1))


def _pixel_losses(logits: Tensor, labels: Tensor, border_relaxation: int, weights: Tensor | None) -> Tensor:
    """(N, H, W) cross entropies, 0 where ignored."""
    if border_relaxation:
        losses = relaxed_pixel_losses(logits, labels, border_relaxation)
    else:
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.cross_entropy(in_float32(logits), labels, ignore_index=IGNORE, reduction="none")
    return losses if weights is None else losses * weights
