"""The stage ``report``: one folder of pages and pictures that opens from the disk, without a network.

<folder>/index.html      summary, plots, gallery
<folder>/report.css, report.js
<folder>/plots/          SVG
<folder>/pictures/<key>/ one image's pictures and figures; what did not change is not made again
<folder>/report.json     the figures
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ... import __version__
from ...datasets.layout.find_images import find_images
from ...datasets.layout.image_mask_pairs import Pair, without_masks
from ...datasets.parallel import map_files
from ...datasets.taxonomy import CLASS_NAMES
from ...errors import HmsaError, disk_error
from ...files import write_bytes, write_json, write_text
from ..config.manifest import Manifest
from ..fusion.member_stores import ENSEMBLE, placed, weighed
from ..fusion.prediction_files import prediction_names, require_predictions
from ..inference.inputs import PREDICTIONS, own_folders
from ..runtime.progress import Progress, say
from ..scoring.averages import DATASET, PLAIN, Average
from ..scoring.ground_truth import BRAVO, LABELLED, Truth, bravo_truth, truths_of
from ..scoring.metrics import defined, shown
from ..scoring.pixel_counts import Counts
from . import plots
from .image_summary import BINS, CLASS_LEGEND, PICTURES, Card, Exhibit, Room, made_before, show

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


@dataclass(frozen=True)
class Chapter:
    """One dataset of a report, ready to be made.

    Attributes:
        room: see there.
        items: the images, each with its mask if it has one.
    """

    room: Room
    items: tuple[tuple[str, Pair | None], ...]


@dataclass
class Shown:
    """What a dataset's images add up to.

    Attributes:
        dataset: its name.
        members: names of those that were looked at.
        average: which classes the mean IoU runs over.
        cards: by image.
        counts: by subject, over all images; empty without labels.
        histogram: pixels by the ensemble's confidence, (64,) int64.
        failed: images that could not be looked at -> reasons.
    """

    dataset: str
    members: list[str]
    average: Average = PLAIN
    cards: dict[str, Card] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    failed: dict[str, str] = field(default_factory=dict)
    _disputed: np.ndarray | None = None

    def add(self, image: str, found: Exhibit | str) -> None:
        """Count one image more; what is large of it is not kept."""
        if isinstance(found, str):
            self.failed[image] = found
            return
        self.cards[image] = found.card
        self.histogram += found.histogram
        for name, counted in found.counts.items():
            self.counts.setdefault(name, Counts(counted.ood)).__iadd__(counted)
        if found.card.disagreement is not None:
            self._disputed = found.disputes if self._disputed is None else self._disputed + found.disputes

    @property
    def disputes(self) -> np.ndarray | None:
        """Share of the pixels of which two members say another class, (M, M); None with fewer than two members."""
        if self._disputed is None:
            return None
        return self._disputed / sum(card.pixels for card in self.cards.values())

    def mean(self, name: str) -> float | None:
        """The mean over pixels of a figure that every image has; None if it is not known."""
        known = [(getattr(card, name), card.pixels) for card in self.cards.values()]
        if not known or any(value is None for value, _ in known):
            return None
        return sum(value * pixels for value, pixels in known) / sum(pixels for _, pixels in known)

    @property
    def semantic(self) -> bool:
        """Whether there are labels, and they are classes."""
        return bool(self.counts) and not self.counts[ENSEMBLE].ood

    def figures(self, shaped: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> dict[str, dict[str, Any]]:
        """Of each subject over all images, as ``shaped`` makes them; empty without labels."""
        return {name: shaped(counts.figures(self.average)) for name, counts in self.counts.items()}

    def as_json(self) -> dict[str, Any]:
        """Figures by subject and by image; null where one is not defined."""
        disputes = self.disputes
        return {
            "dataset": self.dataset,
            "images": len(self.cards),
            "scores": self.figures(defined),
            **({"average": self.average.as_json()} if self.semantic else {}),
            "confidence": self.mean("confidence"),
            "disagreement": self.mean("disagreement"),
            "information": self.mean("information"),
            "members": self.members,
            "disputes": None if disputes is None else disputes.tolist(),
            "by_image": {
                image: {
                    "wrong": e.wrong,
                    "confidence": e.confidence,
                    "disagreement": e.disagreement,
                    "information": e.information,
                }
                for image, e in self.cards.items()
            },
            "failed": self.failed,
        }


def plan_report(
    manifest: Manifest,
    folder: Path,
    *,
    members: bool,
    width: int,
    limit: int | None = None,
    ground_truth: Path | None = None,
    average: str = DATASET,
) -> list[Chapter]:
    """Check that photographs, predictions, labels and stores are there, and that the folder may be written to.

    Args:
        manifest: whose predictions and stores.
        folder: of the report; a new or empty one, or one that holds a report.
        members: whether the members' stores are looked at.
        width: of the pictures.
        limit: images per dataset, from the first; None for all.
        ground_truth: BRAVO's tar file, for its datasets; None for none.
        average: which classes a mean IoU runs over, one of `averages.AVERAGES`.

    Raises:
        HmsaError: the folder holds something else.
        DatasetError: photographs or masks are missing.
        StoreError: predictions or stores are missing, or lack images.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / FIGURES).is_file():
            raise HmsaError(f"--write {folder}: holds other things than a report; name another folder")
    except OSError as error:
        raise disk_error(folder, error) from error
    chapters = []
    for entry in manifest.datasets:
        root = entry.root_path()
        files = find_images(root, entry.type, entry.split, own_folders(manifest.output))[:limit]
        images = [file.path for file in files]
        predictions = manifest.output / PREDICTIONS / entry.name
        names = [name for image in images for name in prediction_names(image)]
        mend = "make them with 'hmsa-pipeline ensemble', or take --limit"
        require_predictions(predictions, names, f"{len(names)} predictions", mend)
        truths: Mapping[str | None, Truth | None] = {None: None}
        if entry.type in LABELLED:
            found = truths_of(entry, average=average)
            if left_out := {path for truth in found.values() for path in truth.left_out}:
                say(without_masks(entry.name, sorted(left_out)))
            truths = found
        if entry.type == BRAVO and ground_truth is not None:
            truths = {None: bravo_truth(entry, images, ground_truth, average)}
        looked = placed(manifest, entry.name, images) if members else ()
        parts = [None] if None in truths else list(dict.fromkeys(file.split for file in files))
        for part in parts:
            truth = truths.get(part)
            pairs = {pair.image: pair for pair in truth.pairs} if truth else {}
            room = Room(
                entry.name if part is None else f"{entry.name}/{part}",
                root,
                predictions,
                truth.without_pairs() if truth else None,
                looked,
                manifest.ensemble,
                folder,
                width,
                entry.exif,
            )
            shown = [file.path for file in files if part is None or file.split == part]
            chapters.append(Chapter(room, tuple((image, pairs.get(image)) for image in shown)))
    _begin(folder)
    return chapters


def _begin(folder: Path) -> None:
    """Make the folder, and mark it as that of a report."""
    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        if not (folder / FIGURES).is_file():
            write_json(folder / FIGURES, {})
    except OSError as error:
        raise disk_error(folder, error) from error


def report(chapters: Sequence[Chapter], manifest: Manifest, processes: int | None = None) -> list[Shown]:
    """Make the pictures, the plots and the page; an image that cannot be read is listed, the others are shown.

    Args:
        chapters: of `plan_report`.
        manifest: that they were made of; it is shown.
        processes: how many work; None for one a usable core.

    Raises:
        DatasetError: a process was ended from outside.
        DiskError: a file cannot be written.
    """
    folder = chapters[0].room.folder
    rooms = [chapter.room for chapter in chapters]
    found = [
        Shown(
            room.dataset,
            [member.name for member, _ in room.members],
            room.truth.average if room.truth else PLAIN,
        )
        for room in rooms
    ]
    left = []
    for number, chapter in enumerate(chapters):
        for item in chapter.items:
            if before := made_before(chapter.room, item):
                found[number].add(item[0], before)
            else:
                left.append((number, item))
    # One crew for all datasets: processes take seconds to start.
    with Progress(len(left)) as progress:
        progress.job("pictures", len(left))
        for (number, (image, _)), exhibit in zip(
            left, map_files(partial(show, rooms), left, processes, together=1), strict=True
        ):
            found[number].add(image, exhibit)
            progress.advance()
    for one, chapter in zip(found, chapters, strict=True):
        one.cards = {image: one.cards[image] for image, _ in chapter.items if image in one.cards}
    try:
        _write(folder, manifest, found)
        _forget(folder, {card.key for one in found for card in one.cards.values()})
    except OSError as error:
        raise disk_error(folder, error) from error
    return found


def _write(folder: Path, manifest: Manifest, found: Sequence[Shown]) -> None:
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
        members=[member.name for member in weighed(manifest)],
        images=sum(len(one.cards) for one in found),
        overview=_overview(found),
        summary=[_summary(one) for one in found],
        chapters=[{"dataset": one.dataset, "plots": _plots(folder, number, one)} for number, one in enumerate(found)],
        failed=[(one.dataset, image, reason) for one in found for image, reason in one.failed.items()],
        legend=CLASS_LEGEND,
        datasets=[one.dataset for one in found],
        gallery=list(chain.from_iterable(map(_cards, found))),
    )
    write_text(folder / PAGE, page)
    write_json(folder / FIGURES, {"version": __version__, "datasets": [one.as_json() for one in found]})


def _forget(folder: Path, keys: set[str]) -> None:
    """Remove pictures that no page shows any more."""
    for old in (folder / PICTURES).iterdir():
        if re.fullmatch("[0-9a-f]{20}", old.name) and old.name not in keys:
            shutil.rmtree(old)


def _overview(found: Sequence[Shown]) -> dict[str, Any] | None:
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
                    (shown(column[name]), len(subjects) > 1 and column[name] == top)
                    for column, top in zip(columns, best, strict=True)
                ],
            }
            for name in subjects
        ],
    }


def _summary(one: Shown) -> dict[str, Any]:
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
                "cells": [(shown(row[name]), row[name] == best.get(name)) for name in names],
            }
            for subject, row in figures.items()
        ],
        "iou": [
            (name, [shown(row["iou"][number]) for row in figures.values()])
            for number, name in enumerate(CLASS_NAMES)
            if figures and all("iou" in row for row in figures.values())
        ],
        "confidence": shown(one.mean("confidence")),
        "disagreement": None if disagreement is None else f"{100 * disagreement:.2f} %",
        "information": shown(one.mean("information")),
    }


def _plots(folder: Path, number: int, one: Shown) -> list[dict[str, Any]]:
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


def _cards(one: Shown) -> list[Mapping[str, Any]]:
    """What the gallery knows of each image."""
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
