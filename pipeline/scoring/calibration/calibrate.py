"""The stage ``calibrate``: temperatures, further numbers of each member, and weights, from stored logits and labels.

The negative log likelihood of the fused answer is what is minimised, over all temperatures at once: members that are
each calibrated alone make an ensemble that is too unsure (Rahaman and Thiery, Uncertainty Quantification and Deep
Ensembles, NeurIPS 2021). A temperature leaves its member's class map as it is (Guo et al., On Calibration of Modern
Neural Networks, 2017, section 4). Methods of more numbers (`map_fit`) are fitted to each member alone first, and the
temperatures then to all members. Half of the images are fitted to, the other half judges: if the ensemble's labels
are no more likely there than with temperatures alone, temperatures alone are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config.calibration_field import Calibration
from ...config.manifest import Manifest
from ...config.member import Member
from ...fusion.calibrated_logits import logit_map
from ...fusion.fuse import quantise
from ...fusion.member_stores import fuse_members, voting_members
from ...fusion.prediction_files import CONFIDENCE_LEVELS
from ...runtime.progress import Progress
from ..averages import Average
from ..metrics import confusion, ece, level_counts, mean_iou
from .labelled_pixels import CalibrationImage, gather_pixels
from .map_fit import fit_map
from .temperature_fit import PIXELS_AT_ONCE, LabelledPixels, fit, log_likelihood

TEMPERATURE = "temperature"
METHODS = (TEMPERATURE, "vector", "class-conditional", "dirichlet")
_DIGITS = 6


@dataclass(frozen=True)
class HeldOutScores:
    """How an ensemble does on pixels that nothing was fitted to; ``nll`` in nats, ``miou`` over ``miou_classes``."""

    nll: float
    ece: float
    miou: float
    miou_classes: int


@dataclass(frozen=True)
class CalibrationResult:
    """Fitted numbers, and the scores before and after.

    Attributes:
        dataset: they are for; None for all.
        method: one of `METHODS`, as asked for.
        members: with the fitted temperatures, calibrations and weights, as they are on the dataset.
        before: the ensemble as the manifest has it.
        after: with the fitted numbers.
        alone: of each member by name, before and after.
        images, pixels: how many were fitted to, and how many judged.
        average: which classes the mean IoU runs over.
        plain: the ensemble with temperatures alone; None if that is the method.
        rejected: the ensemble with what the method fitted, if it was not kept.
    """

    dataset: str | None
    method: str
    members: tuple[Member, ...]
    before: HeldOutScores
    after: HeldOutScores
    alone: dict[str, tuple[HeldOutScores, HeldOutScores]]
    images: tuple[int, int]
    pixels: tuple[int, int]
    average: Average
    plain: HeldOutScores | None = None
    rejected: HeldOutScores | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {
            "method": self.method,
            "kept": self.rejected is None,
            "members": [{"name": m.name, "temperature": m.temperature, "weight": m.weight} for m in self.members],
            "ensemble": {
                name: vars(scores)
                for name, scores in (
                    ("before", self.before),
                    ("after", self.after),
                    ("temperatures", self.plain),
                    ("rejected", self.rejected),
                )
                if scores is not None
            },
            "alone": {name: {"before": vars(b), "after": vars(a)} for name, (b, a) in self.alone.items()},
            "images": {"fitted": self.images[0], "judged": self.images[1]},
            "pixels": {"fitted": self.pixels[0], "judged": self.pixels[1]},
            "average": self.average.as_json(),
        }


def calibrate(
    manifest: Manifest,
    images: Sequence[CalibrationImage],
    *,
    method: str = TEMPERATURE,
    dataset: str | None = None,
    pixels: int = 400_000,
    seed: int = 0,
    weights: bool = False,
) -> CalibrationResult:
    """Fit temperatures, what else the method has, and weights if wanted.

    Args:
        manifest: its members and functions.
        images: of `plan_calibration`.
        method: one of `METHODS`.
        dataset: that the images are of and the numbers are for; None if they are for all.
        pixels: how many to look at, spread evenly over the images.
        seed: of the halves and of the pixels.
        weights: whether weights are fitted; else they stay as they are.

    Raises:
        StoreError: logits cannot be read.
        DatasetError: masks cannot be read, or label nothing in one of the halves.
    """
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    half = len(images) // 2
    each = max(1, pixels // len(images))
    with Progress(len(images)) as progress:
        progress.job("calibrate" if dataset is None else f"calibrate {dataset}", len(images))
        fitted = gather_pixels(images, order[:half], each, seed, progress)
        held_out = gather_pixels(images, order[half:], each, seed, progress)
    average = images[0].truth.average
    members = voting_members(manifest)
    judge = _Judge(manifest, held_out, average)

    bare = [member.model_copy(update={"calibration": ()}) for member in members]
    plain = _fit(manifest, bare, fitted, weights)
    kept, plain_scores, rejected = plain, None, None
    if method != TEMPERATURE:
        maps = [fit_map(method, z, fitted.labels, fitted.observations) for z in fitted.logits]
        mapped = [m.model_copy(update={"calibration": (one,)}) for m, one in zip(members, maps, strict=True)]
        fuller = _fit(manifest, mapped, fitted, weights)
        plain_scores, scores = judge.score(plain), judge.score(fuller)
        if scores.nll < plain_scores.nll:
            kept = fuller
        else:
            rejected = scores
    return CalibrationResult(
        dataset=dataset,
        method=method,
        members=kept,
        before=judge.score(members),
        after=judge.score(kept),
        alone={
            old.name: (judge.score([old], i), judge.score([new], i))
            for i, (old, new) in enumerate(zip(members, kept, strict=True))
        },
        images=(half, len(images) - half),
        pixels=(len(fitted.labels), len(held_out.labels)),
        average=average,
        plain=plain_scores,
        rejected=rejected,
    )


def _fit(manifest: Manifest, members: Sequence[Member], pixels: LabelledPixels, weights: bool) -> tuple[Member, ...]:
    """Fit temperatures, and weights, of members that all have a new calibration, or all none."""
    is_mapped = bool(members[0].calibration)
    if is_mapped:
        mapped = [_mapped(z, member) for z, member in zip(pixels.logits, members, strict=True)]
        pixels = replace(pixels, logits=torch.stack(mapped))
    temperatures, shares = fit(
        pixels,
        [member.weight for member in members],
        [1.0 if is_mapped else member.temperature for member in members],
        mean_of_logits=manifest.ensemble.label == "mean-logit",
        weights=weights,
    )
    calibrated = []
    for member, temperature, share in zip(members, temperatures, shares, strict=True):
        found = {"temperature": round(temperature, _DIGITS)}
        found |= {"weight": round(share, _DIGITS)} if weights else {}
        calibrated.append(member.model_copy(update=found))
    return tuple(calibrated)


def _mapped(logits: Tensor, member: Member) -> Tensor:
    """Logits (N, C) float32 after the member's calibration, before its temperature."""
    z = logits.float().T.contiguous()
    if (change := logit_map(member)) is not None:
        change(z)
    return z.T.contiguous()


@dataclass(frozen=True)
class _Judge:
    """Scores ensembles on pixels that nothing is fitted to."""

    manifest: Manifest
    pixels: LabelledPixels
    average: Average

    def score(self, members: Sequence[Member], only: int | None = None) -> HeldOutScores:
        """Scores of ``members``: of the pixels' logits all, or ``only`` those of one of them."""
        functions, pixels = self.manifest.ensemble, self.pixels
        logits = pixels.logits if only is None else pixels.logits[[only]]
        shares = torch.tensor([member.weight for member in members], dtype=torch.float64).log().log_softmax(0)
        loss = 0.0
        classes = len(self.average.names)
        matrix = torch.zeros(classes, classes, dtype=torch.int64)
        levels = np.zeros((2, CONFIDENCE_LEVELS), np.int64)
        start = 0
        for dataset, count in pixels.parts:
            there = [member.on(dataset) for member in members]
            heat = torch.tensor([member.temperature for member in there], dtype=torch.float64)
            plain = [member.model_copy(update={"calibration": ()}) for member in there]
            part = slice(start, start + count)
            start += count
            chunks = zip(
                logits[:, part].split(PIXELS_AT_ONCE, 1), pixels.labels[part].split(PIXELS_AT_ONCE), strict=True
            )
            for stored, y in chunks:
                z = torch.stack([_mapped(own, member) for own, member in zip(stored, there, strict=True)])
                fused = fuse_members([own.T for own in z], plain, functions)
                loss -= log_likelihood(z, heat, shares, y, functions.label == "mean-logit").sum().item()
                matrix += confusion(fused.label, y, classes)
                levels += level_counts((fused.label == y).numpy(), quantise(fused.confidence).numpy())
        nll = loss / len(pixels.labels)
        return HeldOutScores(
            nll if math.isfinite(nll) else math.inf,
            ece(levels),
            mean_iou(matrix, self.average),
            int(self.average.counted(matrix).sum()),
        )


def calibrated_manifest(manifest: Manifest, results: Sequence[CalibrationResult]) -> Manifest:
    """Return the manifest with the fitted numbers; members of weight 0 stay as they are.

    Args:
        manifest: that was calibrated.
        results: one for all datasets, or one for each of some.
    """
    models = []
    for member in manifest.models:
        for result in results:
            fitted = {one.name: one for one in result.members}.get(member.name)
            if fitted is not None and result.dataset is None:
                member = fitted
            elif fitted is not None:
                member = _with_own(member, fitted, result.dataset)
        models.append(member)
    return manifest.model_copy(update={"models": tuple(models)})


def _with_own(member: Member, fitted: Member, dataset: str | None) -> Member:
    """The member with the numbers that were fitted to one dataset, beside those for other datasets."""
    numbers = fitted.calibration[0] if fitted.calibration else Calibration(method=TEMPERATURE, temperature=1.0)
    entry = numbers.model_copy(update={"dataset": dataset, "temperature": fitted.temperature})
    others = tuple(one for one in member.calibration if one.dataset is None or one.dataset != dataset)
    return member.model_copy(update={"calibration": (*others, entry)})


def calibration_table(result: CalibrationResult) -> list[str]:
    """For people."""
    rows = [*result.alone.items(), ("ensemble", (result.before, result.after))]
    wide = max(len(name) for name, _ in rows)
    fitted = {member.name: member for member in result.members}
    counted = result.before.miou_classes, result.after.miou_classes
    where = "" if result.dataset is None else f"{result.dataset}: "
    lines = [
        f"{where}fitted to {result.pixels[0]} pixels of {result.images[0]} images, "
        f"judged by {result.pixels[1]} of {result.images[1]} others",
        f"{'':{wide}}  {'temperature':>11} {'weight':>7}  {'NLL':>17}  {'ECE':>17}  {'mIoU':>17}",
    ]
    for name, (before, after) in rows:
        numbers = f"{fitted[name].temperature:11.4f} {fitted[name].weight:7.3f}" if name in fitted else " " * 19
        pairs = ((before.nll, after.nll), (before.ece, after.ece), (before.miou, after.miou))
        lines.append(f"{name:{wide}}  {numbers}  " + "  ".join(f"{b:7.4f} > {a:7.4f}" for b, a in pairs))
    lines.append(f"mIoU {result.average.words()}: {counted[0]} before, {counted[1]} after")
    if result.plain is not None:
        other = result.rejected or result.after
        said = f"{result.method}: NLL {other.nll:.4f}, with temperatures alone {result.plain.nll:.4f}"
        if result.rejected is not None:
            lines.append(f"{said}; no better on the images that judge, so temperatures alone are kept")
        else:
            changes = result.method in ("vector", "dirichlet")
            miou = f"mIoU {result.plain.miou:.4f} > {result.after.miou:.4f}"
            lines.append(f"{said}; it changes class maps: {miou}" if changes else said)
    return lines
