"""The plan of a search: its images, stores and candidates, checked before anything is counted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...datasets.layout.image_mask_pairs import without_masks
from ...errors import HmsaError, ManifestError
from ..config.manifest import FusionFunctions, Manifest
from ..config.member import Member
from ..fusion.fuse import CONFIDENCES, LABELS, PROBABLE, UNWEIGHTED, nearest_function
from ..fusion.member_stores import stores_of, voting_members
from ..scoring.averages import DATASET
from ..scoring.ground_truth import LABELLED, has_labels, load_ground_truth
from .cost import Cost, member_costs
from .count_images import ScoredSet
from .folds import Groups, divide
from .levels import LEVELS
from .objective import ALWAYS, METRICS, Objective

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
    """

    settings: SearchSettings
    members: tuple[Member, ...]
    functions: tuple[FusionFunctions, ...]
    sets: tuple[ScoredSet, ...]
    metrics: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]
    cost: Cost

    @property
    def greedy(self) -> bool:
        """True if combinations grow by one member after the other."""
        return self.settings.greedy or len(self.members) > MOST_EXHAUSTIVE

    @property
    def notes(self) -> list[str]:
        """Messages on images left out because they have no mask."""
        return [without_masks(name, images) for name, images in self.left_out.items()]

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
) -> SearchPlan:
    """Check that labels and stores are there, and that what is asked for can be computed.

    Args:
        manifest: its members of a weight above 0, and its datasets that have labels.
        settings: what is searched for.
        limit: images per dataset, from the first; None for all.
        average: which classes a mean IoU runs over, one of `averages.AVERAGES`.
        allow_unlabelled: leave out images that have no mask, whatever the manifest says of them.

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
    labelled = [entry for entry in manifest.datasets if has_labels(entry)]
    if not labelled:
        raise ManifestError(
            f"no dataset of the manifest has labels (types: {', '.join(d.type for d in manifest.datasets)}); types "
            f"that have: {', '.join(LABELLED)}, and folder with 'masks'"
        )
    truths = {
        entry.name if part is None else f"{entry.name}/{part}": (entry.name, truth)
        for entry in labelled
        for part, truth in load_ground_truth(
            entry, manifest.class_set, limit, average, allow_unlabelled=allow_unlabelled
        ).items()
    }
    kinds = {truth.ood for _, truth in truths.values()}
    for name in settings.objective.weights:
        if METRICS[name].ood not in kinds:
            needed = "what is out of distribution" if METRICS[name].ood else "classes"
            raise HmsaError(f"--by {settings.objective.text}: {name} needs labels of {needed}, which no dataset has")
    images = sum(len(truth.pairs) for _, truth in truths.values())
    if images < 2:
        mend = "raise --limit" if limit else "label more images"
        raise HmsaError(
            f"{', '.join(truths)}: {images} labelled image{'' if images else 's'}, and two are needed: one to choose "
            f"by, and one to judge by; {mend}, or name more datasets with labels"
        )
    if settings.folds > images:
        raise HmsaError(
            f"--folds {settings.folds}: there are {images} labelled images; use at most as many folds as images"
        )
    cost = member_costs(manifest.output, members, settings.cost)
    sets = tuple(
        ScoredSet(
            name,
            truth,
            stores_of(manifest, dataset, [pair.image for pair in truth.pairs]),
            Groups((), np.zeros(0, np.int64)),
        )
        for name, (dataset, truth) in truths.items()
    )
    combinations = min(2 ** len(members), 2**MOST_EXHAUSTIVE) * len(functions)
    groups = _BYTES // (combinations * 2 * LEVELS * 4)
    if groups < 2 * settings.folds * len(sets):
        raise HmsaError(
            f"{len(functions)} pairs of functions for up to {combinations // len(functions)} combinations over "
            f"{len(sets)} sets of images: the counts would not fit into memory; name fewer --labels, --confidences, "
            "--datasets or --models"
        )
    dealt = divide([len(one.truth.pairs) for one in sets], settings.folds, groups, settings.seed)
    sets = tuple(replace(one, groups=part) for one, part in zip(sets, dealt, strict=True))
    wanted = dict.fromkeys([*settings.objective.weights, *ALWAYS])
    metrics = tuple(name for name in wanted if METRICS[name].ood in kinds)
    left_out = {name: truth.left_out for name, (_, truth) in truths.items() if truth.left_out}
    return SearchPlan(settings, members, functions, sets, metrics, left_out, cost)


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
    if "nll" in settings.objective.weights and (wrong := [name for name in settings.labels if name not in PROBABLE]):
        raise HmsaError(
            f"--by {settings.objective.text}: {wrong[0]} gives no probabilities; leave it out of --labels"
        )
    return tuple(
        FusionFunctions.model_validate({"label": label, "confidence": confidence})
        for label, confidence in itertools.product(settings.labels, settings.confidences)
    )
