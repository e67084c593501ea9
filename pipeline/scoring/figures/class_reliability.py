"""Reliability of each predicted class: how often pixels that are predicted as a class are right, by their confidence.

The bins of each class are those of the expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599,
equation 3), over the pixels that are predicted as the class.
"""

from __future__ import annotations

import math

import numpy as np

from ....datasets.taxonomy import IGNORE
from ..metrics import BINS, FINE

PIXELS, RIGHT, CONFIDENCE = range(3)


def count_by_class(label: np.ndarray, confidence: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count labelled pixels by predicted class and bin of confidence.

    Args:
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
        truth: (H, W) uint8, 255 where nothing is known.
        classes: C.

    Returns:
        (3, C, 15) float64: pixels, right ones, and the sum of the confidences from 0 to 1. They add up over images.
    """
    known = truth != IGNORE
    predicted, levels = label[known].astype(np.int64), confidence[known].astype(np.int64)
    bin_of_level = np.searchsorted(FINE.bins, np.arange(len(FINE.sure)), side="right") - 1
    place = predicted * BINS + bin_of_level[levels]
    weights = (None, predicted == truth[known], FINE.sure[levels])
    found = [np.bincount(place, one, minlength=classes * BINS).reshape(-1, BINS)[:classes] for one in weights]
    return np.stack(found).astype(np.float64)


def class_ece(counts: np.ndarray) -> np.ndarray:
    """Expected calibration error of each predicted class, (C,) float64, of `count_by_class`; NaN without pixels."""
    pixels = counts[PIXELS].sum(1)
    gaps = np.abs(counts[RIGHT] - counts[CONFIDENCE]).sum(1)
    return np.divide(gaps, pixels, out=np.full(len(pixels), math.nan), where=pixels > 0)
