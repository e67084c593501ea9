"""The labelled pixels that calibration looks at: of which images, and their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ....datasets.dataset_specs import KNOWN_DATASETS
from ....datasets.labels.label_reader import LabelReader
from ....datasets.layout.image_mask_pairs import ImageMaskPair, without_masks
from ....datasets.taxonomy import IGNORE
from ....errors import DatasetError, ManifestError, StoreError, first_few
from ...config.manifest import Manifest
from ...config.yaml_document import MAX_VALUES
from ...fusion.member_stores import require_store_classes, voting_members
from ...runtime.ordered_threads import map_in_order
from ...runtime.progress import Progress, say
from ...storage.output_folder import store_path
from ...store.logit_store import LogitStore
from ..averages import DATASET, average_of
from ..ground_truth import GroundTruth, load_ground_truth
from .temperature_fit import LabelledPixels


@dataclass(frozen=True)
class CalibrationImage:
    """One image of a dataset, whose logits are stored and whose labels are known."""

    dataset: str
    truth: GroundTruth
    pair: ImageMaskPair
    stores: tuple[LogitStore, ...]


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
        found += [CalibrationImage(entry.name, truth, pair, stores) for pair in truth.pairs]
    if len(found) < 2:
        mend = "raise --limit" if limit else "label more images"
        raise StoreError(
            f"{', '.join(entry.name for entry in entries)}: {len(found)} labelled image{'' if found else 's'}, and "
            f"two are needed: one to fit to, and one to judge by; {mend}, or name more datasets with labels"
        )
    return found


def by_dataset(images: Sequence[CalibrationImage]) -> dict[str | None, list[CalibrationImage]]:
    """Divide images by their datasets; StoreError if one has a single image, which cannot be fitted to and judge."""
    found: dict[str | None, list[CalibrationImage]] = {}
    for image in images:
        found.setdefault(image.dataset, []).append(image)
    for name, some in found.items():
        if len(some) < 2:
            raise StoreError(
                f"{name}: 1 labelled image, and --per-dataset needs two of each dataset: one to fit to, and one to "
                "judge by; raise --limit, leave this dataset out of --datasets, or leave out --per-dataset"
            )
    return found


def require_room(manifest: Manifest, method: str, entries: int) -> None:
    """Raise ManifestError if the numbers of a method are more than a manifest can hold.

    Args:
        manifest: that is calibrated.
        method: of calibration.
        entries: for how many datasets there are numbers of their own.
    """
    classes = len(manifest.class_set)
    each = {"vector": 2 * classes, "class-conditional": classes, "dirichlet": (classes + 2) * classes}.get(method, 0)
    needed = each * entries * len(voting_members(manifest))
    if needed > MAX_VALUES // 2:
        raise ManifestError(
            f"--method {method}: {needed} numbers for {classes} classes are more than a manifest can hold; "
            "use vector, fewer --models, or no --per-dataset"
        )


def gather_pixels(
    images: Sequence[CalibrationImage], chosen: Sequence[int], each: int, seed: int, progress: Progress
) -> LabelledPixels:
    """Read logits and labels of some pixels of every chosen image, drawn evenly.

    Args:
        images: of `plan_calibration`.
        chosen: positions of those to read.
        each: pixels of an image, at most.
        seed: of the drawing.
        progress: is advanced by each image.

    Raises:
        StoreError: logits cannot be read.
        DatasetError: masks cannot be read, or label nothing.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    parts: list[tuple[str, int]] = []
    for number, (z, y) in map_in_order(lambda number: _sample_image(images[number], each, [seed, number]), chosen):
        logits.append(z)
        labels.append(y)
        parts.append((images[number].dataset, len(y)))
        progress.advance()
    found = LabelledPixels(torch.cat(logits, 1), torch.cat(labels), len(chosen), tuple(parts))
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
