"""One image of a report: its pictures, its figures, and what of both was made before.

How much members contradict one another is told in two ways. Pairwise disagreement is the share of pixels of which two
members say another class. Mutual information is H(sum w p) - sum w H(p), in nats, of each pixel: what is left of the
ensemble's entropy when that of the members is taken off (Smith and Gal, Understanding Measures of Uncertainty for
Adversarial Example Detection, UAI 2018, equation 3); 0 where they agree, log 2 where two camps are each sure.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.dataset_specs import DatasetSpec
from ...datasets.layout.folder_layout import located
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...errors import DatasetError, DiskError, StoreError, disk_error
from ...files import atomic_path
from ..config.manifest import FusionFunctions
from ..config.member import Member
from ..fusion.calibrated_logits import calibrated_logits
from ..fusion.fuse import STANDARDISED, quantise
from ..fusion.member_stores import ENSEMBLE, confidences_from_stores, fuse_members, open_store
from ..fusion.prediction_files import prediction_names, read_photograph, read_prediction
from ..fusion.prediction_sets import in_set
from ..pictures.colours import confidence_as_float
from ..runtime.device import one_thread
from ..scoring.figures.class_reliability import count_by_class
from ..scoring.figures.probabilities import ProbabilitySums
from ..scoring.figures.set_coverage import SetCoverage
from ..scoring.instance_masks import FIGURES as INSTANCES
from ..scoring.instance_masks import SIZES, instance_mask, read_instances
from ..scoring.pixel_counts import OPTIONAL, LabelledImage, OutlierImage, PixelCounts
from ..scoring.store_answers import FIGURES as PROBABILITIES
from ..storage.filesystem import version_tag
from ..store.logit_store import LogitStore
from ..text import without_nan
from .image_pictures import draw_pictures, draw_uncertainties
from .records import BINS, PICTURES, DatasetSetup, GalleryEntry, ImageSummary, Item

_FORMAT = 3
_ARRAYS = ("histogram", "disputes", "by_class", "sets")
_SUMMARY_FILE = "exhibit.npz"
_LEAST_SHARE = 0.0005


def load_cached(setup: DatasetSetup, item: Item) -> ImageSummary | None:
    """Load an image's cached summary; None if it is missing or incomplete, or one of its inputs changed."""
    try:
        # Opened here, because numpy leaves a damaged archive open.
        path = setup.folder / PICTURES / _key(setup, *item) / _SUMMARY_FILE
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            record = json.loads(str(arrays["said"]))
            counts = {
                name: PixelCounts(
                    one["ood"],
                    arrays[f"confusion{one['number']}"],
                    arrays[f"levels{one['number']}"].astype(np.int64),
                    one["images"],
                    **{key: arrays[f"{key}{one['number']}"] for key in one["optional"]},
                )
                for name, one in record.pop("counts").items()
            }
            record["size"] = tuple(record["size"])
            rest = {name: arrays[name] for name in _ARRAYS}
            return ImageSummary(GalleryEntry(**record), counts, **rest)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


@one_thread()
def summarise_image(setups: Sequence[DatasetSetup], item: tuple[int, Item]) -> ImageSummary | str:
    """Look at one image of one of the datasets, and draw its pictures; or why it cannot be.

    DiskError if a picture cannot be written.
    """
    setup, (image, pair) = setups[item[0]], item[1]
    try:
        folder = setup.folder / PICTURES / _key(setup, image, pair)
        try:
            return _summarise(setup, image, pair, folder)
        except OSError as error:
            raise disk_error(folder, error) from error
    except (DatasetError, StoreError) as error:
        if isinstance(error, DiskError):
            raise
        return str(error)


def _key(setup: DatasetSetup, image: str, pair: ImageMaskPair | None) -> str:
    """Another one if anything changed that the pictures and figures are made of."""
    sources = [located(setup.root, image), *(setup.predictions / name for name in prediction_names(image))]
    meaning: list[Any] = []
    if pair and setup.truth:
        sources.append(setup.truth.source(pair))
        if _has_instances(setup):
            sources.append(instance_mask(setup.truth.reader.root, pair))
        facts: DatasetSpec | None = getattr(setup.truth.reader, "source", None)
        meaning = [pair.encoding, facts and facts.mapping]
    for _, path in setup.members:
        store = open_store(path)
        shard = store.shard_path(store.index[image])
        sources += [shard] if shard else []
    numbers: list[Any] = [(member.name, member.weight, member.temperature) for member, _ in setup.members]
    numbers += [one.resolved() for member, _ in setup.members for one in member.calibration]
    if STANDARDISED in (setup.functions.confidence, *setup.confidences):
        numbers += [member.max_logits.resolved() for member, _ in setup.members if member.max_logits]
    functions = setup.functions.model_dump(mode="json")
    record = [_FORMAT, setup.dataset, image, setup.width, numbers, functions, meaning]
    record += [(str(path), version_tag(path)) for path in sources]
    record += [one for one in (setup.confidences, setup.thresholds) if one]
    if not setup.classes.is_default:
        record.append((setup.classes.names, setup.classes.colours))
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:20]


def _summarise(setup: DatasetSetup, image: str, pair: ImageMaskPair | None, folder: Path) -> ImageSummary:
    label, confidence = read_prediction(setup.predictions, prediction_names(image), setup.classes)
    size = (label.shape[0], label.shape[1])
    photograph = read_photograph(located(setup.root, image), label, setup.exif)
    truth = setup.truth.reader.read(pair, size) if setup.truth and pair else None
    pixels_of_class = np.bincount(label.ravel(), minlength=256)
    if truth is not None and setup.truth and not setup.truth.ood:
        pixels_of_class = np.maximum(pixels_of_class, np.bincount(truth.ravel(), minlength=256))
    entry = GalleryEntry(
        key=folder.name,
        size=size,
        layers=[],
        confidence=float(confidence_as_float(confidence).mean(dtype=np.float64)),
        disagreement=None,
        information=None,
        classes=np.flatnonzero(pixels_of_class[: len(setup.classes)] >= max(1, _LEAST_SHARE * label.size)).tolist(),
    )
    histogram = np.bincount((confidence.ravel() >> 10).astype(np.int64), minlength=BINS)
    summary = ImageSummary(entry, histogram=histogram)
    labelled = None
    if truth is not None and pair and setup.truth:
        instances = None
        if _has_instances(setup):
            instances = read_instances(setup.truth.reader.root, pair, truth.shape), SIZES
        labelled = setup.truth.labelled_image(truth, instances)
        counts = summary.counts[ENSEMBLE] = labelled.count(label, confidence)
        figures = without_nan(counts.figures())
        entry.ood, entry.wrong = counts.ood, figures["fpr95"]
        if not counts.ood:
            summary.by_class = count_by_class(label, confidence, truth, len(setup.classes))
            entry.wrong = None if figures["accuracy"] is None else 1 - figures["accuracy"]
    information = _compare_members(setup, image, truth, labelled, summary) if setup.members else None
    draw_pictures(setup, folder, summary, photograph, label, confidence, truth, information)
    if setup.confidences:
        _, maps = confidences_from_stores(setup.members, image, setup.functions.label, setup.confidences)
        draw_uncertainties(setup, folder, summary, maps)
    _save(folder, summary)
    return summary


def _has_instances(setup: DatasetSetup) -> bool:
    return setup.truth is not None and not setup.truth.ood and INSTANCES[0] not in setup.left_out


def _compare_members(
    setup: DatasetSetup,
    image: str,
    truth: np.ndarray | None,
    labelled: LabelledImage | OutlierImage | None,
    summary: ImageSummary,
) -> np.ndarray | None:
    """Look at every member; mutual information (H, W) float32, None if there is one member."""
    stores = [open_store(path) for _, path in setup.members]
    rows = [store.index[image] for store in stores]
    stored = stores[0].images[rows[0]]
    if summary.entry.size != (stored.height, stored.width):
        raise DatasetError(
            f"{stores[0].path}: holds {image} as {stored.height}x{stored.width}, its prediction is "
            f"{summary.entry.size[0]}x{summary.entry.size[1]}; fuse it again"
        )
    members = [member for member, _ in setup.members]
    sums = None
    if truth is not None and setup.truth and not setup.truth.ood and PROBABILITIES[0] not in setup.left_out:
        sums = _Sums(setup, truth)
    strips = [
        _fuse_strip(stores, rows, members, setup.functions, start, stop, sums)
        for start, stop in stores[0].strips(rows[0])
    ]
    labels = [np.concatenate([strip[0][i] for strip in strips]) for i in range(len(members))]
    confidences = [np.concatenate([strip[1][i] for strip in strips]) for i in range(len(members))]
    if labelled is not None:
        for member, label, confidence in zip(members, labels, confidences, strict=True):
            summary.counts[member.name] = labelled.count(label, confidence)
    if sums is not None:
        for name, counted in summary.counts.items():
            counted.losses, counted.classwise = sums.losses.losses[name], sums.losses.classwise[name]
        if sums.sets is not None:
            summary.sets = sums.sets.shares()
    if len(members) < 2:
        return None
    disputes = np.zeros((len(members), len(members)), np.int64)
    for i, j in combinations(range(len(members)), 2):
        disputes[i, j] = disputes[j, i] = np.count_nonzero(labels[i] != labels[j])
    information = np.concatenate([strip[2] for strip in strips])
    pairs = len(members) * (len(members) - 1)
    summary.disputes = disputes
    summary.entry.disagreement = float(disputes.sum() / pairs / labels[0].size)
    summary.entry.information = float(information.mean(dtype=np.float64))
    return information


class _Sums:
    """Sums over the probabilities of one image with labels of classes."""

    def __init__(self, setup: DatasetSetup, truth: np.ndarray) -> None:
        names = [ENSEMBLE, *(member.name for member, _ in setup.members)]
        self.losses = ProbabilitySums(truth, len(setup.classes), names)
        self.thresholds = setup.thresholds or ()
        self.sets = SetCoverage(truth, len(setup.classes)) if setup.thresholds else None

    def add_ensemble(self, rows: slice, probabilities: Tensor) -> None:
        """Add rows of the ensemble, (C, rows, W) float32."""
        self.losses.add(ENSEMBLE, rows, probabilities)
        if self.sets is not None:
            self.sets.add(rows, in_set(probabilities, self.thresholds))


def _fuse_strip(
    stores: Sequence[LogitStore],
    rows: Sequence[int],
    members: Sequence[Member],
    functions: FusionFunctions,
    start: int,
    stop: int,
    sums: _Sums | None,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Each member's class map and confidence, and the mutual information, of some rows.

    ``sums`` takes the probabilities of the members and of the ensemble; its function of the label is probable then.
    """
    labels, confidences = [], []
    total = sum(member.weight for member in members)
    mean: Tensor | None = None
    inner: Tensor | None = None
    mean_logits: Tensor | None = None
    for store, row, member in zip(stores, rows, members, strict=True):
        logits = torch.from_numpy(store.read(row, start, stop))
        fused = fuse_members([logits], [member], functions)
        labels.append(fused.label.numpy())
        confidences.append(quantise(fused.confidence).numpy())
        share = member.weight / total
        z = calibrated_logits(logits, member)
        p = z.softmax(0)
        if sums is not None:
            sums.losses.add(member.name, slice(start, stop), p)
            if functions.label == "mean-logit":
                mean_logits = z * share if mean_logits is None else mean_logits.add_(z, alpha=share)
        p.mul_(share)
        # The entropy of what is multiplied by w is w (H - log w).
        entropy = torch.special.entr(p).sum(0).add_(share * math.log(share))
        mean = p if mean is None else mean.add_(p)
        inner = entropy if inner is None else inner.add_(entropy)
    if mean is None or inner is None:
        raise ValueError("there is no member")
    if sums is not None:
        sums.add_ensemble(slice(start, stop), mean if mean_logits is None else mean_logits.softmax(0))
    return labels, confidences, (torch.special.entr(mean).sum(0) - inner).clamp_(min=0.0).numpy()


def _save(folder: Path, summary: ImageSummary) -> None:
    """Write the summary, after the pictures: where it exists, they do too."""
    record = asdict(summary.entry)
    arrays: dict[str, Any] = {name: getattr(summary, name) for name in _ARRAYS}
    record["counts"] = {
        name: {
            "ood": one.ood,
            "images": one.images,
            "number": number,
            "optional": [key for key in OPTIONAL if getattr(one, key) is not None],
        }
        for number, (name, one) in enumerate(summary.counts.items())
    }
    for number, one in enumerate(summary.counts.values()):
        arrays |= {f"confusion{number}": one.confusion, f"levels{number}": one.levels.astype(np.uint32)}
        arrays |= {f"{key}{number}": getattr(one, key) for key in OPTIONAL if getattr(one, key) is not None}
    with atomic_path(folder / _SUMMARY_FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, said=np.array(json.dumps(record)), **arrays)
