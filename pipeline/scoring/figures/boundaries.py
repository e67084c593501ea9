"""Boundary IoU: the IoU of those pixels of a class that are near its contour.

For a class c with pixels G in the labels and P in the prediction, G_d and P_d are those within d pixels (rows and
columns, with diagonals) of a pixel that is not of the class, or of the image's border:

    boundary IoU = |G_d and P_d| / |G_d or P_d|

counted over all images. Where nothing is labelled, the prediction has no class either, so that both contours run
along such a region alike.

Cheng et al., CVPR 2021 (arXiv 2103.16562), section 4; the distance is 0.5 % of the diagonal, as its authors' programs
take it for Cityscapes (2 % for COCO and LVIS, whose contours are coarser).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

SHARE_OF_DIAGONAL = 0.005


def distance_of(shape: tuple[int, ...]) -> int:
    """The distance d in pixels, at least 1, of images of the shape (H, W)."""
    return max(1, round(SHARE_OF_DIAGONAL * math.hypot(*shape)))


def near_contour(ids: np.ndarray, distance: int) -> np.ndarray:
    """Mark the pixels within ``distance`` of another class or of the border, (H, W) bool, of ids (H, W) uint8."""
    found = np.ones(ids.shape, np.bool_)
    if min(ids.shape) > 2 * distance:
        length = 2 * distance + 1
        low = _over_windows(np.minimum, _over_windows(np.minimum, ids, length).T, length).T
        high = _over_windows(np.maximum, _over_windows(np.maximum, ids, length).T, length).T
        np.not_equal(low, high, out=found[distance:-distance, distance:-distance])
    return found


def _over_windows(lower: Callable[..., np.ndarray], ids: np.ndarray, length: int) -> np.ndarray:
    """The minimum or maximum of ``length`` rows from each row on, by windows that double."""
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        ids = lower(ids[:-step], ids[step:])
        reach += step
    return ids


def boundary_counts(
    label: np.ndarray, truth: np.ndarray, of_label: np.ndarray, of_truth: np.ndarray, classes: int
) -> np.ndarray:
    """Pixels of each class near both contours, and near either, (2, C) int64.

    Args:
        label, truth: (P,) ids of the labelled pixels.
        of_label, of_truth: (P,) bool: near the contour of the prediction, of the labels.
        classes: C.
    """
    both = np.bincount(truth[of_label & of_truth & (label == truth)], minlength=classes)
    either = np.bincount(truth[of_truth], minlength=classes) + np.bincount(label[of_label], minlength=classes) - both
    return np.stack([both, either])
