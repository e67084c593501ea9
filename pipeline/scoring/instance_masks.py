"""Cityscapes' masks of instances, which lie beside those of classes; its iIoU needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...datasets.decode.arrays import decode_grey
from ...datasets.labels.label_reader import LabelReader
from ...datasets.layout.folder_layout import located
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...datasets.taxonomy import CLASS_NAMES
from ...errors import DatasetError, cannot_read
from .figures.instances import MEAN_SIZES
from .ground_truth import GroundTruth

_CLASSES, _INSTANCES = "_gtFine_labelIds.png", "_gtFine_instanceIds.png"
FIGURES = ("iiou", "miiou")
"""Figures that need masks of instances."""
SIZES = {CLASS_NAMES.index(name): size for name, size in MEAN_SIZES.items()}
"""Train id of a class with instances -> mean size of its objects."""


def reason_without_instances(truth: GroundTruth) -> str | None:
    """Say why the iIoU of a dataset cannot be had; None if every image has a mask of instances."""
    reader = truth.reader
    if not isinstance(reader, LabelReader) or reader.source.name != "cityscapes" or not truth.classes.is_default:
        return "iIoU is defined for the 19 classes of Cityscapes' own labels"
    missing = [path for path in _paths(reader.root, truth.pairs) if path is None or not path.is_file()]
    if not missing:
        return None
    what = f"*{_INSTANCES}, which Cityscapes distributes in the archive of its masks"
    return f"{len(missing)} of {len(truth.pairs)} images have no {what}"


def _paths(root: Path, pairs: Sequence[ImageMaskPair]) -> list[Path | None]:
    return [
        located(root, pair.mask.removesuffix(_CLASSES) + _INSTANCES) if pair.mask.endswith(_CLASSES) else None
        for pair in pairs
    ]


def instance_mask(root: Path, pair: ImageMaskPair) -> Path:
    """The file of a pair's ids of instances; ValueError if its mask is not named as Cityscapes'."""
    (path,) = _paths(root, [pair])
    if path is None:
        raise ValueError(f"{pair.mask}: has no mask of instances")
    return path


def read_instances(root: Path, pair: ImageMaskPair, size: tuple[int, ...]) -> np.ndarray:
    """The ids of instances of a pair, (H, W) uint8 or uint16; DatasetError if they cannot be read.

    Args:
        root: of the dataset.
        pair: an image and its mask of classes.
        size: (H, W) of the mask.
    """
    path = instance_mask(root, pair)
    try:
        found = decode_grey(path.read_bytes(), path)
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
    if found.shape != size:
        raise DatasetError(f"{path}: is {found.shape[0]}x{found.shape[1]}, its mask of classes {size[0]}x{size[1]}")
    return found
