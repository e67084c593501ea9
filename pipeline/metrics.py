"""Figures of class maps against ground truth, from counts that add up over images and machines."""

from __future__ import annotations

import torch
from torch import Tensor

from ..datasets.taxonomy import IGNORE


def confusion(predicted: Tensor, labels: Tensor, num_classes: int = 19) -> Tensor:
    """How many pixels of each class were taken for which.

    Args:
        predicted: any shape, integer train ids below ``num_classes``.
        labels: the same shape, integer train ids, 255 is ignored.
        num_classes: C.

    Returns:
        (C, C) int64 on the same device: rows are labels, columns predictions.

    Raises:
        ValueError: the shapes differ, or an id is neither a class nor 255.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape")
    known = labels != IGNORE
    pairs = labels[known].long() * num_classes + predicted[known].long()
    limits = [(ids.min(), ids.max()) for ids in (labels[known], predicted[known]) if ids.numel()]
    if any(low < 0 or high >= num_classes for low, high in limits):
        raise ValueError(f"ids must be below {num_classes}, or {IGNORE} in labels")
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def class_iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class.

    Args:
        matrix: (C, C) int64 of `confusion`.

    Returns:
        (C,) float64 in 0..1; NaN for a class that is neither labelled nor predicted.
    """
    matrix = matrix.double()
    hit = matrix.diagonal()
    return hit / (matrix.sum(0) + matrix.sum(1) - hit)


def mean_iou(matrix: Tensor) -> float:
    """Mean of `class_iou` over the classes that are labelled or predicted; NaN if there is none."""
    return class_iou(matrix).nanmean().item()
