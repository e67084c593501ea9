"""Writing files so that a reader sees the old content, the new content, and nothing between."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"

# Errors of disks without such a call: Lustre without -o flock, NFS without a lock daemon, CIFS, some FUSE disks.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})

_told: set[str] = set()
_tell: Callable[[str], None] | None = None


def tell_limits(tell: Callable[[str], None]) -> None:
    """Call ``tell`` with a line, once for each operation that a disk or server does not support."""
    global _tell
    _tell = tell
    _told.clear()


def tell_limit(what: str, line: str) -> None:
    """Tell once that an operation, ``what``, is not supported, and what follows from it."""
    if what not in _told and _tell is not None:
        _told.add(what)
        _tell(line)


def _lacks(what: str, path: Path, error: OSError, consequence: str) -> None:
    """Tell that the disk of ``path`` does not support ``what``; raise the error if it has another cause."""
    if error.errno not in _UNSUPPORTED:
        raise error
    tell_limit(what, f"{path}: this disk has no {what} ({error.strerror}); {consequence}")


def is_partial(name: str) -> bool:
    """True if ``name`` is that of a file whose writing was cut short; scans pass over such files."""
    return name.endswith(PARTIAL)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, which replaces ``path`` when the block ends without an exception.

    The content is flushed to the disk before the rename, and the rename before the return, so that after a power cut
    there is either the old file or the complete new one. After an exception the temporary file is removed and
    ``path`` is unchanged. The parent folder is made where it is missing. OSError if the folder cannot be written, or
    the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Let one thread of one process at a time into the block: for a file that is read, changed and written.

    ``path`` is a file of the lock's own, which is removed afterwards. The kernel frees the lock of a process that
    dies. On a disk without file locks every caller passes, and that is reported once (`tell_limits`). OSError if the
    folder cannot be written.
    """
    held = False
    while not held:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    path.unlink(missing_ok=True)
                _lacks("file locks", path.parent, error, "of two runs that start in one moment both may go on")
            # The previous holder may have removed the file while this one waited for it.
            with contextlib.suppress(FileNotFoundError):
                held = os.path.samestat(path.stat(), os.fstat(file.fileno()))
            if held:
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        path.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        _lacks("flush of folders", folder, error, "a file that was written just before a power cut may be missing")
    finally:
        os.close(handle)


def move(path: Path, target: Path) -> None:
    """Move a file, also to another disk, without ever leaving a part of it there.

    The folder of ``target`` is made where it is missing. On another disk the file is copied under a temporary name,
    flushed, renamed, and only then removed from its old place. OSError if the target's folder or the old one cannot
    be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_path(target) as temporary:
            shutil.copy2(path, temporary)
        path.unlink()


def write_bytes(path: Path, *pieces: bytes | bytearray | memoryview) -> None:
    """Write a file from pieces, one after another, atomically (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        fill(temporary, pieces)


def fill(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write pieces, one after another, to a file that nobody reads yet."""
    with path.open("wb") as file:
        file.writelines(pieces)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def as_json(value: Any) -> str:
    """Write ``value`` as indented JSON without NaN, with one newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, as_json(value))


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
