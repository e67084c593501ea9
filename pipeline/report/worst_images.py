"""Which image has most wrong pixels of each class, and on which the ensemble gains most over its members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...datasets.class_set import ClassSet
from ..fusion.member_stores import ENSEMBLE
from ..scoring.pixel_counts import PixelCounts


@dataclass(frozen=True)
class Gain:
    """The gain of the ensemble on one image over the member that is best there.

    Attributes:
        share: pixels that the ensemble gets right beyond those of the member, as a share of all of the image; below
            0 where the member gets more right.
        best: name of the member.
    """

    share: float
    best: str


def gain_of(counts: Mapping[str, PixelCounts], pixels: int) -> Gain | None:
    """The gain on one image; None without two members or without labels of classes.

    Args:
        counts: of the ensemble and of each member.
        pixels: of the image.
    """
    right = {name: int(one.confusion.trace()) for name, one in counts.items() if not one.ood}
    ensemble = right.pop(ENSEMBLE, 0)
    if len(right) < 2 or not next(iter(counts.values())).confusion.any():
        return None
    best = max(right, key=right.__getitem__)
    return Gain((ensemble - right[best]) / pixels, best)


@dataclass(frozen=True)
class ClassErrors:
    """The wrong pixels of one class in one image.

    Attributes:
        image: its path in the dataset.
        pixels: how many are wrong.
        share: of the labelled pixels of the image.
        other: the train id that most of them have, instead of the class: of false positives in the labels, of false
            negatives in the prediction.
    """

    image: str
    pixels: int
    share: float
    other: int

    def as_json(self, classes: ClassSet) -> dict[str, Any]:
        """By name, the class by its name."""
        return vars(self) | {"other": classes.names[self.other]}


@dataclass
class WorstImages:
    """The image with most wrong pixels of each class; of several with as many, the first by name.

    Attributes:
        positives: train id -> pixels that are predicted as the class and labelled as another one.
        negatives: train id -> pixels that are labelled as the class and predicted as another one.
    """

    positives: dict[int, ClassErrors] = field(default_factory=dict)
    negatives: dict[int, ClassErrors] = field(default_factory=dict)

    def add(self, image: str, confusion: np.ndarray) -> None:
        """Count one image more, by its ``confusion`` (C, C) int64, whose rows are labels."""
        wrong = confusion.copy()
        np.fill_diagonal(wrong, 0)
        labelled = int(confusion.sum())
        for found, table in ((self.positives, wrong.T), (self.negatives, wrong)):
            for number in np.flatnonzero(table.any(1)).tolist():
                pixels = int(table[number].sum())
                _keep(found, number, ClassErrors(image, pixels, pixels / labelled, int(table[number].argmax())))

    def as_json(self, classes: ClassSet) -> dict[str, Any]:
        """By the names of the classes that have wrong pixels."""
        kinds = {"false_positives": self.positives, "false_negatives": self.negatives}
        return {
            classes.names[number]: {
                kind: found[number].as_json(classes) if number in found else None for kind, found in kinds.items()
            }
            for number in sorted(self.positives.keys() | self.negatives.keys())
        }


def _keep(found: dict[int, ClassErrors], number: int, one: ClassErrors) -> None:
    before = found.get(number)
    if before is None or (-one.pixels, one.image) < (-before.pixels, before.image):
        found[number] = one


def worst_over_datasets(
    found: Iterable[tuple[str, WorstImages]],
) -> list[tuple[int, tuple[str, ClassErrors] | None, tuple[str, ClassErrors] | None]]:
    """The worst images over several datasets: train id, and of false positives and negatives (dataset, errors).

    ``found`` are name and images of each dataset; of several with as many pixels, the first dataset counts.
    """
    totals: tuple[dict[int, tuple[str, ClassErrors]], ...] = ({}, {})
    for dataset, one in found:
        for total, errors in zip(totals, (one.positives, one.negatives), strict=True):
            for number, error in errors.items():
                if number not in total or error.pixels > total[number][1].pixels:
                    total[number] = (dataset, error)
    numbers = sorted(totals[0].keys() | totals[1].keys())
    return [(number, totals[0].get(number), totals[1].get(number)) for number in numbers]
