"""Writes a report's page: its tables, plots and gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ... import __version__
from ...datasets.taxonomy import CLASS_NAMES
from ...files import write_bytes, write_json, write_text
from ..config.manifest import Manifest
from ..fusion.member_stores import voting_members
from ..text import figure
from . import plots
from .image_pictures import CLASS_LEGEND
from .records import DatasetSummary

PAGE, FIGURES, PLOTS = "index.html", "report.json", "plots"
_PAGE = Path(__file__).with_name("template")
_FILES = ("report.css", "report.js")
_LOWER_IS_BETTER = {"ece", "fpr95"}
_TITLES = {
    "miou": "mIoU",
    "miou_classes": "classes",
    "accuracy": "accuracy",
    "ece": "ECE",
    "auroc": "AUROC",
    "auprc_success": "AUPR right",
    "auprc_error": "AUPR wrong",
    "auprc": "AUPRC",
    "fpr95": "FPR 95",
}


def write_page(folder: Path, manifest: Manifest, summaries: Sequence[DatasetSummary]) -> None:
    """Write ``index.html``, its style sheet and script, the plots and ``report.json``.

    Args:
        folder: of the report.
        manifest: shown on the page.
        summaries: the summaries of the datasets.
    """
    for name in _FILES:
        write_bytes(folder / name, (_PAGE / name).read_bytes())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("index.html.j2").render(
        version=__version__,
        manifest=manifest.to_yaml(),
        functions=manifest.ensemble,
        members=[member.name for member in voting_members(manifest)],
        images=sum(len(summary.gallery) for summary in summaries),
        overview=_overview_table(summaries),
        summary=[_summary_table(summary) for summary in summaries],
        sections=[{"dataset": each.dataset, "plots": _plots(folder, i, each)} for i, each in enumerate(summaries)],
        failed=[(each.dataset, image, reason) for each in summaries for image, reason in each.failed.items()],
        legend=CLASS_LEGEND,
        datasets=[summary.dataset for summary in summaries],
        gallery=list(chain.from_iterable(map(_gallery, summaries))),
    )
    write_text(folder / PAGE, page)
    write_json(folder / FIGURES, {"version": __version__, "datasets": [summary.as_json() for summary in summaries]})


def _overview_table(summaries: Sequence[DatasetSummary]) -> dict[str, Any] | None:
    """mIoU of every subject on every dataset that has classes, and its mean; None if there are not two of them."""
    scores = {
        summary.dataset: {name: row["miou"] for name, row in summary.figures().items()}
        for summary in summaries
        if summary.semantic
    }
    if len(scores) < 2:
        return None
    subjects = list(next(iter(scores.values())))
    columns = [{name: float(np.mean([row[name] for row in scores.values()])) for name in subjects}, *scores.values()]
    best = [max((v for v in column.values() if not np.isnan(v)), default=None) for column in columns]
    return {
        "datasets": list(scores),
        "rows": [
            {
                "subject": name,
                "cells": [
                    (figure(column[name]), len(subjects) > 1 and column[name] == top)
                    for column, top in zip(columns, best, strict=True)
                ],
            }
            for name in subjects
        ],
    }


def _summary_table(summary: DatasetSummary) -> dict[str, Any]:
    """The dataset's rows of the table, as texts; the best of each figure is marked."""
    figures = summary.figures()
    names = [name for name in next(iter(figures.values()), {}) if name in _TITLES]
    best = {}
    for name in names:
        values = [row[name] for row in figures.values() if not np.isnan(row[name])]
        if len(values) > 1 and name != "miou_classes":
            best[name] = min(values) if name in _LOWER_IS_BETTER else max(values)
    disagreement = summary.mean("disagreement")
    return {
        "dataset": summary.dataset,
        "images": len(summary.gallery),
        "average": f"mIoU {summary.average.words()}." if summary.semantic else None,
        "columns": [_TITLES[name] for name in names],
        "rows": [
            {"subject": subject, "cells": [(figure(row[name]), row[name] == best.get(name)) for name in names]}
            for subject, row in figures.items()
        ],
        "iou": [
            (name, [figure(row["iou"][number]) for row in figures.values()])
            for number, name in enumerate(CLASS_NAMES)
            if figures and all("iou" in row for row in figures.values())
        ],
        "confidence": figure(summary.mean("confidence")),
        "disagreement": None if disagreement is None else f"{100 * disagreement:.2f} %",
        "information": figure(summary.mean("information")),
    }


def _plots(folder: Path, number: int, summary: DatasetSummary) -> list[dict[str, Any]]:
    """Draw the dataset's plots; the name, title, and what each one shows in words."""
    counts = summary.counts
    drawn: list[dict[str, Any]] = []

    def add(kind: str, title: str, words: str, draw: Any, wide: bool = False) -> None:
        name = f"{PLOTS}/{number}-{kind}.svg"
        draw(folder / name)
        drawn.append({"file": name, "title": title, "words": words, "wide": wide})

    semantic = summary.semantic
    if semantic:
        words = "Bars: the ensemble. Marks: members. A class that is neither labelled nor predicted has none."
        add("iou", "IoU by class", words, lambda path: plots.iou_bars(path, counts), wide=True)
        words = "On the dotted line a pixel is right as often as it is sure; below it the model is too sure."
        add("reliability", "Reliability", words, lambda path: plots.reliability_diagram(path, counts))
    else:
        words = "All pixels of the dataset, by the ensemble's confidence."
        add("confidence", "Confidence", words, lambda path: plots.confidence_histogram(path, summary.histogram))
    disputes = summary.disputes
    if disputes is not None:
        words = "Of a hundred pixels, how many get another class from the one than from the other."
        add("disputes", "Disagreement", words, lambda path: plots.dispute_matrix(path, disputes, summary.members))
    if counts:
        ood = not semantic
        what = "What is out of distribution" if ood else "Errors"
        words = f"{what}, found by low confidence: further up is better."
        add("curves", "ROC and PR curves", words, lambda path: plots.curves(path, counts, ood=ood), wide=True)
    return drawn


def _gallery(summary: DatasetSummary) -> list[Mapping[str, Any]]:
    """Gallery entries as JSON."""
    return [
        {
            "key": entry.key,
            "name": image,
            "dataset": summary.dataset,
            "size": [entry.size[1], entry.size[0]],
            "layers": entry.layers,
            "wrong": entry.wrong,
            "ood": entry.ood,
            "confidence": entry.confidence,
            "disagreement": entry.disagreement,
            "information": entry.information,
            "classes": entry.classes,
        }
        for image, entry in summary.gallery.items()
    ]
