"""Folder of a dataset's predictions: checks of existing ones, and how it is begun, filled and cleared."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import StoreError, cannot_read, disk_error
from ...files import is_partial
from ..storage.filesystem import (
    listing,
    read_bytes,
    remove,
    remove_all,
    remove_partials,
    size,
    write_bytes,
    write_json,
)
from ..storage.output_folder import image_sizes_path
from ..storage.writer_lock import writer_lock
from .ensemble_record import RECORD, changes, read_record
from .grey_png import encode_png
from .prediction_files import CONFIDENCE, LABEL, prediction_names

_THREADS = 8


def require_same_work(folder: Path, before: dict[str, Any], record: dict[str, Any]) -> None:
    """Raise StoreError if existing predictions were made in another way.

    Args:
        folder: folder of the predictions.
        before: their record, empty if there are none.
        record: that of the predictions that are to be made.
    """
    if before and (changed := changes(before, record)):
        raise StoreError(
            f"{folder}: holds predictions made in another way ({changed}); "
            "choose another --output, or make them again with --overwrite"
        )


def existing_predictions(folder: Path) -> dict[str, int]:
    """Return name -> time of writing, in ns, of every PNG below ``folder``; StoreError if it cannot be read."""
    try:
        return {found.name: found.modified for found in listing(folder) if found.name.endswith(".png")}
    except OSError as error:
        raise StoreError(cannot_read(folder, error)) from error


def require_unchanged(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise StoreError if photographs have another size in bytes than when they were predicted.

    ``sizes`` are those of now, of the images that have a prediction in ``folder``.
    """
    noted = _read_sizes(folder)
    changed = [image for image, now in sizes.items() if noted.get(image, now) != now]
    if changed:
        raise StoreError(
            f"{folder}: {len(changed)} photographs have another size in bytes than when they were "
            f"predicted (first: {changed[0]}); put the old files back, or start over with --overwrite"
        )


def note_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Keep the sizes of photographs, in bytes, for `require_unchanged`; the caller holds the folder's lock."""
    before = _read_sizes(folder)
    now = {**before, **sizes}
    if now != before:
        write_json(image_sizes_path(folder), now)


def _read_sizes(folder: Path) -> dict[str, int]:
    path = image_sizes_path(folder)
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
    """Return the images whose class map is missing; it is written after the confidence."""
    with ThreadPoolExecutor(_THREADS) as pool:  # an object store takes its time to answer
        images = list(images)
        there = pool.map(lambda image: size(folder / prediction_names(image)[0]), images)
        return [image for image, found in zip(images, there, strict=True) if found is None]


def begin_predictions(
    folder: Path, record: dict[str, Any], partial: Mapping[str, Sequence[str]], images: Iterable[str]
) -> None:
    """Prepare a folder, whose lock the caller holds, for the first prediction.

    Args:
        folder: folder of the predictions.
        record: their record, see `make_record`.
        partial: images that are, or will be, fused from fewer than all members -> names of those that take part.
        images: images that will be made; their old predictions are removed.

    Raises:
        StoreError: another run has begun other predictions there meanwhile.
    """
    before = read_record(folder)
    if before and (changed := changes(before, record)):
        raise StoreError(
            f"{folder}: another run has just begun predictions made in another way ({changed}); "
            "choose another --output"
        )
    # Before the record, which will no longer say that they lack a member.
    stale = {prediction_names(image)[0] for image in images}
    _sweep(folder, lambda name: is_partial(name) or name in stale)
    # Before the first prediction: without its line in the record a partial one would later pass for a full one.
    record = {**record, "partial": dict(partial)}
    if before != record:
        write_json(folder / RECORD, record)


def write_prediction(folder: Path, image: str, label: np.ndarray, confidence: np.ndarray) -> None:
    """Write an image's two files, the class map last: it says that both are there.

    Args:
        folder: folder of the predictions.
        image: its path in the dataset.
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
    """
    label_name, confidence_name = prediction_names(image)
    for name, pixels in ((confidence_name, confidence), (label_name, label)):
        write_bytes(folder / name, encode_png(pixels))


def remove_predictions(folder: Path) -> None:
    """Remove all predictions and their record; StoreError if the folder is in use."""
    try:
        with writer_lock(folder):
            remove(folder / RECORD)
            remove(image_sizes_path(folder))
            _sweep(folder, lambda name: name.endswith((LABEL, CONFIDENCE)))
    except OSError as error:
        raise disk_error(folder, error) from error


def _sweep(folder: Path, unwanted: Callable[[str], bool]) -> None:
    remove_all(folder, [found.name for found in listing(folder) if unwanted(found.name)])


class PredictionJob:
    """Base of the jobs that fill a dataset's folder of predictions; for ``key`` see `Job.key`."""

    def __init__(self, dataset: str, folder: Path, key: str) -> None:
        self.name, self.key, self._folder = dataset, key, folder
        self._held = contextlib.ExitStack()

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        """Return the images whose prediction is missing."""
        return without_prediction(self._folder, paths)

    def sweep(self) -> None:
        """Remove files that dead writers left."""
        remove_partials(self._folder)

    def close(self) -> None:
        """Release the lock."""
        self._held.close()
