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
        self._truth = truth
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
        truth = self._truth[rows].ravel()
        p = probabilities.reshape(self._classes, -1)
        if (truth == IGNORE).any():
            known = np.flatnonzero(truth != IGNORE)
            truth, p = truth[known], p.index_select(1, torch.from_numpy(known))
        if not len(truth):
            return
        label = truth.astype(np.int64)
        own = p.gather(0, torch.from_numpy(label)[None])[0]
        losses = self.losses[subject]
        losses[0] -= own.double().clamp(min=torch.finfo(torch.float32).tiny).log().sum().item()
        losses[1] += (p.square().sum() - 2.0 * own.sum()).item() + len(label)
        self.classwise[subject] += _gaps(p, label, own.numpy())


def _gaps(p: Tensor, label: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Labelled pixels minus probability of each class and bin, (C, 15) float64.

    Most probabilities are in the first bin, so only the others are looked at one by one; the first bin is the rest of
    the class's sum.

    Args:
        p: (C, P) float32.
        label: (P,) int64.
        own: (P,) float32, the probability of the label.
    """
    classes, pixels = p.shape
    values = p.numpy().ravel()
    above = np.flatnonzero(values >= _FIRST)
    value = np.take(values, above)
    # They stand in the order of the classes.
    places = np.repeat(np.arange(classes) * BINS, np.diff(np.searchsorted(above, np.arange(classes + 1) * pixels)))
    places += _bins(value)
    found = -np.bincount(places, value, classes * BINS).astype(np.float64)  # of no values it holds integers
    hit = own >= _FIRST
    found += np.bincount(label[hit] * BINS + _bins(own[hit]), minlength=classes * BINS)
    found = found.reshape(classes, BINS)
    found[:, 0] += np.bincount(label, minlength=classes) - p.sum(1).numpy() - found.sum(1)
    return found


_FIRST = np.float32(1.0 / BINS)


def _bins(value: np.ndarray) -> np.ndarray:
    """The bin of each probability from the second bin on."""
    return np.minimum((value * np.float32(BINS)).astype(np.int64), BINS - 1)
