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

# What disks answer that know no such call: Lustre without -o flock, NFS without a lock daemon, CIFS, some FUSE disks.
_NOT_KNOWN = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})

_told: set[str] = set()
_tell: Callable[[str], None] | None = None


def tell_limits(tell: Callable[[str], None]) -> None:
    """From now on call ``tell`` with a line, once for each thing that a disk cannot do and that is left out."""
    global _tell
    _tell = tell
    _told.clear()


def _lacks(what: str, path: Path, error: OSError, consequence: str) -> None:
    """Tell that the disk of ``path`` cannot do ``what``; OSError if it failed for another reason."""
    if error.errno not in _NOT_KNOWN:
        raise error
    if what not in _told and _tell is not None:
        _told.add(what)
        _tell(f"{path}: this disk has no {what} ({error.strerror}); {consequence}")


def is_partial(name: str) -> bool:
    """True if ``name`` is that of a file whose writing was cut short; scans pass over such files."""
    return name.endswith(PARTIAL)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an exception.

    The content is flushed to the disk before the rename, the rename before the return, so that a
    machine that loses power leaves the old file or the whole new one. After an exception the
    temporary file is gone and ``path`` is as it was. The parent folder is made where it is missing.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
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
    """One thread of one process at a time: for a file beside ``path`` that is read, changed and put back.

    The kernel frees the guard of a process that dies. The file ``path`` is the guard's own, and gone
    afterwards. Where the disk knows no such guards, everybody passes, and that is said once.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _wait_for(handle, path)
            # Whoever had it before may have removed the file that was waited for.
            if _is_file(path, handle):
                break
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)
            raise
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _wait_for(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        _lacks("file locks", path.parent, error, "of two runs that start in one moment both may go on")


def _is_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        _lacks("flush of folders", folder, error, "a file that was written just before a power cut may be missing")
    finally:
        os.close(handle)


def move(path: Path, target: Path) -> None:
    """Give a file another place, also on another disk, and never leave half of it there.

    The folder of ``target`` is made where it is missing. On another disk the file is copied under a temporary name,
    flushed, renamed, and only then removed from its old place.

    Raises:
        OSError: the target's folder cannot be written, or the old one.
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
    """Write pieces, one behind the other, atomically (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        _fill(temporary, pieces)


def _fill(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def as_json(value: Any) -> str:
    """``value`` as our files hold it: indented JSON, no NaN, one newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, as_json(value))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
