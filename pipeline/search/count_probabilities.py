"""Sums all classes' probabilities of combinations of members: every combination needs the planes of all classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..fusion.kernel.softmax import softmax
from ..fusion.member_stores import CACHED_PIXELS
from ..fusion.member_sums import LogitMap
from ..scoring.figures.probabilities import ProbabilitySums
from .combinations import RunningSums, Weights
from .counts import Counts

_VECTOR = 64


class ProbabilityCounter:
    """Sums over pixels of one image, a strip after the other, those that `evaluate` sums.

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
