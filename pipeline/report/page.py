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


def write_page(folder: Path, manifest: Manifest, found: Sequence[DatasetSummary]) -> None:
    """Write ``index.html``, its style sheet and script, the plots and ``report.json``.

    Args:
        folder: of the report.
        manifest: shown on the page.
        found: the summaries of the datasets.
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
        images=sum(len(one.cards) for one in found),
        overview=_overview_table(found),
        summary=[_summary_table(one) for one in found],
        chapters=[{"dataset": one.dataset, "plots": _plots(folder, number, one)} for number, one in enumerate(found)],
        failed=[(one.dataset, image, reason) for one in found for image, reason in one.failed.items()],
        legend=CLASS_LEGEND,
        datasets=[one.dataset for one in found],
        gallery=list(chain.from_iterable(map(_gallery, found))),
    )
    write_text(folder / PAGE, page)
    write_json(folder / FIGURES, {"version": __version__, "datasets": [one.as_json() for one in found]})


def _overview_table(found: Sequence[DatasetSummary]) -> dict[str, Any] | None:
    """mIoU of every subject on every dataset that has classes, and its mean; None if there are not two of them."""
    scores = {
        one.dataset: {name: row["miou"] for name, row in one.figures().items()} for one in found if one.semantic
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


def _summary_table(one: DatasetSummary) -> dict[str, Any]:
    """The dataset's rows of the table, as texts; the best of each figure is marked."""
    figures = one.figures()
    names = [name for name in next(iter(figures.values()), {}) if name in _TITLES]
    best = {}
    for name in names:
        values = [row[name] for row in figures.values() if not np.isnan(row[name])]
        if len(values) > 1 and name != "miou_classes":
            best[name] = min(values) if name in _LOWER_IS_BETTER else max(values)
    disagreement = one.mean("disagreement")
    return {
        "dataset": one.dataset,
        "images": len(one.cards),
        "average": f"mIoU {one.average.words()}." if one.semantic else None,
        "columns": [_TITLES[name] for name in names],
        "rows": [
            {
                "subject": subject,
                "cells": [(figure(row[name]), row[name] == best.get(name)) for name in names],
            }
            for subject, row in figures.items()
        ],
        "iou": [
            (name, [figure(row["iou"][number]) for row in figures.values()])
            for number, name in enumerate(CLASS_NAMES)
            if figures and all("iou" in row for row in figures.values())
        ],
        "confidence": figure(one.mean("confidence")),
        "disagreement": None if disagreement is None else f"{100 * disagreement:.2f} %",
        "information": figure(one.mean("information")),
    }


def _plots(folder: Path, number: int, one: DatasetSummary) -> list[dict[str, Any]]:
    """Draw the dataset's plots; the name, title, and what each one shows in words."""
    counts = one.counts
    drawn: list[dict[str, Any]] = []

    def add(kind: str, title: str, words: str, draw: Any, wide: bool = False) -> None:
        name = f"{PLOTS}/{number}-{kind}.svg"
        draw(folder / name)
        drawn.append({"file": name, "title": title, "words": words, "wide": wide})

    semantic = one.semantic
    if semantic:
        words = "Bars: the ensemble. Marks: members. A class that is neither labelled nor predicted has none."
        add("iou", "IoU by class", words, lambda path: plots.iou_bars(path, counts), wide=True)
        words = "On the dotted line a pixel is right as often as it is sure; below it the model is too sure."
        add("reliability", "Reliability", words, lambda path: plots.reliability_diagram(path, counts))
    else:
        words = "All pixels of the dataset, by the ensemble's confidence."
        add("confidence", "Confidence", words, lambda path: plots.confidence_histogram(path, one.histogram))
    disputes = one.disputes
    if disputes is not None:
        words = "Of a hundred pixels, how many get another class from the one than from the other."
        add("disputes", "Disagreement", words, lambda path: plots.dispute_matrix(path, disputes, one.members))
    if counts:
        ood = not semantic
        what = "What is out of distribution" if ood else "Errors"
        words = f"{what}, found by low confidence: further up is better."
        add("curves", "ROC and PR curves", words, lambda path: plots.curves(path, counts, ood=ood), wide=True)
    return drawn


def _gallery(one: DatasetSummary) -> list[Mapping[str, Any]]:
    """Gallery entries as JSON."""
    return [
        {
            "key": card.key,
            "name": image,
            "dataset": one.dataset,
            "size": [card.size[1], card.size[0]],
            "layers": card.layers,
            "wrong": card.wrong,
            "ood": card.ood,
            "confidence": card.confidence,
            "disagreement": card.disagreement,
            "information": card.information,
            "classes": card.classes,
        }
        for image, card in one.cards.items()
    ]
