"""The command ``status``: sound stores are told without Zarr, whose import takes longest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..storage.filesystem import listing, read_bytes
from .identity import StoreIdentity

ENCODINGS = ("lossless", "compact")
"""Encodings of stores that are told at once."""
_VERSION = 1


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
        known = group["zarr_format"], group["node_type"], attributes["format_version"]
        if known != (3, "group", _VERSION) or identity.encoding not in ENCODINGS:
            return None
        names = [f"{image['array']}/c.{image['row']}.0.0.0" for image in attributes["images"]]
        found = {file.name: file for file in listing(path) if "/c." in file.name}
    except FileNotFoundError:
        return StoreStatus(dataset, model)
    except (OSError, LookupError, TypeError, ValueError):
        return None
    shards = [found[name] for name in names if name in found]
    times = [shard.modified // 10**9 for shard in shards]
    return StoreStatus(
        dataset,
        model,
        complete=sum(bool(shard.bytes) for shard in shards),
        total=len(names),
        bytes=sum(shard.bytes for shard in shards),
        written=datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None,
    )
