"""Ground truth of a dataset's pixels: their classes, or which are out of distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ...datasets.class_set import CITYSCAPES19, ClassSet
from ...datasets.class_set_labels import describe_labels
from ...datasets.dataset_specs import KNOWN_DATASETS
from ...datasets.labels.label_reader import LabelReader
from ...datasets.labels.outlier_masks import OutlierReader
from ...datasets.layout.folder_layout import located
from ...datasets.layout.image_mask_pairs import ImageMaskPair, labelled_pairs
from ...datasets.layout.outlier_sets import OUTLIERS
from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError
from ..config.manifest import DatasetEntry
from ..config.value_types import NamesOf
from ..submission.bravo_archives import TarArchive, base_of, opened, read_mask, split_of, truth_endings
from .averages import DATASET, PLAIN, Average, average_of
from .pixel_counts import CLASSES, LabelledImage, OutlierImage

LABELLED = NamesOf(KNOWN_DATASETS, OUTLIERS)
"""The types of dataset that have labels beside their photographs."""


def has_labels(entry: DatasetEntry) -> bool:
    """Say whether a dataset has labels: beside its photographs, or in a folder of masks."""
    return entry.type in LABELLED or entry.masks is not None


BRAVO = "bravo"
"""The type whose labels the challenge hands out as a tar file."""


class MaskReader(Protocol):
    """Reads masks of one dataset, each in a process of its own."""

    root: Path  # that the masks' paths are relative to

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) uint8 train ids, or 0 and 1 for ``ood``, 255 where nothing is known.

        DatasetError if the mask cannot be read, or is not of ``size``.
        """
        ...


@dataclass(frozen=True)
class GroundTruth:
    """A dataset's labels.

    Attributes:
        reader: of the masks.
        pairs: the images that have one, in the order of their paths.
        ood: whether the labels say what is out of distribution.
        average: which classes the mean IoU runs over.
        official: how many images the dataset's authors publish labels of; None if that is not known.
        unsure: whether ``official`` is what others say, and not the authors.
        track: whose smallest components count, see `OutlierSet.track`.
        left_out: images that have none and were to be left out, in the order of their paths.
        classes: whose ids the labels are.
    """

    reader: MaskReader
    pairs: tuple[ImageMaskPair, ...]
    ood: bool = False
    average: Average = PLAIN
    official: int | None = None
    unsure: bool = False
    track: str | None = None
    left_out: tuple[str, ...] = ()
    classes: ClassSet = CITYSCAPES19

    def without_pairs(self) -> GroundTruth:
        """Copy without the list of pairs: processes get it with one pair at a time."""
        return replace(self, pairs=(), left_out=())

    def source(self, pair: ImageMaskPair) -> Path:
        """The file that the mask is read from."""
        return self.reader.root if isinstance(self.reader, BravoMaskReader) else located(self.reader.root, pair.mask)

    def labelled_image(
        self, truth: np.ndarray, instances: tuple[np.ndarray, Mapping[int, float]] | None = None
    ) -> LabelledImage | OutlierImage:
        """The labels of one image, of which several predictions can be counted.

        Args:
            truth: (H, W) uint8, 255 where nothing is known.
            instances: as of `LabelledImage`; None for none.
        """
        classes = len(self.classes)
        return OutlierImage(truth, classes) if self.ood else LabelledImage(truth, classes, instances)


def load_ground_truth(
    entry: DatasetEntry,
    classes: ClassSet,
    limit: int | None = None,
    average: str = DATASET,
    *,
    allow_unlabelled: bool = False,
) -> dict[str | None, GroundTruth]:
    """The labels of a manifest's dataset, for each part that is scored on its own.

    Sets of which only that is labelled what is out of distribution have parts, such as the tracks of SMIYC: what
    is unlikely in one may be common in another, so their pixels are never pooled.

    Args:
        entry: one that `has_labels`.
        classes: whose ids the labels become.
        limit: of how many images, from the first; None for all.
        average: one of `averages.AVERAGES`.
        allow_unlabelled: leave out images that have no mask, whatever ``entry`` says of them.

    Returns:
        part -> its labels; None for a dataset without parts, or whose split is named.

    Raises:
        DatasetError: masks are missing, are not of these classes, or the folder is not as its layout says.
        ManifestError: the root holds an environment variable that is not set.
    """
    root = entry.root_path()
    if entry.type not in OUTLIERS:
        try:
            facts = describe_labels(entry.type, entry.mapping, entry.masks_path(), classes)
        except DatasetError as error:
            raise DatasetError(f"dataset '{entry.name}': {error}") from error
        pairs, left_out = labelled_pairs(
            root,
            entry.type,
            entry.split,
            leave_out=entry.without_masks,
            facts=facts,
            allow_unlabelled=allow_unlabelled or entry.allow_unlabelled,
        )
        kept, reader = tuple(pairs[:limit]), LabelReader(root, facts)
        mean = average_of(average, [facts], classes.names)
        return {None: GroundTruth(reader, kept, average=mean, left_out=tuple(left_out), classes=classes)}
    facts = OUTLIERS[entry.type]
    reader = OutlierReader(root, entry.type)
    found = reader.pairs(entry.split)
    first = set(sorted(pair.image for pairs in found.values() for pair in pairs)[:limit])
    truths: dict[str | None, GroundTruth] = {}
    for part, pairs in found.items():
        if kept := tuple(pair for pair in pairs if pair.image in first):
            official, unsure = facts.counts.get(part), facts.unsure
            truths[part] = GroundTruth(
                reader,
                kept,
                ood=True,
                official=official,
                unsure=unsure,
                track=facts.track(part),
                classes=classes,
            )
    if entry.split is None and facts.layout.default is None:
        return truths
    return {None: next(iter(truths.values()))}


class BravoMaskReader:
    """Reads BRAVO's ground truth: classes of valid pixels, or, of SMIYC, which pixels are invalid.

    Args:
        root: the tar file.
        dataset: the folder of the split, such as ``bravo_ACDC``.
    """

    def __init__(self, root: Path, dataset: str) -> None:
        self.root = root
        self._split = split_of(f"{dataset}/") or ""
        self._dataset = dataset

    @property
    def ood(self) -> bool:
        """True if the labels only say which pixels are invalid."""
        return self._split == "SMIYC"

    def pair(self, image: str) -> ImageMaskPair | None:
        """The image with its mask; None if it has none."""
        ids, _ = truth_endings(self._split)
        mask = f"{base_of(self._dataset, image)}{ids}"
        return ImageMaskPair(image, mask, "ids") if self._split and mask in self._archive() else None

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) uint8: train ids, 255 where a pixel is invalid or has no label; or 0, 1 and 255 if `ood`.

        DatasetError if a file is missing, damaged or something else, or not of ``size``.
        """
        archive = self._archive()
        ids_ending, invalid_ending = truth_endings(self._split)
        ids = read_mask(archive, pair.mask)
        invalid = read_mask(archive, f"{pair.mask.removesuffix(ids_ending)}{invalid_ending}")
        for mask in (ids, invalid):
            if size is not None and mask.shape != size:
                raise DatasetError(
                    f"{self.root}: {pair.mask} is {mask.shape[0]}x{mask.shape[1]}, its image {size[0]}x{size[1]}; "
                    "is it of another release?"
                )
        if ((ids >= CLASSES) & (ids != IGNORE)).any():
            raise DatasetError(
                f"{self.root}: {pair.mask} holds ids that are neither train ids nor {IGNORE}: label ids?"
            )
        if self.ood:
            return np.where(ids == IGNORE, IGNORE, invalid != 0).astype(np.uint8)
        return np.where(invalid != 0, IGNORE, ids).astype(np.uint8)

    def _archive(self) -> TarArchive:
        return opened(self.root, "ground truth")


def load_bravo_ground_truth(
    entry: DatasetEntry, images: list[str], ground_truth: Path, average: str = DATASET
) -> GroundTruth:
    """The labels of a dataset of BRAVO's.

    Args:
        entry: of the type `BRAVO`, named as the challenge names its folder.
        images: paths of its photographs.
        ground_truth: the challenge's tar file; DatasetError if it is none, or knows none of the images.
        average: one of `averages.AVERAGES`; the challenge's own is that over labelled or predicted classes.
    """
    reader = BravoMaskReader(ground_truth, entry.name)
    pairs = tuple(filter(None, map(reader.pair, images)))
    if not pairs:
        raise DatasetError(
            f"{ground_truth}: knows no image of {entry.name}; is the dataset named as the challenge names its "
            "folder, and the file of its release?"
        )
    return GroundTruth(reader, pairs, ood=reader.ood, average=average_of(average, ()))
