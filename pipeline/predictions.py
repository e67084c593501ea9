"""Class maps and confidences on the disk: how they are named, and how they are read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..datasets.layouts import output_stem
from ..datasets.pixels import decode_grey, decode_rgb
from ..datasets.taxonomy import CLASS_NAMES
from ..errors import DatasetError, StoreError, first_few
from .places import listing, read_bytes

LABEL, CONFIDENCE = "_pred.png", "_conf.png"


def prediction_names(image: str) -> tuple[str, str]:
    """Class map and confidence of ``image`` (its path in the dataset), below the folder of its dataset."""
    stem = output_stem(image)
    return f"{stem}{LABEL}", f"{stem}{CONFIDENCE}"


def require_predictions(folder: Path, names: Sequence[str], called: str, mend: str) -> None:
    """See that all predictions are there, by one listing.

    Args:
        folder: of the predictions.
        names: files below it.
        called: all of them for people, such as "the 6 predictions that the labels call for".
        mend: what to do if some are missing.

    Raises:
        StoreError: some are missing, with their number; or the folder cannot be read.
    """
    try:
        there = {found.name for found in listing(folder)}
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if missing := [name for name in names if name not in there]:
        raise StoreError(f"{folder}: lacks {len(missing)} of {called} ({first_few(missing, 2)}); {mend}")


def read_prediction(folder: Path, names: tuple[str, str], *, checked: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Class map (H, W) uint8 and confidence (H, W) uint16; DatasetError as for `read_label`, or if sizes differ."""
    label, confidence = read_label(folder / names[0], checked=checked), read_confidence(folder / names[1])
    if label.shape != confidence.shape:
        sizes = [f"{pixels.shape[0]}x{pixels.shape[1]}" for pixels in (confidence, label)]
        raise DatasetError(f"{folder / names[1]}: is {sizes[0]}, its class map {sizes[1]}; make both again")
    return label, confidence


def read_label(path: Path, *, checked: bool = True) -> np.ndarray:
    """A class map.

    Args:
        path: of the file.
        checked: whether every pixel must be a train id; if not, `require_classes` is for those that are scored.

    Returns:
        (H, W) uint8.

    Raises:
        DatasetError: it is not there, damaged, or something else.
    """
    label = _decoded(path)
    if label.dtype != np.uint8:
        raise DatasetError(f"{path}: holds 16 bits a pixel, but a class map takes 8; is it the confidence?")
    if checked:
        require_classes(label, str(path))
    return label


def require_classes(label: np.ndarray, source: str, where: str = "") -> None:
    """Refuse ids that are no class.

    Args:
        label: any shape, uint8 train ids.
        source: which class map they are of, for people.
        where: which of its pixels they are, for people.

    Raises:
        DatasetError: there is one.
    """
    if (highest := int(label.max(initial=0))) >= len(CLASS_NAMES):
        raise DatasetError(
            f"{source}: holds class {highest}{where}, but predictions are train ids, 0 to {len(CLASS_NAMES) - 1}; "
            "if these are label ids (road 7), turn them into train ids (road 0) first"
        )


def read_confidence(path: Path) -> np.ndarray:
    """A confidence, (H, W) uint16; DatasetError as for `read_label`."""
    confidence = _decoded(path)
    if confidence.dtype != np.uint16:
        raise DatasetError(f"{path}: holds 8 bits a pixel, but confidences are stored in 16; make it again")
    return confidence


def read_photograph(path: Path, label: np.ndarray, exif: bool = False) -> np.ndarray:
    """The photograph (H, W, 3) uint8 of a class map (H, W), turned as EXIF says if ``exif``.

    Raises:
        DatasetError: it is damaged, or of another size.
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
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode_grey(content, path)
