"""Counts many combinations of members over all labelled images, in one pass over the stores."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import torch

from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...datasets.parallel import map_files
from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, StoreError
from ..config.manifest import FusionFunctions
from ..config.member import Member
from ..fusion.calibrated_logits import logit_map
from ..fusion.member_stores import MemberStore, member_strips, open_store
from ..runtime.device import one_thread
from ..runtime.progress import Progress
from ..scoring.ground_truth import GroundTruth
from .bravo.parts import BravoSubset, Part
from .combinations import Weights
from .count_fused import FusedCounter, ProbabilityCounter
from .count_pixels import PixelCounter
from .counts import Counts, Totals, joined
from .folds import Groups
from .levels import EVEN, FINE_AT_TOP, LevelTable
from .objective import View

FAST = FusionFunctions()
"""The functions whose sums share members, classes and pixels; all others go through `fuse`."""


@dataclass(frozen=True)
class ScoredSet:
    """Images that are scored together: a dataset, or a part of one.

    Attributes:
        name: of the dataset, with ``/`` and the name of the part behind it.
        truth: images with masks.
        stores: the members, each with its store.
        groups: of the images.
        bravo: how the images are counted by BRAVO's protocol; None if all their labelled pixels are counted alike.
    """

    name: str
    truth: GroundTruth
    stores: tuple[MemberStore, ...]
    groups: Groups
    bravo: BravoSubset | None = None

    @property
    def rows(self) -> int:
        """Rows of `Totals.levels`."""
        return self.bravo.rows if self.bravo else 2

    @property
    def table(self) -> LevelTable:
        """Table of the levels that confidences are counted in."""
        return FINE_AT_TOP if self.bravo else EVEN

    @property
    def kinds(self) -> tuple[bool, ...]:
        """False if there are figures of classes, and True if there are those of what is out of distribution."""
        return (False, True) if self.rows > 2 else (self.truth.ood,)

    def views(self, totals: Totals) -> list[View]:
        """Return what figures are computed from, for each of `kinds`; totals with axes (...)."""
        subset = self.bravo.name if self.bravo else None
        if self.rows == 2:
            return [View(totals, self.truth.average, self.truth.ood, self.table, subset)]
        levels = totals.levels
        odd = np.stack([levels[..., 2, :], levels[..., 0, :] + levels[..., 1, :]], -2)
        return [
            View(totals._replace(levels=levels[..., :2, :]), self.truth.average, False, self.table, subset),
            View(totals._replace(levels=odd), self.truth.average, True, self.table, subset),
        ]

    def parts(self, pair: ImageMaskPair, size: tuple[int, int]) -> list[Part]:
        """Return which pixels of an image are counted.

        Args:
            pair: the image.
            size: rows and columns of its logits.

        Raises:
            DatasetError: its labels cannot be read, or are of another size.
        """
        if self.bravo:
            return self.bravo.parts(pair, size)
        return [Part(self.truth.reader.read(pair, size), self.truth.ood)]


@dataclass(frozen=True)
class Candidate:
    """Weights (M,) of the members, and the functions of label and confidence."""

    weights: Weights
    functions: FusionFunctions = FAST


def count(
    sets: Sequence[ScoredSet],
    candidates: Sequence[Candidate],
    *,
    title: str,
    nll: bool = False,
    probabilities: bool = False,
    processes: int | None = None,
) -> list[Counts]:
    """Count every candidate over every set, in the order of both, reading each image's logits once.

    Args:
        sets: what is read.
        candidates: N of them, those of the same functions next to one another.
        title: of the progress bar.
        nll: whether the likelihood of the labels is summed up.
        probabilities: whether the probabilities of all classes are.
        processes: how many work on images at a time; None for one a usable core.

    Raises:
        StoreError, DatasetError: logits or masks cannot be read, by the first image of which that is so.
    """
    found = []
    work = [(number, pair) for number, one in enumerate(sets) for pair in one.truth.pairs]
    bare = [replace(one, truth=one.truth.without_pairs()) for one in sets]
    for one in sets:
        groups, classes = len(one.groups.folds), len(one.truth.classes)
        found.append(Counts.none(len(candidates), groups, classes, one.rows, probabilities=probabilities))
    places = [(number, group) for number, one in enumerate(sets) for group in one.groups.of_image]
    with Progress(len(work)) as progress:
        progress.job(title, len(work))
        look = partial(_count_image, bare, tuple(candidates), nll, probabilities)
        counted = map_files(look, work, processes, together=1)
        for (number, group), counts in zip(places, counted, strict=True):
            found[number].add(group, counts)
            progress.advance()
    return found


@one_thread()
def _count_image(
    sets: Sequence[ScoredSet],
    candidates: Sequence[Candidate],
    nll: bool,
    probabilities: bool,
    item: tuple[int, ImageMaskPair],
) -> Counts:
    number, pair = item
    one = sets[number]
    try:
        return _counted(one, candidates, nll, probabilities, pair)
    except (DatasetError, StoreError) as error:
        raise type(error)(f"{one.name}: {pair.image}: {error}") from error


def _counted(
    one: ScoredSet, candidates: Sequence[Candidate], nll: bool, probabilities: bool, pair: ImageMaskPair
) -> Counts:
    stores = [open_store(path) for _, path in one.stores]
    members = [member for member, _ in one.stores]
    entry = stores[0].images[stores[0].index[pair.image]]
    parts = one.parts(pair, (entry.height or 0, entry.width or 0))
    tried = by_functions(candidates)
    counters = [
        [_counter(members, functions, combinations, one, part, nll) for functions, combinations in tried]
        for part in parts
    ]
    likely = [
        [_probability_counter(members, functions, combinations, one) for functions, combinations in tried]
        if probabilities and part.by_class and not part.ood
        else []
        for part in parts
    ]
    with ThreadPoolExecutor(2) as pool:
        for rows, strips in member_strips(stores, pair.image, pool.map):
            every = [strip.numpy().reshape(len(strip), -1) for strip in strips]
            for part, *counting in zip(parts, counters, likely, strict=True):
                labels = part.labels[rows].ravel()
                known = np.flatnonzero(labels != IGNORE)
                if not len(known):
                    continue
                planes = [plane.take(known, axis=1) for plane in every] if len(known) < len(labels) else every
                for counter in chain(*counting):
                    counter.add([torch.from_numpy(plane) for plane in planes], labels[known])
    counts = [joined([counter.finish() for counter in counting]) for counting in counters]
    for number, counting in enumerate(likely):
        if counting:
            summed = joined([counter.finish() for counter in counting]).probabilities
            counts[number] = replace(counts[number], probabilities=summed)
    return counts[0] if len(parts) == 1 else _of_parts(parts, counts, one.rows, probabilities=probabilities)


def _of_parts(parts: Sequence[Part], counts: Sequence[Counts], rows: int, *, probabilities: bool) -> Counts:
    """The counts of an image's parts together."""
    combinations, _, classes = counts[0].hits.shape
    found = Counts.none(combinations, 1, classes, rows, probabilities=probabilities)
    for part, more in zip(parts, counts, strict=True):
        found.add(0, more, part.row)
    return found


def _counter(
    members: Sequence[Member],
    functions: FusionFunctions,
    combinations: Sequence[Weights],
    one: ScoredSet,
    part: Part,
    nll: bool,
) -> PixelCounter | FusedCounter:
    temperatures = [member.temperature for member in members]
    maps = [logit_map(member) for member in members]
    classes = len(one.truth.classes)
    given = {"ood": part.ood, "nll": nll, "by_class": part.by_class, "by_level": part.by_level}
    if functions == FAST:
        return PixelCounter(combinations, temperatures, classes, maps, table=one.table, **given)
    standards = [member.max_logits for member in members]
    return FusedCounter(combinations, temperatures, functions, classes, maps, standards, table=one.table, **given)


def _probability_counter(
    members: Sequence[Member], functions: FusionFunctions, combinations: Sequence[Weights], one: ScoredSet
) -> ProbabilityCounter:
    temperatures = [member.temperature for member in members]
    maps = [logit_map(member) for member in members]
    return ProbabilityCounter(combinations, temperatures, functions.label, len(one.truth.classes), maps)


def by_functions(candidates: Sequence[Candidate]) -> list[tuple[FusionFunctions, list[Weights]]]:
    """Candidates by their functions; ValueError if those of the same functions are not next to one another."""
    found: list[tuple[FusionFunctions, list[Weights]]] = []
    for one in candidates:
        if not found or found[-1][0] != one.functions:
            if any(functions == one.functions for functions, _ in found):
                raise ValueError("candidates of the same functions must be next to one another")
            found.append((one.functions, []))
        found[-1][1].append(one.weights)
    return found
