"""Where outputs lie: a folder on a disk, or a place in an object store that fsspec knows (``s3://bucket/run``).

A remote place is a `UPath`, which joins, prints and travels like a `Path` and is none; whoever touches what lies
there does so through this module. What holds of both: a reader sees a file whole or not at all, and ``create`` makes
one only if nobody else did. Where a disk flushes and renames, an object store needs nothing: it has no half objects.

Whatever a remote place's library raises comes out as OSError, so that who handles a disk handles it too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from ... import files
from ...errors import StoreError

EXTRA = "hmsa-pipeline[cloud]"
_GUARD_SECONDS = 30.0
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")

# One for all threads: fsspec keeps one, with connections of its own, for every thread that asks.
_systems: dict[str, Any] = {}
_systems_lock = threading.Lock()


@dataclass(frozen=True)
class FileInfo:
    """A file that a listing found.

    Attributes:
        name: its path below the folder that was listed, with ``/``.
        bytes: its size.
        modified: when it was written last, in nanoseconds since 1970. A remote place tells whole seconds.
    """

    name: str
    bytes: int
    modified: int


def parse_location(text: str) -> Path:
    """The folder that ``text`` names: a path, a ``file://`` URL, or the URL of a remote place.

    Raises:
        ValueError: no such kind of place, a package is missing for it, or it names no bucket.
    """
    if "://" not in text:
        return Path(text)
    kind, rest = text.split("://", 1)
    if kind == "file":
        return Path(unquote(urlsplit(text).path))
    if not rest.strip("/"):
        raise ValueError(f"{text}: names no bucket; write {kind}://bucket/folder")
    try:
        from upath import UPath
    except ImportError:
        raise ValueError(f"{text}: a URL needs some packages more; install {EXTRA}") from None
    try:
        found = cast("Path", UPath(text.rstrip("/"), use_listings_cache=False))
        _system(found)
    except ImportError as error:
        mend = f"install {EXTRA}" if kind == "s3" else _one_line(error)
        raise ValueError(f"{text}: {kind}:// needs a package more; {mend}") from None
    except ValueError as error:
        raise ValueError(f"{text}: {_one_line(error)}; give a folder, or a URL such as s3://bucket/run") from None
    return found


def is_remote(path: Path) -> bool:
    """Whether ``path`` lies in an object store."""
    return not isinstance(path, Path)


def address(path: Path) -> str:
    """The name that the remote place's own library knows ``path`` by."""
    return cast("Any", path).path


def _system(path: Path) -> Any:
    """The library that reaches ``path``."""
    remote = cast("Any", path)
    with _systems_lock:
        if remote.protocol not in _systems:
            _systems[remote.protocol] = remote.fs
        return _systems[remote.protocol]


@contextlib.contextmanager
def as_oserror(path: Path) -> Iterator[None]:
    """Turns what a remote place's library raises of its own into OSError, which names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise type(error)(error.errno or errno.EIO, error.strerror or _one_line(error), str(path)) from error
    except Exception as error:
        raise OSError(errno.EIO, _one_line(error), str(path)) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def size(path: Path) -> int | None:
    """Bytes of the file ``path``; None where there is none.

    Raises:
        OSError: nobody can tell.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not is_remote(path):
            status = path.stat()
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        with as_oserror(path):
            found = _system(path).info(address(path))
        return None if found["type"] == "directory" else int(found["size"])
    return None


def version_tag(path: Path) -> str | None:
    """What changes when the file ``path`` does; None where there is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not is_remote(path):
            status = path.stat()
            return f"{status.st_mtime_ns} {status.st_size}"
        with as_oserror(path):
            return _system(path).ukey(address(path))
    return None


def modified(path: Path) -> float:
    """When the file ``path`` was written last, in seconds since 1970; FileNotFoundError if there is none."""
    if not is_remote(path):
        return path.stat().st_mtime
    with as_oserror(path):
        return _time(_system(path).info(address(path))) / 1e9


def read_bytes(path: Path) -> bytes:
    """The content of a file; FileNotFoundError if there is none."""
    if not is_remote(path):
        return path.read_bytes()
    with as_oserror(path):
        return _system(path).cat_file(address(path))


def write_bytes(path: Path, *pieces: bytes | bytearray | memoryview) -> None:
    """Write a file of pieces, one behind the other, all of it or nothing."""
    if not is_remote(path):
        files.write_bytes(path, *pieces)
        return
    with as_oserror(path):
        _system(path).pipe_file(address(path), b"".join(pieces))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, all of it or nothing."""
    write_bytes(path, files.as_json(value).encode("utf-8"))


def create_exclusive(path: Path, data: bytes) -> None:
    """Make the file ``path``, which no other has made; ``data`` is like no other's.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    if not is_remote(path):
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return
    for pause in (0.2, 1.0, None):
        failed: OSError | None = None
        try:
            with as_oserror(path):
                _system(path).pipe_file(address(path), data, mode="create")
        except OSError as error:
            failed = error
        # An answer that was lost is asked for again, and then finds what it has itself just made; and a server that
        # does not know the condition has let two pass, of whom the last one is in.
        there = _content(path)
        if there == data:
            return
        if there is not None or failed is None or isinstance(failed, FileExistsError):
            raise FileExistsError(errno.EEXIST, "is there already", str(path)) from failed
        if pause is None or isinstance(failed, (PermissionError, FileNotFoundError)):
            raise failed
        time.sleep(pause)  # two that ask in one moment may both be refused


def refresh(path: Path, data: bytes) -> None:
    """Make the file's time of writing now; ``data`` is what it holds."""
    if is_remote(path):
        write_bytes(path, data)
    else:
        os.utime(path)


def remove(path: Path) -> None:
    """Remove a file, if there is one."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError), as_oserror(path):
        _system(path).rm_file(address(path))


def remove_all(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of these names below ``folder``, which are there."""
    paths = [folder / name for name in names]
    if not is_remote(folder):
        for path in paths:
            path.unlink()
    elif paths:
        with as_oserror(folder):
            _system(folder).rm([address(path) for path in paths])


def move(path: Path, target: Path) -> None:
    """Give a file another place, whose folder is made where it is missing."""
    if not is_remote(path):
        files.move(path, target)
        return
    with as_oserror(path):
        _system(path).copy(address(path), address(target))
    remove(path)


@contextlib.contextmanager
def short_lock(path: Path) -> Iterator[None]:
    """One at a time, for a file beside ``path`` that is read, changed and put back (see `files.guarded`).

    In an object store the guard of who died is taken over once nobody has touched it for half a minute.

    Raises:
        OSError: the folder cannot be written.
    """
    if not is_remote(path):
        with files.guarded(path):
            yield
        return
    mine = uuid.uuid4().hex.encode()
    seen: bytes | None = None
    since = time.monotonic()
    while True:
        try:
            create_exclusive(path, mine)
            break
        except FileExistsError:
            other = _content(path)
            if other != seen:
                seen, since = other, time.monotonic()
            elif time.monotonic() - since > _GUARD_SECONDS:
                remove(path)
            else:
                time.sleep(0.1)
    try:
        yield
    finally:
        # One that cannot be removed is free all the same, in half a minute.
        with contextlib.suppress(OSError):
            if _content(path) == mine:
                remove(path)


def _content(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None


def require_no_file(output: Path) -> None:
    """Refuse an output that can be no folder, since a file lies in its place or above it; nothing is made.

    Raises:
        StoreError: it cannot.
    """
    if is_remote(output):
        return
    # What cannot be asked is for those to report who need it.
    with contextlib.suppress(OSError):
        there = next(path for path in (output, *output.parents) if path.exists())
        if not there.is_dir():
            raise StoreError(
                f"{output}: cannot be written ({there} is a file); choose another --output, or correct 'output' in "
                "the manifest"
            )


def make_folder(path: Path) -> None:
    """Make a folder where it is missing; an object store has none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def listing(folder: Path) -> Iterator[FileInfo]:
    """The files below ``folder``, in any order; none where there is no folder.

    Raises:
        OSError: it cannot be read.
    """
    if is_remote(folder):
        yield from _remote_listing(folder)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from _local_listing(str(folder), "")


def _local_listing(folder: str, prefix: str) -> Iterator[FileInfo]:
    with os.scandir(folder) as scan:
        for entry in scan:
            if entry.is_dir(follow_symlinks=False):
                yield from _local_listing(entry.path, f"{prefix}{entry.name}/")
            else:
                # A writer may take it away under our hands.
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield FileInfo(prefix + entry.name, status.st_size, status.st_mtime_ns)


def remove_partials(folder: Path) -> None:
    """Remove below ``folder`` what writers left that died in the middle of a file; nobody else may write there.

    In an object store there is no such thing.

    Raises:
        OSError: it cannot be read, or a file cannot be removed.
    """
    if is_remote(folder):
        return
    for at, _, names in os.walk(folder):  # names alone: on a network disk their sizes would cost a question each
        for name in names:
            if files.is_partial(name):
                Path(at, name).unlink(missing_ok=True)


def _remote_listing(folder: Path) -> Iterator[FileInfo]:
    try:
        with as_oserror(folder):
            found: dict[str, Any] = _system(folder).find(address(folder), detail=True)
    except FileNotFoundError:
        return
    start = len(address(folder).rstrip("/")) + 1
    for path, info in found.items():
        yield FileInfo(path[start:], int(info["size"]), _time(info))


def _time(info: dict[str, Any]) -> int:
    """Nanoseconds since 1970 of what each library calls by a name of its own."""
    when = next((info[name] for name in _TIMES if info.get(name) is not None), 0.0)
    return int((when if isinstance(when, (int, float)) else when.timestamp()) * 1e9)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is below it, if there is one."""
    if not is_remote(folder):
        if folder.exists():
            shutil.rmtree(folder)
        return
    with contextlib.suppress(FileNotFoundError), as_oserror(folder):
        _system(folder).rm(address(folder), recursive=True)


def free_bytes(folder: Path) -> int | None:
    """Bytes that are free where ``folder`` lies or will lie; None where nobody can tell."""
    if is_remote(folder):
        return None
    for here in (folder, *folder.parents):
        try:
            return shutil.disk_usage(here).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
