"""The table of images of a store: its rows, read a chunk at a time when asked for, and how they are checked."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from ...errors import StoreError, cannot_read, reason

CHUNK_ROWS = 20_000
"""Images in a chunk of the table; part of the format, as the version is."""

FIELDS = ("bytes", "height", "width", "row")
"""The numbers of an image in the table; the last three are -1 for a file whose header cannot be read."""
BYTES, HEIGHT, WIDTH, ROW = range(len(FIELDS))

_KEPT_CHUNKS = 4
_LARGEST_SIDE = 2**31 - 1

_Chunk = TypeVar("_Chunk")


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


class Columns(Protocol):
    """Where a table comes from: `TableColumns`, or `ListedColumns` of a store of format version 1."""

    def paths(self, chunk: int) -> list[str]:
        """Return the paths of the images ``chunk * CHUNK_ROWS`` and following; ValueError if they are damaged."""
        ...

    def numbers(self, chunk: int) -> np.ndarray:
        """Return their `FIELDS`, (N, 4) int64; ValueError if they are damaged."""
        ...


class ListedColumns:
    """The columns of the list of objects that a store of format version 1 has in its attributes.

    Args:
        rows: the list.

    Raises:
        ValueError: an image lacks its path or size, its path would lead out of the output folder, an image is
            listed twice, or two images share a row of an array.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        try:
            images = [ImageEntry(**row) for row in rows]
        except TypeError as error:
            raise ValueError(f"the table of images: {error}") from error
        _check_listed(images)
        self._paths = [entry.path for entry in images]
        self._numbers = np.array([_numbers(entry) for entry in images], np.int64).reshape(-1, len(FIELDS))

    def __len__(self) -> int:
        return len(self._paths)

    def paths(self, chunk: int) -> list[str]:
        return self._paths[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]

    def numbers(self, chunk: int) -> np.ndarray:
        return self._numbers[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]


class ImageTable(Sequence[ImageEntry]):
    """The images of a store, in the order of its table.

    A chunk of rows is read when one of them is asked for, and the last few chunks are kept, so that a worker holds
    only the rows of its block. What reads rows raises StoreError if the table is damaged or cannot be read.

    Args:
        path: folder of the store.
        columns: of the table.
        count: number of images.
    """

    def __init__(self, path: Path, columns: Columns, count: int) -> None:
        self._path, self._columns, self._count = path, columns, count
        self._kept_paths: dict[int, list[str]] = {}
        self._kept_numbers: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> ImageEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageEntry]: ...
    def __getitem__(self, index: int | slice) -> ImageEntry | list[ImageEntry]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._count)[index]]
        chunk, row = divmod(range(self._count)[index], CHUNK_ROWS)
        return make_entry(self.chunk_paths(chunk)[row], self.chunk_numbers(chunk)[row].tolist())

    def __iter__(self) -> Iterator[ImageEntry]:
        for chunk in self.chunks():
            paths, numbers = self.chunk_paths(chunk), self.chunk_numbers(chunk)
            yield from map(make_entry, paths, numbers.tolist())

    def chunks(self) -> range:
        """Return the numbers of the chunks; chunk k holds the images from ``k * CHUNK_ROWS`` on."""
        return range(-(-self._count // CHUNK_ROWS))

    def chunk_paths(self, chunk: int) -> list[str]:
        """Read the paths of a chunk, which is kept."""
        return self._chunk(chunk, self._kept_paths, self._read_paths)

    def chunk_numbers(self, chunk: int) -> np.ndarray:
        """Read the `FIELDS` of a chunk, (N, 4) int64, which is kept."""
        return self._chunk(chunk, self._kept_numbers, self._read_numbers)

    def numbers(self) -> np.ndarray:
        """Read the `FIELDS` of all images, (len(self), 4) int64; StoreError also if two images share a place."""
        found = np.empty((self._count, len(FIELDS)), np.int64)
        for chunk in self.chunks():
            found[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS] = self._read_numbers(chunk)
        for name, members in arrays_of(found).items():
            rows = np.sort(found[members, ROW])
            twice = rows[1:][rows[1:] == rows[:-1]]
            if len(twice):
                raise self._damaged(ValueError(f"two images share row {twice[0]} of {name}"))
        return found

    def locate(self, paths: Sequence[str]) -> np.ndarray:
        """Look up where images stand, without holding all of the table's paths.

        Args:
            paths: of images, each different; fastest in the order of the table.

        Returns:
            (len(paths),) int64: index of each in the table, -1 for one that is not there.
        """
        paths = list(paths)
        found = np.full(len(paths), -1, np.int64)
        first = 0
        others: dict[str, int] | None = None
        for chunk in self.chunks():
            known = self._unchecked_paths(chunk)  # those that are found are the caller's
            if others is None and paths[first : first + len(known)] == known:
                found[first : first + len(known)] = np.arange(first, first + len(known))
                first += len(known)
                continue
            if others is None:
                others = {paths[i]: i for i in range(first, len(paths))}
            for row, path in enumerate(known, chunk * CHUNK_ROWS):
                if (i := others.get(path)) is not None:
                    found[i] = row
        return found

    def check(self) -> None:
        """Read everything; StoreError if it is damaged or lists an image twice."""
        self.numbers()
        seen: set[str] = set()
        for chunk in self.chunks():
            for path in self._read_paths(chunk):
                if path in seen:
                    raise self._damaged(ValueError(f"image {path!r} is listed twice"))
                seen.add(path)

    def _chunk(self, chunk: int, kept: dict[int, _Chunk], read: Callable[[int], _Chunk]) -> _Chunk:
        with self._lock:
            found = kept.pop(chunk, None)
            if found is None:
                found = read(chunk)
                while len(kept) >= _KEPT_CHUNKS:
                    del kept[next(iter(kept))]
            kept[chunk] = found
            return found

    def _unchecked_paths(self, chunk: int) -> list[str]:
        try:
            return self._columns.paths(chunk)[: self._count - chunk * CHUNK_ROWS]
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _read_paths(self, chunk: int) -> list[str]:
        paths = self._unchecked_paths(chunk)
        try:
            check_paths(paths)
        except ValueError as error:
            raise self._damaged(error) from error
        return paths

    def _read_numbers(self, chunk: int) -> np.ndarray:
        try:
            numbers = self._columns.numbers(chunk)[: self._count - chunk * CHUNK_ROWS]
            _check_numbers(numbers)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        return numbers

    def _damaged(self, error: Exception) -> StoreError:
        if isinstance(error, OSError):
            return StoreError(cannot_read(self._path, error))
        return StoreError(
            f"{self._path}: its table of images cannot be understood ({reason(error)}); put zarr.json and the folder "
            "'images' back, or start it over with --overwrite"
        )


class PathIndex(Mapping[str, int]):
    """Path of an image -> its index in the table.

    All paths are held from the first look-up on, unless that is of an image which `expect` has named.
    """

    def __init__(self, images: ImageTable) -> None:
        self._images = images
        self._expected: dict[str, int] = {}
        self._all: dict[str, int] | None = None

    def expect(self, indices: Iterable[int]) -> None:
        """Hold the paths of these rows alone, in place of those that were expected before."""
        expected = {}
        for index in indices:
            if 0 <= index < len(self._images):
                expected[self._images[index].path] = index
        self._expected = expected

    def __getitem__(self, path: str) -> int:
        found = self._expected.get(path)
        return self._complete()[path] if found is None else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._images)

    def _complete(self) -> dict[str, int]:
        if self._all is None:
            paths = (path for chunk in self._images.chunks() for path in self._images.chunk_paths(chunk))
            self._all = {path: index for index, path in enumerate(paths)}
        return self._all


def make_entry(path: str, numbers: Sequence[int]) -> ImageEntry:
    """Make an image's entry of its path and `FIELDS`."""
    size, height, width, row = numbers
    if row < 0:
        return ImageEntry(path, size, None, None, None, None)
    return ImageEntry(path, size, height, width, f"{height}x{width}", row)


def _numbers(entry: ImageEntry) -> tuple[int, ...]:
    values = entry.bytes, entry.height, entry.width, entry.row
    return tuple(-1 if value is None else value for value in values)


def arrays_of(numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Group images by the array that they have a place in.

    Args:
        numbers: `FIELDS` of images, (N, 4) int64.

    Returns:
        name of an array -> positions in ``numbers``, ascending; in the order in which the arrays appear.
    """
    placed = np.flatnonzero(numbers[:, ROW] >= 0)
    keys = (numbers[placed, HEIGHT] << 31) + numbers[placed, WIDTH]
    order = np.argsort(keys, kind="stable")
    groups = np.split(placed[order], np.flatnonzero(np.diff(keys[order])) + 1) if len(placed) else []
    groups.sort(key=lambda members: members[0])
    return {f"{numbers[members[0], HEIGHT]}x{numbers[members[0], WIDTH]}": members for members in groups}


def rows_per_array(numbers: np.ndarray) -> dict[str, int]:
    """Count the rows of each array (name -> rows), in the order in which the arrays appear in the table.

    Args:
        numbers: `FIELDS` of images, (N, 4) int64.
    """
    return {name: int(numbers[members, ROW].max()) + 1 for name, members in arrays_of(numbers).items()}


def check_paths(paths: Sequence[str]) -> None:
    """Raise ValueError for a path that would lead out of the output folder."""
    joined = "\n".join(("", *paths, ""))
    if not any(part in joined for part in ("\n/", "\n\\", "\n.", "\n\n", "..", "\0")):
        return
    for path in paths:
        if _escapes_folder(path):
            raise ValueError(f"image {path!r} leaves the output folder")


def _escapes_folder(path: str) -> bool:
    """Say whether a relative path leads out of the folder it is joined to, here or on another system."""
    if path.startswith(("/", "\\")) or not path.strip("./") or "\0" in path:
        return True
    return ".." in path and ".." in re.split(r"[/\\]", path)


def _check_numbers(numbers: np.ndarray) -> None:
    """Raise ValueError for `FIELDS`, (N, 4) int64, that no image has."""
    places = numbers[:, HEIGHT:]
    unreadable = (places == -1).all(axis=1)
    right = (places[:, 0] > 0) & (places[:, 1] > 0) & (places[:, 2] >= 0)
    right &= (places[:, 0] <= _LARGEST_SIDE) & (places[:, 1] <= _LARGEST_SIDE)
    wrong = np.flatnonzero((numbers[:, BYTES] < 0) | ~(right | unreadable))
    if len(wrong):
        size, height, width, row = numbers[wrong[0]].tolist()
        raise ValueError(f"an image of {size} bytes and {height} x {width} in row {row}")


def _check_listed(images: Iterable[ImageEntry]) -> None:
    """Raise ValueError for a list that `ListedColumns` refuses."""
    paths: set[str] = set()
    places: set[tuple[str, int]] = set()
    for entry in images:
        if not isinstance(entry.path, str) or not isinstance(entry.bytes, int) or not 0 <= entry.bytes < 2**63:
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
        sizes_fit = 1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE and 0 <= row < 2**63
        if not sizes_fit or entry.array != place[0]:
            raise ValueError(
                f"image {entry.path!r} of {entry.height!r} x {entry.width!r} in row {entry.row!r} of {entry.array!r}"
            )
        if place in places:
            raise ValueError(f"image {entry.path!r} shares row {row} of {entry.array} with another")
        places.add(place)
