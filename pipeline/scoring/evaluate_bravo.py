"""Scores submissions, predictions and members by the BRAVO challenge's protocol, from its ground truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import DatasetError
from ..config.manifest import Manifest
from ..fusion.member_stores import ENSEMBLE, predict_from_stores
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..runtime.ordered_threads import usable
from ..submission.bravo_archives import (
    ENCODED,
    TarArchive,
    at_samples,
    read_encoded,
    read_samples,
    require_sampled,
    sampled_prediction,
)
from ..text import figure
from .averages import PLAIN
from .bravo_protocol import (
    SUBSETS,
    WITHOUT_CLASSES,
    BravoImage,
    BravoLabels,
    figures_of,
    labelled_images,
    read_labels,
    require_images,
    stores_by_image,
    summary,
)
from .metrics import level_counts
from .pixel_counts import CLASSES, PixelCounts, class_pairs

_Counts = tuple[PixelCounts, PixelCounts]
"""Counts of valid pixels by class, and of all sampled pixels with the invalid ones as out of distribution."""


@dataclass
class BravoScores:
    """Figures by the toolkit's names, None where one is not defined; images, and classes that the mean IoU runs over,
    of each subset; and images that could not be scored.
    """

    figures: dict[str, Any]
    images: dict[str, int]
    classes: dict[str, int]
    failed: dict[str, str] = field(default_factory=dict)


Answers = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Each subject's class map (H, W) uint8 and sampled confidences (N,) uint16."""


def score_submission(ground_truth: Path, samples: Path, submission: Path) -> dict[str, BravoScores]:
    """Score a tar file as `submit_bravo` writes it; DatasetError if one is none, or lacks images.

    Args:
        ground_truth: the challenge's tar file of train ids and invalid masks.
        samples: its sampling file.
        submission: the tar file.
    """
    with (
        TarArchive(ground_truth, "ground truth") as truth,
        TarArchive(samples, "a sampling file") as sampling,
        TarArchive(submission, "a submission") as archive,
    ):
        images = labelled_images(truth, sampling)
        absent = [image.base for image in images if f"{image.base}{ENCODED}" not in archive]
        require_images(archive, absent, "no prediction", len(images))
        return _score(images, truth, sampling, [ENSEMBLE], _from_submission(archive, sampling))


def score_predictions(
    ground_truth: Path,
    samples: Path,
    folder: Path,
    manifest: Manifest | None = None,
    subjects: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> dict[str, BravoScores]:
    """Score predictions that would become a submission, and beside them members from their stores.

    Args:
        ground_truth, samples: see `score_submission`.
        folder: of all predictions, as ``<folder>/bravo_ACDC/fog/..._pred.png``.
        manifest: whose stores; its datasets have the names of the challenge's folders, such as ``bravo_ACDC``.
        subjects: of `member_stores.scored_combinations`; none if there is no manifest.

    Returns:
        By subject, the ensemble first.

    Raises:
        DatasetError: a tar file is none, or lacks images of the ground truth.
        ManifestError: the manifest has none of the datasets, or lacks some.
        StoreError: predictions or stores are missing, or lack images.
    """
    with TarArchive(ground_truth, "ground truth") as truth, TarArchive(samples, "a sampling file") as sampling:
        images = labelled_images(truth, sampling)
        bases = [image.base for image in images]
        require_sampled(folder, bases)
        places = stores_by_image(manifest, bases) if manifest and subjects else {}

        def read(base: str) -> Answers:
            found = {ENSEMBLE: sampled_prediction(folder, base, sampling, checked=False)}
            if manifest is not None and base in places:
                members, image = places[base]
                fused = predict_from_stores(members, image, subjects, manifest.ensemble)
                for name, (label, confidence) in fused.items():
                    found[name] = label, at_samples(sampling, base, label, confidence, members[0][1])
            return found

        return _score(images, truth, sampling, [ENSEMBLE, *subjects], read)


def _from_submission(archive: TarArchive, sampling: TarArchive) -> Callable[[str], Answers]:
    def read(base: str) -> Answers:
        label, confidences = read_encoded(archive, base)
        sampled = read_samples(sampling, base).size
        if confidences.size != sampled:
            raise DatasetError(
                f"{archive.path}: {base}{ENCODED} holds {confidences.size} confidences, {sampled} pixels are sampled"
            )
        return {ENSEMBLE: (label, confidences)}

    return read


def _score(
    images: list[BravoImage],
    truth: TarArchive,
    sampling: TarArchive,
    subjects: Sequence[str],
    read: Callable[[str], Answers],
) -> dict[str, BravoScores]:
    counts: dict[str, dict[str, _Counts]] = {
        name: {subset: (PixelCounts(), PixelCounts(ood=True)) for subset in SUBSETS} for name in subjects
    }

    def score(image: BravoImage) -> dict[str, _Counts]:
        samples = read_samples(sampling, image.base)
        answers = read(image.base)
        labels = read_labels(truth, image, samples, [label.shape for label, _ in answers.values()])
        return {name: _count(image, labels, *answer) for name, answer in answers.items()}

    def add(image: BravoImage, found: dict[str, _Counts]) -> None:
        for name, counted in found.items():
            for total, more in zip(counts[name][image.subset], counted, strict=True):
                total += more

    failed = {image.base: reason for image, reason in usable("BRAVO", images, score, add).items()}
    return {
        name: BravoScores(
            summary({subset: figures_of(subset, *of[subset]) for subset in SUBSETS}),
            {subset: of[subset][0].images for subset in SUBSETS},
            {subset: _counted_classes(of[subset][0]) for subset in SUBSETS},
            failed,
        )
        for name, of in counts.items()
    }


def _counted_classes(counts: PixelCounts) -> int:
    """How many classes the toolkit's mean runs over."""
    return int(PLAIN.counted_of(counts.confusion.sum(1), counts.confusion.sum(0)).sum())


def _count(image: BravoImage, labels: BravoLabels, label: np.ndarray, confidences: np.ndarray) -> _Counts:
    ids, valid, kept, label = labels.ids.ravel(), labels.valid, labels.kept, label.ravel()
    # What a class map says where the truth is void or invalid counts nowhere, as in the toolkit: often 255.
    if (highest := int(label[kept].max(initial=0))) >= CLASSES:
        raise DatasetError(
            f"{image.base}: the prediction holds class {highest} where the ground truth has a class; train ids "
            "end at 18, and if these are label ids (road 7), turn them into train ids (road 0) first"
        )
    matrix = class_pairs(label[kept], ids[kept], CLASSES)
    right, valid = (ids == label)[labels.samples], valid[labels.samples]
    return (
        PixelCounts(False, matrix, level_counts(right[valid], confidences[valid]), images=1),
        PixelCounts(True, levels=level_counts(~valid, CONFIDENCE_LEVELS - 1 - confidences), images=1),
    )


_COLUMNS = {
    "mIoU": "miou_valid",
    "ECE": "ece_valid",
    "AUROC": "auroc_valid",
    "AUPR succ": "auprc_success_valid",
    "AUPR err": "auprc_error_valid",
    "FPR95": "fpr95_valid",
    "AUROC ood": "auroc_ood",
    "AUPR ood": "auprc_ood",
    "FPR95 ood": "fpr95_ood",
    "hmean": "hmean",
}


_MEANS = (("semantic", "semantic_hmean"), ("ood", "ood_hmean"), ("BRAVO index", "bravo_index"))


def comparison(scores: Mapping[str, BravoScores]) -> list[str]:
    """A line for each subject: the means, and mIoU of every subset."""
    wide = max(map(len, scores))
    subsets = [subset for subset in SUBSETS if subset not in WITHOUT_CLASSES]
    heads = [*(label for label, _ in _MEANS), *(f"mIoU {subset}" for subset in subsets)]
    names = [*(name for _, name in _MEANS), *(f"{subset}_miou_valid" for subset in subsets)]
    lines = [f"{'':{wide}}  " + "  ".join(heads)]
    for subject, found in scores.items():
        values = [figure(found.figures[name]) for name in names]
        columns = (f"{value:>{len(head)}}" for value, head in zip(values, heads, strict=True))
        lines.append(f"{subject:{wide}}  " + "  ".join(columns))
    return lines


def bravo_table(scores: BravoScores) -> list[str]:
    """A line for each subset, and the means."""
    lines = [f"{'subset':12} {'images':>6}  " + " ".join(f"{head:>9}" for head in [*_COLUMNS, "classes"])]
    for subset, images in scores.images.items():
        values = [scores.figures.get(f"{subset}_{name}") for name in _COLUMNS.values()]
        classes = "-" if subset in WITHOUT_CLASSES else str(scores.classes[subset])
        lines.append(f"{subset:12} {images:6}  " + " ".join(f"{v:>9}" for v in [*map(figure, values), classes]))
    return lines + [f"{label}: {figure(scores.figures[name])}" for label, name in _MEANS]
