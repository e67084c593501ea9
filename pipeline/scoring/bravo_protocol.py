"""The BRAVO challenge's protocol: which images and pixels are scored, and how their figures become an index.

Vu et al., The BRAVO Semantic Segmentation Challenge Results in UNCV2024 (arXiv 2409.15107). Names and definitions are
those of the challenge's toolkit (https://github.com/valeoai/bravo_challenge): IoU counts all labelled valid pixels,
what depends on confidences only the sampled ones; semantic figures look at valid pixels, those of out-of-distribution
detection take the invalid ones as positive, and low confidence as what finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, ManifestError, StoreError, first_few
from ..config.manifest import Manifest
from ..fusion.member_stores import MemberStore, open_store, stores_of
from ..fusion.prediction_files import prediction_names
from ..submission.bravo_archives import (
    TarArchive,
    opened,
    prediction_files,
    read_mask,
    read_samples,
    sampled_bases,
    split_of,
    truth_endings,
)
from .metrics import harmonic_mean
from .pixel_counts import CLASSES, PixelCounts

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
class BravoImage:
    """An image with ground truth: its base, one of `SUBSETS`, and the files of train ids and of invalid pixels."""

    base: str
    subset: str
    ids: str
    mask: str


@dataclass(frozen=True)
class BravoLabels:
    """The labels of an image, as its files hold them.

    Attributes:
        ids: (H, W) uint8 train ids, 255 where a pixel has none.
        invalid: (H, W) uint8, not 0 where a pixel is invalid.
        samples: (N,) int64 ascending flat positions of the sampled pixels.
    """

    ids: np.ndarray
    invalid: np.ndarray
    samples: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """(H * W,) bool: pixels that semantic figures look at."""
        return self.invalid.ravel() == 0

    @property
    def kept(self) -> np.ndarray:
        """(H * W,) bool: pixels whose class maps are scored, which have a label and are valid."""
        return (self.ids.ravel() != IGNORE) & self.valid


def read_labels(
    truth: TarArchive, image: BravoImage, samples: np.ndarray, sizes: Iterable[tuple[int, ...]]
) -> BravoLabels:
    """Read the labels of an image.

    Args:
        truth: the challenge's tar file of train ids and invalid masks.
        image: which one.
        samples: (N,) int64 of `read_samples`.
        sizes: (H, W) of its predictions.

    Raises:
        DatasetError: the files are missing, damaged or of another size, or hold something else.
    """
    ids, mask = read_mask(truth, image.ids), read_mask(truth, image.mask)
    for size in sizes:
        if not ids.shape == mask.shape == size:
            raise DatasetError(
                f"{image.base}: the prediction is {size}, its ground truth {ids.shape}, the mask {mask.shape}"
            )
    if samples[-1] >= ids.size:
        raise DatasetError(
            f"{image.base}: pixel {samples[-1]} is sampled of {ids.size}; the sampling file is another release's"
        )
    if ((ids >= CLASSES) & (ids != IGNORE)).any():
        raise DatasetError(
            f"{truth.path}: {image.base} holds ids that are neither train ids nor {IGNORE}: label ids?"
        )
    return BravoLabels(ids, mask, samples)


def labelled_images(truth: TarArchive, sampling: TarArchive) -> list[BravoImage]:
    """The images with ground truth, sorted by name; DatasetError unless all of them are sampled."""
    found = [image for image in map(_image, truth.names) if image]
    if not found:
        raise DatasetError(f"{truth.path}: holds no ground truth of a BRAVO split; is it the right tar file?")
    known = set(sampled_bases(sampling))
    require_images(sampling, [image.base for image in found if image.base not in known], "no samples", len(found))
    return found


def _image(ids: str) -> BravoImage | None:
    """The image whose train ids a file holds; None if it is no such file."""
    ending, mask = truth_endings(split_of(ids) or "")
    base = ids.removesuffix(ending)
    subset = subset_of(base) if ids.endswith(ending) else None
    return BravoImage(base, subset, ids, f"{base}{mask}") if subset else None


def images_of(ground_truth: Path, samples: Path) -> list[BravoImage]:
    """The images with ground truth, sorted by name.

    Args:
        ground_truth: the challenge's tar file of train ids and invalid masks.
        samples: its sampling file.

    Raises:
        DatasetError: a tar file is none, or lacks images.
    """
    with TarArchive(ground_truth, "ground truth") as truth, TarArchive(samples, "a sampling file") as sampling:
        return labelled_images(truth, sampling)


def labels_of(ground_truth: Path, samples: Path, ids: str, size: tuple[int, int]) -> BravoLabels:
    """Read the labels of an image; the tar files stay open in this process.

    Args:
        ground_truth, samples: as of `images_of`.
        ids: the image's file of train ids.
        size: (H, W) of its predictions.

    Raises:
        DatasetError: as of `read_labels`, or there is no such image.
    """
    image = _image(ids)
    if image is None:
        raise DatasetError(f"{ground_truth}: {ids} holds no train ids of a BRAVO split")
    chosen = read_samples(opened(samples, "a sampling file"), image.base)
    return read_labels(opened(ground_truth, "ground truth"), image, chosen, [size])


def require_images(archive: TarArchive, missing: Sequence[str], what: str, count: int) -> None:
    """Raise DatasetError if the archive lacks something.

    Args:
        archive: the tar file.
        missing: images that it has none of.
        what: it has of them, such as ``no samples``.
        count: of the images with ground truth.
    """
    if missing:
        raise DatasetError(
            f"{archive.path}: has {what} of {len(missing)} of the {count} images that have ground truth "
            f"({first_few(missing, 2)}); is it of another release?"
        )


def stores_by_image(manifest: Manifest, bases: Sequence[str]) -> dict[str, tuple[tuple[MemberStore, ...], str]]:
    """Where the logits of each image lie: the members' stores, and its path in their dataset.

    Args:
        manifest: whose datasets have the names of the challenge's folders, such as ``bravo_ACDC``.
        bases: of the images.

    Raises:
        ManifestError: the manifest lacks one of the datasets.
        StoreError: stores are missing, or lack images.
    """
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
        found |= {f"{name}_valid": figures[name] for name in VALID}
    if subset in WITH_INVALID:
        figures = invalid.figures()
        found |= {f"{name}_ood": figures[name] for name in INVALID}
    return found


VALID = ("miou", "ece", "auroc", "auprc_success", "auprc_error", "fpr95", "iou")
"""Figures of valid pixels that the toolkit has; all but ``iou``, a list, enter the means."""
INVALID = ("auroc", "auprc", "fpr95")
"""Figures of how well low confidence finds invalid pixels."""


def summary(subsets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All figures under the toolkit's names, with the harmonic means and the index.

    ECE and FPR enter the means as 1 - x. A figure that is not defined makes every mean undefined that it enters.

    Args:
        subsets: of each subset, the figures of `figures_of`, or arrays (...) of such figures, which give arrays.
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


MEANS = ("bravo_index", "semantic_hmean", "ood_hmean")
"""Names of the harmonic means over several subsets."""


def subsets_of(mean: str) -> list[str]:
    """The subsets whose figures one of `MEANS` is the mean of."""
    semantic = [name for name in SUBSETS if name not in WITHOUT_CLASSES]
    odd = [name for name in SUBSETS if name in WITH_INVALID]
    return {"bravo_index": [*SUBSETS], "semantic_hmean": semantic, "ood_hmean": odd}[mean]
