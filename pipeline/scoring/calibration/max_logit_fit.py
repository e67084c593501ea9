"""Mean and standard deviation of each member's highest logits, by the class that it says, from stored logits.

Standardized Max Logits, Jung et al., ICCV 2021 (arXiv 2107.11264): over all pixels of all images of which the highest
logit L is that of class k, mean_k is the mean of L and deviation_k its standard deviation (the mean squared distance
under the root). No labels are read. What is fitted belongs to a member alone, whatever its weight, temperature and
calibration, and whatever the other members are.

A class that a member says of fewer than `FEWEST` pixels, or whose highest logits are all the same, takes mean and
deviation of all pixels of that member: of few pixels, which often are one object, a deviation may come out next to
nothing, and every other pixel would lie many deviations away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ....errors import ManifestError, StoreError, first_few
from ...config.calibration_field import LEAST_DEVIATION, MaxLogits
from ...config.manifest import Manifest
from ...fusion.dataset_stores import open_dataset
from ...fusion.member_stores import member_strips
from ...fusion.member_sums import first_maximum
from ...runtime.ordered_threads import map_in_order
from ...runtime.progress import Progress
from ...store.logit_store import LogitStore
from ...text import plural

FEWEST = 100
"""Pixels that a class must have for numbers of its own."""
_DIGITS = 6


@dataclass
class Moments:
    """Count, mean and sum of squared distances from the mean of numbers in C classes; (C,) float64 each."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, classes: np.ndarray, number: int) -> Moments:
        """Measure numbers.

        Args:
            values: (P,) float64.
            classes: (P,) integers, the class of each.
            number: C.
        """
        count = np.bincount(classes, minlength=number).astype(np.float64)
        mean = np.bincount(classes, values, number) / np.maximum(count, 1)
        return cls(count, mean, np.bincount(classes, (values - mean[classes]) ** 2, number))

    def add(self, other: Moments) -> None:
        """Add numbers that were measured apart (Chan, Golub & LeVeque, Updating Formulae, 1979)."""
        count = self.count + other.count
        apart, share = other.mean - self.mean, other.count / np.maximum(count, 1)
        self.mean = self.mean + apart * share
        self.squares = self.squares + other.squares + apart**2 * self.count * share
        self.count = count

    def together(self) -> tuple[float, float]:
        """Mean and standard deviation over all classes."""
        total = self.count.sum()
        mean = float((self.count * self.mean).sum() / total)
        squares = float((self.squares + self.count * (self.mean - mean) ** 2).sum())
        return mean, (squares / total) ** 0.5


@dataclass(frozen=True)
class FittedMember:
    """The fit of one member.

    Attributes:
        name: of the member.
        numbers: for the manifest.
        pixels: (C,) that it says to be of each class.
        pooled: names of the classes that take mean and deviation of all pixels.
        mean, deviation: of all pixels.
    """

    name: str
    numbers: MaxLogits
    pixels: tuple[int, ...]
    pooled: tuple[str, ...]
    mean: float
    deviation: float


@dataclass(frozen=True)
class MaxLogitFit:
    """The fit of each member, and the number of images of each dataset that it was made on."""

    members: tuple[FittedMember, ...]
    images: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {
            "images": self.images,
            "members": [
                {
                    "name": one.name,
                    "pixels": list(one.pixels),
                    **one.numbers.resolved(),
                    "pooled": list(one.pooled),
                    "all": {"mean": one.mean, "deviation": one.deviation},
                }
                for one in self.members
            ],
        }


def fit_max_logits(manifest: Manifest, *, limit: int | None = None) -> MaxLogitFit:
    """Fit to all stored images of the manifest's datasets.

    Args:
        manifest: its members of a weight above 0.
        limit: images per dataset, from the first; None for all.

    Raises:
        ManifestError: all members have weight 0.
        StoreError: stores are missing, do not belong together, hold no image, or cannot be read; or the highest
            logits of a member are all the same.
    """
    if not any(member.weight for member in manifest.models):
        raise ManifestError("--models: all selected models have weight 0; select another one or weigh them")
    opened = {entry.name: open_dataset(manifest, entry.name, limit=limit, hint="") for entry in manifest.datasets}
    names = [member.name for member, _ in next(iter(opened.values())).members]
    work = []
    for found in opened.values():
        stores = [store for _, store in found.members if store is not None]
        complete = np.flatnonzero(found.has.all(axis=0)).tolist()
        work += [(stores, found.paths[position]) for position in complete]
    if not work:
        raise StoreError(f"{', '.join(opened)}: no image has logits yet; make them with 'hmsa-pipeline dump'")
    totals: list[Moments] | None = None
    with Progress(len(work)) as progress:
        progress.job("calibrate max logits", len(work))
        for _, measured in map_in_order(lambda item: _measure(*item), work):
            if totals is None:
                totals = measured
            else:
                for total, one in zip(totals, measured, strict=True):
                    total.add(one)
            progress.advance()
    classes = manifest.class_set.names
    members = tuple(_fitted(name, one, classes) for name, one in zip(names, totals or (), strict=True))
    return MaxLogitFit(members, {name: int(found.has.all(axis=0).sum()) for name, found in opened.items()})


def _measure(stores: Sequence[LogitStore], image: str) -> list[Moments]:
    """Measure the highest logits of an image, of each member."""
    values: list[list[np.ndarray]] = [[] for _ in stores]
    said: list[list[np.ndarray]] = [[] for _ in stores]
    for _, logits in member_strips(stores, image):
        for number, given in enumerate(logits):
            label, highest = first_maximum(given.float())
            if not bool(torch.isfinite(highest).all()):
                raise StoreError(
                    f"{stores[number].path}: {image}: logits are not finite; look at it with 'hmsa-pipeline verify'"
                )
            values[number].append(highest.double().numpy().ravel())
            said[number].append(label.numpy().ravel())
    return [
        Moments.of(np.concatenate(own), np.concatenate(label), store.classes)
        for own, label, store in zip(values, said, stores, strict=True)
    ]


def _fitted(name: str, found: Moments, classes: Sequence[str]) -> FittedMember:
    mean, deviation = (round(number, _DIGITS) for number in found.together())
    if deviation < LEAST_DEVIATION:
        raise StoreError(
            f"{name}: the highest logits of all pixels are the same, which tells nothing of how sure the model is; "
            "take other images, or leave this model out with --models"
        )
    deviations = np.sqrt(found.squares / np.maximum(found.count, 1)).round(_DIGITS)
    own = (found.count >= FEWEST) & (deviations >= LEAST_DEVIATION)
    numbers = MaxLogits(
        mean=tuple(np.where(own, found.mean.round(_DIGITS), mean).tolist()),
        deviation=tuple(np.where(own, deviations, deviation).tolist()),
    )
    pooled = tuple(one for one, is_own in zip(classes, own, strict=True) if not is_own)
    return FittedMember(name, numbers, tuple(found.count.astype(int).tolist()), pooled, mean, deviation)


def with_max_logits(manifest: Manifest, fit: MaxLogitFit) -> Manifest:
    """Return the manifest with what was fitted; members of weight 0 stay as they are."""
    numbers = {one.name: one.numbers for one in fit.members}
    models = [
        member.model_copy(update={"max_logits": numbers[member.name]}) if member.name in numbers else member
        for member in manifest.models
    ]
    return manifest.model_copy(update={"models": tuple(models)})


def max_logit_table(fit: MaxLogitFit) -> list[str]:
    """For people."""
    wide = max(len(one.name) for one in fit.members)
    images = ", ".join(f"{plural(count, 'image')} of {name}" for name, count in fit.images.items())
    lines = [f"fitted to all pixels of {images}", f"{'':{wide}}  {'mean':>9} {'deviation':>9}  of all pixels"]
    for one in fit.members:
        lines.append(f"{one.name:{wide}}  {one.mean:9.3f} {one.deviation:9.3f}")
    for one in fit.members:
        if one.pooled:
            lines.append(
                f"{one.name} says fewer than {FEWEST} pixels, or all with the same logit, of "
                f"{first_few(one.pooled, 4)}: mean and deviation of all pixels stand in"
            )
    return lines
