"""Masks in COCO's panoptic format: colours are segments, and a JSON file beside says what each segment shows.

Kirillov et al., CVPR 2019 (arXiv 1801.00868); the format is described at https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DatasetError, cannot_read
from ..decode.arrays import decode_colours
from .json_file import read_json

NO_SEGMENT = 0
"""The category of pixels whose colour is no segment of the picture."""

_Segments = tuple[NDArray[np.uint32], NDArray[np.uint8]]


def read_categories(mask: Path, beside: Path) -> NDArray[np.uint8]:
    """Read the category of each pixel of a panoptic mask: (H, W) uint8, `NO_SEGMENT` where there is none.

    The mask is a PNG in colours; the id of a segment is R + 256 G + 65536 B. The JSON file of all masks stands beside
    it, and is parsed once in a process.

    Raises:
        DatasetError: one of the files is missing or damaged; the JSON file says nothing about this mask.
    """
    pictures = _parsed(beside, _version(beside))
    if mask.name not in pictures:
        raise DatasetError(f"{beside}: says nothing about {mask.name}; unpack both from the same archive")
    ids, categories = pictures[mask.name]
    colours = decode_colours(mask)
    segments = colours[..., 0].astype(np.uint32)
    segments |= colours[..., 1].astype(np.uint32) << 8
    segments |= colours[..., 2].astype(np.uint32) << 16
    flat = segments.ravel()
    if not ids.size:
        return np.full(segments.shape, NO_SEGMENT, np.uint8)
    # Neighbours mostly are of one segment: looking up runs takes a sixth of the time that pixels take.
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    of_runs = flat[starts]
    places = np.searchsorted(ids, of_runs).clip(max=ids.size - 1)
    values = np.where(ids[places] == of_runs, categories[places], np.uint8(NO_SEGMENT))
    return np.repeat(values, np.diff(starts, append=flat.size)).reshape(segments.shape)


def _version(path: Path) -> tuple[int, int]:
    """Changes where the file does."""
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=2)
def _parsed(path: Path, version: tuple[int, int]) -> dict[str, _Segments]:
    """Name of each mask -> ids of its segments, ascending, and their categories."""
    content = read_json(path)
    try:
        return {picture["file_name"]: _segments(picture["segments_info"]) for picture in content["annotations"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{path}: is not in COCO's panoptic format: it needs annotations with file_name and segments_info, "
            f"each with an id below 2^24 and a category_id up to 255 ({type(error).__name__}: {error})"
        ) from error


def _segments(infos: list[dict[str, Any]]) -> _Segments:
    by_id = {info["id"]: info["category_id"] for info in infos}
    ids = sorted(by_id)
    if not all(type(n) is int for pair in by_id.items() for n in pair):
        raise TypeError("an id is no whole number")
    return np.array(ids, np.uint32), np.array([by_id[n] for n in ids], np.uint8)
