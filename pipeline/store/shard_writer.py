"""Writes the shards of single images; needs no table of images, so that it can be sent to a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from ...errors import StoreError
from ..storage.filesystem import write_bytes
from .fixed_point import LIMIT, encode
from .identity import Identity
from .image_table import ImageEntry
from .shard_file import has_content, is_finite, pack_shard, shard_path
from .zarr_backend import ENCODINGS, SHUFFLES, open_array, strip_rows, table_version, zarr_store

_ASKERS = 8


class ShardWriter:
    """Writes single images of a store whose template stands, and knows of no other image.

    It can be sent to another process, and costs the same whether a table has ten images or a million.
    Whoever writes holds the store's lock, or works for who does (`lock.require_held`).
    """

    def __init__(self, path: Path, identity: Identity, seen: str | None) -> None:
        self.path = path
        self._identity, self._seen = identity, seen
        self._arrays: dict[str, zarr.Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_identity": self._identity, "_seen": self._seen, "_arrays": {}}

    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Those of the images whose shard does not exist, or is empty."""
        shards = [shard_path(self.path, entry) for entry in entries]
        with ThreadPoolExecutor(_ASKERS) as pool:  # an object store answers in its own time
            there = list(pool.map(lambda shard: shard is not None and has_content(shard), shards))
        return [entry for entry, known in zip(entries, there, strict=True) if not known]

    def write(self, entry: ImageEntry, logits: np.ndarray) -> None:
        """Store one image: all of it or, after any failure, nothing.

        Args:
            entry: its row in the table of images.
            logits: (C, H, W) float16, finite.

        Raises:
            ValueError: another shape or dtype.
            StoreError: the logits are not finite in float16, or another writer started the store afresh.
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
        if self._identity.encoding == "compact" and not is_within(logits, LIMIT):
            raise StoreError(
                f"{entry.path}: logits of '{self._identity.model}' lie beyond {LIMIT}, the most that encoding "
                "compact holds; take store.encoding lossless"
            )
        self._require_unchanged(entry)
        array = self._arrays.get(entry.array)
        if array is None or array.shape[0] <= entry.row:  # zarr writes nothing, and says nothing, past the end
            array = self._arrays[entry.array] = open_array(
                zarr_store(self.path), self.path, entry.array, self._identity
            )
            if array.shape[0] <= entry.row:
                raise StoreError(f"{self.path / entry.array}: has no row {entry.row}; run the same command again")
        write_bytes(self.path / entry.array / f"c.{entry.row}.0.0.0", *pack_logits(logits, self._identity))

    def _require_unchanged(self, entry: ImageEntry) -> None:
        """Raise StoreError if another work took the store's place since it was opened."""
        seen = table_version(self.path)
        if seen == self._seen:
            return
        from .logit_store import LogitStore

        now = LogitStore.open(self.path)
        index = now.index.get(entry.path, len(now.images))
        if now.identity.differences(self._identity) or now.images[index : index + 1] != [entry]:
            raise StoreError(f"{self.path}: was started over meanwhile; run the same command again")
        self._seen = seen


def pack_logits(logits: np.ndarray, identity: Identity) -> list[bytes]:
    """The shard file of an image's logits (C, H, W) float16, byte for byte as Zarr would write it."""
    height, width = logits.shape[1:]
    encoding = ENCODINGS[identity.encoding]
    rows = strip_rows(len(logits), height, width)

    def strips() -> Iterator[np.ndarray]:
        for y in range(0, height, rows):
            strip = np.ascontiguousarray(logits[:, y : y + rows])
            if strip.shape[1] < rows:
                below = np.full((len(strip), rows - strip.shape[1], width), np.nan, np.float16)
                strip = np.concatenate([strip, below], axis=1)
            yield encode(strip) if identity.encoding == "compact" else strip

    return pack_shard(strips(), Blosc(encoding.compressor, encoding.level, SHUFFLES[encoding.shuffle]))


def is_within(logits: np.ndarray, limit: float) -> bool:
    # Of halves without their sign the bits are in the order of the values.
    return not bool(((logits.view(np.uint16) & 0x7FFF) > np.float16(limit).view(np.uint16)).any())
