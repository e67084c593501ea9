"""Shares of the probability that a member gave to classes that are not among ours, image by image, beside its store.

A store holds what is left when the rest is divided by its sum. How much was lost depends on what an interrupted run
could still say, so it does not stand in the store, where equal work gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ...errors import StoreError, cannot_read, disk_error
from .filesystem import make_folder, read_bytes, remove, short_lock, write_json
from .output_folder import other_shares_path


def record_other_shares(store: Path, shares: Mapping[str, float]) -> None:
    """Add the shares of some images to those of a store; nothing is written if there are none.

    Args:
        store: its folder.
        shares: path of an image -> mean over its pixels, 0 to 1.

    Raises:
        StoreError: the file cannot be written.
    """
    if not shares:
        return
    path = other_shares_path(store)
    try:
        make_folder(path.parent)
        with short_lock(path.with_name(f".{path.name}.lock")):
            write_json(path, dict(sorted({**other_shares(store), **shares}.items())))
    except OSError as error:
        raise disk_error(path, error) from error


def other_shares(store: Path) -> dict[str, float]:
    """Read the shares of a store, path of an image -> mean over its pixels; empty if none are recorded.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        found = json.loads(read_bytes(other_shares_path(store)))
    except (FileNotFoundError, ValueError):
        return {}
    except OSError as error:
        raise StoreError(cannot_read(other_shares_path(store), error)) from error
    return {path: float(one) for path, one in found.items() if isinstance(one, int | float)}


def forget_other_shares(store: Path) -> None:
    """Remove the shares of a store that is started over; StoreError if that is not possible."""
    path = other_shares_path(store)
    try:
        remove(path)
    except OSError as error:
        raise disk_error(path, error) from error
