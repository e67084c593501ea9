"""The command ``status``: sound stores are told without Zarr, whose import takes longest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c

from ..storage.filesystem import listing, read_bytes
from .identity import StoreIdentity

ENCODINGS = ("lossless", "small", "compact")
"""Encodings of stores that are told at once."""
_ARRAY = re.compile(r"([1-9]\d*x[1-9]\d*)/zarr\.json")
_CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class StoreStatus:
    """The state of one store.

    Attributes:
        complete: images whose shard is there.
        total: images in the store's table, 0 where there is no store.
        bytes: of all shards on the disk.
        written: when the last shard was written, ISO 8601 in UTC; None where there is none.
        problem: why the store cannot be read; None where it can.
    """

    dataset: str
    model: str
    complete: int = 0
    total: int = 0
    bytes: int = 0
    written: str | None = None
    problem: str | None = None


def stores_status(stores: Iterable[tuple[str, str, Path]]) -> list[StoreStatus]:
    """Look up the state of each store, with one directory scan each.

    Args:
        stores: names of dataset and model, and the folder of the store that holds the model's logits for the dataset.
    """
    found = []
    for store in stores:
        status = quick_status(*store)
        if status is None:
            from .verify import store_status  # which says what is wrong

            (status,) = store_status([store])
        found.append(status)
    return found


def quick_status(dataset: str, model: str, path: Path) -> StoreStatus | None:
    """Return what `verify.store_status` would of a sound store, or of none; None if that has to take a closer look.

    Args:
        dataset, model: their names.
        path: folder of the store.
    """
    try:
        group = json.loads(read_bytes(path / "zarr.json"))
        attributes = group["attributes"]
        identity = StoreIdentity.from_json(attributes)
        if (group["zarr_format"], group["node_type"]) != (3, "group") or identity.encoding not in ENCODINGS:
            return None
        files = {file.name: file for file in listing(path)}
        arrays = [match[1] for match in map(_ARRAY.fullmatch, files) if match]
        names = _images(path, attributes, arrays)
        if names is None:
            return None
    except FileNotFoundError:
        return StoreStatus(dataset, model)
    except (OSError, LookupError, TypeError, ValueError):
        return None
    total, named = names
    shards = [files[name] for name in named if name in files]
    times = [shard.modified // 10**9 for shard in shards]
    return StoreStatus(
        dataset,
        model,
        complete=sum(bool(shard.bytes) for shard in shards),
        total=total,
        bytes=sum(shard.bytes for shard in shards),
        written=datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None,
    )


def _images(path: Path, attributes: dict[str, Any], arrays: Iterable[str]) -> tuple[int, list[str]] | None:
    """Return the number of images in a store's table and the names that their shards have once they are there.

    None if the table has to be looked at more closely. That of format version 2 is not decoded: its checksums hold,
    and the arrays, of these names, have no more rows than there are images.
    """
    images = attributes["images"]
    if attributes["format_version"] == 1:
        return len(images), [f"{image['array']}/c.{image['row']}.0.0.0" for image in images]
    if attributes["format_version"] != 2 or not _columns_are_sound(path / "images", images):
        return None
    rows = {array: json.loads(read_bytes(path / array / "zarr.json"))["shape"][0] for array in arrays}
    if sum(rows.values()) > images:
        return None
    return images, [f"{array}/c.{row}.0.0.0" for array, count in rows.items() for row in range(count)]


def _columns_are_sound(folder: Path, rows: int) -> bool:
    """Say whether both columns of a table of format version 2 have so many rows, in chunks that are whole."""
    for column, ending in (("path", ""), ("numbers", ".0")) if rows else ():
        try:
            array = json.loads(read_bytes(folder / column / "zarr.json"))
            (length, *_), (size, *_) = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
            chunks = [read_bytes(folder / column / f"c.{chunk}{ending}") for chunk in range(-(-rows // size))]
        except FileNotFoundError:
            return False
        if length != rows or not all(map(_is_whole, chunks)):
            return False
    return True


def _is_whole(content: bytes) -> bool:
    """Say whether the checksum at the end of a chunk is that of what precedes it."""
    said = int.from_bytes(content[-_CHECKSUM_BYTES:], "little")
    return len(content) > _CHECKSUM_BYTES and google_crc32c.value(content[:-_CHECKSUM_BYTES]) == said
