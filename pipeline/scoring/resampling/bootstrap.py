"""The bootstrap over images: figures of many resamplings, in memory that does not grow with the number of images.

Images are drawn, not pixels, because the pixels of an image are much alike (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, chapter 8.5: the unit that is drawn is the one that is independent). A resampling of n images
draws n of them with replacement, so image i counts as often as a multinomial variable says. The number of draws that
are left is all that has to be kept between two images: image i gets binomial(left, 1 / (n - i)) of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..averages import Average
from ..figures.totals import COUNTS, Totals, figures_of
from ..pixel_counts import PixelCounts
from .coarse import Row, coarse_scale

_TOGETHER = 16
SHARE = 0.95
"""The share of the resamplings that an interval holds."""

_FEW = 20
"""Below so many images percentile intervals are known to be too narrow."""

Replicates = dict[str, np.ndarray]
"""Name of a figure -> its values over B resamplings, (B,), or (B, C) of a list; NaN where one is not defined."""


@dataclass(frozen=True)
class Resampling:
    """How images are resampled.

    Attributes:
        replicates: B, how often.
        seed: of the draws.
    """

    replicates: int = 1000
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """By name."""
        return {"replicates": self.replicates, "seed": self.seed, "interval": SHARE}


def draws(images: int, resampling: Resampling, group: int = 0) -> Iterator[np.ndarray]:
    """Draw for one image after another how often each resampling holds it, (B,) int64 each.

    Args:
        images: n, how many there are.
        resampling: how often, and the seed.
        group: number of the group that the images are; the draws of different groups are independent.
    """
    draw = np.random.default_rng(np.random.SeedSequence(resampling.seed, spawn_key=(group,) if group else ()))
    left = np.full(resampling.replicates, images)
    for number in range(images):
        times = draw.binomial(left, 1 / (images - number))
        left -= times
        yield times


class Bootstrap:
    """Sums of resamplings of a dataset's images, the same draws for every subject.

    Args:
        subjects: whose counts are added.
        images: n, how many will be added; one that fails counts as drawn, and adds nothing.
        resampling: how often, and the seed.
    """

    def __init__(self, subjects: Sequence[str], images: int, resampling: Resampling) -> None:
        self._row: Row | None = None
        self._draws = draws(images, resampling)
        self._replicates = resampling.replicates
        self._weights: list[np.ndarray] = []
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in subjects}
        self._sums: dict[str, np.ndarray] = {}
        self._counted = 0

    def add(self, counts: Mapping[str, PixelCounts] | None, times: np.ndarray | None = None) -> None:
        """Add the counts of an image.

        Args:
            counts: by subject; None if the image failed.
            times: (B,) of `draws`, how often each resampling holds the image, for images that come in another order;
                None for those of the next image.
        """
        weights = next(self._draws) if times is None else times
        if counts is None:
            return
        self._counted += 1
        self._weights.append(weights)
        if self._row is None:
            self._row = Row(next(iter(counts.values())))
            self._sums = {name: np.zeros((self._replicates, self._row.length)) for name in self._rows}
        for name, rows in self._rows.items():
            rows.append(self._row.pack(counts[name]))
        if len(self._weights) == _TOGETHER:
            self._flush()

    def _flush(self) -> None:
        if self._weights:
            weights = np.stack(self._weights, 1).astype(np.float64)
            for name, rows in self._rows.items():
                self._sums[name] += weights @ np.stack(rows)
                rows.clear()
            self._weights.clear()

    def replicates(
        self,
        subject: str,
        counts: PixelCounts,
        average: Average | None = None,
        figures: Callable[[Totals], Mapping[str, Any]] | None = None,
    ) -> Replicates | None:
        """Compute a subject's figures for every resampling; None with fewer than two images.

        Joined levels move a figure a little. By how much, the sum of all images says, whose exact figure is known;
        the values are corrected by that.

        Args:
            subject: its name.
            counts: of all images together.
            average: which classes means are taken over.
            figures: computes figures by name; None for all of `figures_of`.
        """
        if self._counted < 2 or self._row is None:
            return None
        self._flush()
        scale = coarse_scale(counts.levels)
        compute = figures or partial(figures_of, average=average)
        exact = compute(counts.totals())
        joined = compute(self._row.unpack(self._row.pack(counts), scale))
        drawn = [compute(self._row.unpack(row, scale)) for row in self._sums[subject]]
        values: Replicates = {}
        for name in exact:
            if name not in COUNTS:
                shift = np.nan_to_num(np.subtract(exact[name], joined[name]))
                values[name] = np.array([one[name] for one in drawn], np.float64) + shift
        return values


def interval(values: np.ndarray) -> np.ndarray:
    """Percentile interval (2.5 % to 97.5 %) of values (B,) or (B, C): (2,) or (2, C) float64.

    It is taken over the resamplings in which the figure is defined; NaN where there is none.
    """
    found = np.full((2, *values.shape[1:]), np.nan)
    held = ~np.isnan(values).all(0)
    ends = [(1 - SHARE) / 2, (1 + SHARE) / 2]
    found[:, held] = np.nanquantile(values[:, held], ends, axis=0)
    return found


def intervals(replicates: Replicates | None) -> dict[str, list[Any]]:
    """The ends of each figure's interval: ``[low, high]``, a list of such pairs for a list; empty for None."""
    return {name: interval(values).T.tolist() for name, values in (replicates or {}).items()}


def resampling_lines(resampling: Resampling | None, images: int) -> list[str]:
    """Say how intervals come about, or why there are none, in at most one line.

    Args:
        resampling: None if no intervals are asked for.
        images: how many there are, the fewest of a group if groups are drawn apart.
    """
    if resampling is None:
        return []
    if images < 2:
        return ["no intervals: there are fewer than two images to resample"]
    few = f"; too narrow for fewer than {_FEW} images" if images < _FEW else ""
    return [f"95 % intervals: {resampling.replicates} resamplings of the images, seed {resampling.seed}{few}"]
