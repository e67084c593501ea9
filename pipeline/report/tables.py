"""The tables of a report's page, as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...datasets.taxonomy import CATEGORIES
from ..fusion.member_stores import ENSEMBLE
from ..scoring.figures.names import LOWER_IS_BETTER
from ..text import figure, plural
from .records import RESAMPLING, DatasetSummary

TITLES = {
    "miou": "mIoU",
    "miou_classes": "classes in it",
    "accuracy": "accuracy",
    "mean_precision": "precision",
    "mean_recall": "recall",
    "category_miou": "category IoU",
    "boundary_miou": "boundary IoU",
    "miiou": "iIoU",
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "smooth_ece": "smooth ECE",
    "classwise_ece": "classwise ECE",
    "mce": "MCE",
    "auroc": "AUROC",
    "auprc_success": "AUPR right",
    "auprc_error": "AUPR wrong",
    "auprc": "AUPRC",
    "fpr95": "FPR 95",
    "aurc": "AURC",
    "eaurc": "E-AURC",
    "augrc": "AUGRC",
    "risk_at_80_coverage": "risk at 80 % coverage",
    "coverage_at_5_risk": "coverage at 5 % risk",
    "best_f1": "best F1 of pixels",
    "threshold": "at the score",
    "siou": "sIoU",
    "ppv": "PPV",
    "f1": "mean F1",
}
"""Headings of the figures."""
GROUPS: dict[str, tuple[str, ...]] = {
    "class map": (
        *("miou", "miou_classes", "accuracy", "mean_precision", "mean_recall"),
        *("category_miou", "boundary_miou", "miiou"),
    ),
    "calibration": ("nll", "brier", "ece", "adaptive_ece", "smooth_ece", "classwise_ece", "mce"),
    "confidence": ("auroc", "auprc", "auprc_success", "auprc_error", "fpr95"),
    "selective prediction": ("aurc", "eaurc", "augrc", "risk_at_80_coverage", "coverage_at_5_risk"),
    "components": ("best_f1", "threshold", "siou", "ppv", "f1"),
}
"""Heading -> figures of one dataset that stand below it."""
BY_CLASS = {"precision": "precision", "recall": "recall", "boundary_iou": "boundary IoU", "iiou": "iIoU"}
"""Figures of each class besides its IoU -> headings."""
_NEITHER = ("miou_classes", "threshold")
_CLASSES = (
    *("miou", "accuracy", "boundary_miou", "nll", "brier", "ece"),
    *("auroc", "auprc_success", "auprc_error", "fpr95", "aurc"),
)
_OUTLIERS = ("auroc", "auprc", "fpr95")

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Dataset -> subject -> name of a figure -> its value."""


def figures_by_dataset(summaries: Sequence[DatasetSummary], *, semantic: bool) -> Figures:
    """The figures of the datasets with labels of classes, or of those with labels of what is out of distribution.

    Args:
        summaries: of all datasets.
        semantic: which of both.
    """
    return {one.dataset: one.figures() for one in summaries if one.counts and one.semantic is semantic}


def summary_tables(summaries: Sequence[DatasetSummary]) -> list[dict[str, Any]]:
    """The ensemble against its members over all datasets: one table for classes, one for out-of-distribution sets.

    Each row is one figure, the mean over the datasets on which it is defined for everyone. The best member is that
    with the best mean of this figure, with hindsight.
    """
    found = []
    for semantic, names, title in ((True, _CLASSES, "Classes"), (False, _OUTLIERS, "Out of distribution")):
        figures = figures_by_dataset(summaries, semantic=semantic)
        if not figures:
            continue
        kinds = f"mean of {len(figures)} datasets" if len(figures) > 1 else next(iter(figures))
        images = sum(len(one.gallery) for one in summaries if one.dataset in figures)
        rows = [row for row in (_compare(figures, name) for name in names) if row]
        members = [name for name in next(iter(figures.values())) if name != ENSEMBLE]
        found.append({"title": title, "of": f"{kinds}, {plural(images, 'image')}", "rows": rows, "members": members})
    return found


def _compare(figures: Figures, name: str) -> dict[str, Any] | None:
    """One row of a summary table; None if the figure is defined nowhere."""
    known = [one for one in figures.values() if all(name in values for values in one.values())]
    rows = [{who: float(values[name]) for who, values in one.items()} for one in known]
    rows = [row for row in rows if not np.isnan(list(row.values())).any()]
    if not rows:
        return None
    mean = {who: float(np.mean([row[who] for row in rows])) for who in rows[0]}
    lower = name in LOWER_IS_BETTER
    row: dict[str, Any] = {
        "name": TITLES[name],
        "lower": lower,
        "few": len(rows) if len(rows) < len(figures) else None,
        "ensemble": figure(mean.pop(ENSEMBLE)),
    }
    if mean:
        best = (min if lower else max)(mean, key=mean.__getitem__)
        ensemble = float(np.mean([one[ENSEMBLE] for one in rows]))
        lead = mean[best] - ensemble if lower else ensemble - mean[best]
        row |= {
            "best": figure(mean[best]),
            "who": best,
            "mean": figure(float(np.mean(list(mean.values())))),
            "lead": f"{lead:+z.4f}",
            "ahead": None if len(mean) < 2 or abs(lead) < 5e-5 else lead > 0,
        }
    return row


def overview_table(summaries: Sequence[DatasetSummary]) -> dict[str, Any]:
    """One row per dataset: its images, what is known without labels, and mIoU of every subject."""
    scores = {
        name: {who: row["miou"] for who, row in one.items()}
        for name, one in figures_by_dataset(summaries, semantic=True).items()
    }
    subjects = list(next(iter(scores.values()), {}))
    rows = []
    for one in summaries:
        row = scores.get(one.dataset, {})
        known = [value for value in row.values() if not np.isnan(value)]
        best = max(known) if len(known) > 1 else None
        disagreement = one.mean("disagreement")
        rows.append(
            {
                "dataset": one.dataset,
                "images": len(one.gallery),
                "confidence": figure(one.mean("confidence")),
                "disagreement": "-" if disagreement is None else f"{100 * disagreement:.2f} %",
                "information": figure(one.mean("information")),
                "cells": [(figure(row.get(who)), row.get(who) == best is not None) for who in subjects],
            }
        )
    return {"subjects": subjects, "rows": rows}


def dataset_table(summary: DatasetSummary) -> dict[str, Any]:
    """All figures of a dataset, a row each, with the ensemble's interval and the members' values."""
    scores = summary.figures()
    if summary.components:
        components = summary.components.figures()
        scores = {name: {**row, **components[name]} for name, row in scores.items()}
    ends = summary.intervals() | (summary.components.intervals.get(ENSEMBLE, {}) if summary.components else {})
    disagreement = summary.mean("disagreement")
    found = next(iter(scores.values()), {})
    groups = [
        {"title": title, "rows": [_row(name, scores, ends) for name in names if name in found]}
        for title, names in GROUPS.items()
    ]
    return {
        "dataset": summary.dataset,
        "images": len(summary.gallery),
        "subjects": list(scores),
        "intervals": bool(ends),
        "resamplings": RESAMPLING.replicates,
        "groups": [group for group in groups if group["rows"]],
        "classes": _class_table(scores, ends, "iou", summary.classes.names),
        "categories": _class_table(scores, ends, "category_iou", tuple(CATEGORIES)),
        "sets": [
            {
                "name": row["name"] or "all",
                "values": [
                    (figure(row[name]), _ends(row["intervals"][name]) if "intervals" in row else "")
                    for name in ("coverage", "size", "empty")
                ],
                "images": row["images"],
            }
            for row in summary.set_figures()
        ],
        "average": f"mIoU {summary.average.words()}." if summary.semantic else None,
        "least": summary.components.least if summary.components else None,
        "left_out": _missing(summary.left_out) if summary.semantic else [],
        "confidence": figure(summary.mean("confidence")),
        "disagreement": None if disagreement is None else f"{100 * disagreement:.2f} %",
        "information": figure(summary.mean("information")),
    }


def _row(name: str, scores: Mapping[str, Mapping[str, Any]], ends: Mapping[str, Any]) -> dict[str, Any]:
    """One figure: of every subject, the best one marked."""
    values = [row[name] for row in scores.values()]
    known = [value for value in values if not np.isnan(value)]
    lower = name in LOWER_IS_BETTER
    best = (min if lower else max)(known) if len(known) > 1 and name not in _NEITHER else None
    return {
        "title": TITLES[name],
        "better": None if name in _NEITHER else "low" if lower else "high",
        "cells": [(figure(value), value == best) for value in values],
        "interval": _ends(ends[name]) if name in ends else "",
    }


def _class_table(
    scores: Mapping[str, Mapping[str, Any]], ends: Mapping[str, Any], name: str, rows: Sequence[str]
) -> dict[str, Any] | None:
    """IoU of each class or category of every subject, and other figures of the ensemble; None without labels."""
    if not scores or not all(row.get(name) for row in scores.values()):
        return None
    others = {key: title for key, title in BY_CLASS.items() if name == "iou" and key in scores[ENSEMBLE]}
    return {
        "others": list(others.values()),
        "rows": [
            {
                "name": each,
                "values": [figure(row[name][number]) for row in scores.values()],
                "interval": _ends(ends[name][number]) if name in ends else "",
                "others": [figure(scores[ENSEMBLE][key][number]) for key in others],
            }
            for number, each in enumerate(rows)
        ],
    }


def _ends(ends: Sequence[float]) -> str:
    return "" if np.isnan(ends).any() else f"{figure(ends[0])} to {figure(ends[1])}"


def _missing(left_out: Mapping[str, str]) -> list[str]:
    """Sentences about figures that the data does not give, one for each reason."""
    reasons = list(dict.fromkeys(left_out.values()))
    names = [
        [TITLES[name] for name, why in left_out.items() if why == reason and name in TITLES] for reason in reasons
    ]
    return [f"No {', '.join(some)}: {reason}." for some, reason in zip(names, reasons, strict=True)]
