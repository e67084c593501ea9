"""Sums over images that all figures are computed from: small enough to be kept for each resampling of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..averages import PLAIN, Average
from ..metrics import FINE, Levels, aupr, auroc, ece, errors_first, fpr95

COUNTS = ("images", "pixels", "miou_classes")
"""Numbers among the figures that count something, and have no interval."""


@dataclass(frozen=True)
class Totals:
    """Sums over images; weighted ones where images were resampled.

    Attributes:
        ood: whether the labels say what is out of distribution, and not of which class it is.
        images: how many there are.
        hit: (C,) pixels of each class that are predicted as it.
        labelled: (C,) pixels that are labelled as each class.
        predicted: (C,) labelled pixels that are predicted as each class.
        levels: (2, L) of `metrics.level_counts`, at the levels of ``scale``.
        scale: the levels of confidence.
    """

    ood: bool
    images: float
    hit: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray
    levels: np.ndarray
    scale: Levels = FINE


def figures_of(totals: Totals, average: Average | None = None) -> dict[str, Any]:
    """All figures by name: a number, or a list of one for each class; NaN where one is not defined.

    Args:
        totals: of one subject.
        average: which classes means are taken over; None for all that are labelled or predicted.
    """
    counted: dict[str, Any] = {"images": int(totals.images), "pixels": int(totals.levels.sum())}
    if totals.ood:
        levels, joined = totals.levels, totals.scale is not FINE
        return counted | {"auroc": auroc(levels), "auprc": aupr(levels), "fpr95": fpr95(levels, between=joined)}
    return counted | _class_figures(totals, average or PLAIN) | _confidence_figures(totals)


def _class_figures(totals: Totals, average: Average) -> dict[str, Any]:
    with np.errstate(invalid="ignore"):
        iou = totals.hit / (totals.labelled + totals.predicted - totals.hit)
    counted = average.counted_of(totals.labelled, totals.predicted)
    pixels = totals.labelled.sum()
    return {
        "miou": float(iou[counted].mean()) if counted.any() else math.nan,
        "miou_classes": int(counted.sum()),
        "accuracy": float(totals.hit.sum() / pixels) if pixels else math.nan,
        "iou": iou.tolist(),
    }


def _confidence_figures(totals: Totals) -> dict[str, Any]:
    levels = totals.levels
    return {
        "ece": ece(levels, totals.scale),
        "auroc": auroc(levels),
        "auprc_success": aupr(levels),
        "auprc_error": aupr(errors_first(levels)),
        "fpr95": fpr95(levels, between=totals.scale is not FINE),
    }
