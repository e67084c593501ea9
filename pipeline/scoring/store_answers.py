"""Answers of an image's subjects from the members' stores, with figures of their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..config.manifest import FusionFunctions
from ..fusion.fuse import PROBABLE
from ..fusion.member_stores import ENSEMBLE, LabelAndConfidence, MemberStore, predict_from_stores
from .figures.probabilities import ProbabilitySums

FIGURES = ("nll", "brier", "classwise_ece")
"""Figures that need probabilities."""


def reason_without_probabilities(
    subjects: Mapping[str, Sequence[int]], functions: FusionFunctions, *, others: bool
) -> str | None:
    """Say why there are no figures of probabilities; None if there are.

    Args:
        subjects: that are scored from stores.
        functions: of the manifest.
        others: whether the ensemble's predictions are not the manifest's.
    """
    if functions.label not in PROBABLE:
        return f"ensemble.label {functions.label} takes the highest of numbers that are no probabilities"
    if others:
        return "the folder of --predictions holds no probabilities"
    if not subjects:
        return "probabilities are read from stores, with --per-model, --leave-one-out or --compare"
    return None


def answers_from_stores(
    members: Sequence[MemberStore],
    image: str,
    subjects: Mapping[str, tuple[int, ...]],
    functions: FusionFunctions,
    truth: tuple[np.ndarray, int] | None,
) -> tuple[dict[str, LabelAndConfidence], ProbabilitySums | None]:
    """Predict an image for several subjects, and sum figures of their probabilities, the ensemble's among them.

    Args:
        members: all voting members, with their stores.
        image: its path in the dataset.
        subjects: name -> positions of the members that are fused.
        functions: of the manifest.
        truth: labels (H, W) and the number of classes; None to sum nothing.

    Raises:
        StoreError: logits are missing or damaged.
    """
    if truth is None:
        return predict_from_stores(members, image, subjects, functions), None
    look = _Look(members, subjects, functions, *truth)
    wanted = {**subjects} if look.adds_up else {**subjects, ENSEMBLE: tuple(range(len(members)))}
    answers = predict_from_stores(members, image, wanted, functions, look)
    answers.pop(ENSEMBLE, None)
    return answers, look.sums


class _Look:
    """Sums what `predict_from_stores` shows.

    Where every member is a subject, the ensemble's probabilities are the weighted sum of theirs, and no member has to
    be looked at twice.
    """

    def __init__(
        self,
        members: Sequence[MemberStore],
        subjects: Mapping[str, tuple[int, ...]],
        functions: FusionFunctions,
        truth: np.ndarray,
        classes: int,
    ) -> None:
        self.sums = ProbabilitySums(truth, classes, [ENSEMBLE, *subjects])
        self._truth = truth
        alone = {name: members[numbers[0]][0].weight for name, numbers in subjects.items() if len(numbers) == 1}
        self.adds_up = functions.label == "mean-softmax" and len(alone) == len(members)
        total = sum(alone.values())
        self._shares = {name: weight / total for name, weight in alone.items()} if self.adds_up else {}
        self._seen: set[str] = set()
        self._mean: Tensor | None = None

    def __call__(self, subject: str, rows: slice, probabilities: Tensor) -> None:
        if self._truth[rows].shape != probabilities.shape[1:]:
            return  # which whoever asked finds out from the whole image
        self.sums.add(subject, rows, probabilities)
        if subject not in self._shares:
            return
        share = self._shares[subject]
        if self._mean is None:
            self._mean = probabilities * share
        else:
            self._mean.add_(probabilities, alpha=share)
        self._seen.add(subject)
        if len(self._seen) == len(self._shares):
            self.sums.add(ENSEMBLE, rows, self._mean)
            self._seen.clear()
            self._mean = None
