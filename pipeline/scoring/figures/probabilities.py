"""Figures of the probabilities of all classes: negative log likelihood, Brier score, classwise calibration error."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ....datasets.taxonomy import IGNORE
from ..metrics import BINS


class ProbabilitySums:
    """Sums over the labelled pixels of one image, by subject, from strips of its rows.

    ================  ==========================================================================
    losses            (2,) float64: sum of -log p(label) in nats, and of sum over classes of
                      (p - 1)^2 for the label, p^2 for the others (Brier, 1950)
    classwise         (C, 15) float64: of each class and bin of equal width of its probability,
                      labelled pixels minus the sum of the probability
    ================  ==========================================================================

    A probability below the smallest normal number of single precision (1.2e-38) counts as that.

    Args:
        truth: (H, W) uint8, 255 where nothing is known.
        classes: C.
        subjects: names.
    """

    def __init__(self, truth: np.ndarray, classes: int, subjects: Iterable[str]) -> None:
        self._truth = torch.from_numpy(truth)
        self._classes = classes
        self.losses = {name: np.zeros(2) for name in subjects}
        self.classwise = {name: np.zeros((classes, BINS)) for name in self.losses}

    def add(self, subject: str, rows: slice, probabilities: Tensor) -> None:
        """Add a strip.

        Args:
            subject: its name.
            rows: of the image.
            probabilities: (C, rows, W) float32.
        """
        truth = self._truth[rows].reshape(-1)
        p = probabilities.reshape(self._classes, -1)
        known = truth != IGNORE
        if not known.all():
            truth, p = truth[known], p[:, known]
        if not len(truth):
            return
        label = truth.long()
        own = p.gather(0, label[None])[0].double()
        losses = self.losses[subject]
        losses[0] -= own.clamp(min=torch.finfo(torch.float32).tiny).log_().sum().item()
        losses[1] += (p.square().sum(dtype=torch.float64) - 2.0 * own.sum() + len(own)).item()
        self._add_gaps(self.classwise[subject], p, label, own)

    def _add_gaps(self, gaps: np.ndarray, p: Tensor, label: Tensor, own: Tensor) -> None:
        """Most probabilities are in the first bin: what is there is the rest of a class's sum."""
        above = (p >= 1.0 / BINS).reshape(-1).nonzero()[:, 0]
        value = p.reshape(-1)[above].double()
        bins = (value * BINS).long().clamp_(max=BINS - 1)
        places = above // p.shape[1] * BINS + bins
        size = self._classes * BINS
        found = -torch.bincount(places, value, size).double()  # of no values it would hold integers
        hit = own >= 1.0 / BINS
        hits = label[hit] * BINS + (own[hit] * BINS).long().clamp_(max=BINS - 1)
        found += torch.bincount(hits, minlength=size)
        found = found.view(self._classes, BINS)
        total = torch.bincount(label, minlength=self._classes) - p.sum(1, dtype=torch.float64)
        found[:, 0] += total - found.sum(1)
        gaps += found.numpy()
