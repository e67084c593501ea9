"""Checks before and at every write of a worker: the checkpoint, room on the disk, the lock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError, DiskError, StoreError
from ...files import sha256
from ..config.manifest import Member
from ..storage.filesystem import free_bytes
from ..storage.writer_lock import require_held
from ..store.image_table import ImageEntry
from ..store.shard_writer import ShardWriter
from ..text import as_size

RESERVE_BYTES = 16 * 2**20


def require_checkpoint(member: Member, digest: str | None) -> Path:
    """The checkpoint of ``member``; CheckpointError if it is not the file that the run began with."""
    path = member.checkpoint_path()
    if not path.is_file() or sha256(path) != digest:
        raise CheckpointError(
            f"{path}: is not the file that the run began with, on this machine; all machines need the same one"
        )
    return path


class LostLockError(StoreError):
    """The lock of the store is no longer the run's: nothing more may be written there."""


def write_shard(writer: ShardWriter, token: str, entry: ImageEntry, fetch: Callable[[], Tensor], hands: int) -> None:
    """Store an image's logits, if there is room, and the store's lock is still the run's.

    Args:
        writer: of the store.
        token: of the run's lock on it.
        entry: the image.
        fetch: waits for its logits (C, H, W) float16.
        hands: that may write at the same time, as many bytes each.

    Raises:
        DiskError: the disk is nearly full.
        LostError: somebody else has the lock.
        StoreError, OSError: see `ShardWriter.write`.
    """
    logits = fetch()
    require_room(writer.path, RESERVE_BYTES + 4 * hands * logits.nbytes)
    require_ours(writer.path, token)
    writer.write(entry, logits.numpy())


def require_room(place: Path, needed: int) -> None:
    """Raise DiskError if fewer than ``needed`` bytes are free where ``place`` lies."""
    free = free_bytes(place)
    if free is not None and free < needed:
        raise DiskError(
            f"{place}: only {as_size(free)} are free on its disk, too few to go on safely; "
            "free some space and run the same command again, what is complete is kept"
        )


def require_ours(target: Path, token: str) -> None:
    """Raise LostError unless the lock of ``target`` is still the run's."""
    try:
        require_held(target, token)
    except StoreError as error:
        raise LostLockError(str(error)) from error
