"""The stage ``calibrate``: a temperature for each member, and weights, from stored logits and labels.

The negative log likelihood of the fused answer is what is minimised, over all temperatures at once: members that are
each calibrated alone make an ensemble that is too unsure (Rahaman and Thiery, Uncertainty Quantification and Deep
Ensembles, NeurIPS 2021). A temperature leaves its member's class map as it is (Guo et al., On Calibration of Modern
Neural Networks, 2017, section 4). Half of the images are fitted to, the other half judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.dataset_specs import KNOWN_DATASETS
from ...datasets.labels.label_reader import LabelReader
from ...datasets.layout.image_mask_pairs import ImageMaskPair, without_masks
from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, ManifestError, StoreError, first_few
from ..config.manifest import Manifest
from ..config.member import Member
from ..fusion.fuse import quantise
from ..fusion.member_stores import fuse_members, require_store_classes, voting_members
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..runtime.ordered_threads import map_in_order
from ..runtime.progress import Progress, say
from ..storage.output_folder import store_path
from ..store.logit_store import LogitStore
from .averages import DATASET, Average, average_of
from .ground_truth import GroundTruth, load_ground_truth
from .metrics import confusion, ece, level_counts, mean_iou
from .temperature_fit import PIXELS_AT_ONCE, LabelledPixels, fit, log_likelihood

_DIGITS = 6


@dataclass(frozen=True)
class CalibrationImage:
    """One image whose logits are stored and whose labels are known."""

    truth: GroundTruth
    pair: ImageMaskPair
    stores: tuple[LogitStore, ...]


@dataclass(frozen=True)
class HeldOutScores:
    """How an ensemble does on pixels that nothing was fitted to; ``nll`` in nats, ``miou`` over ``miou_classes``."""

    nll: float
    ece: float
    miou: float
    miou_classes: int


@dataclass(frozen=True)
class Calibration:
    """Fitted temperatures and weights, and the scores before and after.

    Attributes:
        members: with the fitted temperatures and weights.
        before: the ensemble as the manifest has it.
        after: with the fitted numbers.
        alone: of each member by name, before and after.
        images, pixels: how many were fitted to, and how many judged.
        average: which classes the mean IoU runs over.
    """

    members: tuple[Member, ...]
    before: HeldOutScores
    after: HeldOutScores
    alone: dict[str, tuple[HeldOutScores, HeldOutScores]]
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


def plan_calibration(
    manifest: Manifest, *, limit: int | None = None, average: str = DATASET
) -> list[CalibrationImage]:
    """All labelled images of the manifest that every member of a weight above 0 has logits of.

    Args:
        manifest: whose members, datasets and stores.
        limit: images per dataset, from the first; None for all.
        average: which classes a mean IoU runs over, one of `averages.AVERAGES`.

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
    classes = manifest.class_set
    entries = [entry for entry in manifest.datasets if entry.type in KNOWN_DATASETS or entry.masks is not None]
    if not entries:
        raise ManifestError(
            "no dataset of the manifest has labels to calibrate with; types that have: "
            f"{first_few(KNOWN_DATASETS, 9)}"
        )
    found: list[CalibrationImage] = []
    truths = [load_ground_truth(entry, classes, limit)[None] for entry in entries]
    facts = [truth.reader.source for truth in truths if isinstance(truth.reader, LabelReader)]
    mean = average_of(average, facts, classes.names)
    for entry, one in zip(entries, truths, strict=True):
        truth = replace(one, average=mean)
        if truth.left_out:
            say(without_masks(entry.name, truth.left_out))
        stores = tuple(
            LogitStore.open(store_path(manifest.output, entry.name, member.name))
            for member in voting_members(manifest)
        )
        for store in stores:
            require_store_classes(store, classes)
            store.require_complete([pair.image for pair in truth.pairs])
        found += [CalibrationImage(truth, pair, stores) for pair in truth.pairs]
    if len(found) < 2:
        raise StoreError(f"{len(found)} labelled image: one is needed to fit to, and one to judge by")
    return found


def calibrate(
    manifest: Manifest,
    images: Sequence[CalibrationImage],
    *,
    pixels: int = 400_000,
    seed: int = 0,
    weights: bool = False,
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
        fitted = _gather_pixels(images, order[:half], each, seed, progress)
        held_out = _gather_pixels(images, order[half:], each, seed, progress)
    members = voting_members(manifest)
    temperatures, shares = fit(
        fitted,
        [member.weight for member in members],
        [member.temperature for member in members],
        mean_of_logits=manifest.ensemble.label == "mean-logit",
        weights=weights,
    )
    calibrated = []
    for member, temperature, share in zip(members, temperatures, shares, strict=True):
        found = {"temperature": round(temperature, _DIGITS)} | ({"weight": round(share, _DIGITS)} if weights else {})
        calibrated.append(member.model_copy(update=found))
    score = partial(_score_held_out, manifest, held_out, average)
    return Calibration(
        members=tuple(calibrated),
        before=score(members),
        after=score(calibrated),
        alone={
            old.name: (score([old], i), score([new], i))
            for i, (old, new) in enumerate(zip(members, calibrated, strict=True))
        },
        images=(half, len(images) - half),
        pixels=(len(fitted.labels), len(held_out.labels)),
        average=average,
    )


def _gather_pixels(
    images: Sequence[CalibrationImage], chosen: Sequence[int], each: int, seed: int, progress: Progress
) -> LabelledPixels:
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for _, (z, y) in map_in_order(lambda number: _sample_image(images[number], each, [seed, number]), chosen):
        logits.append(z)
        labels.append(y)
        progress.advance()
    found = LabelledPixels(torch.cat(logits, 1), torch.cat(labels), len(chosen))
    if not len(found.labels):
        pairs = first_few([images[number].pair.image for number in chosen], 2)
        raise DatasetError(
            f"{pairs}: no pixel is labelled in this half of the images; take more images, or another --seed"
        )
    return found


def _sample_image(image: CalibrationImage, each: int, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits (M, n, C) float16 and labels (n,) int64 of at most ``each`` labelled pixels."""
    rows = [store.index[image.pair.image] for store in image.stores]
    entry = image.stores[0].images[rows[0]]
    height, width = entry.height or 0, entry.width or 0
    truth = image.truth.reader.read(image.pair, (height, width)).ravel()
    known = np.flatnonzero(truth != IGNORE)
    if known.size > each:
        known = np.sort(np.random.default_rng(seed).choice(known, each, replace=False))
    classes = image.stores[0].classes
    found = np.empty((len(rows), known.size, classes), np.float16)
    for member, (store, row) in enumerate(zip(image.stores, rows, strict=True)):
        for start, stop in store.strips(row):
            first, last = np.searchsorted(known, [start * width, stop * width])
            if first < last:
                strip = store.read(row, start, stop).reshape(classes, -1)
                found[member, first:last] = strip[:, known[first:last] - start * width].T
    return torch.from_numpy(found), torch.from_numpy(truth[known].astype(np.int64))


def _score_held_out(
    manifest: Manifest, pixels: LabelledPixels, average: Average, members: Sequence[Member], only: int | None = None
) -> HeldOutScores:
    """Scores of ``members``: of the pixels' logits all, or ``only`` those of one of them."""
    functions = manifest.ensemble
    logits = pixels.logits if only is None else pixels.logits[[only]]
    heat = torch.tensor([member.temperature for member in members], dtype=torch.float64)
    shares = torch.tensor([member.weight for member in members], dtype=torch.float64).log().log_softmax(0)
    loss = 0.0
    classes = len(average.names)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    levels = np.zeros((2, CONFIDENCE_LEVELS), np.int64)
    count = len(pixels.labels)
    for z, y in zip(logits.split(PIXELS_AT_ONCE, 1), pixels.labels.split(PIXELS_AT_ONCE), strict=True):
        fused = fuse_members([each.T for each in z], members, functions)
        loss -= log_likelihood(z, heat, shares, y, functions.label == "mean-logit").sum().item()
        matrix += confusion(fused.label, y, classes)
        levels += level_counts((fused.label == y).numpy(), quantise(fused.confidence).numpy())
    return HeldOutScores(loss / count, ece(levels), mean_iou(matrix, average), int(average.counted(matrix).sum()))


def calibrated_manifest(manifest: Manifest, calibration: Calibration) -> Manifest:
    """The manifest with the fitted numbers; members of weight 0 stay as they are."""
    fitted = {member.name: member for member in calibration.members}
    return manifest.model_copy(update={"models": tuple(fitted.get(m.name, m) for m in manifest.models)})


def calibration_table(calibration: Calibration, target: Path) -> list[str]:
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
