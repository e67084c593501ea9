"""Pixel counts of scored images, which add up over images, processes and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...datasets.taxonomy import CATEGORIES, CLASS_NAMES, IGNORE
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from .averages import Average
from .figures.boundaries import boundary_counts, distance_of, near_contour
from .figures.instances import instance_counts
from .figures.totals import Totals, figures_of
from .metrics import level_counts

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
        boundary: (2, C) int64 of `boundaries.boundary_counts`; None if an image has none.
        instances: (2, C) float64 of `instances.instance_counts`; None if an image has none.
        losses, classwise: (2,) and (C, 15) float64 of `probabilities.ProbabilitySums`; None if an image has none.
    """

    ood: bool = False
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((CLASSES, CLASSES), np.int64))
    levels: np.ndarray = field(default_factory=lambda: np.zeros((2, CONFIDENCE_LEVELS), np.int64))
    images: int = 0
    boundary: np.ndarray | None = None
    instances: np.ndarray | None = None
    losses: np.ndarray | None = None
    classwise: np.ndarray | None = None

    @classmethod
    def none(cls, ood: bool, classes: int) -> PixelCounts:
        """Counts of no image, of C = ``classes``."""
        return cls(ood, np.zeros((classes, classes), np.int64))

    def __iadd__(self, other: PixelCounts) -> PixelCounts:
        self.confusion += other.confusion
        self.levels += other.levels
        for name in OPTIONAL:
            own, more = getattr(self, name), getattr(other, name)
            both = None if own is None or more is None else own + more
            setattr(self, name, both if self.images else more)
        self.images += other.images
        return self

    def totals(self) -> Totals:
        """The sums that all figures are computed from."""
        matrix = self.confusion
        return Totals(
            ood=self.ood,
            images=self.images,
            hit=matrix.diagonal(),
            labelled=matrix.sum(1),
            predicted=matrix.sum(0),
            categories=_category_sums(matrix),
            levels=self.levels,
            **{name: getattr(self, name) for name in OPTIONAL},
        )

    def figures(self, average: Average | None = None) -> dict[str, Any]:
        """All figures by name; NaN where one is not defined.

        ``iou`` is NaN for a class that is neither labelled nor predicted. ``miou`` is the mean over the classes that
        ``average`` counts, ``miou_classes`` many; None for all that are labelled or predicted.
        """
        return figures_of(self.totals(), average)


def class_pairs(label: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each class were predicted as which, (C, C) int64: `metrics.confusion` of 8 bits, faster.

    Args:
        label, truth: (P,) uint8 ids of labelled pixels.
        classes: C; ValueError if an id is not below it.
    """
    if label.size and max(label.max(), truth.max()) >= classes:
        raise ValueError(f"ids must be below {classes}, or {IGNORE} in labels")
    pairs = truth.astype(np.int32)
    pairs *= classes
    pairs += label
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


OPTIONAL = ("boundary", "instances", "losses", "classwise")
"""Counts that only some data gives."""

_GROUPS = np.array([[name in group for name in CLASS_NAMES] for group in CATEGORIES.values()], np.int64)


def _category_sums(matrix: np.ndarray) -> np.ndarray:
    """Pixels of each category that are hit, labelled, predicted, (3, K) int64, of counts (C, C) of classes."""
    if len(matrix) != CLASSES:
        return np.zeros((3, 0), np.int64)
    grouped = _GROUPS @ matrix @ _GROUPS.T
    return np.stack([grouped.diagonal(), grouped.sum(1), grouped.sum(0)])


class LabelledImage:
    """The labels of one image, of which several subjects' predictions are counted.

    Args:
        truth: (H, W) uint8 train ids, 255 where nothing is known.
        classes: C.
        instances: ids of objects (H, W), and train id of a class with instances -> mean size; None for none.
    """

    def __init__(
        self,
        truth: np.ndarray,
        classes: int = CLASSES,
        instances: tuple[np.ndarray, Mapping[int, float]] | None = None,
    ) -> None:
        self._known = truth != IGNORE
        self._all = truth
        self._truth = truth[self._known]
        self._classes = classes
        self._distance = distance_of(truth.shape)
        self._near = near_contour(truth, self._distance)[self._known]
        self._objects = (instances[0][self._known], instances[1]) if instances else None

    def count(self, label: np.ndarray, confidence: np.ndarray) -> PixelCounts:
        """Count a prediction; ValueError if the shapes differ, or an id is no class.

        Args:
            label: (H, W) uint8 train ids.
            confidence: (H, W) uint16.
        """
        if not label.shape == confidence.shape == self._all.shape:
            raise ValueError(f"shapes differ: {label.shape}, {confidence.shape}, {self._all.shape}")
        near = near_contour(np.where(self._known, label, np.uint8(IGNORE)), self._distance)[self._known]
        label, truth = label[self._known], self._truth
        matrix = class_pairs(label, truth, self._classes)
        counts = PixelCounts(False, matrix, level_counts(label == truth, confidence[self._known]), 1)
        counts.boundary = boundary_counts(label, truth, near, self._near, self._classes)
        if self._objects:
            counts.instances = instance_counts(label, truth, *self._objects, self._classes)
        return counts


def count_classes(
    label: np.ndarray, confidence: np.ndarray, truth: np.ndarray, classes: int = CLASSES
) -> PixelCounts:
    """One image's counts; ValueError if the shapes differ, or an id is no class.

    Args:
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
        truth: (H, W) uint8 train ids, 255 where nothing is known.
        classes: C.
    """
    return LabelledImage(truth, classes).count(label, confidence)


class OutlierImage:
    """The labels of one image that say what is out of distribution.

    Args:
        mask: (H, W) uint8, 1 out of distribution, 0 in it, 255 where nothing is known.
        classes: C, of the zeros in place of a confusion matrix.
    """

    def __init__(self, mask: np.ndarray, classes: int = CLASSES) -> None:
        self._known = mask != IGNORE
        self._odd = mask[self._known] == 1
        self._classes = classes

    def count(self, label: np.ndarray, confidence: np.ndarray) -> PixelCounts:
        """Count a prediction.

        Args:
            label: any; it does not matter.
            confidence: (H, W) uint16.
        """
        levels = level_counts(self._odd, CONFIDENCE_LEVELS - 1 - confidence[self._known])
        return PixelCounts(True, np.zeros((self._classes, self._classes), np.int64), levels, 1)


def count_ood(confidence: np.ndarray, mask: np.ndarray, classes: int = CLASSES) -> PixelCounts:
    """One image's counts of what is out of distribution.

    Args:
        confidence: (H, W) uint16.
        mask: (H, W) uint8, 1 out of distribution, 0 in it, 255 where nothing is known.
        classes: C, of the zeros in place of a confusion matrix.
    """
    return OutlierImage(mask, classes).count(confidence, confidence)
