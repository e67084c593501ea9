"""Counts of combinations over images, from which every figure comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from ..scoring.metrics import BINS
from .levels import LEVELS


class Totals(NamedTuple):
    """Counts of some images together, for any number of combinations or resamples (...).

    Attributes:
        levels: (..., 2, 1024): how many pixels of each level of confidence were wrong (row 0) and right, or, where
            the labels say what is out of distribution, out of it (row 0) and in it. Where they say both,
            (..., 3, 1024): wrong and right ones in distribution, and those out of it.
        hits: (..., C): pixels of each class that were taken for it.
        predicted: (..., C): pixels that were taken for each class.
        labelled: (..., C): pixels of each class.
        nll: (...): sum over pixels of -log p(label) in nats.
        probabilities: (..., 1 + 15 C): the second of the ``losses`` of `ProbabilitySums`, and its ``classwise`` in a
            row; (..., 0) where they are not summed.
    """

    levels: np.ndarray
    hits: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray
    nll: np.ndarray
    probabilities: np.ndarray = np.zeros(0)

    def at(self, which: Sequence[int]) -> Totals:
        """Select along the first axis."""
        return Totals(*(array[list(which)] for array in self))

    def sum(self) -> Totals:
        """Return the sums over the first axis."""
        return Totals(*(array.sum(0) for array in self))

    def plus(self, other: Totals) -> Totals:
        """Return the sums of both."""
        return Totals(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass
class Counts:
    """Counts of N combinations over images in G groups; the arrays are those of `Totals`, with axes (N, G) in front.

    ``labelled`` is (G, C), as it is the same for all combinations.
    """

    levels: np.ndarray
    hits: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray
    nll: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def none(
        cls, combinations: int, groups: int, classes: int, rows: int = 2, *, probabilities: bool = False
    ) -> Self:
        """Make counts of no image.

        Args:
            combinations: N.
            groups: G.
            classes: C.
            rows: of the levels.
            probabilities: whether there is room for sums of all classes' probabilities.
        """
        return cls(
            np.zeros((combinations, groups, rows, LEVELS), np.int32),
            np.zeros((combinations, groups, classes), np.int64),
            np.zeros((combinations, groups, classes), np.int64),
            np.zeros((groups, classes), np.int64),
            np.zeros((combinations, groups)),
            np.zeros((combinations, groups, 1 + BINS * classes if probabilities else 0)),
        )

    def add(self, group: int, image: Counts, row: int = 0) -> None:
        """Add an image's counts, of one group, to those of ``group``.

        Args:
            group: of these counts.
            image: counts of one group.
            row: of the levels that the image's row 0 is added to; rows of the image that then have no place are left.
        """
        levels = self.levels[:, group, row : row + image.levels.shape[2]]
        levels += image.levels[:, 0, : levels.shape[1]]
        self.hits[:, group] += image.hits[:, 0]
        self.predicted[:, group] += image.predicted[:, 0]
        self.labelled[group] += image.labelled[0]
        self.nll[:, group] += image.nll[:, 0]
        if image.probabilities.size:
            self.probabilities[:, group] += image.probabilities[:, 0]

    def without_first(self) -> Counts:
        """Return the counts of all combinations but the first."""
        rest = {name: array[1:] for name, array in vars(self).items() if name != "labelled"}
        return replace(self, **rest)

    def total(self, groups: np.ndarray) -> Totals:
        """Return the sums over groups (G,) bool, of every combination: axes (N,)."""
        here = np.flatnonzero(groups)
        arrays = (self.levels, self.hits, self.predicted, self.nll, self.probabilities)
        # Group by group: a copy of the groups' levels would be as large as all counts.
        sums = [np.zeros((array.shape[0], *array.shape[2:]), np.result_type(array, np.int64)) for array in arrays]
        for group in here:
            for total, array in zip(sums, arrays, strict=True):
                total += array[:, group]
        labelled = np.broadcast_to(self.labelled[here].sum(0), (len(self.levels), self.labelled.shape[1]))
        levels, hits, predicted, nll, probabilities = sums
        return Totals(levels, hits, predicted, labelled, nll, probabilities)

    def of(self, combinations: np.ndarray) -> Totals:
        """Return the counts of each group for the combination (G,) that is named for it: axes (G,)."""
        groups = np.arange(len(self.labelled))
        chosen = combinations, groups
        return Totals(**{name: array if name == "labelled" else array[chosen] for name, array in vars(self).items()})


def joined(parts: list[Counts]) -> Counts:
    """Counts of several lists of combinations over the same groups, one behind the other."""
    names = [name for name in vars(parts[0]) if name != "labelled"]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def weighted(totals: Totals, weights: np.ndarray) -> Totals:
    """Sum over groups (G,) with how often each is drawn (B, G): axes (B,)."""
    return Totals(*(np.tensordot(weights, array.astype(np.float64), 1) for array in totals))
