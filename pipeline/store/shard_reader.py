"""The half of a logit store that reads: logits of single images, a few rows at a time or all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from ...errors import StoreError, cannot_read, reason
from ..storage.filesystem import is_remote, size
from .fixed_point import decode
from .image_table import PathIndex
from .shard_file import is_finite, read_chunk, shard_path
from .zarr_backend import (
    ENCODINGS,
    DamagedShardError,
    DurableStore,
    open_array,
    read_table,
    require_same_table,
    strip_rows,
)

_REMOTE_READ_BYTES = 256 * 2**20


class ShardReader:
    """Base of `LogitStore`: what needs no lock.

    Attributes:
        path: folder of the store, ``<output>/logits/<dataset>/<model>.zarr``.
        identity: model and settings that the logits were made with.
        images: the table of images, of which a chunk is read when an image of it is asked for.
        index: path of an image -> its index in the table.
    """

    def __init__(self, path: Path, group: zarr.Group, seen: str | None) -> None:
        self.path, self._group = path, group
        self._load(seen)

    def _load(self, seen: str | None) -> None:
        """Read the table, whose `table_version` is ``seen``."""
        self.identity, self.images = read_table(self.path, self._group)
        self.index = PathIndex(self.images)
        self._seen = seen
        self._arrays: dict[str, zarr.Array] = {}

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.identity.classes)

    def shard_path(self, index: int) -> Path | None:
        """Locate the shard file of image ``index``; None for an image that has no place in an array."""
        return shard_path(self.path, self.images[index])

    def _array(self, name: str) -> zarr.Array:
        """Open the array of all images of one size and keep it; StoreError as for `open_array`."""
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = open_array(self._group.store, self.path, name, self.identity)
        return array

    def read(self, index: int, start: int = 0, stop: int | None = None, room: np.ndarray | None = None) -> np.ndarray:
        """Read rows ``start`` to ``stop`` of one image's logits, (C, rows, W) float16.

        Args:
            index: of the image in the table.
            start, stop: rows as in a slice; all rows if left out.
            room: array from `room_for_strip` to decompress into. If the rows are one of `strips`, the result may be
                a view of it.

        Raises:
            StoreError: the image is not complete, or the disk cannot be read.
            DamagedShardError: the shard does not decode.
        """
        entry, shard = self.images[index], self.shard_path(index)
        missing = f"{self.path}: has no logits of {entry.path}; make them with 'hmsa-pipeline dump'"
        if entry.array is None or entry.row is None or shard is None:
            raise StoreError(missing)
        try:
            array = self._array(entry.array)
            if entry.row >= array.shape[0]:
                raise StoreError(f"{self.path / entry.array}: has no row {entry.row}; run 'hmsa-pipeline dump' again")
            if isinstance(array.store, DurableStore):
                block = self._read_file(index, shard, *slice(start, stop).indices(array.shape[2])[:2], room)
            else:
                block = np.asarray(array[entry.row, :, start:stop, :])
            self._seen = require_same_table(self.path, self._seen, self.identity, entry)
            if np.isnan(block[0, :, 0]).any():
                # Zarr gives NaN for a strip or a shard that it does not find.
                raise ValueError("a strip is missing")
        except FileNotFoundError as error:
            raise StoreError(missing) from error
        except StoreError as error:
            if not _is_there(shard):
                raise StoreError(missing) from error
            raise
        except Exception as error:
            if _is_damage(error) and not _is_there(shard):
                raise StoreError(missing) from error
            if not _is_damage(error):
                raise StoreError(cannot_read(shard, error)) from error
            raise DamagedShardError(
                f"{shard}: the logits of {entry.path} are damaged ({reason(error)}); "
                "repair it with 'hmsa-pipeline verify --repair' and 'hmsa-pipeline dump'"
            ) from error
        return block

    def _read_file(self, index: int, shard: Path, start: int, stop: int, room: np.ndarray | None) -> np.ndarray:
        """Read rows from a shard file on a disk; its array's metadata are known to be right."""
        height, width, rows = self._strip_size(index)
        count, compressor = -(-height // rows), ENCODINGS[self.identity.encoding].compressor
        room = self.room_for_strip(index) if room is None else room

        def strip(number: int) -> np.ndarray:
            """Read the wanted rows of one strip."""
            if self.identity.encoding == "compact":
                read_chunk(shard, number, count, room.view(np.uint16), compressor)
                whole = decode(room.view(np.uint16))
            else:
                read_chunk(shard, number, count, room, compressor)
                whole = room
            return whole[:, max(0, start - number * rows) : stop - number * rows]

        first, last = start // rows, -(-stop // rows)
        if last - first == 1:
            return strip(first)
        block = np.empty((self.classes, max(0, stop - start), width), np.float16)
        for number in range(first, last):
            y = max(start, number * rows) - start
            piece = strip(number)
            block[:, y : y + piece.shape[1]] = piece
        return block

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of image ``index``, which has a place in an array."""
        entry = self.images[index]
        assert entry.height is not None
        assert entry.width is not None
        return entry.height, entry.width

    def _strip_size(self, index: int) -> tuple[int, int, int]:
        """Return height and width of image ``index``, which has a place in an array, and the rows of its chunks."""
        height, width = self.size(index)
        return height, width, strip_rows(self.classes, height, width)

    def room_for_strip(self, index: int) -> np.ndarray:
        """Make an array (C, R, W) float16 for one of the image's `strips`, to be passed to `read` again and again."""
        _, width, rows = self._strip_size(index)
        return np.empty((self.classes, rows, width), np.float16)

    def strips(self, index: int) -> list[tuple[int, int]]:
        """List the (start, stop) rows that are cheapest to `read`, covering the image.

        On a disk these are its chunks; in an object store, where a request costs more than a chunk, as many chunks
        together as fit into 256 MiB.
        """
        if self.images[index].array is None:
            return []
        height, width, rows = self._strip_size(index)
        if is_remote(self.path):
            rows *= max(1, _REMOTE_READ_BYTES // (2 * self.classes * rows * width))
        return [(y, min(y + rows, height)) for y in range(0, height, rows)]

    def check(self, index: int) -> None:
        """Read all of an image's logits: checksums hold and every value is finite.

        Raises:
            StoreError: the image is not complete, or the disk cannot be read.
            DamagedShardError: the shard does not decode, or not to finite values.
        """
        for start, stop in self.strips(index):
            if not is_finite(self.read(index, start, stop)):
                image = self.images[index].path
                raise DamagedShardError(f"{self.shard_path(index)}: the logits of {image} are not all finite")


def _is_there(shard: Path) -> bool:
    """Say whether the shard exists and is not empty; StoreError if the disk does not answer."""
    try:
        return bool(size(shard))
    except OSError as error:
        raise StoreError(cannot_read(shard, error)) from error


def _is_damage(error: Exception) -> bool:
    """Say whether an error means that a shard's bytes are wrong, and not that memory, threads or the disk failed."""
    return isinstance(error, ValueError) or any(codec in str(error) for codec in ("blosc", "pco error"))
