"""The BRAVO challenge's figures, from its ground truth and the pixels that it samples.

Vu et al., The BRAVO Semantic Segmentation Challenge Results in UNCV2024 (arXiv 2409.15107). Names and definitions are
those of the challenge's toolkit (https://github.com/valeoai/bravo_challenge): IoU counts all labelled valid pixels,
what depends on confidences only the sampled ones; semantic figures look at valid pixels, those of out-of-distribution
detection take the invalid ones as positive, and low confidence as what finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, ManifestError, StoreError, first_few
from ..config.manifest import Manifest
from ..fusion.member_stores import ENSEMBLE, MemberStore, open_store, predict_from_stores, stores_of
from ..fusion.prediction_files import CONFIDENCE_LEVELS, prediction_names
from ..runtime.ordered_threads import usable
from ..submission.bravo_archives import (
    ENCODED,
    TarArchive,
    at_samples,
    prediction_files,
    read_encoded,
    read_mask,
    read_samples,
    require_sampled,
    sampled_bases,
    sampled_prediction,
    split_of,
    truth_endings,
)
from ..text import figure
from .averages import PLAIN
from .metrics import harmonic_mean, level_counts
from .pixel_counts import CLASSES, PixelCounts, class_pairs

SUBSETS: tuple[str, ...] = (
    "ACDCfog",
    "ACDCrain",
    "ACDCnight",
    "ACDCsnow",
    "synrain",
    "SMIYC",
    "synobjs",
    "synflare",
    "outofcontext",
)
WITHOUT_CLASSES = {"SMIYC"}
WITH_INVALID = {"SMIYC", "synobjs"}
_LOWER_IS_BETTER = ("_ece_", "_fpr95_")


def subset_of(base: str) -> str | None:
    """Which of `SUBSETS` an image belongs to; None if it is none."""
    split = split_of(base)
    if split != "ACDC":
        return split
    weather = [name for name in ("fog", "rain", "night", "snow") if f"/{name}/" in base]
    return f"ACDC{weather[0]}" if weather else None


@dataclass(frozen=True)
class _Image:
    base: str
    subset: str
    ids: str  # name of the file of train ids
    mask: str  # name of the file of invalid pixels


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
        images = _labelled(truth, sampling)
        absent = [image.base for image in images if f"{image.base}{ENCODED}" not in archive]
        _require_images(archive, absent, "no prediction", len(images))
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
        images = _labelled(truth, sampling)
        bases = [image.base for image in images]
        require_sampled(folder, bases)
        places = _stores_by_image(manifest, bases) if manifest and subjects else {}

        def read(base: str) -> Answers:
            found = {ENSEMBLE: sampled_prediction(folder, base, sampling, checked=False)}
            if manifest is not None and base in places:
                members, image = places[base]
                fused = predict_from_stores(members, image, subjects, manifest.ensemble)
                for name, (label, confidence) in fused.items():
                    found[name] = label, at_samples(sampling, base, label, confidence, members[0][1])
            return found

        return _score(images, truth, sampling, [ENSEMBLE, *subjects], read)


def _stores_by_image(manifest: Manifest, bases: Sequence[str]) -> dict[str, tuple[tuple[MemberStore, ...], str]]:
    """Where the logits of each image lie: the members' stores, and its path in their dataset."""
    wanted = {prediction_files(base)[0]: base for base in bases}
    folders = {base.split("/", 1)[0] for base in bases}
    names = {entry.name for entry in manifest.datasets}
    if missing := sorted(folders - names):
        raise ManifestError(
            f"the manifest has no dataset of the name {missing[0]}, which the ground truth has images of; name the "
            "datasets as the challenge names its folders"
        )
    found: dict[str, tuple[tuple[MemberStore, ...], str]] = {}
    for dataset in sorted(folders):
        members = stores_of(manifest, dataset, [])
        known = [entry.path for entry in open_store(members[0][1]).images]
        named = {image: wanted.get(f"{dataset}/{prediction_names(image)[0]}") for image in known}
        held = {image: base for image, base in named.items() if base}
        stores_of(manifest, dataset, list(held))
        found |= {base: (members, image) for image, base in held.items()}
    if lacking := [base for base in bases if base not in found]:
        raise StoreError(
            f"{manifest.output}: no store knows {len(lacking)} of the {len(bases)} images that have ground truth "
            f"({first_few(lacking, 2)}); make them with 'hmsa-pipeline dump'"
        )
    return found


def _labelled(truth: TarArchive, sampling: TarArchive) -> list[_Image]:
    """The images with ground truth, sorted by name; DatasetError unless all of them are sampled."""
    found: list[_Image] = []
    for name in truth.names:
        split = split_of(name)
        ids, mask = truth_endings(split or "")
        base = name.removesuffix(ids)
        if name.endswith(ids) and (subset := subset_of(base)):
            found.append(_Image(base, subset, name, f"{base}{mask}"))
    if not found:
        raise DatasetError(f"{truth.path}: holds no ground truth of a BRAVO split; is it the right tar file?")
    known = set(sampled_bases(sampling))
    _require_images(sampling, [image.base for image in found if image.base not in known], "no samples", len(found))
    return found


def _require_images(archive: TarArchive, missing: list[str], what: str, count: int) -> None:
    if missing:
        raise DatasetError(
            f"{archive.path}: has {what} of {len(missing)} of the {count} images that have ground truth "
            f"({first_few(missing, 2)}); is it of another release?"
        )


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
    images: list[_Image],
    truth: TarArchive,
    sampling: TarArchive,
    subjects: Sequence[str],
    read: Callable[[str], Answers],
) -> dict[str, BravoScores]:
    counts: dict[str, dict[str, _Counts]] = {
        name: {subset: (PixelCounts(), PixelCounts(ood=True)) for subset in SUBSETS} for name in subjects
    }

    def score(image: _Image) -> dict[str, _Counts]:
        indices = read_samples(sampling, image.base)
        return {name: _count(truth, image, *answer, indices) for name, answer in read(image.base).items()}

    def add(image: _Image, found: dict[str, _Counts]) -> None:
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


def _count(
    truth: TarArchive, image: _Image, label: np.ndarray, confidences: np.ndarray, indices: np.ndarray
) -> _Counts:
    base, ids, mask = image.base, read_mask(truth, image.ids), read_mask(truth, image.mask)
    if not ids.shape == mask.shape == label.shape:
        raise DatasetError(
            f"{base}: the prediction is {label.shape}, its ground truth {ids.shape}, the mask {mask.shape}"
        )
    ids, valid, label = ids.ravel(), mask.ravel() == 0, label.ravel()
    if indices[-1] >= ids.size:
        raise DatasetError(
            f"{base}: pixel {indices[-1]} is sampled of {ids.size}; the sampling file is another release's"
        )
    if ((ids >= CLASSES) & (ids != IGNORE)).any():
        raise DatasetError(f"{truth.path}: {base} holds ids that are neither train ids nor {IGNORE}: label ids?")
    kept = (ids != IGNORE) & valid
    # What a class map says where the truth is void or invalid counts nowhere, as in the toolkit: often 255.
    if (highest := int(label[kept].max(initial=0))) >= CLASSES:
        raise DatasetError(
            f"{base}: the prediction holds class {highest} where the ground truth has a class; train ids end at 18, "
            "and if these are label ids (road 7), turn them into train ids (road 0) first"
        )
    matrix = class_pairs(label[kept], ids[kept], CLASSES)
    right, valid = (ids == label)[indices], valid[indices]
    return (
        PixelCounts(False, matrix, level_counts(right[valid], confidences[valid]), images=1),
        PixelCounts(True, levels=level_counts(~valid, CONFIDENCE_LEVELS - 1 - confidences), images=1),
    )


def figures_of(subset: str, valid: PixelCounts, invalid: PixelCounts) -> dict[str, Any]:
    """Figures of one subset by the toolkit's names; NaN where one is not defined.

    Args:
        subset: one of `SUBSETS`.
        valid: counts of its valid pixels.
        invalid: counts of its pixels with the invalid ones as out of distribution.
    """
    found: dict[str, Any] = {}
    if subset not in WITHOUT_CLASSES:
        figures = valid.figures()
        found |= {f"{name}_valid": figures[name] for name in _VALID}
    if subset in WITH_INVALID:
        figures = invalid.figures()
        found |= {f"{name}_ood": figures[name] for name in _INVALID}
    return found


# What the toolkit has; all numbers enter the means.
_VALID = ("miou", "ece", "auroc", "auprc_success", "auprc_error", "fpr95", "iou")
_INVALID = ("auroc", "auprc", "fpr95")


def summary(subsets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All figures under the toolkit's names, with the harmonic means and the index.

    ECE and FPR enter the means as 1 - x. A figure that is not defined makes every mean undefined that it enters.
    """
    found = {f"{subset}_{name}": value for subset, figures in subsets.items() for name, value in figures.items()}
    upward = {
        name: 1.0 - value if any(part in name for part in _LOWER_IS_BETTER) else value
        for name, value in found.items()
        if not isinstance(value, list)
    }
    for subset in subsets:
        found[f"{subset}_hmean"] = harmonic_mean(v for name, v in upward.items() if name.startswith(f"{subset}_"))
    found["semantic_hmean"] = harmonic_mean(v for name, v in upward.items() if name.endswith("_valid"))
    found["ood_hmean"] = harmonic_mean(v for name, v in upward.items() if name.endswith("_ood"))
    found["bravo_index"] = harmonic_mean([found["semantic_hmean"], found["ood_hmean"]])
    return found


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
