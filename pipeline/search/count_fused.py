"""Counts combinations of members in all their classes: for functions whose sums cannot be shared, each is fused by
itself, and for figures of all classes' probabilities these are summed up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import StoreError
from ..config.calibration_field import MaxLogits
from ..config.manifest import FusionFunctions
from ..fusion.fuse import fuse, quantise
from ..fusion.kernel.softmax import softmax
from ..fusion.member_stores import CACHED_PIXELS
from ..fusion.member_sums import LogitMap
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..scoring.figures.probabilities import ProbabilitySums
from .combinations import RunningSums, Weights, members_of, shares_of
from .counts import Counts
from .levels import EVEN, LEVELS, LevelTable


class FusedCounter:
    """Counts pixels of one image, a strip after the other.

    Args:
        combinations: N combinations of M members.
        temperatures: (M,) of the members.
        functions: of label and confidence.
        classes: C.
        maps: (M,) changes of the members' logits before they are divided, None for none; empty for none at all.
        standards: (M,) means and deviations of the members' max logits, None for none; empty for none at all.
        ood: whether the labels are 1 for out of distribution and 0, and not classes.
        nll: whether the likelihood of the label is summed up.
        by_class: whether the pixels of each class are counted, which is never so for ``ood``.
        by_level: whether those of each level of confidence are counted.
        table: of the levels.
    """

    def __init__(
        self,
        combinations: Sequence[Weights],
        temperatures: Sequence[float],
        functions: FusionFunctions,
        classes: int,
        maps: Sequence[LogitMap | None] = (),
        standards: Sequence[MaxLogits | None] = (),
        *,
        ood: bool = False,
        nll: bool = False,
        by_class: bool = True,
        by_level: bool = True,
        table: LevelTable = EVEN,
    ) -> None:
        self._counts = Counts.none(len(combinations), 1, classes)
        self._combinations = combinations
        self._temperatures = temperatures
        self._maps = maps or [None] * len(temperatures)
        self._standards = standards or [None] * len(temperatures)
        self._functions = functions
        self._classes = classes
        self._ood = ood
        self._place_of = table.place_of
        self._by_class, self._by_level = by_class and not ood, by_level
        self._nll = nll and self._by_class

    def add(self, logits: Sequence[Tensor], labels: np.ndarray) -> None:
        """Count some pixels.

        Args:
            logits: of each member (C, P) float16.
            labels: (P,) uint8, none of them 255.

        Raises:
            StoreError: logits are not finite.
        """
        counts = self._counts
        for number, weights in enumerate(self._combinations):
            chosen = members_of(weights)
            fused = fuse(
                [logits[i] for i in chosen],
                [weights[i] for i in chosen],
                [self._temperatures[i] for i in chosen],
                [self._maps[i] for i in chosen],
                [self._standards[i] for i in chosen],
                label=self._functions.label,
                confidence=self._functions.confidence,
            )
            if not bool(fused.confidence.isfinite().all()):
                raise StoreError("a member's logits are not finite; find it with 'hmsa-pipeline verify'")
            said = fused.label.numpy()
            right = labels == (0 if self._ood else said)
            if self._by_level:
                places = quantise(fused.confidence).numpy().astype(np.int32) + right * np.int32(CONFIDENCE_LEVELS)
                found = np.bincount(self._place_of.take(places), minlength=2 * LEVELS)
                counts.levels[number, 0] += found.reshape(2, LEVELS)
            if self._by_class:
                counts.predicted[number, 0] += np.bincount(said, minlength=self._classes)
                counts.hits[number, 0] += np.bincount(said[right], minlength=self._classes)
            if self._nll:
                counts.nll[number, 0] += self._loss(logits, weights, labels)
        if self._by_class:
            counts.labelled[0] += np.bincount(labels, minlength=self._classes)

    def finish(self) -> Counts:
        """Return the counts of all pixels, in one group."""
        return self._counts

    def _loss(self, logits: Sequence[Tensor], weights: Weights, labels: np.ndarray) -> float:
        """Sum of -log p(label), of the mean softmax or of the softmax of the mean logits, as the label is made."""
        ids = torch.from_numpy(labels)[None].long()
        total = torch.zeros(1)
        for member, share in shares_of(weights):
            z = logits[member].float()
            if (change := self._maps[member]) is not None:
                change(z)
            z = z / self._temperatures[member]
            total = total + share * (z if self._functions.label == "mean-logit" else z.softmax(0))
        likely = total.log_softmax(0) if self._functions.label == "mean-logit" else total.clamp(min=TINY).log()
        return -likely.gather(0, ids).sum(dtype=torch.float64).item()


TINY = torch.finfo(torch.float32).tiny
"""A probability below it counts as this, 1.2e-38."""
_VECTOR = 64


class ProbabilityCounter:
    """Sums probabilities over pixels of one image, a strip after the other, as `evaluate` sums them.

    Args:
        combinations: N combinations of M members.
        temperatures: (M,) of the members.
        label: ``mean-softmax``, or ``mean-logit``, whose probabilities are the softmax of the mean logits.
        classes: C.
        maps: (M,) changes of their logits before they are divided, None for none.
    """

    def __init__(
        self,
        combinations: Sequence[Weights],
        temperatures: Sequence[float],
        label: str,
        classes: int,
        maps: Sequence[LogitMap | None],
    ) -> None:
        self._names = [str(number) for number in range(len(combinations))]
        self._counts = Counts.none(len(combinations), 1, classes, probabilities=True)
        self._sums = RunningSums(combinations)
        self._temperatures = temperatures
        self._maps = maps
        self._of_logits = label == "mean-logit"
        self._classes = classes

    def add(self, logits: Sequence[Tensor], labels: np.ndarray) -> None:
        """Count some pixels.

        Args:
            logits: of each member (C, P) float16.
            labels: (P,) uint8, none of them 255.
        """
        for start in range(0, len(labels), CACHED_PIXELS):
            part = slice(start, start + CACHED_PIXELS)
            self._add([one[:, part] for one in logits], labels[part])

    def finish(self) -> Counts:
        """Return the sums of all pixels, in one group; all other counts are 0."""
        return self._counts

    def _add(self, logits: Sequence[Tensor], labels: np.ndarray) -> None:
        pixels = len(labels)
        z = torch.zeros(self._classes, -(-pixels // _VECTOR) * _VECTOR)
        planes = torch.empty(len(logits), *z.shape)
        for given, temperature, change, plane in zip(logits, self._temperatures, self._maps, planes, strict=True):
            z[:, :pixels].copy_(given)
            if change is not None:
                change(z)
            if self._of_logits:
                torch.div(z, temperature, out=plane)
            else:
                softmax(z, temperature, out=plane)
        found = ProbabilitySums(labels[None], self._classes, self._names)
        for number, total in self._sums.visit(planes):
            p = total.softmax(0) if self._of_logits else total
            found.add(self._names[number], slice(None), p[:, None, :pixels])
        for number, name in enumerate(self._names):
            self._counts.probabilities[number, 0, 0] += found.losses[name][1]
            self._counts.probabilities[number, 0, 1:] += found.classwise[name].ravel()
