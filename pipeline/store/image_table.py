"""The table of images of a store: its rows, how they are checked, and how new images are appended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ImageEntry:
    """One row of a store's table of images.

    Attributes:
        path: the image file, relative to the dataset's root, with ``/``.
        bytes: size of the image file.
        height, width: in pixels; None, as ``array`` and ``row``, for a file whose header cannot be read. Such an
            image has no place in an array and is never complete.
        array: name of the array of its size, ``HxW``.
        row: index along the array's first axis.
    """

    path: str
    bytes: int
    height: int | None
    width: int | None
    array: str | None
    row: int | None

    @property
    def pixels(self) -> int:
        """Number of pixels; 0 for a file whose header cannot be read."""
        return (self.height or 0) * (self.width or 0)


@dataclass(frozen=True)
class Photograph:
    """An image file of a dataset, as it is now.

    Attributes:
        path: relative to the dataset's root, with ``/``.
        bytes: size of the file.
        size: (height, width) in pixels; None if it cannot be decoded.
        turned: True if EXIF asks viewers to turn the stored pixels; False too where nobody looked.
    """

    path: str
    bytes: int
    size: tuple[int, int] | None
    turned: bool = False


def images_from_json(rows: Iterable[Mapping[str, Any]]) -> list[ImageEntry]:
    """Read the table of images from a group's attributes.

    Raises:
        ValueError: an image lacks its path or size, its path would lead out of the output folder, an image is
            listed twice, or two images share a row of an array.
    """
    try:
        images = [ImageEntry(**row) for row in rows]
    except TypeError as error:
        raise ValueError(f"the table of images: {error}") from error
    check_images(images)
    return images


def check_images(images: Iterable[ImageEntry]) -> None:
    """Raise ValueError for a table that `images_from_json` refuses."""
    paths: set[str] = set()
    places: set[tuple[str, int]] = set()
    for entry in images:
        if not isinstance(entry.path, str) or not isinstance(entry.bytes, int):
            raise ValueError(f"image {entry.path!r} of {entry.bytes!r} bytes")
        if _escapes_folder(entry.path):
            raise ValueError(f"image {entry.path!r} leaves the output folder")
        if entry.path in paths:
            raise ValueError(f"image {entry.path!r} is listed twice")
        paths.add(entry.path)
        if (entry.height, entry.width, entry.array, entry.row) == (None, None, None, None):
            continue
        height, width, row = (n if isinstance(n, int) else -1 for n in (entry.height, entry.width, entry.row))
        place = f"{height}x{width}", row
        if height < 1 or width < 1 or row < 0 or entry.array != place[0]:
            raise ValueError(
                f"image {entry.path!r} of {entry.height!r} x {entry.width!r} in row {entry.row!r} of {entry.array!r}"
            )
        if place in places:
            raise ValueError(f"image {entry.path!r} shares row {row} of {entry.array} with another")
        places.add(place)


def _escapes_folder(path: str) -> bool:
    """Say whether a relative path leads out of the folder it is joined to, here or on another system."""
    if path.startswith(("/", "\\")) or not path.strip("./") or "\0" in path:
        return True
    return ".." in path and ".." in re.split(r"[/\\]", path)


def rows_per_array(images: Iterable[ImageEntry]) -> dict[str, int]:
    """Count the rows of each array (name -> rows), in the order in which the arrays appear in the table."""
    rows: dict[str, int] = {}
    for entry in images:
        if entry.array is not None and entry.row is not None:
            rows[entry.array] = max(rows.get(entry.array, 0), entry.row + 1)
    return rows


def update_table(
    images: Sequence[ImageEntry], complete: Sequence[bool], photographs: Iterable[Photograph]
) -> tuple[list[ImageEntry], list[str]]:
    """Bring the table of images up to the dataset as it is now.

    New images are appended in the order given. The row of an image whose file changed is updated in place, as long
    as no logits are stored for it.

    Args:
        images: the table as it was.
        complete: for each row of it, True if logits are stored.
        photographs: the dataset as it is now.

    Returns:
        the table, and the paths of images that changed although logits of their old content are stored.
    """
    table, rows = list(images), rows_per_array(images)
    index = {entry.path: i for i, entry in enumerate(table)}
    changed = []
    for photo in photographs:
        i = index.get(photo.path)
        if i is None:
            index[photo.path] = len(table)
            table.append(_placed(photo, None, rows))
            continue
        known = table[i]
        # A damaged header may have been repaired without a change of the file's size.
        if known.bytes == photo.bytes and (known.array is not None or photo.size is None):
            continue
        if i < len(complete) and complete[i]:
            changed.append(photo.path)
        else:
            table[i] = _placed(photo, known, rows)
    return table, changed


def _placed(photo: Photograph, known: ImageEntry | None, rows: dict[str, int]) -> ImageEntry:
    """Make the image's row of the table: in the place it had, or in the next free one of its size."""
    if photo.size is None:
        return ImageEntry(photo.path, photo.bytes, None, None, None, None)
    height, width = photo.size
    array = f"{height}x{width}"
    if known is not None and known.array == array:
        return replace(known, bytes=photo.bytes)
    row = rows.get(array, 0)
    rows[array] = row + 1
    return ImageEntry(photo.path, photo.bytes, height, width, array, row)
