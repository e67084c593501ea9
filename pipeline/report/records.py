"""Records of a report's images and datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.class_set import CITYSCAPES19, ClassSet
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ..config.manifest import FusionFunctions as Functions
from ..fusion.member_stores import ENSEMBLE, MemberStore
from ..scoring.averages import PLAIN, Average
from ..scoring.detection.components import LeastSizes
from ..scoring.detection.score_components import ComponentScores
from ..scoring.figures.class_reliability import class_ece
from ..scoring.figures.set_coverage import coverage_figures
from ..scoring.ground_truth import GroundTruth
from ..scoring.pixel_counts import PixelCounts
from ..scoring.resampling.bootstrap import Bootstrap, Resampling, draws, intervals
from ..scoring.resampling.set_means import set_intervals
from ..text import without_nan
from .worst_images import Gain, WorstImages, gain_of

Item = tuple[str, ImageMaskPair | None]
"""An image, with its mask if it has one."""


@dataclass
class DatasetSummary:
    """Totals over a dataset's images.

    Attributes:
        members: names of those that were looked at.
        counts: by subject, over all images; empty without labels.
        histogram: pixels by the ensemble's confidence, (64,) int64.
        by_class: (3, C, 15) of `class_reliability.count_by_class`; None without labels of classes.
        gains: by image, what the ensemble gains there over the best member; none without labels of classes.
        worst: the images with most wrong pixels of each class.
        failed: images that could not be looked at -> reasons.
        bootstrap: sums of the ensemble's resampled counts; None without labels.
        times: image -> how often each resampling holds it, of those with labels.
        left_out: figures that the data does not give -> why.
        components: of what is out of distribution; None where none were counted.
        sets: (4, C + 1), the sum of `SetCoverage.shares` over the images; None without thresholds.
        sets_drawn: (B, 4, C + 1), the same over the images of each resampling.
    """

    dataset: str
    members: list[str]
    average: Average = PLAIN
    classes: ClassSet = CITYSCAPES19
    gallery: dict[str, GalleryEntry] = field(default_factory=dict)
    counts: dict[str, PixelCounts] = field(default_factory=dict)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    gains: dict[str, Gain] = field(default_factory=dict)
    worst: WorstImages = field(default_factory=WorstImages)
    failed: dict[str, str] = field(default_factory=dict)
    by_class: np.ndarray | None = None
    bootstrap: Bootstrap | None = None
    times: dict[str, np.ndarray] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    components: ComponentScores | None = None
    sets: np.ndarray | None = None
    sets_drawn: np.ndarray | None = None
    _disputed: np.ndarray | None = None
    _intervals: dict[str, list[Any]] | None = None
    _figures: dict[str, dict[str, Any]] | None = None

    def resample(self, images: Sequence[str]) -> None:
        """Prepare intervals over ``images``, the paths of those with labels, in whatever order they are added."""
        if images:
            self.bootstrap = Bootstrap([ENSEMBLE], len(images), RESAMPLING)
            drawn = draws(len(images), RESAMPLING)
            self.times = {image: times.astype(np.uint16) for image, times in zip(images, drawn, strict=True)}

    def intervals(self) -> dict[str, list[Any]]:
        """The ends of the interval of each of the ensemble's figures; empty with fewer than two labelled images."""
        if self.bootstrap is None or ENSEMBLE not in self.counts:
            return {}
        if self._intervals is None:
            self._intervals = intervals(self.bootstrap.replicates(ENSEMBLE, self.counts[ENSEMBLE], self.average))
        return self._intervals

    def add(self, image: str, found: ImageSummary | str) -> None:
        """Count one image more; what is large of it is not kept."""
        if isinstance(found, str):
            self.failed[image] = found
            return
        self.gallery[image] = found.entry
        self._intervals = self._figures = None
        self.histogram += found.histogram
        if found.by_class.size:
            self.by_class = found.by_class if self.by_class is None else self.by_class + found.by_class
        if found.sets.size:
            self.sets = found.sets if self.sets is None else self.sets + found.sets
            if image in self.times:
                drawn = self.times[image].astype(np.float64)[:, None, None] * found.sets
                self.sets_drawn = drawn if self.sets_drawn is None else self.sets_drawn + drawn
        for name, counted in found.counts.items():
            total = self.counts.setdefault(name, PixelCounts.none(counted.ood, len(self.classes)))
            total += counted
        if self.bootstrap and image in self.times and found.counts:
            self.bootstrap.add(found.counts, self.times[image])
        if gain := gain_of(found.counts, found.entry.pixels):
            self.gains[image] = gain
        if found.counts and not found.counts[ENSEMBLE].ood:
            self.worst.add(image, found.counts[ENSEMBLE].confusion)
        if found.entry.disagreement is not None:
            self._disputed = found.disputes if self._disputed is None else self._disputed + found.disputes

    @property
    def disputes(self) -> np.ndarray | None:
        """Share of the pixels of which two members say another class, (M, M); None with fewer than two members."""
        if self._disputed is None:
            return None
        return self._disputed / sum(entry.pixels for entry in self.gallery.values())

    def mean(self, name: str) -> float | None:
        """The mean over pixels of a figure that every image has; None if it is not known."""
        known = [(getattr(entry, name), entry.pixels) for entry in self.gallery.values()]
        if not known or any(value is None for value, _ in known):
            return None
        return sum(value * pixels for value, pixels in known) / sum(pixels for _, pixels in known)

    @property
    def semantic(self) -> bool:
        """True if there are labels and they are classes."""
        return bool(self.counts) and not self.counts[ENSEMBLE].ood

    def set_figures(self) -> list[dict[str, Any]]:
        """Rows of `coverage_figures`, with ``intervals`` if there are images to resample; none without thresholds."""
        if self.sets is None:
            return []
        rows = coverage_figures(self.sets, self.classes.names)
        if self.sets_drawn is None or rows[-1]["images"] < 2:
            return rows
        return [{**row, "intervals": ends} for row, ends in zip(rows, set_intervals(self.sets_drawn), strict=True)]

    def figures(self) -> dict[str, dict[str, Any]]:
        """Figures of each subject over all images; empty without labels."""
        if self._figures is None:
            self._figures = {name: counts.figures(self.average) for name, counts in self.counts.items()}
        return self._figures

    def class_errors(self) -> dict[str, float]:
        """The ensemble's ECE of the pixels that are predicted as each class, by its name; NaN without pixels.

        Empty without labels of classes.
        """
        if self.by_class is None:
            return {}
        return dict(zip(self.classes.names, class_ece(self.by_class).tolist(), strict=True))

    def as_json(self) -> dict[str, Any]:
        """Figures by subject and by image; null where one is not defined."""
        disputes = self.disputes
        return {
            "dataset": self.dataset,
            "images": len(self.gallery),
            "scores": {name: without_nan(found) for name, found in self.figures().items()},
            **(
                {"bootstrap": RESAMPLING.as_json(), "intervals": without_nan(self.intervals())} if self.counts else {}
            ),
            **({"average": self.average.as_json(), "left_out": dict(self.left_out)} if self.semantic else {}),
            **({"components": self.components.as_json()} if self.components else {}),
            **({"sets": [without_nan(row) for row in self.set_figures()]} if self.sets is not None else {}),
            **{name: self.mean(name) for name in _MEANS},
            "members": self.members,
            "disputes": None if disputes is None else disputes.tolist(),
            "by_image": {
                image: {
                    **{name: getattr(entry, name) for name in ("wrong", *_MEANS)},
                    "gain": self.gains[image].share if image in self.gains else None,
                }
                for image, entry in self.gallery.items()
            },
            **(
                {
                    "predicted_class_ece": without_nan(self.class_errors()),
                    "worst_by_class": self.worst.as_json(self.classes),
                }
                if self.semantic
                else {}
            ),
            "failed": self.failed,
        }


PICTURES = "pictures"
RESAMPLING = Resampling(replicates=200)
"""How images are resampled for intervals."""
BINS = 64
"""Bins of the confidence histogram."""
_MEANS = ("confidence", "disagreement", "information")


@dataclass(frozen=True)
class DatasetSetup:
    """One dataset, ready to be shown.

    Attributes:
        root: the folder of the photographs.
        predictions: the folder of the predictions.
        truth: reads the labels; None if there are none.
        members: whose stores are looked at; none if they are left out.
        folder: of the report.
        width: to which pictures are reduced.
        exif: whether photographs are turned as EXIF says.
        classes: of the manifest.
        confidences: functions whose uncertainty is shown as maps.
        left_out: figures that the data does not give -> why.
        least: the sizes below which components are left out; None where no components are counted.
        thresholds: (C,) least probabilities of prediction sets; None where there are none of this ensemble.
    """

    dataset: str
    root: Path
    predictions: Path
    truth: GroundTruth | None
    members: tuple[MemberStore, ...]
    functions: Functions
    folder: Path
    width: int
    exif: bool = False
    classes: ClassSet = CITYSCAPES19
    confidences: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    least: LeastSizes | None = None
    thresholds: tuple[float, ...] | None = None


@dataclass
class GalleryEntry:
    """One image in the gallery of the page.

    Attributes:
        key: the name of its folder of pictures; another one if anything changed that it is made of.
        size: (height, width).
        layers: which pictures there are besides the photograph.
        confidence: mean, 0 to 1.
        disagreement: mean over the pairs of members of the share of pixels they disagree about; None without pairs.
        information: mean mutual information in nats; None without pairs.
        classes: train ids that are predicted or labelled on at least 0.05 % of the pixels.
        ood: whether its labels say what is out of distribution.
        wrong: how bad the ensemble is here, 0 to 1: the share of labelled pixels that are wrong, or, if ``ood``, the
            false positives at 95 % true ones; None where nobody knows.
    """

    key: str
    size: tuple[int, int]
    layers: list[str]
    confidence: float
    disagreement: float | None
    information: float | None
    classes: list[int]
    ood: bool = False
    wrong: float | None = None

    @property
    def pixels(self) -> int:
        """How many it has."""
        return self.size[0] * self.size[1]


@dataclass
class ImageSummary:
    """Figures of one image.

    Attributes:
        counts: by subject (the ensemble, members); empty without labels.
        histogram: (64,) int64 pixels by the ensemble's confidence.
        disputes: (M, M) int64: pixels of which two members say another class.
        by_class: (3, C, 15) of `class_reliability.count_by_class` of the ensemble; no classes without labels of them.
        sets: (4, C + 1) of `SetCoverage.shares`; empty without labels of classes, or without thresholds.
    """

    entry: GalleryEntry
    counts: dict[str, PixelCounts] = field(default_factory=dict)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    disputes: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    by_class: np.ndarray = field(default_factory=lambda: np.zeros((3, 0, 0)))
    sets: np.ndarray = field(default_factory=lambda: np.zeros((4, 0)))
