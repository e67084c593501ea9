"""Writes the logits of single images as shards; needs no table of images, so that it can be sent to a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ...errors import StoreError
from ..storage.filesystem import size, write_bytes
from .fixed_point import LIMIT, encode
from .identity import StoreIdentity
from .image_table import ImageEntry
from .shard_file import is_finite, pack_shard, shard_path
from .zarr_backend import ENCODINGS, open_array, require_same_table, strip_rows, zarr_store

_REQUEST_THREADS = 8


class ShardWriter:
    """Writes single images of a store whose table and arrays exist; `LogitStore.writer` gives one.

    It can be pickled, and costs the same for a table of ten images and of a million. The process that writes, or the
    one that it works for, holds the store's lock (`writer_lock.require_held`). The entries that it gets come from the
    table whose `table_version` is ``seen``.
    """

    def __init__(self, path: Path, identity: StoreIdentity, seen: str | None) -> None:
        self.path = path
        self._identity, self._seen = identity, seen
        self._arrays: dict[str, zarr.Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_identity": self._identity, "_seen": self._seen, "_arrays": {}}

    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        """List the images whose shard does not exist or is empty."""
        shards = [shard_path(self.path, entry) for entry in entries]
        with ThreadPoolExecutor(_REQUEST_THREADS) as pool:  # requests to an object store take their time
            there = list(pool.map(lambda shard: shard is not None and bool(size(shard)), shards))
        return [entry for entry, known in zip(entries, there, strict=True) if not known]

    def write(self, entry: ImageEntry, logits: np.ndarray) -> None:
        """Store an image's logits (C, H, W) float16, all finite: completely or, after any failure, not at all.

        Raises:
            ValueError: the logits have another shape or dtype.
            StoreError: the logits are not finite, do not fit the encoding, or the store was started over.
            OSError: the disk is full or cannot be written.
        """
        classes = len(self._identity.classes)
        if entry.array is None or entry.row is None or logits.shape != (classes, entry.height, entry.width):
            raise ValueError(f"{entry.path}: logits of shape {logits.shape} do not fit {entry.array}")
        if logits.dtype != np.float16:
            raise ValueError(f"{entry.path}: logits are {logits.dtype}, not float16")
        if not is_finite(logits):
            raise StoreError(
                f"{entry.path}: the logits of '{self._identity.model}' are not finite in float16; "
                "try --precision bf16 or fp32"
            )
        if self._identity.encoding == "compact" and not _is_within(logits, LIMIT):
            raise StoreError(
                f"{entry.path}: logits of '{self._identity.model}' lie beyond {LIMIT}, the most that encoding "
                "compact holds; take store.encoding lossless"
            )
        self._seen = require_same_table(self.path, self._seen, self._identity, entry)
        array = self._arrays.get(entry.array)
        if array is None or array.shape[0] <= entry.row:  # zarr writes nothing, and says nothing, past the end
            array = self._arrays[entry.array] = open_array(
                zarr_store(self.path), self.path, entry.array, self._identity
            )
            if array.shape[0] <= entry.row:
                raise StoreError(f"{self.path / entry.array}: has no row {entry.row}; run the same command again")
        write_bytes(self.path / entry.array / f"c.{entry.row}.0.0.0", *pack_logits(logits, self._identity))


def pack_logits(logits: np.ndarray, identity: StoreIdentity) -> list[bytes]:
    """Encode an image's logits (C, H, W) float16 as pieces of a shard file, byte for byte as Zarr writes it."""
    height, width = logits.shape[1:]
    rows = strip_rows(len(logits), height, width)

    def strips() -> Iterator[np.ndarray]:
        for y in range(0, height, rows):
            strip = np.ascontiguousarray(logits[:, y : y + rows])
            if strip.shape[1] < rows:
                below = np.full((len(strip), rows - strip.shape[1], width), np.nan, np.float16)
                strip = np.concatenate([strip, below], axis=1)
            yield encode(strip) if identity.encoding == "compact" else strip

    return pack_shard(strips(), ENCODINGS[identity.encoding].compressor)


def _is_within(logits: np.ndarray, limit: float) -> bool:
    # Without the sign, the bits of float16 numbers are in the order of the numbers.
    return not bool(((logits.view(np.uint16) & 0x7FFF) > np.float16(limit).view(np.uint16)).any())
