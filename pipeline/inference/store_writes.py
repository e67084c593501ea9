"""Checks of a worker: the checkpoint before it is loaded, disk space and the lock before every write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError, DiskError, StoreError
from ..config.member import Member
from ..storage.filesystem import free_bytes
from ..storage.writer_lock import require_held
from ..store.image_table import ImageEntry
from ..store.shard_writer import ShardWriter
from ..text import as_size
from .member_network import digest_of

RESERVE_BYTES = 16 * 2**20


def require_checkpoint(member: Member, digest: str | None) -> None:
    """Raise CheckpointError unless a member's checkpoint has the sha256 ``digest``, as when the run began."""
    path = member.checkpoint_path()
    if not path.exists() or digest_of(member) != digest:
        raise CheckpointError(
            f"{path}: is not the file that the run began with, on this machine; all machines need the same one"
        )


class LostLockError(StoreError):
    """The run has lost its lock: nothing more may be written."""


@dataclass(frozen=True)
class LogitsTarget:
    """The store of a member's logits, whose arrays exist.

    Attributes:
        token: token of the run's lock on the store.
        entries: path -> the image as the store lists it.
    """

    writer: ShardWriter
    token: str
    entries: Mapping[str, ImageEntry]

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        """Return the images that have no logits there."""
        return [entry.path for entry in self.writer.incomplete([self.entries[path] for path in paths])]

    def write(self, path: str, logits: Tensor, threads: int) -> None:
        """Store an image's logits, if there is disk space and the lock is still the run's.

        Args:
            path: the image.
            logits: (C, H, W) float16, on the CPU.
            threads: number of threads that may write as many bytes at the same time.

        Raises:
            DiskError: the disk is nearly full.
            LostLockError: the lock is no longer the run's.
            StoreError, OSError: see `ShardWriter.write`.
        """
        require_place(self.writer.path, self.token, RESERVE_BYTES + 4 * threads * logits.nbytes)
        self.writer.write(self.entries[path], logits.numpy())


def require_place(path: Path, token: str, needed: int = RESERVE_BYTES) -> None:
    """Check that a run may write.

    Args:
        path: store or folder that is written to.
        token: token of the run's lock on it.
        needed: number of bytes that must be free on its disk.

    Raises:
        DiskError: fewer are.
        LostLockError: the lock is no longer the run's.
    """
    free = free_bytes(path)
    if free is not None and free < needed:
        raise DiskError(
            f"{path}: only {as_size(free)} are free on its disk, too few to go on safely; "
            "free some space and run the same command again, what is complete is kept"
        )
    try:
        require_held(path, token)
    except StoreError as error:
        raise LostLockError(str(error)) from error
