"""The columns of a store's table of images: two Zarr arrays in the group ``images``, read and written without Zarr.

``images/path`` holds the paths (strings), ``images/numbers`` the columns `FIELDS` (int64), both in chunks of
`CHUNK_ROWS` images. The bytes are those that Zarr writes, in a part of the time, and every zarr-python opens them.

How many rows count is told by the attribute ``images`` of the store's group, which is written last. Before rows are
appended, both arrays get their new length. Another length than that of the attribute is therefore the trace of a
writer that died: readers ignore what lies beyond the attribute's number, and the next writer removes it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, VLenUTF8, Zstd, blosc  # type: ignore[attr-defined]

from ..storage.filesystem import listing, read_bytes, remove, remove_all, write_bytes, write_json
from .image_table import CHUNK_ROWS, FIELDS

# Its own threads make the bytes differ from run to run.
blosc.use_threads = False

GROUP = "images"
_COLUMNS = ("path", "numbers")
_LEVEL = 3
_CHECKSUM_BYTES = 4
_HEADER_BYTES = 16


class TableColumns:
    """The columns in the store at ``path``. Every method raises OSError if the disk or the server fails."""

    def __init__(self, path: Path) -> None:
        self._folder = path / GROUP

    def require(self, count: int) -> None:
        """Raise ValueError unless both arrays are those that this version writes, with at least ``count`` rows."""
        if count and min(self._lengths()) < count:
            raise ValueError(f"{GROUP}/ holds fewer than the {count} images that the group counts")

    def is_tidy(self, count: int) -> bool:
        """Say whether both arrays end at ``count`` rows, which those of a writer that died do not.

        Raises:
            ValueError: as for `require`.
        """
        return self._lengths() == (count, count)

    def paths(self, chunk: int) -> list[str]:
        """Read the `CHUNK_ROWS` paths of a chunk, empty ones behind the last; ValueError if it is damaged."""
        name = f"path/c.{chunk}"
        content = self._read(name)
        try:
            found = VLenUTF8().decode(Zstd().decode(content))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{GROUP}/{name} does not decode") from error
        if len(found) != CHUNK_ROWS:
            raise ValueError(f"{GROUP}/{name} holds {len(found)} paths")
        return found.tolist()

    def numbers(self, chunk: int) -> np.ndarray:
        """Read a chunk's columns, (`CHUNK_ROWS`, 4) int64, -1 behind the last image; ValueError if it is damaged."""
        name = f"numbers/c.{chunk}.0"
        content = self._read(name)
        found = np.empty((CHUNK_ROWS, len(FIELDS)), "<i8")
        # Blosc would trust its header, and leave the rest of a larger target as it was.
        if len(content) < _HEADER_BYTES or struct.unpack_from("<I4xI", content, 4) != (found.nbytes, len(content)):
            raise ValueError(f"{GROUP}/{name} is not of the size that it must be")
        try:
            blosc.decompress(content, found)
        except RuntimeError as error:
            raise ValueError(f"{GROUP}/{name} does not decode") from error
        return found

    def write(
        self, count: int, renewed: Mapping[int, Sequence[int]], paths: Sequence[str], numbers: np.ndarray
    ) -> None:
        """Renew some rows and append others. They count when the group's attribute says so, which the caller writes.

        Args:
            count: rows that count until now; what a writer that died left behind them is removed.
            renewed: row below ``count`` -> its new `FIELDS`.
            paths: of the new rows.
            numbers: `FIELDS` of the new rows, (len(paths), 4) int64.
        """
        if not self.is_tidy(count):
            self._tidy(count)
        total = count + len(paths)
        if paths:
            self._set_length(total)
        appended = range(count // CHUNK_ROWS, -(-total // CHUNK_ROWS)) if paths else range(0)
        rows_of: dict[int, list[int]] = {}
        for row in renewed:
            rows_of.setdefault(row // CHUNK_ROWS, []).append(row)
        for chunk in sorted({*appended, *rows_of}):
            first = chunk * CHUNK_ROWS
            old = min(max(0, count - first), CHUNK_ROWS)
            values = self.numbers(chunk)[:old] if old else np.empty((0, len(FIELDS)), np.int64)
            for row in rows_of.get(chunk, ()):
                values[row - first] = renewed[row]
            if chunk in appended:
                more = slice(first + old - count, first + CHUNK_ROWS - count)
                known = self.paths(chunk)[:old] if old else []
                self._write_paths(chunk, [*known, *paths[more]])
                values = np.concatenate([values, numbers[more]])
            self._write_numbers(chunk, values)

    def _tidy(self, count: int) -> None:
        """Remove all rows from ``count`` on; the length comes last, so that a death in between leaves its trace."""
        chunks = -(-count // CHUNK_ROWS)
        for name in _COLUMNS:
            found = (file.name for file in listing(self._folder / name))
            numbers = {one: one.removeprefix("c.").partition(".")[0] for one in found if one.startswith("c.")}
            beyond = [one for one, chunk in numbers.items() if chunk.isdecimal() and int(chunk) >= chunks]
            remove_all(self._folder / name, beyond)
        if not count:
            for name in (*_COLUMNS, "."):
                remove(self._folder / name / "zarr.json")
            return
        last, rows = chunks - 1, count - (chunks - 1) * CHUNK_ROWS
        self._write_paths(last, self.paths(last)[:rows])
        self._write_numbers(last, self.numbers(last)[:rows])
        self._set_length(count)

    def _write_paths(self, chunk: int, paths: Sequence[str]) -> None:
        padded = np.full(CHUNK_ROWS, "", object)
        padded[: len(paths)] = paths
        self._write(f"path/c.{chunk}", Zstd(level=_LEVEL).encode(VLenUTF8().encode(padded)))

    def _write_numbers(self, chunk: int, numbers: np.ndarray) -> None:
        padded = np.full((CHUNK_ROWS, len(FIELDS)), -1, "<i8")
        padded[: len(numbers)] = numbers
        self._write(f"numbers/c.{chunk}.0", Blosc("zstd", _LEVEL, Blosc.SHUFFLE).encode(padded))

    def _read(self, name: str) -> bytes:
        """Read a chunk file and check the checksum at its end; ValueError if it is missing or wrong."""
        try:
            content = read_bytes(self._folder / name)
        except FileNotFoundError as error:
            raise ValueError(f"{GROUP}/{name} is missing") from error
        if len(content) < _CHECKSUM_BYTES or _checksum(content[:-_CHECKSUM_BYTES]) != content[-_CHECKSUM_BYTES:]:
            raise ValueError(f"{GROUP}/{name} has a wrong checksum")
        return content[:-_CHECKSUM_BYTES]

    def _write(self, name: str, content: bytes) -> None:
        write_bytes(self._folder / name, content, _checksum(content))

    def _lengths(self) -> tuple[int, int]:
        """Return the rows of both arrays, 0 for one that is missing; ValueError if their metadata are wrong."""
        first, second = (self._length(name) for name in _COLUMNS)
        return first, second

    def _length(self, name: str) -> int:
        try:
            metadata = json.loads(read_bytes(self._folder / name / "zarr.json"))
        except FileNotFoundError:
            return 0
        shape = metadata.get("shape") if isinstance(metadata, dict) else None
        count = shape[0] if isinstance(shape, list) and shape else None
        if not isinstance(count, int) or isinstance(count, bool) or count < 1 or metadata != _metadata(name, count):
            raise ValueError(f"{GROUP}/{name} is not the array that the table of images calls for")
        return count

    def _set_length(self, count: int) -> None:
        write_json(self._folder / "zarr.json", {"attributes": {}, "zarr_format": 3, "node_type": "group"})
        for name in _COLUMNS:
            write_json(self._folder / name / "zarr.json", _metadata(name, count))


def _checksum(content: bytes) -> bytes:
    return google_crc32c.value(content).to_bytes(_CHECKSUM_BYTES, "little")


def _metadata(name: str, count: int) -> dict[str, Any]:
    """Return the content of an array's ``zarr.json``, as Zarr writes it for ``count`` rows."""
    if name == "path":
        shape, chunk = [count], [CHUNK_ROWS]
        kind: dict[str, Any] = {"data_type": "string", "fill_value": "", "attributes": {}}
        kind["dimension_names"] = ["image"]
        codecs = [
            {"name": "vlen-utf8", "configuration": {}},
            {"name": "zstd", "configuration": {"level": _LEVEL, "checksum": False}},
        ]
    else:
        shape, chunk = [count, len(FIELDS)], [CHUNK_ROWS, len(FIELDS)]
        kind = {
            "data_type": "int64",
            "fill_value": -1,
            "attributes": {"columns": list(FIELDS)},
            "dimension_names": ["image", "column"],
        }
        blosc_settings = {"typesize": 8, "cname": "zstd", "clevel": _LEVEL, "shuffle": "shuffle", "blocksize": 0}
        codecs = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc_settings},
        ]
    return {
        "shape": shape,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [*codecs, {"name": "crc32c"}],
        **kind,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
