"""Pixels of one image: the teacher's answer, what of it is kept, and the counts of that. No files here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...datasets.taxonomy import IGNORE
from ..config.manifest import FusionFunctions, Member
from ..fusion.fuse import quantise
from ..fusion.member_stores import fuse_members, member_strips, pixels_at_once
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..store.logit_store import LogitStore
from ..store.zarr_backend import DamagedShardError
from .settings import AutolabelSettings
from .thresholds import count_levels

Label = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Answer(NamedTuple):
    """A teacher's answer: ``label`` (H, W) uint8, ``confidence`` (H, W) uint16, ``candidate`` (H, W) bool or None.

    Candidates are pixels that agreement and erosion leave; None for all.
    """

    label: Label
    confidence: NDArray[np.uint16]
    candidate: Mask | None


def ask_teacher(
    members: Sequence[Member],
    stores: Sequence[LogitStore],
    image: str,
    functions: FusionFunctions,
    settings: AutolabelSettings,
) -> Answer:
    """Fuse an image's stored logits, a few rows at a time.

    Args:
        members: all members of a weight above 0.
        stores: theirs.
        image: its path in the dataset.
        functions: functions of the label and of the confidence.
        settings: say which pixels are candidates.

    Raises:
        StoreError: logits are missing, damaged, or not finite.
    """
    size = stores[0].size(stores[0].index[image])
    label, confidence = np.empty(size, np.uint8), np.empty(size, np.uint16)
    votes = None if settings.agree is None else np.empty(size, np.uint8)
    for rows, logits in member_strips(stores, image, pixels=pixels_at_once(members, functions)):
        fused = fuse_members(logits, members, functions)
        if not bool(fused.confidence.isfinite().all()):
            raise DamagedShardError(f"{image}: a member's logits are not finite; find it with 'hmsa-pipeline verify'")
        label[rows] = fused.label.numpy()
        confidence[rows] = quantise(fused.confidence).numpy()
        if votes is not None:
            votes[rows] = count_votes(fused.label, logits).numpy()
    candidate: Mask | None = None
    if votes is not None:
        candidate = votes >= (settings.agree or 0)
    if settings.erode:
        inside = ~near_border(label, settings.erode)
        candidate = inside if candidate is None else candidate & inside
    return Answer(label, confidence, candidate)


def count_votes(label: torch.Tensor, logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Count the members of which no class has a higher logit than the label's, (...) uint8.

    Args:
        label: (...) uint8 train ids.
        logits: of each member, (C, ...) float16 or float32.
    """
    place = label.long()[None]
    votes = torch.zeros_like(label)
    for one in logits:
        z = one.float()
        votes += z.gather(0, place)[0] >= z.amax(0)
    return votes


def near_border(label: Label, distance: int) -> Mask:
    """Mark pixels with another class within ``distance`` rows and columns (Chebyshev distance), (H, W) bool."""
    lowest = highest = label
    for axis in (0, 1):
        lowest = _windows(lowest, axis, distance, np.minimum)
        highest = _windows(highest, axis, distance, np.maximum)
    return lowest != highest


def _windows(values: Label, axis: int, distance: int, extreme: Callable[[Label, Label], Label]) -> Label:
    """Take the extreme of each pixel and ``distance`` neighbours on both sides, in log steps."""
    padding = [(distance, distance) if place == axis else (0, 0) for place in range(2)]
    found = np.moveaxis(np.pad(values, padding, mode="edge"), axis, 0)
    width, length = 1, 2 * distance + 1
    while width < length:
        step = min(width, length - width)
        found = extreme(found[:-step], found[step:])
        width += step
    return np.moveaxis(found, 0, axis)


@dataclass(frozen=True)
class LabelCounts:
    """Counts of one image, or of several: lists over the C classes, all of them sums but ``best``.

    Attributes:
        predicted: pixels that the teacher answers with the class.
        candidates: pixels of these that agreement and erosion leave.
        kept: pixels that bear the teacher's label.
        levels: sum of the confidence levels of the kept pixels.
        best: highest confidence level of a candidate, -1 if there is none.
        coarse: pixels that bear the class by the dataset's own labels.
    """

    predicted: tuple[int, ...]
    candidates: tuple[int, ...]
    kept: tuple[int, ...]
    levels: tuple[int, ...]
    best: tuple[int, ...]
    coarse: tuple[int, ...]

    @classmethod
    def zero(cls, classes: int) -> LabelCounts:
        """Make the counts of no image."""
        none = (0,) * classes
        return cls(none, none, none, none, (-1,) * classes, none)

    def __add__(self, other: LabelCounts) -> LabelCounts:
        found: dict[str, Any] = {}
        for field in fields(self):
            pairs = zip(getattr(self, field.name), getattr(other, field.name), strict=True)
            found[field.name] = tuple(max(pair) if field.name == "best" else sum(pair) for pair in pairs)
        return LabelCounts(**found)

    def as_text(self) -> str:
        """Write them as JSON, as the class map's file keeps them."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> LabelCounts:
        """Read what `as_text` wrote; ValueError, TypeError or KeyError if it is something else."""
        values = json.loads(text)
        return cls(**{field.name: tuple(int(number) for number in values[field.name]) for field in fields(cls)})


def decide(
    answer: Answer, levels: Sequence[int], coarse: Label | None, rule: str | None
) -> tuple[Label, Label, LabelCounts]:
    """Keep what is sure of a teacher's answer, and count it.

    Where the dataset's own label is known it is the label: with ``keep`` everywhere, with ``drop`` unless the
    teacher is sure of another class, which leaves neither. Its confidence is 255.

    Args:
        answer: of the teacher.
        levels: of each class, the lowest level of confidence that is kept.
        coarse: the dataset's own train ids (H, W) uint8, 255 where there is none; None if they do not matter.
        rule: ``keep`` or ``drop``, for ``coarse``.

    Returns:
        labels (H, W) uint8, 255 where unsure; confidence (H, W) uint8; counts.
    """
    label, confidence, candidate = answer
    classes = len(levels)
    table = np.full(256, CONFIDENCE_LEVELS, np.int32)
    table[:classes] = levels
    sure = confidence >= np.take(table, label)
    if candidate is not None:
        sure &= candidate
    labels = np.where(sure, label, np.uint8(IGNORE))
    stored = (confidence >> 8).astype(np.uint8)
    counts = count_levels(label, confidence, candidate, classes)
    totals = counts.sum(1)
    predicted = totals if candidate is None else np.bincount(label.ravel(), minlength=classes)
    if coarse is None:
        kept = [row[level:] for row, level in zip(counts, levels, strict=True)]
        own = np.zeros(classes, np.int64)
    else:
        known = coarse != IGNORE
        contradicted = known & sure & (label != coarse)
        taken = known & ~contradicted if rule == "drop" else known
        labels[contradicted] = IGNORE
        labels[taken] = coarse[taken]
        stored[taken] = 255
        own = np.bincount(coarse[taken], minlength=classes)
        kept = list(count_levels(label, confidence, sure & ~known, classes))
    best = np.where(totals > 0, CONFIDENCE_LEVELS - 1 - np.argmax(counts[:, ::-1] > 0, axis=1), -1)
    every = np.arange(CONFIDENCE_LEVELS)
    weighed = [row @ every[CONFIDENCE_LEVELS - len(row) :] for row in kept]
    found = (predicted, totals, [row.sum() for row in kept], weighed, best, own)
    return labels, stored, LabelCounts(*(tuple(int(number) for number in one) for one in found))
