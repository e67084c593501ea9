"""Reads what is out of distribution in the images of one of `outliers.OUTLIERS`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ...errors import DatasetError, first_few
from ..dataset_specs import UNKNOWN
from ..decode.arrays import decode_ids
from ..layout.find_images import list_images
from ..layout.folder_layout import PlacedImage, names_in
from ..layout.image_mask_pairs import ImageMaskPair
from ..layout.outlier_sets import LOST_AND_FOUND_ENDING, OUTLIERS, VALUES


class OutlierReader:
    """Reads the masks of one dataset of a type in `OUTLIERS`; small enough to be sent to worker processes."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name

    def pairs(self, split: str | None) -> dict[str | None, list[ImageMaskPair]]:
        """The images that have a mask, sorted, for each split that holds one; a split that is named alone.

        Raises:
            DatasetError: no image has a mask, or the folder is not as its layout says.
        """
        found: dict[str | None, list[ImageMaskPair]] = {}
        names: dict[str, frozenset[str]] = {}
        for image in list_images(self.root, self.name, split):
            if (pair := self._pair(image, names)) is not None:
                found.setdefault(image.split, []).append(pair)
        if not found:
            where, _, more = OUTLIERS[self.name].hint.partition("; ")
            raise DatasetError(f"{self.root}: no image has a mask ({where})" + (f"; {more}" if more else ""))
        return found

    def _pair(self, image: PlacedImage, names: dict[str, frozenset[str]]) -> ImageMaskPair | None:
        for path, encoding in _places(self.name, image):
            folder, _, file = path.rpartition("/")
            if folder not in names:
                names[folder] = names_in(self.root / folder)
            there = file if file in names[folder] else next(_matching(file, names[folder]), None)
            if there:
                return ImageMaskPair(image.path, f"{folder}/{there}", encoding)
        return None

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) uint8: 0 in distribution, 1 out of it, 255 where nothing is known.

        Raises:
            DatasetError: the mask is missing, damaged, another image's, or holds other values than its dataset's.
        """
        path = self.root / pair.mask
        mask = decode_ids(path)
        if size is not None and mask.shape != size:
            raise DatasetError(
                f"{path}: is {mask.shape[0]}x{mask.shape[1]}, its image {size[0]}x{size[1]}; unpack both again"
            )
        values = VALUES[pair.encoding]
        table = np.full(256, UNKNOWN, np.uint8)
        table[[*values]] = [*values.values()]
        found = np.take(table, mask)
        if (found == UNKNOWN).any():
            odd = first_few(np.unique(mask[found == UNKNOWN]))
            raise DatasetError(
                f"{path}: holds other values than {_range(values)} ({odd}); is it the mask of ids of "
                f"{OUTLIERS[self.name].title}, and of this set?"
            )
        return found


def _places(name: str, image: PlacedImage) -> Iterator[tuple[str, str]]:
    """Where the mask of ``image`` may lie, and its encoding there, in the order of preference."""
    masks = OUTLIERS[name].masks
    folder = image.path.removesuffix(image.path.rpartition("/")[2]).removesuffix(image.below)
    fields = {
        "folder": folder.rstrip("/").rpartition("/")[0] + "/" if "/" in folder.rstrip("/") else "",
        "split": image.split,
        "below": image.below,
        "stem": image.stem,
        "frame": image.stem.removesuffix(LOST_AND_FOUND_ENDING),
    }
    for path, encoding in masks.get(image.split, masks.get(None, ())):
        yield path.format(**fields), encoding


def _matching(file: str, names: frozenset[str]) -> Iterator[str]:
    """Names that differ from ``file`` in the number that it leaves open with a star."""
    if file.startswith("*"):
        pattern = re.compile(rf"\d+{re.escape(file[1:])}")
        yield from sorted(filter(pattern.fullmatch, names))


def _range(values: Mapping[int, int]) -> str:
    *first, last = sorted(values)
    return f"{', '.join(map(str, first))} and {last}" if len(first) < 4 else f"{first[0]} to {first[-1]} and {last}"
