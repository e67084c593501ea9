"""Image-level detection: which photographs are of another distribution, by how unsure the ensemble is of them.

The photographs of some datasets are the positives, those of the manifest's other datasets the negatives; no labels
are needed. An image's score is an aggregate of its pixels' uncertainties (see `aggregates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ....datasets.layout.find_images import list_images
from ....errors import ManifestError, StoreError
from ...config.manifest import DatasetEntry, Manifest, select
from ...fusion.ensemble_record import read_record, require_recorded_classes
from ...fusion.member_stores import MemberStore, confidences_from_stores, stores_of
from ...fusion.prediction_files import prediction_names, read_confidence, require_predictions
from ...fusion.uncertainty import as_uncertainty
from ...runtime.ordered_threads import usable
from ...storage.output_folder import own_folders, predictions_path
from ...text import plural, without_nan
from ..metrics import aupr, auroc, fpr95
from ..resampling.bootstrap import Resampling, draws, intervals, resampling_lines
from .aggregates import aggregate
from .lines import lines_with_ends, with_ends

ALL = "all of them"
"""Name of all datasets of another distribution together."""


@dataclass(frozen=True)
class ImagePlan:
    """The images of one dataset, ready to be scored.

    Attributes:
        dataset: its name.
        ood: whether its images are of another distribution.
        images: their paths.
        folder: the predictions, whose confidences are read if there are no ``members``.
        members: whose stores are fused.
        label: the manifest's function of the label.
        confidences: names of the functions.
        aggregates: names of the aggregates.
        classes: C.
    """

    dataset: str
    ood: bool
    images: tuple[str, ...]
    folder: Path
    members: tuple[MemberStore, ...]
    label: str
    confidences: tuple[str, ...]
    aggregates: tuple[str, ...]
    classes: int


@dataclass
class ImageScores:
    """Scores of one dataset's images: (confidence, aggregate) -> one of each image; images without -> reasons."""

    dataset: str
    ood: bool
    scores: dict[tuple[str, str], list[float]]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images have scores."""
        return len(next(iter(self.scores.values())))


def plan_image_scores(
    manifest: Manifest,
    ood: Sequence[str],
    *,
    confidences: Sequence[str] | None,
    aggregates: Sequence[str],
    limit: int | None = None,
) -> list[ImagePlan]:
    """Check that all images of all datasets have predictions, or logits.

    Args:
        manifest: its datasets.
        ood: names of those whose images are of another distribution.
        confidences: functions that are computed from the stores, all from one look at them; None for the
            confidences that `ensemble` wrote.
        aggregates: names of the aggregates.
        limit: images of each dataset, from the first; None for all.

    Raises:
        ManifestError: the manifest has no such dataset, or no other one.
        DatasetError: a dataset's folder is not as its layout says.
        StoreError: predictions or stores are missing, or lack images.
    """
    positive = {entry.name for entry in select("dataset", manifest.datasets, ood)}
    if len(positive) == len(manifest.datasets):
        raise ManifestError(
            "--ood-datasets: names all datasets; images of another distribution are told from those of datasets that "
            "are not named, so leave one out, or choose more with --datasets"
        )
    plans = [
        _plan(manifest, entry, entry.name in positive, confidences, aggregates, limit) for entry in manifest.datasets
    ]
    for plan in plans[1:]:
        if plan.confidences != plans[0].confidences:
            raise StoreError(
                f"{plan.folder}: holds confidences by {plan.confidences[0]}, and {plans[0].folder} by "
                f"{plans[0].confidences[0]}; name one by --confidences, or fuse one again with --overwrite"
            )
    return plans


def _plan(
    manifest: Manifest,
    entry: DatasetEntry,
    ood: bool,
    confidences: Sequence[str] | None,
    aggregates: Sequence[str],
    limit: int | None,
) -> ImagePlan:
    found = list_images(entry.root_path(), entry.type, entry.split, own_folders(manifest.output))[:limit]
    images = tuple(file.path for file in found)
    folder = predictions_path(manifest.output, entry.name)
    function = manifest.ensemble.confidence
    if confidences is None:
        require_recorded_classes(folder, manifest.class_set)
        function = read_record(folder).get("confidence", function)
        names = [prediction_names(image)[1] for image in images]
        fix = "make them with 'hmsa-pipeline ensemble', take --limit, or name --confidences"
        require_predictions(folder, names, f"{len(names)} confidences", fix)
    return ImagePlan(
        dataset=entry.name,
        ood=ood,
        images=images,
        folder=folder,
        members=() if confidences is None else stores_of(manifest, entry.name, images),
        label=manifest.ensemble.label,
        confidences=tuple(confidences or (function,)),
        aggregates=tuple(aggregates),
        classes=len(manifest.class_set),
    )


def score_images(plan: ImagePlan) -> ImageScores:
    """Score one dataset's images; one that cannot be read is listed, the others are scored."""
    result = ImageScores(plan.dataset, plan.ood, {(c, a): [] for c in plan.confidences for a in plan.aggregates})

    def score(image: str) -> dict[tuple[str, str], float]:
        if plan.members:
            _, maps = confidences_from_stores(plan.members, image, plan.label, plan.confidences)
        else:
            maps = {plan.confidences[0]: read_confidence(plan.folder / prediction_names(image)[1])}
        found = {}
        for name, confidence in maps.items():
            uncertainty = as_uncertainty(name, confidence, plan.classes)
            found |= {(name, one): aggregate(one, uncertainty) for one in plan.aggregates}
        return found

    def add(_: str, found: dict[tuple[str, str], float]) -> None:
        for key, value in found.items():
            result.scores[key].append(value)

    result.failed = usable(plan.dataset, plan.images, score, add)
    return result


def detection_of_images(
    negatives: Sequence[float], positives: Sequence[float], times: np.ndarray | None = None
) -> list[dict[str, float]]:
    """AUROC, AUPRC and FPR at 95 % TPR by which scores tell images of another distribution, by name.

    Args:
        negatives: scores of the n images in distribution.
        positives: scores of the m images out of it, which should be higher.
        times: (B, n + m), how often each of B resamplings holds each image; None for each image once.

    Returns:
        Of each resampling ``auroc`` with ties counted half, ``auprc``, ``fpr95``; NaN where there is no image of a
        kind.
    """
    values = np.array([*negatives, *positives])
    _, level = np.unique(values, return_inverse=True)
    place = level + (np.arange(len(values)) >= len(negatives)) * len(values)
    found = []
    for weights in [None] if times is None else times:
        counts = np.bincount(place, weights, 2 * len(values)).reshape(2, -1)
        found.append({"auroc": auroc(counts), "auprc": aupr(counts), "fpr95": fpr95(counts)})
    return found


def _times(inside: int, outside: int, resampling: Resampling) -> np.ndarray:
    """How often each resampling holds each image, (B, n + m): as many of either kind as there are."""
    groups = [draws(images, resampling, group) for group, images in enumerate((inside, outside))]
    return np.stack(list(chain(*groups)), 1)


@dataclass(frozen=True)
class ImageDetection:
    """Figures of one dataset against all images in distribution.

    Attributes:
        dataset: of the images out of distribution, or `ALL`.
        confidence, aggregate: names of the functions.
        images_in, images_out: how many there are.
        figures: of `detection_of_images`.
        resampling: how images were resampled; None if they were not.
        intervals: the ends of each figure's interval; empty without resamplings, or if a kind has only one image.
    """

    dataset: str
    confidence: str
    aggregate: str
    images_in: int
    images_out: int
    figures: dict[str, float]
    resampling: Resampling | None
    intervals: dict[str, list[float]]

    def as_json(self) -> dict[str, Any]:
        """Figures by name, null where one is not defined, and their ``intervals`` if images were resampled."""
        return self._with(self.figures) | ({"intervals": self.intervals} if self.resampling else {})

    def row(self) -> dict[str, Any]:
        """One flat row, with the ends of intervals; null where a figure is not defined."""
        return self._with(with_ends(self.figures, self.intervals))

    def _with(self, figures: Mapping[str, float]) -> dict[str, Any]:
        names = ("dataset", "confidence", "aggregate", "images_in", "images_out")
        return {name: getattr(self, name) for name in names} | without_nan(figures)


def image_detections(results: Sequence[ImageScores], resampling: Resampling | None = None) -> list[ImageDetection]:
    """Compute the figures of each dataset out of distribution, and behind several those of all together.

    Args:
        results: scores of all datasets.
        resampling: how images are resampled for intervals, those in and those out of distribution each among
            themselves; None for no intervals.
    """
    positives = {result.dataset: [result] for result in results if result.ood}
    if len(positives) > 1:
        positives[ALL] = [result for result in results if result.ood]
    inside = [result for result in results if not result.ood]
    images_in = sum(result.images for result in inside)
    found = []
    for dataset, outside in positives.items():
        images_out = sum(result.images for result in outside)
        times = _times(images_in, images_out, resampling) if resampling and min(images_in, images_out) > 1 else None
        for key in results[0].scores:
            scores = [[score for result in part for score in result.scores[key]] for part in (inside, outside)]
            (figures,) = detection_of_images(scores[0], scores[1])
            ends = {}
            if times is not None:
                values = detection_of_images(scores[0], scores[1], times)
                ends = intervals({name: np.array([one[name] for one in values]) for name in figures})
            found.append(ImageDetection(dataset, *key, images_in, images_out, figures, resampling, ends))
    return found


def detection_lines(found: Sequence[ImageDetection]) -> list[str]:
    """A table for people: of each dataset a head, and a line for each confidence and aggregate with its intervals."""
    lines: list[str] = []
    for dataset in dict.fromkeys(one.dataset for one in found):
        rows = {f"{one.confidence} {one.aggregate}": one for one in found if one.dataset == dataset}
        one = next(iter(rows.values()))
        lines.append(f"{dataset}: {one.images_out} against {plural(one.images_in, 'image')} in distribution")
        lines += resampling_lines(one.resampling, min(one.images_in, one.images_out))
        figures, ends = (
            {name: getattr(row, what) for name, row in rows.items()} for what in ("figures", "intervals")
        )
        lines += lines_with_ends("", figures, ends)
    return lines
