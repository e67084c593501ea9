"""The plan of a search: its images, stores and candidates, checked before anything is counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...datasets.layout.image_mask_pairs import without_masks
from ...errors import HmsaError, ManifestError
from ..config.manifest import FusionFunctions, Manifest
from ..config.member import Member
from ..fusion.fuse import CONFIDENCES, LABELS, PROBABLE, UNWEIGHTED, nearest_function
from ..fusion.member_stores import require_max_logits, stores_of, voting_members
from ..scoring.averages import DATASET
from ..scoring.bravo_protocol import MEANS, subsets_of
from ..scoring.ground_truth import LABELLED, has_labels, load_ground_truth
from ..scoring.metrics import BINS
from .bravo.subsets import bravo_sets
from .cost import Cost, member_costs
from .count_images import ScoredSet
from .folds import UNDIVIDED, divide
from .levels import LEVELS
from .objective import ALWAYS, METRICS, OF_PROBABILITIES, Objective

MOST_EXHAUSTIVE = 10
"""Members up to which every subset is tried."""
_BYTES = 256 * 2**20
"""Memory for the counts of all groups."""


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search.

    Attributes:
        objective: what is to be high.
        labels, confidences: functions that are tried, every label with every confidence.
        folds: K parts of the images; a choice is judged by the one that it did not see.
        seed: of the folds and of the bootstrap.
        resamples: of the bootstrap.
        most: members of a combination; None for all.
        greedy: forward selection with replacement, and not every subset.
        weights: whether the weights of what is chosen are fitted, too.
        cost: ``members``, or ``seconds`` per image of the run record.
    """

    objective: Objective
    labels: tuple[str, ...]
    confidences: tuple[str, ...]
    folds: int = 5
    seed: int = 0
    resamples: int = 1000
    most: int | None = None
    greedy: bool = False
    weights: bool = False
    cost: str = "members"


@dataclass(frozen=True)
class SearchPlan:
    """A search, ready to be run.

    Attributes:
        members: M members, those of the manifest of a weight above 0.
        functions: pairs of label and confidence that are tried, as they were named; all members are scored by the
            first pair.
        sets: images that are scored together.
        metrics: names of those that are computed.
        left_out: set -> images without a mask.
        costs: (M,) of the members.
        unused: datasets with labels that do not count, as BRAVO's images are searched by.
    """

    settings: SearchSettings
    members: tuple[Member, ...]
    functions: tuple[FusionFunctions, ...]
    sets: tuple[ScoredSet, ...]
    metrics: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]
    cost: Cost
    unused: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        """True if combinations grow by one member after the other."""
        return self.settings.greedy or len(self.members) > MOST_EXHAUSTIVE

    @property
    def notes(self) -> list[str]:
        """Messages on images that do not count."""
        found = [without_masks(name, images) for name, images in self.left_out.items()]
        if self.unused:
            found.append(f"--ground-truth: only BRAVO's images count, and not the labels of {', '.join(self.unused)}")
        return found

    @property
    def probabilities(self) -> bool:
        """True if the probabilities of all classes have to be summed up."""
        return any(name in OF_PROBABILITIES for name in self.metrics)

    @property
    def images(self) -> int:
        """Number of images of all sets."""
        return sum(len(one.truth.pairs) for one in self.sets)


def plan_search(
    manifest: Manifest,
    settings: SearchSettings,
    *,
    limit: int | None = None,
    average: str = DATASET,
    allow_unlabelled: bool = False,
    tars: tuple[Path, Path] | None = None,
) -> SearchPlan:
    """Check that labels and stores are there, and that what is asked for can be computed.

    Args:
        manifest: its members of a weight above 0, and its datasets that have labels, or, with ``tars``, BRAVO's.
        settings: what is searched for.
        limit: images per dataset, from the first; None for all.
        average: which classes a mean IoU runs over, one of `averages.AVERAGES`.
        allow_unlabelled: leave out images that have no mask, whatever the manifest says of them.
        tars: BRAVO's ground truth and samples, by whose protocol its images are counted instead.

    Raises:
        HmsaError: settings that do not go with the members, the labels or the number of images.
        ManifestError: no dataset has labels.
        DatasetError: masks or images are missing.
        StoreError: stores are missing, or lack images.
    """
    members = tuple(voting_members(manifest))
    if len(members) == 1:
        raise ManifestError(f"search: {members[0].name} is the only member, and nothing can be chosen; name more")
    functions = _functions(settings, members)
    require_max_logits(manifest, "--confidences", settings.confidences)
    if tars:
        sets = bravo_sets(manifest, settings.objective, *tars)
    else:
        sets = _labelled_sets(manifest, limit, average, allow_unlabelled=allow_unlabelled)
    kinds = {kind for one in sets for kind in one.kinds}
    for name in settings.objective.weights:
        if name in METRICS and METRICS[name].ood not in kinds:
            needed = "what is out of distribution" if METRICS[name].ood else "classes"
            raise HmsaError(f"--by {settings.objective.text}: {name} needs labels of {needed}, which no dataset has")
    images = sum(len(one.truth.pairs) for one in sets)
    if images < 2:
        mend = "raise --limit" if limit else "label more images"
        raise HmsaError(
            f"{', '.join(one.name for one in sets)}: {images} labelled image{'' if images else 's'}, and two are "
            f"needed: one to choose by, and one to judge by; {mend}, or name more datasets with labels"
        )
    if settings.folds > images:
        raise HmsaError(
            f"--folds {settings.folds}: there are {images} labelled images; use at most as many folds as images"
        )
    cost = member_costs(manifest.output, members, settings.cost)
    groups = _groups(settings, len(members), len(functions), sets)
    dealt = divide([len(one.truth.pairs) for one in sets], settings.folds, groups, settings.seed)
    sets = tuple(replace(one, groups=part) for one, part in zip(sets, dealt, strict=True))
    means = [name for name in MEANS if {one.bravo.name for one in sets if one.bravo} >= {*subsets_of(name)}]
    wanted = dict.fromkeys([*settings.objective.weights, *(means or ALWAYS)])
    metrics = tuple(name for name in wanted if name in means or (name in METRICS and METRICS[name].ood in kinds))
    left_out = {one.name: one.truth.left_out for one in sets if one.truth.left_out}
    unused = tuple(entry.name for entry in manifest.datasets if tars and has_labels(entry))
    return SearchPlan(settings, members, functions, sets, metrics, left_out, cost, unused)


def _groups(settings: SearchSettings, members: int, functions: int, sets: Sequence[ScoredSet]) -> int:
    """How many groups of images the counts can be kept for; HmsaError if they are too few for the folds."""
    rows = sum(one.rows for one in sets)
    summed = any(name in OF_PROBABILITIES for name in settings.objective.weights)
    sums = sum(8 * (1 + BINS * len(one.truth.classes)) for one in sets) if summed else 0
    if settings.greedy or members > MOST_EXHAUSTIVE:
        tried = (settings.folds + 1) * members
    else:
        tried = sum(math.comb(members, size) for size in range(1, min(settings.most or members, members) + 1))
    most = min(2**members, 2**MOST_EXHAUSTIVE)
    for number in (most, tried):
        groups = _BYTES * len(sets) // (number * functions * (rows * LEVELS * 4 + sums))
        if groups >= 2 * settings.folds * len(sets):
            return groups
    others = "--folds" if sets[0].bravo else "--datasets"
    raise HmsaError(
        f"{functions} pairs of functions for up to {min(most, tried)} combinations over {len(sets)} sets of images: "
        f"the counts would not fit into memory; name fewer --labels, --confidences, {others} or --models, or --most"
    )


def _labelled_sets(
    manifest: Manifest, limit: int | None, average: str, *, allow_unlabelled: bool
) -> tuple[ScoredSet, ...]:
    """The datasets of a manifest that have labels, or their parts, with images that are not divided into folds yet.

    Args:
        manifest: with the members.
        limit: images per dataset, from the first; None for all.
        average: which classes a mean IoU runs over, one of `averages.AVERAGES`.
        allow_unlabelled: leave out images that have no mask, whatever the manifest says of them.

    Raises:
        ManifestError: no dataset has labels.
        DatasetError: masks or images are missing.
        StoreError: stores are missing, or lack images.
    """
    labelled = [entry for entry in manifest.datasets if has_labels(entry)]
    if not labelled:
        raise ManifestError(
            f"no dataset of the manifest has labels (types: {', '.join(d.type for d in manifest.datasets)}); types "
            f"that have: {', '.join(LABELLED)}, and folder with 'masks'"
        )
    found = []
    for entry in labelled:
        truths = load_ground_truth(entry, manifest.class_set, limit, average, allow_unlabelled=allow_unlabelled)
        for part, truth in truths.items():
            name = entry.name if part is None else f"{entry.name}/{part}"
            stores = stores_of(manifest, entry.name, [pair.image for pair in truth.pairs])
            found.append(ScoredSet(name, truth, stores, UNDIVIDED))
    return tuple(found)


def _functions(settings: SearchSettings, members: Sequence[Member]) -> tuple[FusionFunctions, ...]:
    for flag, names, known in (
        ("--labels", settings.labels, LABELS),
        ("--confidences", settings.confidences, CONFIDENCES),
    ):
        if wrong := [name for name in names if name not in known]:
            raise HmsaError(f"{flag} {wrong[0]}: is no function; {nearest_function(wrong[0], known)}")
    unlike = len({member.weight for member in members}) > 1
    for name in (*settings.labels, *settings.confidences):
        if name in UNWEIGHTED and (unlike or settings.weights or settings.greedy or len(members) > MOST_EXHAUSTIVE):
            how = (
                "the manifest's weights differ"
                if unlike
                else "--weights fits weights"
                if settings.weights
                else f"forward selection, as with more than {MOST_EXHAUSTIVE} members, gives weights"
            )
            raise HmsaError(f"{name}: has no weights, and {how}; leave it out of --labels and --confidences")
    needed = {"nll", *OF_PROBABILITIES} & settings.objective.weights.keys()
    if needed and (wrong := [name for name in settings.labels if name not in PROBABLE]):
        raise HmsaError(
            f"--by {settings.objective.text}: {wrong[0]} gives no probabilities; leave it out of --labels"
        )
    return tuple(
        FusionFunctions.model_validate({"label": label, "confidence": confidence})
        for label, confidence in itertools.product(settings.labels, settings.confidences)
    )
