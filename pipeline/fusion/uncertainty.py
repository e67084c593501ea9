"""Stored confidences back to the figures of the literature, which rise with uncertainty; for formulas see `fuse`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .prediction_files import CONFIDENCE_LEVELS


def as_uncertainty(function: str, confidence: np.ndarray, classes: int) -> np.ndarray:
    """Give the uncertainty that a stored confidence stands for: entropies in nats, the negative of a logit or energy.

    All order pixels as 1 - confidence does, but their means differ.

    Args:
        function: name of the confidence, one of `fuse.CONFIDENCES`.
        confidence: uint16, of any shape.
        classes: C, of which the logits were.

    Returns:
        float64 of the same shape.
    """
    # 65,536 values are computed instead of millions.
    share = (np.arange(CONFIDENCE_LEVELS) + 0.5) / CONFIDENCE_LEVELS
    convert = _CONVERSIONS.get(function)
    return (1.0 - share if convert is None else convert(share, classes))[confidence]


def as_brightness(function: str, confidence: np.ndarray, classes: int) -> np.ndarray:
    """Give brightness for pictures: 0 where the ensemble is sure, 1 where it is not, in between 1 - confidence.

    RbA counts from one accepted class on, the others rejected, to all rejected: a whole picture would lie in a tenth
    of its range.

    Args:
        function, confidence, classes: see `as_uncertainty`.

    Returns:
        float32 of the confidence's shape.
    """
    share = (np.arange(CONFIDENCE_LEVELS, dtype=np.float32) + 0.5) / CONFIDENCE_LEVELS
    return (1.0 - (classes if function == "rba" else 1) * share).clip(0.0, 1.0)[confidence]


def _nats(share: np.ndarray, classes: int) -> np.ndarray:
    return (1.0 - share) * math.log(classes)


def _information(share: np.ndarray, classes: int) -> np.ndarray:
    return (1.0 - share) ** 2 * math.log(classes)


def _negative_logit(share: np.ndarray, _: int) -> np.ndarray:
    within_one = 2.0 * share - 1.0
    return -within_one / (1.0 - np.abs(within_one))


def _rba(share: np.ndarray, classes: int) -> np.ndarray:
    return classes - 2.0 * classes * share


_CONVERSIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "entropy": _nats,
    "expected-entropy": _nats,
    "mutual-information": _information,
    "max-logit": _negative_logit,
    "standardised-max-logit": _negative_logit,
    "energy": _negative_logit,
    "rba": _rba,
}
