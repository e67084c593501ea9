"""The tables of a report's page, as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..fusion.member_stores import ENSEMBLE
from ..scoring.figures.names import LOWER_IS_BETTER
from ..text import figure, plural
from .records import RESAMPLING, DatasetSummary

TITLES = {
    "miou": "mIoU",
    "miou_classes": "classes",
    "accuracy": "accuracy",
    "ece": "ECE",
    "auroc": "AUROC",
    "auprc_success": "AUPR right",
    "auprc_error": "AUPR wrong",
    "auprc": "AUPRC",
    "fpr95": "FPR 95",
    "smooth_ece": "smooth ECE",
    "aurc": "AURC",
    "mean_recall": "recall",
    "boundary_miou": "boundary IoU",
}
_CLASSES = ("miou", "accuracy", "ece", "auroc", "auprc_success", "auprc_error", "fpr95")
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
    rows = [{who: float(values[name]) for who, values in one.items()} for one in figures.values()]
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
    """The dataset's figures of every subject; the best of each figure is marked."""
    figures = summary.figures()
    names = [name for name in next(iter(figures.values()), {}) if name in TITLES]
    best = {}
    for name in names:
        values = [row[name] for row in figures.values() if not np.isnan(row[name])]
        if len(values) > 1 and name != "miou_classes":
            best[name] = min(values) if name in LOWER_IS_BETTER else max(values)
    disagreement = summary.mean("disagreement")
    ends = summary.intervals()
    return {
        "dataset": summary.dataset,
        "images": len(summary.gallery),
        "interval": [f"{figure(ends[name][0])} to {figure(ends[name][1])}" if name in ends else "" for name in names]
        if ends
        else [],
        "resamplings": RESAMPLING.replicates,
        "average": f"mIoU {summary.average.words()}." if summary.semantic else None,
        "columns": [TITLES[name] for name in names],
        "rows": [
            {"subject": subject, "cells": [(figure(row[name]), row[name] == best.get(name)) for name in names]}
            for subject, row in figures.items()
        ],
        "iou": [
            (name, [figure(row["iou"][number]) for row in figures.values()])
            for number, name in enumerate(summary.classes.names)
            if figures and all("iou" in row for row in figures.values())
        ],
        "confidence": figure(summary.mean("confidence")),
        "disagreement": None if disagreement is None else f"{100 * disagreement:.2f} %",
        "information": figure(summary.mean("information")),
    }
