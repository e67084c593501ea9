"""Files on a disk or in an object store, through one set of functions.

A location is a `Path`, or a `RemotePath` in an object store, which is none. Of both holds: a reader sees all of a
file or nothing, `create_exclusive` succeeds for one caller only, and what fails raises OSError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ... import files
from ...errors import StoreError
from .interface import FileInfo, FileSystem
from .local_disk import LocalDisk
from .object_store import ObjectStore, parse_url

_DISK, _OBJECTS = LocalDisk(), ObjectStore()


def parse_location(text: str) -> Path:
    """Make the location that ``text`` names: a path, a ``file://`` URL, or a URL such as ``s3://bucket/run``.

    Raises:
        ValueError: there is no such kind of URL, a package is missing for it, or it names no bucket.
    """
    if "://" not in text:
        return Path(text)
    return Path(unquote(urlsplit(text).path)) if text.startswith("file://") else parse_url(text)


def is_remote(path: Path) -> bool:
    """Say whether ``path`` lies in an object store."""
    return not isinstance(path, Path)


def file_system(path: Path) -> FileSystem:
    """Return the file system that ``path`` lies in."""
    return _OBJECTS if is_remote(path) else _DISK


def size(path: Path) -> int | None:
    """Return the size of a file in bytes; None if there is no such file."""
    return file_system(path).size(path)


def version_tag(path: Path) -> str | None:
    """Return a tag that changes when the file does (time and size, or an object's ETag); None if there is none."""
    return file_system(path).version_tag(path)


def modified(path: Path) -> float:
    """Return the time of a file's last write, in seconds since 1970; FileNotFoundError if there is no such file."""
    return file_system(path).modified(path)


def read_bytes(path: Path) -> bytes:
    """Read a file; FileNotFoundError if there is none."""
    return file_system(path).read_bytes(path)


def write_bytes(path: Path, *pieces: bytes | bytearray | memoryview) -> None:
    """Write a file from pieces, one after another; after an error the old file is still there."""
    file_system(path).write_bytes(path, *pieces)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; after an error the old file is still there."""
    write_bytes(path, files.as_json(value).encode("utf-8"))


def create_exclusive(path: Path, data: bytes) -> None:
    """Create a file that must not exist; ``data`` has to differ from every other caller's.

    Raises:
        FileExistsError: the file exists.
        OSError: it cannot be written.
    """
    file_system(path).create_exclusive(path, data)


def refresh(path: Path, data: bytes) -> None:
    """Set the file's time of writing to now; ``data`` is its content."""
    file_system(path).refresh(path, data)


def remove(path: Path) -> None:
    """Remove a file, if it exists."""
    file_system(path).remove(path)


def remove_all(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of these names below ``folder``, which must exist."""
    file_system(folder).remove_all(folder, names)


def move(path: Path, target: Path) -> None:
    """Move a file to ``target``, whose folder is made where it is missing."""
    file_system(path).move(path, target)


def short_lock(path: Path) -> AbstractContextManager[None]:
    """Let one caller at a time into the block: for a file beside ``path`` that is read, changed and written.

    On a disk see `files.guarded`. In an object store the lock of a dead process is taken over after 30 s.

    Raises:
        OSError: the folder cannot be written.
    """
    return file_system(path).short_lock(path)


def require_no_file(output: Path) -> None:
    """Raise StoreError if ``output`` cannot be a folder because it, or a path above it, is a file."""
    if there := file_system(output).blocking_file(output):
        raise StoreError(
            f"{output}: cannot be written ({there} is a file); choose another --output, or correct 'output' in "
            "the manifest"
        )


def make_folder(path: Path) -> None:
    """Make a folder where it is missing; an object store needs none."""
    file_system(path).make_folder(path)


def listing(folder: Path) -> Iterator[FileInfo]:
    """List the files below ``folder``, in any order; none if there is no folder. OSError if it cannot be read."""
    return file_system(folder).listing(folder)


def remove_partials(folder: Path) -> None:
    """Remove the temporary files of dead writers below ``folder``, where nobody else may write meanwhile.

    Raises:
        OSError: the folder cannot be read, or a file cannot be removed.
    """
    file_system(folder).remove_partials(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that is below it, if it exists."""
    file_system(folder).remove_folder(folder)


def free_bytes(folder: Path) -> int | None:
    """Return the number of free bytes where ``folder`` lies or will lie; None if that is unknown."""
    return file_system(folder).free_bytes(folder)
