"""Files in an object store that fsspec knows (``s3://bucket/run``).

A remote location is a `UPath`, which joins, prints and pickles like a `Path` but is not one. An object appears whole
or not at all. Errors of the store's library become OSError, so that code which handles a disk's errors handles these.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from ...errors import reason
from .interface import FileInfo

EXTRA = "hmsa-pipeline[cloud]"
TAKEOVER_SECONDS = 30.0
"""Age after which the short lock of another process counts as that of a dead one."""
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")

_libraries: dict[object, Any] = {}
_libraries_lock = threading.Lock()


def shared_library(key: object, make: Callable[[], Any]) -> Any:
    """Return the process's only library object of this key; fsspec would make one, with connections, per thread."""
    with _libraries_lock:
        if key not in _libraries:
            _libraries[key] = make()
        return _libraries[key]


def library(path: Path) -> Any:
    """Return fsspec's file system of a remote location; ImportError if a package is missing for it."""
    remote = cast("Any", path)
    return shared_library(remote.protocol, lambda: remote.fs)


def address(path: Path) -> str:
    """Name a remote location as its library does."""
    return cast("Any", path).path


def parse_url(text: str) -> Path:
    """Make the location of a URL such as ``s3://bucket/folder``.

    Raises:
        ValueError: there is no such kind of URL, a package is missing for it, or it names no bucket.
    """
    kind, rest = text.split("://", 1)
    if not rest.strip("/"):
        raise ValueError(f"{text}: names no bucket; write {kind}://bucket/folder")
    try:
        from upath import UPath
    except ImportError:
        raise ValueError(f"{text}: a URL needs some packages more; install {EXTRA}") from None
    try:
        found = cast("Path", UPath(text.rstrip("/"), use_listings_cache=False))
        library(found)
    except ImportError as error:
        fix = f"install {EXTRA}" if kind == "s3" else reason(error)
        raise ValueError(f"{text}: {kind}:// needs a package more; {fix}") from None
    except ValueError as error:
        raise ValueError(f"{text}: {reason(error)}; give a folder, or a URL such as s3://bucket/run") from None
    return found


@contextlib.contextmanager
def as_oserror(path: Path) -> Iterator[None]:
    """Turn errors of a remote location's library into OSError that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise type(error)(error.errno or errno.EIO, reason(error), str(path)) from error
    except Exception as error:
        raise OSError(errno.EIO, reason(error), str(path)) from error


class ObjectStore:
    """The `FileSystem` of locations in an object store. It has no folders, and no partially written files."""

    has_exact_times = False

    def size(self, path: Path) -> int | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with as_oserror(path):
                found = library(path).info(address(path))
            return None if found["type"] == "directory" else int(found["size"])
        return None

    def version_tag(self, path: Path) -> str | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), as_oserror(path):
            return library(path).ukey(address(path))
        return None

    def modified(self, path: Path) -> float:
        with as_oserror(path):
            return _modified(library(path).info(address(path))) / 1e9

    def read_bytes(self, path: Path) -> bytes:
        with as_oserror(path):
            return library(path).cat_file(address(path))

    def write_bytes(self, path: Path, *pieces: bytes | bytearray | memoryview) -> None:
        with as_oserror(path):
            library(path).pipe_file(address(path), b"".join(pieces))

    def create_exclusive(self, path: Path, data: bytes) -> None:
        for pause in (0.2, 1.0, None):
            failed: OSError | None = None
            try:
                with as_oserror(path):
                    library(path).pipe_file(address(path), data, mode="create")
            except OSError as error:
                failed = error
            # When an answer is lost, the library asks again and finds the object that it has just made. And a server
            # that ignores the condition lets two writers pass; the object is then the last one's.
            there = self._content(path)
            if there == data:
                return
            if there is not None or failed is None or isinstance(failed, FileExistsError):
                raise FileExistsError(errno.EEXIST, "is there already", str(path)) from failed
            if pause is None or isinstance(failed, (PermissionError, FileNotFoundError)):
                raise failed
            time.sleep(pause)  # of two requests at the same moment both may be refused

    def refresh(self, path: Path, data: bytes) -> None:
        self.write_bytes(path, data)

    def remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError), as_oserror(path):
            library(path).rm_file(address(path))

    def remove_all(self, folder: Path, names: Iterable[str]) -> None:
        if paths := [address(folder / name) for name in names]:
            with as_oserror(folder):
                library(folder).rm(paths)

    def move(self, path: Path, target: Path) -> None:
        with as_oserror(path):
            library(path).copy(address(path), address(target))
        self.remove(path)

    @contextlib.contextmanager
    def short_lock(self, path: Path) -> Iterator[None]:
        mine = uuid.uuid4().hex.encode()
        seen: bytes | None = None
        since = time.monotonic()
        while True:
            try:
                self.create_exclusive(path, mine)
                break
            except FileExistsError:
                other = self._content(path)
                if other != seen:
                    seen, since = other, time.monotonic()
                elif time.monotonic() - since > TAKEOVER_SECONDS:
                    self.remove(path)
                else:
                    time.sleep(0.1)
        try:
            yield
        finally:
            # A lock that cannot be removed is free after TAKEOVER_SECONDS.
            with contextlib.suppress(OSError):
                if self._content(path) == mine:
                    self.remove(path)

    def _content(self, path: Path) -> bytes | None:
        try:
            return self.read_bytes(path)
        except FileNotFoundError:
            return None

    def blocking_file(self, folder: Path) -> Path | None:
        return None

    def make_folder(self, path: Path) -> None:
        pass

    def listing(self, folder: Path) -> Iterator[FileInfo]:
        try:
            with as_oserror(folder):
                found: dict[str, Any] = library(folder).find(address(folder), detail=True)
        except FileNotFoundError:
            return
        start = len(address(folder).rstrip("/")) + 1
        for path, info in found.items():
            yield FileInfo(path[start:], int(info["size"]), _modified(info))

    def remove_partials(self, folder: Path) -> None:
        pass

    def remove_folder(self, folder: Path) -> None:
        with contextlib.suppress(FileNotFoundError), as_oserror(folder):
            library(folder).rm(address(folder), recursive=True)

    def free_bytes(self, folder: Path) -> int | None:
        return None


def _modified(info: dict[str, Any]) -> int:
    """Read the time of the last write, in nanoseconds since 1970, which each library gives under its own name."""
    when = next((info[name] for name in _TIMES if info.get(name) is not None), 0.0)
    return int((when if isinstance(when, (int, float)) else when.timestamp()) * 1e9)
