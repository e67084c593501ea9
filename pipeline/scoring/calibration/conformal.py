"""Thresholds of prediction sets with guaranteed coverage: split conformal prediction over images.

Pixels of an image are much alike, so they are no independent observations; images are exchangeable. With the scores
s = 1 - p(label) of n_k pixels of K images, the threshold q is the least score for which

    sum over images k, pixels i of [s_ki <= q] / ((K + 1) n_k)  >=  1 - a,

and 1, so that every class is in the set, if there is none (Lee, Barber and Willett, Distribution-free inference with
hierarchical data, 2023, arXiv 2306.06342). Then the set of a pixel that is drawn from a new image has its label with
a probability of at least 1 - a, over the drawing of the images and of the pixel. With one pixel from each image it is
the usual quantile of rank ceil((n + 1) (1 - a)) (Vovk et al., Algorithmic Learning in a Random World, 2005). With a
threshold for each class, from the pixels of this class, the same holds for pixels of the class in an image that has
it (Mondrian or class-conditional: Vovk, Conditional validity of inductive conformal predictors, ACML 2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ....errors import ManifestError
from ...config.manifest import Manifest, PredictionSets
from ...fusion.member_stores import voting_members
from ...fusion.prediction_sets import PROBABILITIES, ensemble_digest, fused_probabilities, in_set
from ...runtime.progress import Progress
from ...text import without_nan
from ..resampling.bootstrap import Resampling, draws
from ..resampling.set_means import set_intervals
from .labelled_pixels import CalibrationImage, gather_pixels
from .temperature_fit import LabelledPixels

_DIGITS = 6


@dataclass(frozen=True)
class SetScores:
    """Prediction sets of the pixels of one class, or of all, in images that nothing was fitted to.

    Attributes:
        name: of the class; None for all pixels.
        threshold: the least probability; None for all pixels if each class has its own.
        fitted: number of images that the threshold is of.
        images, pixels: how many there are to judge.
        coverage: mean over images of the share of pixels whose set holds their label; None without pixels.
        size: mean number of classes in a set, over images; None without pixels.
        empty: mean share of empty sets, over images; None without pixels.
        intervals: by name, the ends of the 95 % interval over images of the last three; None with fewer than two
            images to judge.
    """

    name: str | None
    threshold: float | None
    fitted: int
    images: int
    pixels: int
    coverage: float | None
    size: float | None
    empty: float | None
    intervals: dict[str, list[float | None]] | None = None


@dataclass(frozen=True)
class ConformalResult:
    """Thresholds, and how the sets do on other images; ``total`` is over all classes."""

    sets: PredictionSets
    classes: tuple[SetScores, ...]
    total: SetScores
    common: bool

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {
            "coverage": self.sets.coverage,
            "common": self.common,
            "total": vars(self.total),
            "classes": [vars(one) for one in self.classes],
        }


def conformal_quantile(scores: np.ndarray, images: np.ndarray, miss: float) -> float:
    """Compute the threshold q of scores, see the module; 1 if so few images cannot give any.

    Args:
        scores: (N,) floats from 0 to 1, higher ones are worse.
        images: (N,) integers, of which image each is.
        miss: a, the share of pixels whose set may lack their label.
    """
    _, place, counts = np.unique(images, return_inverse=True, return_counts=True)
    if not len(counts):
        return 1.0
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1.0 / counts[place[order]]) / (len(counts) + 1)
    # Sums of many small numbers fall short of what they stand for by rounding.
    enough = np.flatnonzero(reached >= (1 - miss) * (1 - 1e-12))
    return float(scores[order[enough[0]]]) if enough.size else 1.0


def fit_sets(
    manifest: Manifest,
    images: Sequence[CalibrationImage],
    coverage: float,
    *,
    common: bool = False,
    pixels: int = 400_000,
    seed: int = 0,
) -> ConformalResult:
    """Fit the thresholds to half of the images, and look at the sets in the others.

    Args:
        manifest: whose ensemble, as it is.
        images: of `plan_calibration`.
        coverage: 1 - a.
        common: one threshold for all classes.
        pixels: how many to look at, spread evenly over the images.
        seed: of the halves and of the pixels.

    Raises:
        ManifestError: the label's function gives no probabilities.
        StoreError: logits cannot be read.
        DatasetError: masks cannot be read, or label nothing in one of the halves.
    """
    if manifest.ensemble.label not in PROBABILITIES:
        raise ManifestError(f"ensemble.label {manifest.ensemble.label}: gives no probabilities; use mean-softmax")
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    half = len(images) // 2
    each = max(1, pixels // len(images))
    with Progress(len(images)) as progress:
        progress.job("calibrate sets", len(images))
        fitted = gather_pixels(images, order[:half], each, seed, progress)
        held_out = gather_pixels(images, order[half:], each, seed, progress)
    names = manifest.class_set.names
    chances, labels, which = _probabilities(manifest, fitted)
    scores = 1.0 - chances[np.arange(len(labels)), labels].astype(np.float64)
    found, of = [], []
    for number in range(len(names)):
        own = slice(None) if common else labels == number
        least = 1.0 - conformal_quantile(scores[own], which[own], 1 - coverage)
        found.append(max(0.0, math.floor(least * 10**_DIGITS) / 10**_DIGITS))
        of.append(len(np.unique(which[own])))
    sets = PredictionSets(coverage=coverage, thresholds=tuple(found), ensemble=ensemble_digest(manifest))

    chances, labels, which = _probabilities(manifest, held_out)
    marked = in_set(torch.from_numpy(chances.T), found).numpy().T
    right, sizes = marked[np.arange(len(labels)), labels], marked.sum(1)

    ends = _ends_of_means(labels, which, [right, sizes, sizes == 0], len(names), len(images) - half, seed)

    def scored(name: str | None, own: np.ndarray, threshold: float | None, images: int) -> SetScores:
        present, place, counts = np.unique(which[own], return_inverse=True, return_counts=True)
        means = [
            float((np.bincount(place, values[own]) / counts).mean()) if len(present) else None
            for values in (right, sizes, sizes == 0)
        ]
        own_ends = ends[len(names) if name is None else names.index(name)] if ends else None
        return SetScores(name, threshold, images, len(present), int(counts.sum()), *means, intervals=own_ends)

    classes = tuple(scored(names[k], labels == k, found[k], of[k]) for k in range(len(names)))
    total = scored(None, np.ones(len(labels), bool), found[0] if common else None, half)
    return ConformalResult(sets, classes, total, common)


def _ends_of_means(
    labels: np.ndarray, which: np.ndarray, values: Sequence[np.ndarray], classes: int, images: int, seed: int
) -> list[dict[str, Any]]:
    """The ends of the intervals of each class and of all pixels; none with fewer than two images.

    Args:
        labels, which: (N,) label of each pixel, and number of its image.
        values: (N,) each, whose means over images are taken.
        classes: C.
        images: how many there are to resample.
        seed: of the resamplings.
    """
    if images < 2:
        return []
    place, size = which * classes + labels, images * classes
    sums = np.stack([np.bincount(place, one, size).reshape(images, classes) for one in (None, *values)])
    sums = np.append(sums, sums.sum(2, keepdims=True), 2)
    held = sums[0] > 0
    shares = np.append(held[None], sums[1:] / np.maximum(1, sums[0]), 0)
    times = np.stack(list(draws(images, Resampling(seed=seed)))).astype(np.float64)
    return [without_nan(one) for one in set_intervals(np.einsum("nb,fnc->bfc", times, shares))]


def _probabilities(manifest: Manifest, pixels: LabelledPixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fused probabilities (N, C) float32, labels (N,) and number of the image (N,) of pixels."""
    parts, start = [], 0
    for dataset, count in pixels.parts:
        members = [member.on(dataset) for member in voting_members(manifest)]
        logits = [own[start : start + count].T for own in pixels.logits]
        parts.append(fused_probabilities(logits, members, manifest.ensemble.label).T.numpy())
        start += count
    counts = [count for _, count in pixels.parts]
    return np.concatenate(parts), pixels.labels.numpy(), np.repeat(np.arange(len(counts)), counts)


def sets_table(result: ConformalResult) -> list[str]:
    """For people."""
    wide = max(len(str(one.name)) for one in result.classes)
    titles = f"{'coverage':>8} {'size':>6} {'empty':>6} {'images':>6}"
    lines = [f"{'':{wide}}  {'least probability':>17} {'of images':>9}  {titles}  95 % interval of the coverage"]
    for one in (*result.classes, result.total):
        threshold = "" if one.threshold is None else f"{one.threshold:.6f}"
        figures = [(one.coverage, 8, 4), (one.size, 6, 2), (one.empty, 6, 3)]
        said = " ".join(f"{'-' if value is None else f'{value:.{digits}f}':>{w}}" for value, w, digits in figures)
        low, high = (one.intervals or {}).get("coverage", (None, None))
        ends = "" if low is None or high is None else f"  {low:.4f} to {high:.4f}"
        lines.append(f"{one.name or 'all':{wide}}  {threshold:>17} {one.fitted:9}  {said} {one.images:6}{ends}")
    asked = f"asked for: coverage {result.sets.coverage:g}"
    lines.append(f"{asked}; coverage, size and empty sets are means over images; --json has all intervals")
    if few := [str(one.name) for one in result.classes if one.threshold == 0]:
        lines.append(f"always in the set, because too few images hold them: {', '.join(few)}")
    return lines
