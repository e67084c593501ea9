"""The stage ``evaluate``: predictions and members against labels, image by image, in constant memory.

What is kept of an image are counts (see `metrics`), which add up over images, processes and machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.labels import LabelReader
from ..datasets.pairs import Pair, list_pairs
from ..datasets.smiyc import SMIYC, MaskReader
from ..datasets.sources import NAMES, source
from ..datasets.taxonomy import CLASS_NAMES, IGNORE
from ..datasets.workers import map_files
from ..errors import DatasetError, ManifestError, StoreError
from .manifest import DatasetEntry, Manifest, Member
from .manifest import Fusion as Functions
from .metrics import LEVELS, confusion, defined, detection_figures, level_counts, semantic_figures, shown
from .predictions import prediction_names, read_prediction, require_predictions
from .progress import Progress
from .scores import fuse, quantise
from .store import LogitStore
from .survey import PREDICTIONS, store_path

ENSEMBLE = "ensemble"
CLASSES = len(CLASS_NAMES)


@dataclass
class Counts:
    """What is known of one subject's pixels that have a label.

    Attributes:
        ood: whether the labels say what is out of distribution, and not of which class it is.
        confusion: (C, C) int64, rows are labels; zeros if ``ood``.
        levels: (2, 65536) int64 of `metrics.level_counts`: right is positive and found by high confidence, or, if
            ``ood``, what is out of distribution is positive and found by low confidence.
        images: how many were counted.
    """

    ood: bool = False
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((CLASSES, CLASSES), np.int64))
    levels: np.ndarray = field(default_factory=lambda: np.zeros((2, LEVELS), np.int64))
    images: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        self.confusion += other.confusion
        self.levels += other.levels
        self.images += other.images
        return self

    def figures(self) -> dict[str, Any]:
        """All figures by name; NaN where one is not defined.

        ``iou`` is NaN for a class that is neither labelled nor predicted, and not counted in ``miou``.
        """
        seen = {"images": self.images, "pixels": int(self.levels.sum())}
        if self.ood:
            return seen | detection_figures(self.levels)
        return seen | semantic_figures(torch.from_numpy(self.confusion), self.levels)


def count(label: np.ndarray, confidence: np.ndarray, truth: np.ndarray) -> Counts:
    """One image's counts.

    Args:
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
        truth: (H, W) uint8 train ids, 255 where nothing is known.

    Raises:
        ValueError: the shapes differ, or an id is no class.
    """
    if not label.shape == confidence.shape == truth.shape:
        raise ValueError(f"shapes differ: {label.shape}, {confidence.shape}, {truth.shape}")
    known = truth != IGNORE
    label, truth = label[known], truth[known]
    matrix = confusion(torch.from_numpy(label), torch.from_numpy(truth), CLASSES).numpy()
    return Counts(False, matrix, level_counts(label == truth, confidence[known]), 1)


def count_ood(confidence: np.ndarray, mask: np.ndarray) -> Counts:
    """One image's counts of what is out of distribution.

    Args:
        confidence: (H, W) uint16.
        mask: (H, W) uint8: 1 out of distribution, 0 not, 255 where nothing is known.
    """
    known = mask != IGNORE
    levels = level_counts(mask[known] == 1, LEVELS - 1 - confidence[known])
    return Counts(True, levels=levels, images=1)


@dataclass(frozen=True)
class Evaluation:
    """One dataset, ready to be scored.

    Attributes:
        dataset: its name.
        folder: the predictions.
        pairs: images with masks.
        reader: of the masks.
        members: whose stores are scored.
        subjects: which of them together are scored under which name, with the functions of the manifest.
        functions: of label and confidence.
    """

    dataset: str
    folder: Path
    pairs: tuple[Pair, ...]
    reader: LabelReader | MaskReader
    members: tuple[tuple[Member, Path], ...]
    subjects: Mapping[str, tuple[int, ...]]
    functions: Functions

    @property
    def ood(self) -> bool:
        """Whether the labels say what is out of distribution."""
        return isinstance(self.reader, MaskReader)

    def count(self, label: np.ndarray, confidence: np.ndarray, truth: np.ndarray) -> Counts:
        """One image's counts; see `count` and `count_ood`."""
        return count_ood(confidence, truth) if self.ood else count(label, confidence, truth)

    @property
    def names(self) -> list[str]:
        """All that is scored, in the order of the table."""
        return [ENSEMBLE, *self.subjects]


@dataclass
class Evaluated:
    """Counts of each subject over one dataset, and images that could not be scored -> reasons."""

    dataset: str
    counts: dict[str, Counts]
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Figures by subject; null where one is not defined."""
        scores = {name: defined(counts.figures()) for name, counts in self.counts.items()}
        return {"dataset": self.dataset, "classes": list(CLASS_NAMES), "scores": scores, "failed": self.failed}


def plan_evaluation(
    manifest: Manifest,
    *,
    predictions: Path | None = None,
    per_model: bool = False,
    leave_one_out: bool = False,
    limit: int | None = None,
) -> list[Evaluation]:
    """Check that labels, predictions and stores are there.

    Args:
        manifest: its datasets of a type that has labels are scored; there must be one.
        predictions: a tree of ``_pred.png`` and ``_conf.png`` for the only dataset; None for ours.
        per_model: whether each member is scored from its store too.
        leave_one_out: whether the ensemble without each member is scored from the stores too.
        limit: images per dataset, from the first; None for all.

    Raises:
        ManifestError: no dataset has labels.
        DatasetError: masks or images are missing.
        StoreError: predictions or stores are missing, or lack images.
    """
    labelled = [entry for entry in manifest.datasets if entry.type in (*NAMES, SMIYC)]
    if not labelled:
        raise ManifestError(
            f"no dataset of the manifest has labels (types: {', '.join(d.type for d in manifest.datasets)}); types "
            f"that have: {', '.join((*NAMES, SMIYC))}; BRAVO is scored with --ground-truth and --samples"
        )
    if predictions is not None and len(labelled) > 1:
        raise ManifestError(f"--predictions: belongs to one dataset; name it with --datasets, of {_named(labelled)}")
    members = [member for member in manifest.models if member.weight]
    if leave_one_out and len(members) < 2:
        raise ManifestError("--leave-one-out: there is one member, and nothing left without it")
    return [_plan(manifest, entry, predictions, members, per_model, leave_one_out, limit) for entry in labelled]


def _named(entries: Sequence[DatasetEntry]) -> str:
    return ", ".join(entry.name for entry in entries)


def _plan(
    manifest: Manifest,
    entry: DatasetEntry,
    predictions: Path | None,
    members: Sequence[Member],
    per_model: bool,
    leave_one_out: bool,
    limit: int | None,
) -> Evaluation:
    root = entry.root_path()
    masks = MaskReader(root) if entry.type == SMIYC else None
    found = masks.pairs(entry.split) if masks else list_pairs(root, entry.type, entry.split)
    pairs = tuple(found[:limit])
    folder = manifest.output / PREDICTIONS / entry.name if predictions is None else predictions
    names = [name for pair in pairs for name in prediction_names(pair.image)]
    called = f"the {len(names)} predictions that the labels call for"
    mend = "make them with 'hmsa-pipeline dump' and 'ensemble', or take --limit"
    require_predictions(folder, names, called, mend)
    subjects: dict[str, tuple[int, ...]] = {}
    numbers = range(len(members))
    if per_model:
        subjects |= {members[i].name: (i,) for i in numbers}
    if leave_one_out:
        subjects |= {f"without {members[i].name}": tuple(j for j in numbers if j != i) for i in numbers}
    stores = []
    if subjects:
        stores = [(member, store_path(manifest.output, entry.name, member.name)) for member in members]
        for _, path in stores:
            LogitStore.open(path).require_complete([pair.image for pair in pairs])
    reader = masks or LabelReader(root, source(entry.type))
    return Evaluation(entry.name, folder, pairs, reader, tuple(stores), subjects, manifest.ensemble)


def evaluate(plan: Evaluation, workers: int | None = None) -> Evaluated:
    """Score one dataset; an image that cannot be read is listed, the others are counted.

    Args:
        plan: of `plan_evaluation`.
        workers: processes; None for one a usable core.

    Raises:
        DatasetError: a process was ended from outside.
    """
    result = Evaluated(plan.dataset, {name: Counts(plan.ood) for name in plan.names})
    with Progress(len(plan.pairs)) as progress:
        progress.job(plan.dataset, len(plan.pairs))
        found: Iterator[dict[str, Counts] | str] = map_files(partial(_scored, plan), plan.pairs, workers)
        for pair, counts in zip(plan.pairs, found, strict=True):
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
    label, confidence = read_prediction(plan.folder, prediction_names(pair.image))
    truth = plan.reader.read(pair, (label.shape[0], label.shape[1]))
    found = {ENSEMBLE: plan.count(label, confidence, truth)}
    return found | _from_stores(plan, pair, truth) if plan.subjects else found


_opened: dict[str, LogitStore] = {}


def _store(path: Path) -> LogitStore:
    """The store, opened once in each process."""
    if str(path) not in _opened:
        _opened[str(path)] = LogitStore.open(path)
    return _opened[str(path)]


def _from_stores(plan: Evaluation, pair: Pair, truth: np.ndarray) -> dict[str, Counts]:
    stores = [_store(path) for _, path in plan.members]
    rows = [store.index[pair.image] for store in stores]
    entry = stores[0].images[rows[0]]
    if truth.shape != (entry.height, entry.width):
        raise DatasetError(
            f"{stores[0].path}: holds {pair.image} as {entry.height}x{entry.width}, its prediction is "
            f"{truth.shape[0]}x{truth.shape[1]}; score them one after the other"
        )
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in plan.subjects}
    with ThreadPoolExecutor(2) as pool:
        for start, stop in stores[0].strips(rows[0]):
            read = pool.map(lambda s, row, a=start, b=stop: torch.from_numpy(s.read(row, a, b)), stores, rows)
            logits = list(read)
            for name, numbers in plan.subjects.items():
                fused = fuse(
                    [logits[i] for i in numbers],
                    [plan.members[i][0].weight for i in numbers],
                    [plan.members[i][0].temperature for i in numbers],
                    label=plan.functions.label,
                    confidence=plan.functions.confidence,
                )
                parts[name].append((fused.label.numpy(), quantise(fused.confidence).numpy()))
    found = {}
    for name, strips in parts.items():
        label, confidence = (np.concatenate(one) for one in zip(*strips, strict=True))
        found[name] = plan.count(label, confidence, truth)
    return found


# ------------------------------------------------------------------ for people


def table(result: Evaluated) -> list[str]:
    """A line for each subject and, where there are classes, one for each with its IoU in every subject."""
    figures = {name: counts.figures() for name, counts in result.counts.items()}
    wide = max(map(len, [*figures, *CLASS_NAMES]))
    pixels = max(row["pixels"] for row in figures.values())
    images = max(row["images"] for row in figures.values())
    lines = [f"{result.dataset}: {images} images, {pixels} labelled pixels"]
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
            figures = defined(counts.figures())
            iou = {f"iou {c}": value for c, value in zip(CLASS_NAMES, figures.pop("iou", ()), strict=False)}
            found.append({"dataset": result.dataset, "subject": name, **figures, **iou})
    return found
