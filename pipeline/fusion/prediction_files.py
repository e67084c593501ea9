"""Class maps and confidences on the disk: their names, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...datasets.class_set import CITYSCAPES19, ClassSet
from ...datasets.decode.arrays import decode_grey, decode_rgb
from ...datasets.layout.find_images import list_images
from ...datasets.layout.folder_layout import output_stem
from ...errors import DatasetError, HmsaError, StoreError, cannot_read, first_few
from ..config.manifest import DatasetEntry
from ..storage.filesystem import listing, read_bytes
from ..storage.output_folder import own_folders

LABEL, CONFIDENCE = "_pred.png", "_conf.png"

CONFIDENCE_LEVELS = 65536
"""Confidences are stored as uint16; level c stands for (c + 0.5) / 65536."""


def prediction_names(image: str) -> tuple[str, str]:
    """Return the names of an image's class map and confidence below the folder of its dataset."""
    stem = output_stem(image)
    return f"{stem}{LABEL}", f"{stem}{CONFIDENCE}"


def count_photographs(entry: DatasetEntry, output: Path) -> int | None:
    """Count the photographs of a dataset, each of which is to get a prediction; None if they cannot be listed here.

    Args:
        entry: the dataset.
        output: the output folder, whose own files are no photographs.
    """
    try:
        return len(list_images(entry.root_path(), entry.type, entry.split, own_folders(output)))
    except HmsaError:  # they may be on the machine of the run only
        return None


def require_predictions(folder: Path, names: Sequence[str], called: str, fix: str) -> None:
    """Raise StoreError unless all predictions are there, by one listing.

    Args:
        folder: folder of the predictions.
        names: files below it.
        called: what they are, for people, such as "the 6 predictions that the labels call for".
        fix: what the user should do if some are missing.
    """
    try:
        there = {found.name for found in listing(folder)}
    except OSError as error:
        raise StoreError(cannot_read(folder, error)) from error
    if missing := [name for name in names if name not in there]:
        raise StoreError(f"{folder}: lacks {len(missing)} of {called} ({first_few(missing, 2)}); {fix}")


def read_prediction(
    folder: Path, names: tuple[str, str], classes: ClassSet | None = CITYSCAPES19
) -> tuple[np.ndarray, np.ndarray]:
    """Read a class map (H, W) uint8 and its confidence (H, W) uint16; DatasetError if they do not fit each other.

    Args:
        folder: of the predictions.
        names: of the class map and of the confidence below it.
        classes: see `read_label`.
    """
    label, confidence = read_label(folder / names[0], classes), read_confidence(folder / names[1])
    if label.shape != confidence.shape:
        sizes = [f"{pixels.shape[0]}x{pixels.shape[1]}" for pixels in (confidence, label)]
        raise DatasetError(f"{folder / names[1]}: is {sizes[0]}, its class map {sizes[1]}; make both again")
    return label, confidence


def read_label(path: Path, classes: ClassSet | None = CITYSCAPES19) -> np.ndarray:
    """Read a class map, (H, W) uint8; DatasetError if it is missing, damaged, or no class map.

    Every pixel must be one of ``classes``; with None, use `require_classes` for the pixels that are scored.
    """
    label = _decoded(path)
    if label.dtype != np.uint8:
        raise DatasetError(f"{path}: holds 16 bits a pixel, but a class map takes 8; is it the confidence?")
    if classes is not None:
        require_classes(label, str(path), classes)
    return label


def require_classes(label: np.ndarray, source: str, classes: ClassSet = CITYSCAPES19, where: str = "") -> None:
    """Raise DatasetError if an id is no class.

    Args:
        label: uint8 train ids, of any shape.
        source: the class map that they are from, for people.
        classes: those that there are.
        where: the pixels that they are from, for people.
    """
    if (highest := int(label.max(initial=0))) < len(classes):
        return
    if classes.is_default:
        raise DatasetError(
            f"{source}: holds class {highest}{where}, but predictions are train ids, 0 to {len(classes) - 1}; "
            "if these are label ids (road 7), turn them into train ids (road 0) first"
        )
    raise DatasetError(
        f"{source}: holds class {highest}{where}, but the manifest's classes ({classes}) end at {len(classes) - 1}; "
        "choose the 'classes' that it was made with"
    )


def read_confidence(path: Path) -> np.ndarray:
    """Read a confidence, (H, W) uint16; DatasetError if it is missing, damaged, or no confidence."""
    confidence = _decoded(path)
    if confidence.dtype != np.uint16:
        raise DatasetError(f"{path}: holds 8 bits a pixel, but confidences are stored in 16; make it again")
    return confidence


def read_photograph(path: Path, label: np.ndarray, exif: bool = False) -> np.ndarray:
    """Read the photograph (H, W, 3) uint8 of a class map; DatasetError if it is damaged, or of another size.

    Args:
        path: of the photograph.
        label: its class map (H, W).
        exif: turn it as its EXIF orientation says.
    """
    photograph = decode_rgb(path, exif)
    if photograph.shape[:2] != label.shape:
        sizes = [f"{pixels.shape[0]}x{pixels.shape[1]}" for pixels in (photograph, label)]
        raise DatasetError(f"{path}: is {sizes[0]}, its prediction {sizes[1]}; predict it again")
    return photograph


def _decoded(path: Path) -> np.ndarray:
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such prediction; make it with 'hmsa-pipeline ensemble'") from None
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
    return decode_grey(content, path)
