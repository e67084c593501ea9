"""The BRAVO challenge's figures, from its ground truth and the pixels that it samples.

Vu et al., The BRAVO Semantic Segmentation Challenge Results in UNCV2024 (arXiv 2409.15107). Names and definitions are
those of the challenge's toolkit (https://github.com/valeoai/bravo_challenge): IoU counts all labelled valid pixels,
what depends on confidences only the sampled ones; semantic figures look at valid pixels, those of out-of-distribution
detection take the invalid ones as positive, and low confidence as what finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.pixels import decode_grey
from ..datasets.taxonomy import CLASS_NAMES, IGNORE
from ..errors import DatasetError, first_few
from .bravo_files import (
    ENCODED,
    Archive,
    read_encoded,
    read_samples,
    require_sampled,
    sampled_bases,
    sampled_prediction,
    split_of,
    truth_endings,
)
from .metrics import LEVELS, confusion, detection_figures, harmonic_mean, level_counts, semantic_figures, shown
from .progress import Progress
from .threads import in_order

CLASSES = len(CLASS_NAMES)
SUBSETS = ("ACDCfog", "ACDCrain", "ACDCnight", "ACDCsnow", "synrain", "SMIYC", "synobjs", "synflare", "outofcontext")
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
    ids: str
    """Name of the file of train ids."""
    mask: str
    """Name of the file of invalid pixels."""


@dataclass
class _Counts:
    matrix: np.ndarray = field(default_factory=lambda: np.zeros((CLASSES, CLASSES), np.int64))
    valid: np.ndarray = field(default_factory=lambda: np.zeros((2, LEVELS), np.int64))
    invalid: np.ndarray = field(default_factory=lambda: np.zeros((2, LEVELS), np.int64))

    def __iadd__(self, other: _Counts) -> _Counts:
        self.matrix += other.matrix
        self.valid += other.valid
        self.invalid += other.invalid
        return self


@dataclass
class BravoScores:
    """Figures by the toolkit's names, None where one is not defined; and images that could not be scored."""

    figures: dict[str, Any]
    images: dict[str, int]
    failed: dict[str, str] = field(default_factory=dict)


Read = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""From a base to the class map (H, W) uint8 and the sampled confidences (N,) uint16."""


def score_submission(ground_truth: Path, samples: Path, submission: Path) -> BravoScores:
    """Score a tar file as `submission.submit` writes it.

    Args:
        ground_truth: the challenge's tar file of train ids and invalid masks.
        samples: its sampling file.
        submission: the tar file.

    Raises:
        DatasetError: a tar file is none, or lacks images of the ground truth.
    """
    with (
        Archive(ground_truth, "ground truth") as truth,
        Archive(samples, "a sampling file") as sampling,
        Archive(submission, "a submission") as archive,
    ):
        images = _labelled(truth, sampling)
        absent = [image.base for image in images if f"{image.base}{ENCODED}" not in archive]
        _require(archive, absent, "no prediction", len(images))
        return _score(images, truth, sampling, _from_submission(archive, sampling))


def score_predictions(ground_truth: Path, samples: Path, folder: Path) -> BravoScores:
    """Score predictions that would become a submission.

    Args:
        ground_truth: the challenge's tar file of train ids and invalid masks.
        samples: its sampling file.
        folder: of all predictions, as ``<folder>/bravo_ACDC/fog/..._pred.png``.

    Raises:
        DatasetError: a tar file is none, or lacks images of the ground truth.
        StoreError: predictions are missing.
    """
    with Archive(ground_truth, "ground truth") as truth, Archive(samples, "a sampling file") as sampling:
        images = _labelled(truth, sampling)
        require_sampled(folder, [image.base for image in images])
        return _score(images, truth, sampling, partial(sampled_prediction, folder, samples=sampling))


def _labelled(truth: Archive, sampling: Archive) -> list[_Image]:
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
    _require(sampling, [image.base for image in found if image.base not in known], "no samples", len(found))
    return found


def _require(archive: Archive, missing: list[str], what: str, count: int) -> None:
    if missing:
        raise DatasetError(
            f"{archive.path}: has {what} of {len(missing)} of the {count} images that have ground truth "
            f"({first_few(missing, 2)}); is it of another release?"
        )


def _from_submission(archive: Archive, sampling: Archive) -> Read:
    def read(base: str) -> tuple[np.ndarray, np.ndarray]:
        label, confidences = read_encoded(archive, base)
        sampled = read_samples(sampling, base).size
        if confidences.size != sampled:
            raise DatasetError(
                f"{archive.path}: {base}{ENCODED} holds {confidences.size} confidences, {sampled} pixels are sampled"
            )
        if label.max(initial=0) >= CLASSES:
            raise DatasetError(f"{archive.path}: {base}{ENCODED} holds class {label.max()}, train ids end at 18")
        return label, confidences

    return read


def _score(images: list[_Image], truth: Archive, sampling: Archive, read: Read) -> BravoScores:
    def one(image: _Image) -> _Counts | str:
        try:
            return _counted(truth, image, *read(image.base), read_samples(sampling, image.base))
        except DatasetError as error:
            return str(error)

    counts = {subset: _Counts() for subset in SUBSETS}
    result = BravoScores({}, dict.fromkeys(SUBSETS, 0))
    with Progress(len(images)) as progress:
        progress.job("BRAVO", len(images))
        for image, found in in_order(one, images):
            if isinstance(found, str):
                result.failed[image.base] = found
            else:
                counts[image.subset] += found
                result.images[image.subset] += 1
            progress.advance()
    result.figures = summary({subset: figures_of(subset, counts[subset]) for subset in SUBSETS})
    return result


def _counted(
    truth: Archive, image: _Image, label: np.ndarray, confidences: np.ndarray, indices: np.ndarray
) -> _Counts:
    base, ids, mask = image.base, _grey(truth, image.ids), _grey(truth, image.mask)
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
    matrix = confusion(torch.from_numpy(label[kept]), torch.from_numpy(ids[kept]), CLASSES).numpy()
    right, valid = (ids == label)[indices], valid[indices]
    return _Counts(
        matrix, level_counts(right[valid], confidences[valid]), level_counts(~valid, LEVELS - 1 - confidences)
    )


def _grey(archive: Archive, name: str) -> np.ndarray:
    pixels = decode_grey(archive.read(name), archive.path / name)
    if pixels.dtype != np.uint8:
        raise DatasetError(f"{archive.path}: {name} holds 16 bits a pixel; 8 are expected")
    return pixels


def figures_of(subset: str, counts: _Counts) -> dict[str, Any]:
    """The figures of one subset; NaN where one is not defined."""
    found: dict[str, Any] = {}
    if subset not in WITHOUT_CLASSES:
        figures = semantic_figures(torch.from_numpy(counts.matrix), counts.valid)
        # The toolkit has no accuracy, and all scalars enter the means.
        found |= {f"{name}_valid": value for name, value in figures.items() if name != "accuracy"}
    if subset in WITH_INVALID:
        found |= {f"{name}_ood": value for name, value in detection_figures(counts.invalid).items()}
    return found


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


def table(scores: BravoScores) -> list[str]:
    """A line for each subset, and the means."""
    lines = [f"{'subset':12} {'images':>6}  " + " ".join(f"{head:>9}" for head in _COLUMNS)]
    for subset, images in scores.images.items():
        values = [scores.figures.get(f"{subset}_{name}") for name in _COLUMNS.values()]
        lines.append(f"{subset:12} {images:6}  " + " ".join(f"{shown(value):>9}" for value in values))
    means = (("semantic", "semantic_hmean"), ("ood", "ood_hmean"), ("BRAVO index", "bravo_index"))
    return lines + [f"{label}: {shown(scores.figures[name])}" for label, name in means]
