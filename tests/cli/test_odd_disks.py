"""Disks that lack what others have: file locks, a flush of folders, renames across them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from .bench import Bench, ended, files, quiet, start_python

NO_LOCKS = {"NFS without lockd": errno.ENOLCK, "Lustre without -o flock": errno.ENOSYS, "some FUSE": errno.EINVAL}


def lacking(lock: int | None, flush: int | None) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Both calls of the operating system, of which one fails as such a disk lets it fail."""
    real_flock, real_fsync = fcntl.flock, os.fsync

    def flock(handle: int, operation: int) -> None:
        if lock is not None:
            raise OSError(lock, os.strerror(lock))
        real_flock(handle, operation)

    def fsync(handle: int) -> None:
        if flush is not None and stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(flush, os.strerror(flush))
        real_fsync(handle)

    return mock.patch.multiple(fcntl, flock=flock), mock.patch.multiple(os, fsync=fsync)


@pytest.mark.parametrize("disk", [*NO_LOCKS, "CIFS"])
def test_work_goes_on_and_it_is_said_once(empty: Bench, finished: Bench, disk: str) -> None:
    locks, flushes = lacking(NO_LOCKS.get(disk), errno.EINVAL if disk == "CIFS" else None)
    with locks, flushes:
        for command in ("dump", "ensemble"):
            result = empty.run(command)
            assert result.code == 0, result
            (note,) = quiet(result.err)
            assert note.startswith(f"note: {empty.root}")
            assert ("flush of folders" if disk == "CIFS" else "file locks") in note
    assert files(empty.logits) == files(finished.logits)
    assert files(empty.predictions) == files(finished.predictions)
    left = [path.name for path in empty.output.rglob("*") if ".guard" in path.name or path.suffix == ".lock"]
    assert left == []


AS_NFS_OR_CIFS = """
import errno, fcntl, os, stat, sys

fsync = os.fsync

def no_locks(handle, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

def no_folders(handle):
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    fsync(handle)

fcntl.flock, os.fsync = no_locks, no_folders
sys.argv = ["hmsa-pipeline", *sys.argv[1:]]
from hmsa_pipeline.cli import main
main()
"""


def test_a_process_of_its_own_goes_on_too_and_leaves_nothing_behind(empty: Bench, finished: Bench) -> None:
    """With the system's calls replaced before anything of ours is imported."""
    for command in ("dump", "ensemble"):
        words = (command, "--manifest", str(empty.manifest), "--workers", "0")
        result = ended(start_python("-c", AS_NFS_OR_CIFS, *words))
        assert result.code == 0, result
        notes = [line for line in quiet(result.err) if line.startswith("note: ")]
        assert sorted("file locks" in note for note in notes) == [False, True]
        assert sum("flush of folders" in note for note in notes) == 1
    assert files(empty.predictions) == files(finished.predictions)
    assert files(empty.root).keys() == files(finished.root).keys()


def test_another_failure_of_the_flush_is_still_an_error(empty: Bench) -> None:
    _, flushes = lacking(None, errno.EIO)
    with flushes:
        assert os.strerror(errno.EIO) in empty.run("dump").err


def damage(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[100] ^= 0xFF
    shard.write_bytes(content)


def test_a_damaged_shard_is_moved_to_another_disk(full: Bench, finished: Bench) -> None:
    """As where the store, or the folder for damaged shards, is a link to another disk."""
    shard = full.shard("garden", "ant", "flower.png")
    damage(shard)
    broken = shard.read_bytes()
    rename = Path.rename

    def within(path: Path, target: Path) -> Path:
        if path.parent != target.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path), None, str(target))
        return rename(path, target)

    with mock.patch.object(Path, "rename", within):
        result = full.run("verify", "--repair")
    assert (result.code, result.out) == (0, "17 images are sound, 1 damaged, 0 unreadable; 1 moved aside\n")
    assert not shard.exists()
    assert list(files(full.output / "damaged").values()) == [broken]
    assert "1 image dumped, 17 complete before" in full.run("dump").out
    assert files(full.logits) == files(finished.logits)
