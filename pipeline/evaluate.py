"""The stage ``evaluate``: predictions and members against labels, image by image, in constant memory.

What is kept of an image are counts (see `metrics`), which add up over images, processes and machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.pairs import Pair, without_masks
from ..datasets.taxonomy import CLASS_NAMES, IGNORE
from ..datasets.workers import map_files
from ..errors import DatasetError, ManifestError, StoreError
from .averages import DATASET, PLAIN, Average
from .counts import Counts
from .manifest import DatasetEntry, Manifest
from .manifest import Fusion as Functions
from .members import ENSEMBLE, Placed, answers, placed, subjects_of, weighed
from .metrics import defined, shown
from .predictions import prediction_names, read_prediction, require_classes, require_predictions
from .progress import Progress
from .survey import PREDICTIONS
from .truth import LABELLED, Truth, truths_of


@dataclass(frozen=True)
class Evaluation:
    """One dataset, ready to be scored.

    Attributes:
        dataset: its name; with ``/`` and the name of the part behind it, where parts are scored one by one.
        folder: the predictions.
        truth: images with masks.
        members: whose stores are scored.
        subjects: which of them together are scored under which name, with the functions of the manifest.
        functions: of label and confidence.
    """

    dataset: str
    folder: Path
    truth: Truth
    members: tuple[Placed, ...]
    subjects: Mapping[str, tuple[int, ...]]
    functions: Functions

    @property
    def note(self) -> str | None:
        """What is said of images that are left out since they have no mask; None if there are none."""
        return without_masks(self.dataset, self.truth.left_out) if self.truth.left_out else None

    @property
    def names(self) -> list[str]:
        """All that is scored, in the order of the table."""
        return [ENSEMBLE, *self.subjects]


@dataclass
class Evaluated:
    """Counts of each subject over one dataset, how its mean is taken, and images that were not scored -> reasons.

    ``official`` says how many images its authors publish labels of, None if that is not known; ``unsure`` that it is
    what others say.
    """

    dataset: str
    counts: dict[str, Counts]
    average: Average = PLAIN
    official: int | None = None
    unsure: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Figures by subject; null where one is not defined."""
        scores = {name: defined(counts.figures(self.average)) for name, counts in self.counts.items()}
        found = {"dataset": self.dataset, "classes": list(CLASS_NAMES), "scores": scores, "failed": self.failed}
        if self.left_out:
            found["without_mask"] = list(self.left_out)
        return found if self.ood else found | {"average": self.average.as_json()}

    @property
    def ood(self) -> bool:
        """Whether it is scored how well out-of-distribution pixels are found, and there is no mean IoU."""
        return any(counts.ood for counts in self.counts.values())


def plan_evaluation(
    manifest: Manifest,
    *,
    predictions: Path | None = None,
    per_model: bool = False,
    leave_one_out: bool = False,
    limit: int | None = None,
    average: str = DATASET,
    allow_unlabelled: bool = False,
) -> list[Evaluation]:
    """Check that labels, predictions and stores are there.

    Args:
        manifest: its datasets of a type that has labels are scored; there must be one.
        predictions: a tree of ``_pred.png`` and ``_conf.png`` for the only dataset; None for ours.
        per_model: whether each member is scored from its store too.
        leave_one_out: whether the ensemble without each member is scored from the stores too.
        limit: images per dataset, from the first; None for all.
        average: which classes a mean IoU runs over, one of `averages.AVERAGES`.
        allow_unlabelled: leave out images that have no mask, whatever the manifest says of them.

    Raises:
        ManifestError: no dataset has labels.
        DatasetError: masks or images are missing.
        StoreError: predictions or stores are missing, or lack images.
    """
    labelled = [entry for entry in manifest.datasets if entry.type in LABELLED]
    if not labelled:
        raise ManifestError(
            f"no dataset of the manifest has labels (types: {', '.join(d.type for d in manifest.datasets)}); types "
            f"that have: {', '.join(LABELLED)}; BRAVO is scored with --ground-truth and --samples"
        )
    if predictions is not None and len(labelled) > 1:
        raise ManifestError(f"--predictions: belongs to one dataset; name it with --datasets, of {_named(labelled)}")
    subjects = subjects_of(weighed(manifest), per_model=per_model, leave_one_out=leave_one_out)
    return [
        _plan(manifest, entry, part, truth, predictions, subjects)
        for entry in labelled
        for part, truth in truths_of(entry, limit, average, allow_unlabelled=allow_unlabelled).items()
    ]


def _named(entries: Sequence[DatasetEntry]) -> str:
    return ", ".join(entry.name for entry in entries)


def _plan(
    manifest: Manifest,
    entry: DatasetEntry,
    part: str | None,
    truth: Truth,
    predictions: Path | None,
    subjects: Mapping[str, tuple[int, ...]],
) -> Evaluation:
    folder = manifest.output / PREDICTIONS / entry.name if predictions is None else predictions
    names = [name for pair in truth.pairs for name in prediction_names(pair.image)]
    called = f"the {len(names)} predictions that the labels call for"
    mend = "make them with 'hmsa-pipeline dump' and 'ensemble', or take --limit"
    require_predictions(folder, names, called, mend)
    stores = placed(manifest, entry.name, [pair.image for pair in truth.pairs]) if subjects else ()
    name = entry.name if part is None else f"{entry.name}/{part}"
    return Evaluation(name, folder, truth, stores, subjects, manifest.ensemble)


def evaluate(plan: Evaluation, workers: int | None = None) -> Evaluated:
    """Score one dataset; an image that cannot be read is listed, the others are counted.

    Args:
        plan: of `plan_evaluation`.
        workers: processes; None for one a usable core.

    Raises:
        DatasetError: a process was ended from outside.
    """
    counts = {name: Counts(plan.truth.ood) for name in plan.names}
    result = Evaluated(
        plan.dataset, counts, plan.truth.average, plan.truth.official, plan.truth.unsure, left_out=plan.truth.left_out
    )
    with Progress(len(plan.truth.pairs)) as progress:
        progress.job(plan.dataset, len(plan.truth.pairs))
        found: Iterator[dict[str, Counts] | str] = map_files(partial(_scored, plan), plan.truth.pairs, workers)
        for pair, counts in zip(plan.truth.pairs, found, strict=True):
            if isinstance(counts, str):
                result.failed[pair.image] = counts
            else:
                for name, counted in counts.items():
                    result.counts[name] += counted
            progress.advance()
    return result


def _scored(plan: Evaluation, pair: Pair) -> dict[str, Counts] | str:
    """The image's counts for each subject, or why there are none."""
    try:
        return _counted(plan, pair)
    except (DatasetError, StoreError) as error:
        return str(error)


def _counted(plan: Evaluation, pair: Pair) -> dict[str, Counts]:
    # What a class map says where nothing is labelled counts nowhere, as with BRAVO: often 255.
    names = prediction_names(pair.image)
    label, confidence = read_prediction(plan.folder, names, checked=False)
    truth = plan.truth.read(pair, (label.shape[0], label.shape[1]))
    if not plan.truth.ood:
        require_classes(label[truth != IGNORE], str(plan.folder / names[0]), " on labelled pixels")
    found = {ENSEMBLE: plan.truth.count(label, confidence, truth)}
    return found | _from_stores(plan, pair, truth) if plan.subjects else found


def _from_stores(plan: Evaluation, pair: Pair, truth: np.ndarray) -> dict[str, Counts]:
    found = {}
    for name, (label, confidence) in answers(plan.members, pair.image, plan.subjects, plan.functions).items():
        if label.shape != truth.shape:
            raise DatasetError(
                f"{plan.members[0][1]}: holds {pair.image} as {label.shape[0]}x{label.shape[1]}, its prediction is "
                f"{truth.shape[0]}x{truth.shape[1]}; score them one after the other"
            )
        found[name] = plan.truth.count(label, confidence, truth)
    return found


# ------------------------------------------------------------------ for people


def table(result: Evaluated) -> list[str]:
    """A line for each subject and, where there are classes, one for each with its IoU in every subject."""
    figures = {name: counts.figures(result.average) for name, counts in result.counts.items()}
    wide = max(map(len, [*figures, *CLASS_NAMES]))
    pixels = max(row["pixels"] for row in figures.values())
    images = max(row["images"] for row in figures.values())
    whose = "it should have by others' count" if result.unsure else "its authors label"
    of = f" of the {result.official} that {whose}" if images < (result.official or 0) else ""
    lines = [f"{result.dataset}: {images} images{of}, {pixels} labelled pixels"]
    if not result.ood:
        lines.append(f"mIoU {result.average.words()}; miou_classes says how many")
    columns = [name for name in next(iter(figures.values())) if name not in ("images", "pixels", "iou")]
    lines.append(f"{'':{wide}}  " + "  ".join(f"{name:>13}" for name in columns))
    lines += [
        f"{name:{wide}}  " + "  ".join(f"{shown(row[column]):>13}" for column in columns)
        for name, row in figures.items()
    ]
    if not any("iou" in row for row in figures.values()):
        return lines
    across = [max(7, len(name)) for name in figures]
    lines.append(f"{'IoU':{wide}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(figures, across, strict=True)))
    for number, name in enumerate(CLASS_NAMES):
        values = [row["iou"][number] for row in figures.values()]
        lines.append(f"{name:{wide}}  " + "  ".join(f"{shown(v):>{w}}" for v, w in zip(values, across, strict=True)))
    return lines


def rows(results: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """One flat row for each dataset and subject, IoU by class name; empty where a figure is not defined."""
    found = []
    for result in results:
        for name, counts in result.counts.items():
            figures = defined(counts.figures(result.average))
            iou = {f"iou {c}": value for c, value in zip(CLASS_NAMES, figures.pop("iou", ()), strict=False)}
            rule = {} if counts.ood else {"average": result.average.name}
            found.append({"dataset": result.dataset, "subject": name, **figures, **rule, **iou})
    return found
