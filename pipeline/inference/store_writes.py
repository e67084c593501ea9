"""Checks of a worker: the checkpoint before it is loaded, disk space and the lock before every write."""

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
    """Return the path of a member's checkpoint.

    Raises:
        CheckpointError: it is not the file that the run began with, whose sha256 is ``digest``.
    """
    path = member.checkpoint_path()
    if not path.is_file() or sha256(path) != digest:
        raise CheckpointError(
            f"{path}: is not the file that the run began with, on this machine; all machines need the same one"
        )
    return path


class LostLockError(StoreError):
    """The run has lost its lock: nothing more may be written."""


def write_shard(
    writer: ShardWriter, token: str, entry: ImageEntry, fetch: Callable[[], Tensor], threads: int
) -> None:
    """Store an image's logits, if there is disk space and the store's lock is still the run's.

    Args:
        writer: writer of the store.
        token: token of the run's lock on it.
        entry: the image.
        fetch: waits for its logits (C, H, W) float16 and returns them.
        threads: number of threads that may write as many bytes at the same time.

    Raises:
        DiskError: the disk is nearly full.
        LostLockError: the lock is no longer the run's.
        StoreError, OSError: see `ShardWriter.write`.
    """
    logits = fetch()
    require_disk_space(writer.path, RESERVE_BYTES + 4 * threads * logits.nbytes)
    require_lock(writer.path, token)
    writer.write(entry, logits.numpy())


def require_disk_space(path: Path, needed: int) -> None:
    """Raise DiskError if fewer than ``needed`` bytes are free on the disk of ``path``."""
    free = free_bytes(path)
    if free is not None and free < needed:
        raise DiskError(
            f"{path}: only {as_size(free)} are free on its disk, too few to go on safely; "
            "free some space and run the same command again, what is complete is kept"
        )


def require_lock(target: Path, token: str) -> None:
    """Raise LostLockError unless the lock of ``target`` is still the run's."""
    try:
        require_held(target, token)
    except StoreError as error:
        raise LostLockError(str(error)) from error
