"""Arrays of Zarr groups that other programs wrote, in either version of the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from ...errors import StoreError, reason


def foreign_arrays(folder: Path) -> dict[str, Callable[[], np.ndarray]] | None:
    """List the arrays of a Zarr group by path below it, each with what reads it; None if the folder is no group.

    Raises:
        StoreError: the group's metadata is damaged.
    """
    if not any((folder / name).is_file() for name in ("zarr.json", ".zgroup")):
        return None
    try:
        members = zarr.open_group(folder, mode="r").members(max_depth=None)
    except Exception as error:  # zarr raises its own and Python's errors for damaged metadata
        raise StoreError(f"{folder}: is no readable Zarr group ({reason(error)})") from error
    return {name: _reader(folder / name, member) for name, member in members if isinstance(member, zarr.Array)}


def _reader(path: Path, array: zarr.Array) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        try:
            return np.asarray(array[...])
        except Exception as error:  # codecs raise errors of their own
            raise StoreError(f"{path}: is no readable array ({reason(error)})") from error

    return read
