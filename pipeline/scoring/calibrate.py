"""The stage ``calibrate``: a temperature for each member, and weights, from stored logits and labels.

The negative log likelihood of the fused answer is what is minimised, over all temperatures at once: members that are
each calibrated alone make an ensemble that is too unsure (Rahaman and Thiery, Uncertainty Quantification and Deep
Ensembles, NeurIPS 2021). A temperature leaves its member's class map as it is (Guo et al., On Calibration of Modern
Neural Networks, 2017, section 4). Half of the images are fitted to, the other half judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.dataset_specs import KNOWN, source
from ...datasets.layout.image_mask_pairs import Pair, without_masks
from ...datasets.taxonomy import CLASS_NAMES, IGNORE
from ...errors import DatasetError, ManifestError, StoreError, first_few
from ..config.manifest import Manifest, Member
from ..fusion.fuse import fuse, quantise
from ..fusion.member_stores import weighed
from ..inference.inputs import store_path
from ..runtime.ordered_threads import in_order
from ..runtime.progress import Progress, say
from ..store.logit_store import LogitStore
from .averages import DATASET, Average, average_of
from .ground_truth import Truth, truths_of
from .metrics import LEVELS, confusion, ece, level_counts, mean_iou

COLDEST, HOTTEST = 0.05, 20.0
_TOGETHER = 2**16
_STEPS = 50
_ROUNDS = 60
_DIGITS = 6
# What is believed before anything is seen: numbers are within a factor of two or so of those of a network that learnt
# by likelihood. An image is worth a few observations, however many pixels it has: they tell the same story.
_SPREAD = math.log(2)
_AN_IMAGE = 3


@dataclass(frozen=True)
class Labelled:
    """One image whose logits are stored and whose labels are known."""

    truth: Truth
    pair: Pair
    stores: tuple[LogitStore, ...]


@dataclass(frozen=True)
class Pixels:
    """Some labelled pixels.

    Attributes:
        logits: (M, N, C) float16, of each member.
        labels: (N,) int64 train ids.
        images: how many they are of; 0 if each stands for itself.
    """

    logits: Tensor
    labels: Tensor
    images: int = 0

    @property
    def observations(self) -> float:
        """How many independent ones they are worth: neighbours in a picture tell the same story."""
        return self.images * _AN_IMAGE if self.images else math.inf


@dataclass(frozen=True)
class Judged:
    """How an ensemble does on pixels that nothing was fitted to; ``nll`` in nats, ``miou`` over ``miou_classes``."""

    nll: float
    ece: float
    miou: float
    miou_classes: int


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and what it is worth.

    Attributes:
        members: with the fitted temperatures and weights.
        before: the ensemble as the manifest has it.
        after: with the fitted numbers.
        alone: of each member by name, before and after.
        images: how many were fitted to, and how many judged.
        pixels: likewise.
        average: which classes the mean IoU runs over.
    """

    members: tuple[Member, ...]
    before: Judged
    after: Judged
    alone: dict[str, tuple[Judged, Judged]]
    images: tuple[int, int]
    pixels: tuple[int, int]
    average: Average

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {
            "members": [{"name": m.name, "temperature": m.temperature, "weight": m.weight} for m in self.members],
            "ensemble": {"before": vars(self.before), "after": vars(self.after)},
            "alone": {name: {"before": vars(b), "after": vars(a)} for name, (b, a) in self.alone.items()},
            "images": {"fitted": self.images[0], "judged": self.images[1]},
            "pixels": {"fitted": self.pixels[0], "judged": self.pixels[1]},
            "average": self.average.as_json(),
        }


def plan_calibration(manifest: Manifest, *, limit: int | None = None, average: str = DATASET) -> list[Labelled]:
    """All labelled images of the manifest that every member of a weight above 0 has logits of.

    Raises:
        ManifestError: no dataset has labels, or the label function gives no probabilities.
        DatasetError: masks are missing.
        StoreError: a store is missing or lacks images, or there are fewer than two images.
    """
    if manifest.ensemble.label not in ("mean-softmax", "mean-logit"):
        raise ManifestError(
            f"ensemble.label {manifest.ensemble.label}: gives no probabilities to calibrate; "
            "use mean-softmax or mean-logit"
        )
    entries = [entry for entry in manifest.datasets if entry.type in KNOWN]
    if not entries:
        raise ManifestError(
            f"no dataset of the manifest has labels to calibrate with; types that have: {first_few(KNOWN, 9)}"
        )
    mean = average_of(average, [source(entry.type) for entry in entries])
    found: list[Labelled] = []
    for entry in entries:
        truth = replace(truths_of(entry, limit)[None], average=mean)
        if truth.left_out:
            say(without_masks(entry.name, truth.left_out))
        stores = tuple(
            LogitStore.open(store_path(manifest.output, entry.name, member.name)) for member in weighed(manifest)
        )
        for store in stores:
            store.require_complete([pair.image for pair in truth.pairs])
        found += [Labelled(truth, pair, stores) for pair in truth.pairs]
    if len(found) < 2:
        raise StoreError(f"{len(found)} labelled image: one is needed to fit to, and one to judge by")
    return found


def calibrate(
    manifest: Manifest, images: Sequence[Labelled], *, pixels: int = 400_000, seed: int = 0, weights: bool = False
) -> Calibration:
    """Fit temperatures, and weights if wanted.

    Args:
        manifest: its members and functions.
        images: of `plan_calibration`.
        pixels: how many to look at, spread evenly over the images.
        seed: of the halves and of the pixels.
        weights: whether weights are fitted; else they stay as they are.

    Raises:
        StoreError: logits cannot be read.
        DatasetError: masks cannot be read, or label nothing in one of the halves.
    """
    average = images[0].truth.average
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    half = len(images) // 2
    each = max(1, pixels // len(images))
    with Progress(len(images)) as progress:
        progress.job("calibrate", len(images))
        fitted = _gathered(images, order[:half], each, seed, progress)
        judged = _gathered(images, order[half:], each, seed, progress)
    members = weighed(manifest)
    temperatures, shares = fit(
        fitted,
        [member.weight for member in members],
        [member.temperature for member in members],
        mean_of_logits=manifest.ensemble.label == "mean-logit",
        weights=weights,
    )
    warm = []
    for member, temperature, share in zip(members, temperatures, shares, strict=True):
        found = {"temperature": round(temperature, _DIGITS)} | ({"weight": round(share, _DIGITS)} if weights else {})
        warm.append(member.model_copy(update=found))
    alone = {
        old.name: (_judge(manifest, [old], judged, [i], average), _judge(manifest, [new], judged, [i], average))
        for i, (old, new) in enumerate(zip(members, warm, strict=True))
    }
    every = list(range(len(members)))
    return Calibration(
        tuple(warm),
        _judge(manifest, members, judged, every, average),
        _judge(manifest, warm, judged, every, average),
        alone,
        (half, len(images) - half),
        (len(fitted.labels), len(judged.labels)),
        average,
    )


def _gathered(images: Sequence[Labelled], chosen: Sequence[int], each: int, seed: int, progress: Progress) -> Pixels:
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for _, (z, y) in in_order(lambda number: _sampled(images[number], each, [seed, number]), chosen):
        logits.append(z)
        labels.append(y)
        progress.advance()
    found = Pixels(torch.cat(logits, 1), torch.cat(labels), len(chosen))
    if not len(found.labels):
        pairs = first_few([images[number].pair.image for number in chosen], 2)
        raise DatasetError(
            f"{pairs}: no pixel is labelled in this half of the images; take more images, or another --seed"
        )
    return found


def _sampled(image: Labelled, each: int, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits (M, n, C) float16 and labels (n,) int64 of at most ``each`` labelled pixels."""
    rows = [store.index[image.pair.image] for store in image.stores]
    entry = image.stores[0].images[rows[0]]
    height, width = entry.height or 0, entry.width or 0
    truth = image.truth.read(image.pair, (height, width)).ravel()
    known = np.flatnonzero(truth != IGNORE)
    if known.size > each:
        known = np.sort(np.random.default_rng(seed).choice(known, each, replace=False))
    found = np.empty((len(rows), known.size, len(CLASS_NAMES)), np.float16)
    for member, (store, row) in enumerate(zip(image.stores, rows, strict=True)):
        for start, stop in store.strips(row):
            first, last = np.searchsorted(known, [start * width, stop * width])
            if first < last:
                strip = store.read(row, start, stop).reshape(len(CLASS_NAMES), -1)
                found[member, first:last] = strip[:, known[first:last] - start * width].T
    return torch.from_numpy(found), torch.from_numpy(truth[known].astype(np.int64))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of least negative log likelihood, between 0.05 and 20.

    Args:
        logits: (N, C) float16 or float32.
        labels: (N,) int64.

    With b = 1 / T the likelihood's negative logarithm is convex in b: Newton's method, within what is known to hold
    the minimum.
    """
    b, low, high = 1.0, 1 / HOTTEST, 1 / COLDEST
    for _ in range(_STEPS):
        slope = bend = 0.0
        for z, y in zip(logits.split(_TOGETHER), labels.split(_TOGETHER), strict=True):
            z = z.double()
            p = (b * z).softmax(1)
            mean = (p * z).sum(1)
            slope += (mean - z.gather(1, y[:, None])[:, 0]).sum().item()
            bend += ((p * z.square()).sum(1) - mean.square()).sum().item()
        low, high = (low, b) if slope > 0 else (b, high)
        new = b - slope / bend if bend > 0 else high
        if not low < new < high:
            new = math.sqrt(low * high)
        if abs(new - b) < 1e-9 * b:
            break
        b = new
    return 1.0 / b


def fit(
    pixels: Pixels,
    weights_before: Sequence[float],
    temperatures_before: Sequence[float],
    *,
    mean_of_logits: bool,
    weights: bool,
) -> tuple[list[float], list[float]]:
    """The temperatures, and weights, of the ensemble of least negative log likelihood.

    Found by L-BFGS from where the manifest stands and from each member's own best; the better end counts. A few
    images do not say much about seven numbers: to their likelihood comes that of temperatures of about 1 and of
    weights like those before (log-normal, a factor of two), which many images outvote.

    Args:
        pixels: to fit to.
        weights_before: M, above 0.
        temperatures_before: M.
        mean_of_logits: whether logits are averaged, and not probabilities.
        weights: whether weights are fitted; else they are given back as they are.

    Returns:
        M temperatures between 0.05 and 20; M weights, fitted ones with a mean of 1 and at least 1e-6.
    """
    alone = [fit_temperature(logits, pixels.labels) for logits in pixels.logits]
    ends = [
        _descended(pixels, start, weights_before, mean_of_logits, weights) for start in (temperatures_before, alone)
    ]
    _, heat, level = min(ends, key=lambda end: end[0])
    if not weights:
        return heat, list(weights_before)
    total = sum(level)
    return heat, [max(1e-6, len(level) * share / total) for share in level]


def _descended(
    pixels: Pixels, start: Sequence[float], shares: Sequence[float], mean_of_logits: bool, weights: bool
) -> tuple[float, list[float], list[float]]:
    """The loss that is reached from ``start``, with the temperatures and weights there."""
    heat = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    level = torch.tensor(shares, dtype=torch.float64).log().requires_grad_(weights)
    given = level.detach().clone()
    free = [heat, level] if weights else [heat]
    optimiser = torch.optim.LBFGS(free, max_iter=_ROUNDS, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def temperature() -> Tensor:
        return heat.clamp(math.log(COLDEST), math.log(HOTTEST)).exp()

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        parts = zip(pixels.logits.split(_TOGETHER, 1), pixels.labels.split(_TOGETHER), strict=True)
        for z, y in parts:
            part = -log_chances(z, temperature(), level.log_softmax(0), y, mean_of_logits).sum() / len(pixels.labels)
            part.backward()
            total += part.detach()
        moved = level - given
        believed = heat.square().sum() + ((moved - moved.mean()).square().sum() if weights else 0.0)
        prior = believed / (2 * _SPREAD**2 * pixels.observations)
        prior.backward()
        return total + prior.detach()

    optimiser.step(loss)
    reached = loss().item()
    return reached, temperature().tolist(), level.detach().softmax(0).tolist()


def log_chances(z: Tensor, temperatures: Tensor, log_shares: Tensor, labels: Tensor, mean_of_logits: bool) -> Tensor:
    """The logarithm of what the ensemble gives to each label.

    Args:
        z: (M, N, C) logits.
        temperatures: (M,) float64.
        log_shares: (M,) float64, logarithms of numbers that sum to one.
        labels: (N,) int64.
        mean_of_logits: whether logits are averaged, and not probabilities.

    Returns:
        (N,) float64.
    """
    scaled = z.double() / temperatures[:, None, None]
    if mean_of_logits:
        fused = (log_shares.exp()[:, None, None] * scaled).sum(0).log_softmax(1)
        return fused.gather(1, labels[:, None])[:, 0]
    own = scaled.gather(2, labels[None, :, None].expand(len(z), -1, 1))[..., 0] - scaled.logsumexp(2)
    return (log_shares[:, None] + own).logsumexp(0)


def _judge(
    manifest: Manifest, members: Sequence[Member], pixels: Pixels, which: Sequence[int], average: Average
) -> Judged:
    functions = manifest.ensemble
    loss = 0.0
    matrix = torch.zeros(len(CLASS_NAMES), len(CLASS_NAMES), dtype=torch.int64)
    levels = np.zeros((2, LEVELS), np.int64)
    count = len(pixels.labels)
    for start in range(0, count, _TOGETHER):
        y = pixels.labels[start : start + _TOGETHER]
        parts = [pixels.logits[i, start : start + _TOGETHER].T for i in which]
        fused = fuse(
            parts,
            [member.weight for member in members],
            [member.temperature for member in members],
            label=functions.label,
            confidence=functions.confidence,
        )
        loss -= (
            log_chances(
                pixels.logits[list(which), start : start + _TOGETHER],
                torch.tensor([member.temperature for member in members], dtype=torch.float64),
                torch.tensor([member.weight for member in members], dtype=torch.float64).log().log_softmax(0),
                y,
                functions.label == "mean-logit",
            )
            .sum()
            .item()
        )
        matrix += confusion(fused.label, y)
        levels += level_counts((fused.label == y).numpy(), quantise(fused.confidence).numpy())
    return Judged(loss / count, ece(levels), mean_iou(matrix, average), int(average.counted(matrix).sum()))


def calibrated_manifest(manifest: Manifest, calibration: Calibration) -> Manifest:
    """The manifest with the fitted numbers; members of weight 0 stay as they are."""
    fitted = {member.name: member for member in calibration.members}
    return manifest.model_copy(update={"models": tuple(fitted.get(m.name, m) for m in manifest.models)})


def table(calibration: Calibration, target: Path) -> list[str]:
    """For people."""
    rows = [*calibration.alone.items(), ("ensemble", (calibration.before, calibration.after))]
    wide = max(len(name) for name, _ in rows)
    fitted = {member.name: member for member in calibration.members}
    counted = calibration.before.miou_classes, calibration.after.miou_classes
    lines = [
        f"fitted to {calibration.pixels[0]} pixels of {calibration.images[0]} images, "
        f"judged by {calibration.pixels[1]} of {calibration.images[1]} others",
        f"{'':{wide}}  {'temperature':>11} {'weight':>7}  {'NLL':>17}  {'ECE':>17}  {'mIoU':>17}",
    ]
    for name, (before, after) in rows:
        numbers = f"{fitted[name].temperature:11.4f} {fitted[name].weight:7.3f}" if name in fitted else " " * 19
        pairs = ((before.nll, after.nll), (before.ece, after.ece), (before.miou, after.miou))
        lines.append(f"{name:{wide}}  {numbers}  " + "  ".join(f"{b:7.4f} > {a:7.4f}" for b, a in pairs))
    lines.append(f"mIoU {calibration.average.words()}: {counted[0]} before, {counted[1]} after")
    return [*lines, f"written: {target}"]
