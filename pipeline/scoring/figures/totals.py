"""Sums over images that all figures are computed from: small enough to be kept for each resampling of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....datasets.taxonomy import CLASS_NAMES
from ..averages import PLAIN, Average
from ..metrics import FINE, Levels, aupr, auroc, ece, errors_first, fpr95
from .calibration_errors import adaptive_ece, mce, smooth_ece
from .selective import augrc, aurc, best_aurc, coverage_at_risk, risk_at_coverage

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
        categories: (3, K): the same three of categories; K is 0 where the classes have none.
        levels: (2, L) of `metrics.level_counts`, at the levels of ``scale``.
        boundary: (2, C) of `boundaries.boundary_counts`; None where they were not counted.
        instances: (2, C) of `instances.instance_counts`; None where they were not counted.
        losses, classwise: (2,) and (C, 15) of `probabilities.ProbabilitySums`; None where they were not summed.
        scale: the levels of confidence.
    """

    ood: bool
    images: float
    hit: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray
    categories: np.ndarray
    levels: np.ndarray
    boundary: np.ndarray | None = None
    instances: np.ndarray | None = None
    losses: np.ndarray | None = None
    classwise: np.ndarray | None = None
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
    classes, lists = _class_figures(totals, average or PLAIN)
    return counted | classes | _confidence_figures(totals) | _probability_figures(totals) | lists


def _class_figures(totals: Totals, average: Average) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Figures of the class map: numbers, and lists of one for each class or category."""
    hit, labelled, predicted = totals.hit, totals.labelled, totals.predicted
    counted = average.counted_of(labelled, predicted)
    lists = {
        "iou": _ratio(hit, labelled + predicted - hit),
        "precision": _ratio(hit, predicted),
        "recall": _ratio(hit, labelled),
    }
    numbers = {
        "miou": _mean(lists["iou"], counted),
        "miou_classes": int(counted.sum()),
        "accuracy": float(_ratio(hit.sum(), labelled.sum())),
        "mean_precision": _mean(lists["precision"], counted),
        "mean_recall": _mean(lists["recall"], counted),
    }
    if totals.categories.size and average.names == CLASS_NAMES:
        hits, right, said = totals.categories
        lists["category_iou"] = _ratio(hits, right + said - hits)
        numbers["category_miou"] = _mean(lists["category_iou"], right + said > 0)
    if totals.boundary is not None:
        lists["boundary_iou"] = _ratio(*totals.boundary)
        numbers["boundary_miou"] = _mean(lists["boundary_iou"], counted)
    if totals.instances is not None:
        hits, missed = totals.instances
        lists["iiou"] = np.where(hits + missed > 0, _ratio(hits, hits + missed + predicted - hit), math.nan)
        numbers["miiou"] = _mean(lists["iiou"], counted)
    return numbers, {name: values.tolist() for name, values in lists.items()}


def _ratio(some: np.ndarray, every: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.true_divide(some, every)


def _mean(values: np.ndarray, counted: np.ndarray) -> float:
    """Mean over the counted classes in which the figure is defined; NaN if there is none."""
    held = values[counted & ~np.isnan(values)]
    return float(held.mean()) if held.size else math.nan


def _probability_figures(totals: Totals) -> dict[str, float]:
    """Figures of the probabilities of all classes; none where they were not summed."""
    if totals.losses is None or totals.classwise is None:
        return {}
    pixels = totals.labelled.sum()
    nll, brier = (float(_ratio(loss, pixels)) for loss in totals.losses)
    gaps = np.abs(totals.classwise).sum() / len(totals.classwise)
    return {"nll": nll, "brier": brier, "classwise_ece": float(_ratio(gaps, pixels))}


def _confidence_figures(totals: Totals) -> dict[str, Any]:
    levels, scale = totals.levels, totals.scale
    joined = scale is not FINE
    area = aurc(levels)
    return {
        "ece": ece(levels, scale),
        "auroc": auroc(levels),
        "auprc_success": aupr(levels),
        "auprc_error": aupr(errors_first(levels)),
        "fpr95": fpr95(levels, between=joined),
        "adaptive_ece": adaptive_ece(levels, scale),
        "smooth_ece": smooth_ece(levels, scale),
        "mce": mce(levels, scale),
        "aurc": area,
        "eaurc": area - best_aurc(levels),
        "augrc": augrc(levels),
        "risk_at_80_coverage": risk_at_coverage(levels),
        "coverage_at_5_risk": coverage_at_risk(levels, between=joined),
    }
