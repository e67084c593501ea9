"""Pixel counts of scored images, which add up over images, processes and machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...datasets.taxonomy import CLASS_NAMES, IGNORE
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from .averages import Average
from .figures.totals import Totals, figures_of
from .metrics import confusion, level_counts

CLASSES = len(CLASS_NAMES)


@dataclass
class PixelCounts:
    """Counts of one subject's labelled pixels.

    Attributes:
        ood: whether the labels say what is out of distribution, and not of which class it is.
        confusion: (C, C) int64, rows are labels; zeros if ``ood``.
        levels: (2, 65536) int64 of `metrics.level_counts`: right is positive and found by high confidence, or, if
            ``ood``, what is out of distribution is positive and found by low confidence.
        images: how many were counted.
    """

    ood: bool = False
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((CLASSES, CLASSES), np.int64))
    levels: np.ndarray = field(default_factory=lambda: np.zeros((2, CONFIDENCE_LEVELS), np.int64))
    images: int = 0

    @classmethod
    def none(cls, ood: bool, classes: int) -> PixelCounts:
        """Counts of no image, of C = ``classes``."""
        return cls(ood, np.zeros((classes, classes), np.int64))

    def __iadd__(self, other: PixelCounts) -> PixelCounts:
        self.confusion += other.confusion
        self.levels += other.levels
        self.images += other.images
        return self

    def totals(self) -> Totals:
        """The sums that all figures are computed from."""
        matrix = self.confusion
        return Totals(self.ood, self.images, matrix.diagonal(), matrix.sum(1), matrix.sum(0), self.levels)

    def figures(self, average: Average | None = None) -> dict[str, Any]:
        """All figures by name; NaN where one is not defined.

        ``iou`` is NaN for a class that is neither labelled nor predicted. ``miou`` is the mean over the classes that
        ``average`` counts, ``miou_classes`` many; None for all that are labelled or predicted.
        """
        return figures_of(self.totals(), average)


def count_classes(
    label: np.ndarray, confidence: np.ndarray, truth: np.ndarray, classes: int = CLASSES
) -> PixelCounts:
    """One image's counts.

    Args:
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
        truth: (H, W) uint8 train ids, 255 where nothing is known.
        classes: C.

    Raises:
        ValueError: the shapes differ, or an id is no class.
    """
    if not label.shape == confidence.shape == truth.shape:
        raise ValueError(f"shapes differ: {label.shape}, {confidence.shape}, {truth.shape}")
    known = truth != IGNORE
    label, truth = label[known], truth[known]
    matrix = confusion(torch.from_numpy(label), torch.from_numpy(truth), classes).numpy()
    return PixelCounts(False, matrix, level_counts(label == truth, confidence[known]), 1)


def count_ood(confidence: np.ndarray, mask: np.ndarray, classes: int = CLASSES) -> PixelCounts:
    """One image's counts of what is out of distribution.

    Args:
        confidence: (H, W) uint16.
        mask: (H, W) uint8, 1 out of distribution, 0 in it, 255 where nothing is known.
        classes: C, of the zeros in place of a confusion matrix.
    """
    known = mask != IGNORE
    levels = level_counts(mask[known] == 1, CONFIDENCE_LEVELS - 1 - confidence[known])
    counts = PixelCounts.none(True, classes)
    counts.levels, counts.images = levels, 1
    return counts
