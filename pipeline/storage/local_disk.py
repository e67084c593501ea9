"""Files on a local or network disk. Files are flushed and renamed into place: readers see all or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ... import files
from .interface import FileInfo


class LocalDisk:
    """The `FileSystem` of paths on a disk."""

    has_exact_times = True

    def size(self, path: Path) -> int | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def version_tag(self, path: Path) -> str | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            return f"{status.st_mtime_ns} {status.st_size}"
        return None

    def modified(self, path: Path) -> float:
        return path.stat().st_mtime

    def read_bytes(self, path: Path) -> bytes:
        return path.read_bytes()

    def write_bytes(self, path: Path, *pieces: bytes | bytearray | memoryview) -> None:
        files.write_bytes(path, *pieces)

    def create_exclusive(self, path: Path, data: bytes) -> None:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def refresh(self, path: Path, data: bytes) -> None:
        os.utime(path)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_all(self, folder: Path, names: Iterable[str]) -> None:
        for name in names:
            (folder / name).unlink()

    def move(self, path: Path, target: Path) -> None:
        files.move(path, target)

    def short_lock(self, path: Path) -> AbstractContextManager[None]:
        return files.guarded(path)

    def blocking_file(self, folder: Path) -> Path | None:
        # A folder that cannot be looked at is reported by the first operation that needs it.
        with contextlib.suppress(OSError):
            found = next(path for path in (folder, *folder.parents) if path.exists())
            return None if found.is_dir() else found
        return None

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def listing(self, folder: Path) -> Iterator[FileInfo]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from _listing(str(folder), "")

    def remove_partials(self, folder: Path) -> None:
        for at, _, names in os.walk(folder):  # names alone: on a network disk each size would cost a request
            for name in names:
                if files.is_partial(name):
                    Path(at, name).unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)

    def free_bytes(self, folder: Path) -> int | None:
        for here in (folder, *folder.parents):
            try:
                return shutil.disk_usage(here).free
            except FileNotFoundError:
                continue
            except OSError:
                return None
        return None


def _listing(folder: str, prefix: str) -> Iterator[FileInfo]:
    with os.scandir(folder) as scan:
        for entry in scan:
            if entry.is_dir(follow_symlinks=False):
                yield from _listing(entry.path, f"{prefix}{entry.name}/")
            else:
                # A writer may remove the file meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield FileInfo(prefix + entry.name, status.st_size, status.st_mtime_ns)
