"""Changes of a store's table of images when its dataset has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .image_table import BYTES, CHUNK_ROWS, FIELDS, HEIGHT, ROW, WIDTH, ImageTable, Photograph, rows_per_array


@dataclass(frozen=True)
class TableUpdate:
    """How the table of images has to change to list a dataset as it is now.

    New images are appended, in the order given. The row of an image whose file changed is renewed in place, as long
    as no logits are stored for it.

    Attributes:
        rows: (P,) int64: where each photograph stands in the table as it was, -1 for a new one.
        known: `FIELDS` of the table as it was, (N, 4) int64.
        renewed: row of the table -> its new `FIELDS`.
        paths: of the new images.
        numbers: `FIELDS` of the new images, (K, 4) int64.
        changed: paths of images that changed although logits of their old content are stored.
    """

    rows: np.ndarray
    known: np.ndarray
    renewed: dict[int, tuple[int, ...]]
    paths: list[str]
    numbers: np.ndarray
    changed: list[str]

    @property
    def taken(self) -> np.ndarray:
        """`FIELDS` of the images that get a place in an array which they did not have, (K, 4) int64."""
        moved = [
            numbers for row, numbers in self.renewed.items() if (self.known[row, HEIGHT:] != numbers[HEIGHT:]).any()
        ]
        found = np.concatenate([np.array(moved, np.int64).reshape(-1, len(FIELDS)), self.numbers])
        return found[found[:, ROW] >= 0]

    @property
    def total(self) -> np.ndarray:
        """`FIELDS` of the table as it will be, (N + K, 4) int64."""
        found = np.concatenate([self.known, self.numbers])
        for row, numbers in self.renewed.items():
            found[row] = numbers
        return found


def update_table(
    images: ImageTable, photographs: Sequence[Photograph], are_complete: Callable[[np.ndarray], np.ndarray]
) -> TableUpdate:
    """Find out how the table has to change.

    Args:
        images: the table as it is.
        photographs: the dataset as it is now; no path twice.
        are_complete: says of images, given by their `FIELDS` (K, 4) int64, whether logits are stored, (K,) bool.
    """
    rows = images.locate([photo.path for photo in photographs])
    known = images.numbers()
    sizes = np.fromiter((photo.bytes for photo in photographs), np.int64, len(photographs))
    is_known = rows >= 0
    differs = ~is_known
    differs[is_known] = (known[rows[is_known], BYTES] != sizes[is_known]) | (known[rows[is_known], ROW] < 0)
    # A damaged header may have been repaired without a change of the file's size.
    todo = [i for i in np.flatnonzero(differs).tolist() if not _is_listed(photographs[i], int(rows[i]), known)]
    seen = rows[[i for i in todo if rows[i] >= 0]]
    complete = dict(zip(seen.tolist(), are_complete(known[seen]).tolist(), strict=True))
    next_rows = rows_per_array(known)
    renewed: dict[int, tuple[int, ...]] = {}
    changed: list[str] = []
    paths: list[str] = []
    new: list[np.ndarray] = []
    for start in range(0, len(todo), CHUNK_ROWS):
        appended = []
        for i in todo[start : start + CHUNK_ROWS]:
            photo, row = photographs[i], int(rows[i])
            if row < 0:
                paths.append(photo.path)
                appended.append(_placed(photo, None, next_rows))
            elif complete[row]:
                changed.append(photo.path)
            else:
                renewed[row] = _placed(photo, known[row], next_rows)
        new.append(np.array(appended, np.int64).reshape(-1, len(FIELDS)))
    numbers = np.concatenate([np.empty((0, len(FIELDS)), np.int64), *new])
    return TableUpdate(rows, known, renewed, paths, numbers, changed)


def _is_listed(photo: Photograph, row: int, known: np.ndarray) -> bool:
    """Say whether the table lists a photograph as it is."""
    if row < 0:
        return False
    return bool(known[row, BYTES] == photo.bytes) and (bool(known[row, ROW] >= 0) or photo.size is None)


def _placed(photo: Photograph, known: np.ndarray | None, next_rows: dict[str, int]) -> tuple[int, ...]:
    """Make the image's `FIELDS`: in the place it had, or in the next free one of its size."""
    if photo.size is None:
        return photo.bytes, -1, -1, -1
    height, width = photo.size
    if known is not None and (known[HEIGHT], known[WIDTH]) == photo.size:
        return photo.bytes, height, width, int(known[ROW])
    array = f"{height}x{width}"
    row = next_rows.get(array, 0)
    next_rows[array] = row + 1
    return photo.bytes, height, width, row
