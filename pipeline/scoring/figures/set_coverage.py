"""Coverage and size of prediction sets, image by image: their guarantee is one over images (`conformal`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ....datasets.taxonomy import IGNORE

IMAGES, COVERED, SIZE, EMPTY = range(4)


class SetCoverage:
    """Sums over the labelled pixels of one image, from strips of its rows.

    Args:
        truth: (H, W) uint8, 255 where nothing is known.
        classes: C.
    """

    def __init__(self, truth: np.ndarray, classes: int) -> None:
        self._truth = truth
        self._sums = np.zeros((4, classes))

    def add(self, rows: slice, marked: Tensor) -> None:
        """Add a strip.

        Args:
            rows: of the image.
            marked: (C, rows, W) bool, the classes of each pixel's set.
        """
        truth = self._truth[rows]
        known = truth != IGNORE
        label, inside = truth[known].astype(np.int64), marked.numpy()[:, known]
        sizes = inside.sum(0)
        values = (None, inside[label, np.arange(len(label))], sizes, sizes == 0)
        self._sums += [np.bincount(label, one, self._sums.shape[1]) for one in values]

    def shares(self) -> np.ndarray:
        """Sums for means over images, (4, C + 1) float64: of the pixels of each class and, in the last column, all.

        1 if there are such pixels, the share of them whose set holds their label, the mean number of classes in their
        sets, and the share of empty sets; 0 if there are none.
        """
        sums = np.append(self._sums, self._sums.sum(1, keepdims=True), 1)
        held = sums[0] > 0
        return np.where(held, np.append(held[None], sums[1:] / np.maximum(1, sums[0]), 0), 0.0)


def coverage_figures(total: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Means over images, a row for each class and one for all pixels, whose name is None; NaN without images.

    Args:
        total: (4, C + 1), the sum of `SetCoverage.shares`.
        names: of the classes.
    """
    rows = []
    for name, column in zip([*names, None], total.T, strict=True):
        count = column[IMAGES]
        means = [float(value / count) if count else math.nan for value in column[COVERED:]]
        rows.append({"name": name, "images": int(count), "coverage": means[0], "size": means[1], "empty": means[2]})
    return rows
