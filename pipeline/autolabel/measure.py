"""Passes over stored logits before anything is labelled: counts by class and confidence, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...datasets.dataset_specs import KNOWN_DATASETS
from ...datasets.labels.label_reader import LabelReader
from ...datasets.layout.image_mask_pairs import ImageMaskPair, without_masks
from ...datasets.parallel import map_files
from ...datasets.taxonomy import IGNORE
from ...errors import ManifestError, StoreError, first_few
from ..config.manifest import DatasetEntry, FusionFunctions, Manifest
from ..fusion.member_stores import MemberStore, open_store, stores_of
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..runtime.device import one_thread
from ..runtime.progress import Progress, say
from ..scoring.ground_truth import load_ground_truth
from .pixels import ask_teacher
from .settings import AutolabelSettings
from .thresholds import Counts, FitCounts, count_levels

_Sparse = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
"""Places in (C, 65536) that are not zero, and two counts of each."""


@dataclass(frozen=True)
class Teacher:
    """The members with their stores of one dataset, and how they answer.

    Attributes:
        members: of a weight above 0.
        functions: functions of the label and of the confidence.
        settings: say which pixels are candidates.
        classes: names of the stores' classes.
    """

    members: tuple[MemberStore, ...]
    functions: FusionFunctions
    settings: AutolabelSettings
    classes: tuple[str, ...]


@dataclass(frozen=True)
class FitPlan:
    """A labelled dataset that precision is measured on.

    Attributes:
        entry: of the manifest.
        reader: of its masks.
        pairs: its images that have one.
    """

    entry: DatasetEntry
    teacher: Teacher
    reader: LabelReader
    pairs: tuple[ImageMaskPair, ...]


def plan_fit(manifest: Manifest, name: str, settings: AutolabelSettings) -> FitPlan:
    """Check that a dataset of the manifest has labels, and logits of all its labelled images.

    Args:
        manifest: with all its datasets.
        name: of the dataset.
        settings: those of the run.

    Raises:
        ManifestError: there is none of this name, or it is of a type without labels.
        DatasetError: masks are missing.
        StoreError: a store is missing or lacks images.
    """
    entry = next((one for one in manifest.datasets if one.name == name), None)
    if entry is None:
        known = ", ".join(one.name for one in manifest.datasets)
        raise ManifestError(f"--fit {name}: is no dataset of the manifest; it has {known}")
    if entry.type not in KNOWN_DATASETS:
        raise ManifestError(
            f"--fit {name}: type '{entry.type}' has no labels of classes; types that have: "
            f"{first_few(KNOWN_DATASETS, 9)}"
        )
    truth = load_ground_truth(entry, manifest.class_set)[None]
    if truth.left_out:
        say(without_masks(name, truth.left_out))
    assert isinstance(truth.reader, LabelReader)
    members = stores_of(manifest, name, [pair.image for pair in truth.pairs])
    identities = [open_store(path).identity for _, path in members]
    for (_, path), identity in zip(members, identities, strict=True):
        if identity.classes != identities[0].classes:
            raise StoreError(f"{path}: has other classes than {members[0][1]}; only equal ones can be fused")
    teacher = Teacher(members, manifest.ensemble, settings, identities[0].classes)
    return FitPlan(entry, teacher, truth.reader, truth.pairs)


def measure_fit(plan: FitPlan, workers: int | None) -> FitCounts:
    """Count the labelled pixels of the dataset, in ``workers`` processes.

    Raises:
        StoreError: logits cannot be read.
        DatasetError: a mask cannot be read, or a process was ended from outside.
    """
    counts = FitCounts(len(plan.teacher.classes))
    shape = len(plan.teacher.classes), CONFIDENCE_LEVELS
    with Progress(len(plan.pairs)) as progress:
        progress.job(f"{plan.entry.name} (precision)", len(plan.pairs))
        work = partial(_labelled_counts, plan.teacher, plan.reader)
        for places, all_there, right in map_files(work, plan.pairs, _processes(workers), together=1):
            counts.add(_dense(shape, places, all_there), _dense(shape, places, right))
            progress.advance()
    return counts


def measure_levels(name: str, teacher: Teacher, images: Sequence[str], workers: int | None) -> Counts:
    """Count all candidates of a dataset by class and level, (C, 65536) int64; raises as `measure_fit`.

    Args:
        name: of the dataset, for people.
        teacher: its members and stores.
        images: paths in the dataset.
        workers: number of processes.
    """
    total = np.zeros((len(teacher.classes), CONFIDENCE_LEVELS), np.int64)
    with Progress(len(images)) as progress:
        progress.job(f"{name} (thresholds)", len(images))
        for places, counts, _ in map_files(partial(_counts, teacher), images, _processes(workers), together=1):
            total.ravel()[places] += counts
            progress.advance()
    return total


def _processes(workers: int | None) -> int | None:
    return 1 if workers == 0 else workers


def _labelled_counts(teacher: Teacher, reader: LabelReader, pair: ImageMaskPair) -> _Sparse:
    return _counts(teacher, pair.image, reader, pair)


def _counts(
    teacher: Teacher, image: str, reader: LabelReader | None = None, pair: ImageMaskPair | None = None
) -> _Sparse:
    """Count one image's candidates, and those that are right; without labels the latter are zero."""
    with one_thread():
        answer = ask_teacher(
            [member for member, _ in teacher.members],
            [open_store(path) for _, path in teacher.members],
            image,
            teacher.functions,
            teacher.settings,
        )
    label, confidence, candidate = answer
    classes = len(teacher.classes)
    if reader is None or pair is None:
        counts = count_levels(label, confidence, candidate, classes).ravel()
        right = np.zeros_like(counts)
    else:
        truth = reader.read(pair, (label.shape[0], label.shape[1]))
        known = truth != IGNORE if candidate is None else (truth != IGNORE) & candidate
        counts = count_levels(label, confidence, known, classes).ravel()
        right = count_levels(label, confidence, known & (label == truth), classes).ravel()
    places = np.flatnonzero(counts)
    return places.astype(np.int32), counts[places].astype(np.int32), right[places].astype(np.int32)


def _dense(shape: tuple[int, int], places: NDArray[np.int32], counts: NDArray[np.int32]) -> Counts:
    found = np.zeros(shape, np.int64)
    found.ravel()[places] = counts
    return found
