"""A folder of predictions: what lies there already, made in which way, and how it is begun, filled and cleared."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import StoreError, disk_error
from ..files import is_partial
from .fusion_record import RECORD, changes, read_record, same_work
from .lock import writer_lock
from .places import listing, read_bytes, remove, remove_all, size, write_bytes, write_json
from .predictions import CONFIDENCE, LABEL, prediction_names

PHOTOGRAPHS = "photographs"
"""The folder beside that of all predictions in which it is noted how large the photographs were."""
_ASKERS = 8


def require_same_work(folder: Path, before: dict[str, Any], record: dict[str, Any]) -> None:
    """Raise StoreError if the predictions in ``folder``, of which ``before`` tells, are not those of ``record``."""
    if before and not same_work(before, record):
        raise StoreError(
            f"{folder}: holds predictions made in another way ({changes(before, record)}); "
            "choose another --output, or make them again with --overwrite"
        )


def existing_predictions(folder: Path) -> dict[str, int]:
    """Below ``folder`` the name of every PNG -> when it was written, in nanoseconds; StoreError without rights."""
    try:
        return {found.name: found.modified for found in listing(folder) if found.name.endswith(".png")}
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read ({error.strerror or error})") from error


def require_unchanged(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise StoreError if photographs are not as large as when they were predicted.

    Args:
        folder: of the predictions.
        sizes: image that has a prediction -> bytes of its photograph now.
    """
    noted = _noted(folder)
    changed = [image for image, now in sizes.items() if noted.get(image, now) != now]
    if changed:
        raise StoreError(
            f"{folder}: {len(changed)} photographs have another size in bytes than when they were "
            f"predicted (first: {changed[0]}); put the old files back, or start over with --overwrite"
        )


def note_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Keep for `require_unchanged` how many bytes photographs have; the caller holds the folder's lock."""
    before = _noted(folder)
    now = {**before, **sizes}
    if now != before:
        write_json(_note(folder), now)


def _note(folder: Path) -> Path:
    return folder.parent.parent / PHOTOGRAPHS / f"{folder.name}.json"


def _noted(folder: Path) -> dict[str, int]:
    path = _note(folder)
    try:
        value = json.loads(read_bytes(path))
        if not isinstance(value, dict) or not all(isinstance(size, int) for size in value.values()):
            raise ValueError("it is no list of sizes")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError) as error:
        raise StoreError(
            f"{path}: cannot be read ({error}); remove it if the photographs are those that were predicted"
        ) from error
    return value


def without_prediction(folder: Path, images: Iterable[str]) -> list[str]:
    """Those of the images whose class map, which is written last, is not there."""
    with ThreadPoolExecutor(_ASKERS) as pool:  # an object store answers in its own time
        images = list(images)
        there = pool.map(lambda image: size(folder / prediction_names(image)[0]), images)
        return [image for image, found in zip(images, there, strict=True) if found is None]


def begin_predictions(
    folder: Path, record: dict[str, Any], partial: Mapping[str, Sequence[str]], images: Iterable[str]
) -> None:
    """Bring a folder, whose lock the caller holds, to where the first prediction can be written.

    Args:
        folder: of the predictions.
        record: what they are made of, see `fusion_record.describe`.
        partial: images that are, or will be, fused from fewer than all members -> names of those that take part.
        images: those that will be made; what lies there of them is removed.

    Raises:
        StoreError: another run has begun other predictions there meanwhile.
    """
    before = read_record(folder)
    if before and not same_work(before, record):
        raise StoreError(
            f"{folder}: another run has just begun predictions made in another way "
            f"({changes(before, record)}); choose another --output"
        )
    # Before the record, which will no longer say that they lack a member or are older than their logits.
    stale = {prediction_names(image)[0] for image in images}
    _sweep(folder, lambda name: is_partial(name) or name in stale)
    # Before the first prediction: one that lies there without its line in the record would later pass
    # for one of all members.
    record = {**record, "partial": dict(partial)}
    if before != record:
        write_json(folder / RECORD, record)


def write_prediction(folder: Path, image: str, label: np.ndarray, confidence: np.ndarray) -> None:
    """Write an image's two files, the class map last: it says that both are there.

    Args:
        folder: of the predictions.
        image: its path in the dataset.
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
    """
    label_name, confidence_name = prediction_names(image)
    for name, pixels in ((confidence_name, confidence), (label_name, label)):
        png = io.BytesIO()
        # Run lengths and Huffman's code: a third faster than looking for matches, and here smaller, too.
        Image.fromarray(pixels).save(png, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
        write_bytes(folder / name, png.getbuffer())


def remove_predictions(folder: Path) -> None:
    """Remove all predictions and their record; StoreError if somebody works there."""
    try:
        with writer_lock(folder):
            remove(folder / RECORD)
            remove(_note(folder))
            _sweep(folder, lambda name: name.endswith((LABEL, CONFIDENCE)))
    except OSError as error:
        raise disk_error(folder, error) from error


def _sweep(folder: Path, unwanted: Callable[[str], bool]) -> None:
    remove_all(folder, [found.name for found in listing(folder) if unwanted(found.name)])
