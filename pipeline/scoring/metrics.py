"""Figures of class maps and confidences against ground truth, from counts that add up over images and machines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from ...datasets.taxonomy import IGNORE
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from .averages import PLAIN, Average

BINS = 15
"""Bins of confidence in `reliability` and `ece`."""


@dataclass(frozen=True)
class Levels:
    """Levels of confidence at which pixels are counted.

    Attributes:
        sure: (L,) float64, ascending: the confidence that each stands for.
        bins: (15,) int64: the first level of each bin of `reliability`.
    """

    sure: np.ndarray
    bins: np.ndarray


FINE = Levels(
    (np.arange(CONFIDENCE_LEVELS) + 0.5) / CONFIDENCE_LEVELS,
    np.round(np.linspace(0, CONFIDENCE_LEVELS, BINS + 1)).astype(np.int64)[:-1],
)
"""The levels of a stored confidence; bins are cut at ``round(linspace(0, 65536, 16))``."""


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
    """Intersection over union of each class, (C,) float64 in 0..1, from `confusion`.

    NaN for a class that is neither labelled nor predicted.
    """
    matrix = matrix.double()
    hit = matrix.diagonal()
    return hit / (matrix.sum(0) + matrix.sum(1) - hit)


def mean_iou(matrix: Tensor, average: Average | None = None) -> float:
    """Mean of `class_iou` over the classes that ``average`` counts, None for `PLAIN`; NaN if there is none."""
    return class_iou(matrix)[(average or PLAIN).counted(matrix)].mean().item()


def level_counts(right: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """How many pixels of each confidence were wrong and right; counts of several images add up.

    Args:
        right: any shape, bool.
        confidence: the same shape, uint16.

    Returns:
        (2, 65536) int64: row 0 the wrong ones (negatives), row 1 the right ones (positives).

    Raises:
        ValueError: the shapes or dtypes are others.
    """
    if right.shape != confidence.shape or right.dtype != np.bool_ or confidence.dtype != np.uint16:
        raise ValueError(
            f"bool and uint16 of one shape are needed, not {right.dtype} {right.shape} and {confidence.dtype} "
            f"{confidence.shape}"
        )
    places = confidence.ravel().astype(np.int32)
    places += right.ravel() * np.int32(CONFIDENCE_LEVELS)
    return np.bincount(places, minlength=2 * CONFIDENCE_LEVELS).reshape(2, CONFIDENCE_LEVELS)


def _from_the_top(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Negatives and positives at or above each level, highest level first; (65536,) int64 each."""
    above = counts[:, ::-1].cumsum(1)
    return above[0], above[1]


def roc(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates for counts (2, L), (L + 1,) float64 each, from (0, 0) to (1, 1).

    NaN where there are no negatives, or no positives.
    """
    negatives, positives = _from_the_top(counts)
    with np.errstate(invalid="ignore"):
        rates = [np.append(0.0, seen / seen[-1]) for seen in (negatives, positives)]
    return rates[0], rates[1]


def auroc(counts: np.ndarray) -> float:
    """Area under the ROC curve of counts (2, L), ties counted half; NaN with one kind of pixels only."""
    false, true = roc(counts)
    return float(np.trapezoid(true, false))


def fpr95(counts: np.ndarray, *, between: bool = False) -> float:
    """False positive rate, for counts (2, L), at the highest threshold that finds 95 % of the positives.

    NaN as for `auroc`.

    Args:
        counts: of `level_counts`.
        between: interpolate between thresholds, for levels that were joined and would be far apart.
    """
    false, true = roc(counts)
    if np.isnan(true[-1]):
        return math.nan
    return float(np.interp(0.95, true, false) if between else false[int(np.searchsorted(true, 0.95))])


def precision_recall(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at every level, highest first, (L,) float64; recall is NaN without positives."""
    negatives, positives = _from_the_top(counts)
    with np.errstate(invalid="ignore"):
        precision = positives / (positives + negatives)
        return np.nan_to_num(precision, nan=1.0), positives / positives[-1]


def aupr(counts: np.ndarray) -> float:
    """Average precision of counts (2, L): precision summed over the steps of recall; NaN without positives."""
    precision, recall = precision_recall(counts)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def errors_first(counts: np.ndarray) -> np.ndarray:
    """Counts (2, L) int64 with wrong pixels as positives and low confidence as the score that finds them."""
    return counts[::-1, ::-1]


def reliability(counts: np.ndarray, scale: Levels = FINE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, mean confidence and accuracy (float64, NaN in an empty bin) of each bin, (15,) each.

    Args:
        counts: (2, L) of `level_counts`.
        scale: the levels.
    """
    every = counts.sum(0)
    pixels, right, total = (np.add.reduceat(what, scale.bins) for what in (every, counts[1], every * scale.sure))
    with np.errstate(invalid="ignore"):
        return pixels, total / pixels, right / pixels


def ece(counts: np.ndarray, scale: Levels = FINE) -> float:
    """Expected calibration error of counts (2, L): the mean over pixels of |confidence - accuracy| of their bins.

    NaN without pixels.

    Guo et al., On Calibration of Modern Neural Networks (2017), equation 3.
    """
    pixels, confidence, accuracy = reliability(counts, scale)
    if not pixels.any():
        return math.nan
    return float(np.nansum(pixels * np.abs(confidence - accuracy)) / pixels.sum())


@overload
def harmonic_mean(values: Iterable[float]) -> float: ...
@overload
def harmonic_mean(values: Iterable[np.ndarray]) -> np.ndarray: ...
def harmonic_mean(values: Iterable[float] | Iterable[np.ndarray]) -> float | np.ndarray:
    """Harmonic mean of figures of at least 0, numbers or arrays (...) float64 of them.

    0 if one is 0, NaN if one is NaN or there is none.
    """
    known = np.array([*values], np.float64)
    if not len(known):
        return math.nan
    with np.errstate(divide="ignore"):
        means = len(known) / (1 / known).sum(0)
    means = np.where(np.isnan(known).any(0), math.nan, np.where((known == 0).any(0), 0.0, means))
    return means if means.ndim else float(means)
