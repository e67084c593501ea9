"""Writes a report's page: the picture on top, its tables, plots and gallery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2

from ... import __version__
from ...datasets.class_set import ClassSet
from ...datasets.parallel import map_files
from ...files import write_bytes, write_json, write_text
from ..config.manifest import Manifest
from ..fusion.member_stores import ENSEMBLE, voting_members
from ..search.plot import draw_pareto
from ..text import percent
from . import plots
from .image_pictures import class_legend
from .member_table import member_table
from .records import DatasetSummary
from .search_section import search_section
from .story import Story, shown_story
from .tables import TITLES, dataset_table, figures_by_dataset, overview_table, summary_tables
from .worst_images import ClassErrors, worst_over_datasets

PAGE, FIGURES, PLOTS = "index.html", "report.json", "plots"
_PAGE = Path(__file__).with_name("template")
_FILES = ("report.css", "report.js")

Plot = Callable[[Path], None]
"""Draws an SVG file; made with `functools.partial`, so that another process can do it."""


def write_page(
    folder: Path,
    manifest: Manifest,
    summaries: Sequence[DatasetSummary],
    story: Story | None,
    processes: int | None = None,
) -> None:
    """Write ``index.html``, its style sheet and script, the plots and ``report.json``.

    Args:
        folder: of the report.
        manifest: shown on the page.
        summaries: the summaries of the datasets.
        story: the picture on top; None for none.
        processes: how many draw plots; None for one a usable core.
    """
    for name in _FILES:
        write_bytes(folder / name, (_PAGE / name).read_bytes())
    drawings: dict[Path, Plot] = {}
    settings = member_table(manifest)
    searched = search_section(manifest.output)
    if searched:
        drawings[folder / PLOTS / "search.svg"] = partial(draw_pareto, searched[0])
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
        calibrated=any(member.temperature != 1 or member.calibration for member in voting_members(manifest)),
        coverage=manifest.sets.coverage if manifest.sets else None,
        story=shown_story(story, manifest.class_set),
        settings=settings,
        tables=summary_tables(summaries),
        overview=overview_table(summaries),
        by_dataset=[dataset_table(summary) for summary in summaries],
        over_datasets=_plots_over_datasets(folder, summaries, drawings),
        search=searched[1] | {"file": f"{PLOTS}/search.svg"} if searched else None,
        worst=_worst(summaries, manifest.class_set),
        sections=[
            {"dataset": each.dataset, "plots": _plots(folder, i, each, drawings)} for i, each in enumerate(summaries)
        ],
        failed=[(each.dataset, image, reason) for each in summaries for image, reason in each.failed.items()],
        legend=class_legend(manifest.class_set),
        datasets=[summary.dataset for summary in summaries],
        gallery=list(chain.from_iterable(map(_gallery, summaries))),
    )
    for _ in map_files(_draw, list(drawings.items()), processes, together=1):
        pass
    write_text(folder / PAGE, page)
    figures = {
        "story": story.as_json() if story else None,
        "members": settings,
        "datasets": [summary.as_json() for summary in summaries],
        "search": searched[0] if searched else None,
    }
    write_json(folder / FIGURES, {"version": __version__, **figures})


def _draw(drawing: tuple[Path, Plot]) -> None:
    path, plot = drawing
    plot(path)


def _plots_over_datasets(
    folder: Path, summaries: Sequence[DatasetSummary], drawings: dict[Path, Plot]
) -> list[dict[str, Any]]:
    """Compare ensemble and members on every dataset; none where there are not two datasets to compare."""
    drawn = []
    for semantic, names, title in (
        (True, ("miou", "auroc", "ece"), "Ensemble and members by dataset"),
        (False, ("auroc", "auprc", "fpr95"), "Out of distribution, by dataset"),
    ):
        figures = figures_by_dataset(summaries, semantic=semantic)
        if len(figures) > 1:
            file = f"{PLOTS}/datasets-{'classes' if semantic else 'outliers'}.svg"
            titles = {name: TITLES[name] for name in names}
            drawings[folder / file] = partial(plots.dots_by_dataset, figures=figures, names=titles)
            words = "Black: the ensemble. Other marks: members. ECE and FPR 95 are better low, all others high."
            drawn.append({"file": file, "title": title, "words": words, "wide": True})
    return drawn


def _worst(summaries: Sequence[DatasetSummary], classes: ClassSet) -> list[dict[str, Any]]:
    """The worst images of each class, as texts."""
    by_name = {one.dataset: one for one in summaries}
    legend = class_legend(classes)

    def shown(found: tuple[str, ClassErrors] | None, verb: str) -> dict[str, Any] | None:
        if found is None:
            return None
        dataset, errors = found
        share = f"{percent(errors.share)} of its labels"
        return {
            "key": by_name[dataset].gallery[errors.image].key,
            "name": f"{dataset}: {errors.image}",
            "short": errors.image.split("/")[-1],
            "pixels": f"{errors.pixels} px",
            "words": f"{share}; most are {verb} {classes.names[errors.other]}",
        }

    return [
        {
            "class": legend[number][0],
            "colour": legend[number][1],
            "positives": shown(positives, "labelled as"),
            "negatives": shown(negatives, "predicted as"),
        }
        for number, positives, negatives in worst_over_datasets((one.dataset, one.worst) for one in summaries)
    ]


def _plots(folder: Path, number: int, summary: DatasetSummary, drawings: dict[Path, Plot]) -> list[dict[str, Any]]:
    """Add the dataset's plots to ``drawings``; the name, title, and what each one shows in words."""
    counts = summary.counts
    drawn: list[dict[str, Any]] = []

    def add(kind: str, title: str, words: str, plot: Plot, wide: bool = False) -> None:
        name = f"{PLOTS}/{number}-{kind}.svg"
        drawings[folder / name] = plot
        drawn.append({"file": name, "title": title, "words": words, "wide": wide})

    semantic = summary.semantic
    if semantic:
        words = "Bars: the ensemble. Marks: members. A class that is neither labelled nor predicted has none."
        add(
            "iou",
            "IoU by class",
            words,
            partial(plots.iou_bars, counts=counts, names=summary.classes.names),
            wide=True,
        )
        words = "On the dotted line a pixel is right as often as it is sure; below it the model is too sure."
        add("reliability", "Reliability", words, partial(plots.reliability_diagram, counts=counts))
        words = "Share of wrong pixels, if only the surest ones are kept: further down is better."
        add("risk", "Risk and coverage", words, partial(plots.risk_coverage_curves, counts=counts))
        words = "The ensemble. On the diagonal are the right pixels; each row adds up to 100."
        matrix = partial(plots.confusion_matrix, matrix=counts[ENSEMBLE].confusion, names=summary.classes.names)
        add("confusion", "Confusion matrix", words, matrix, wide=True)
        if summary.by_class is not None:
            words = (
                "Of the ensemble's pixels that are predicted as a class, accuracy over confidence. Bars: the share "
                "of pixels. Below the dotted line the class is predicted too surely."
            )
            plot = partial(plots.class_reliability, counts=summary.by_class, names=summary.classes.names)
            add("reliability-classes", "Reliability by predicted class", words, plot, wide=True)
    else:
        words = "All pixels of the dataset, by the ensemble's confidence."
        add("confidence", "Confidence", words, partial(plots.confidence_histogram, histogram=summary.histogram))
    disputes = summary.disputes
    if disputes is not None:
        words = "Of a hundred pixels, how many get another class from the one than from the other."
        add("disputes", "Disagreement", words, partial(plots.dispute_matrix, shares=disputes, names=summary.members))
    if counts:
        ood = not semantic
        what = "What is out of distribution" if ood else "Errors"
        words = f"{what}, found by low confidence: further up is better."
        add("curves", "ROC and PR curves", words, partial(plots.curves, counts=counts, ood=ood), wide=True)
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
