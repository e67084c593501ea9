"""Files in an object store (``s3://bucket/run``), through obstore. An object appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ...files import tell_limit
from .interface import FileInfo
from .object_client import EXTRA, KINDS, as_oserror, connection

TAKEOVER_SECONDS = 30.0
"""Age after which the short lock of another process counts as that of a dead one."""
SETTLE_SECONDS = 1.0
"""Time after which a writer looks whether another one was there too, on a server that ignores conditions."""
NO_CONDITIONS = (
    "this server ignores If-None-Match; two runs that start in the same moment cannot be kept apart, so start a "
    "second one later"
)
_PAGE = 1000
_PART_BYTES = 100 * 2**20
"""Objects that are larger are sent in parts of this size."""


class RemotePath(PurePosixPath):
    """A location in an object store: joins, prints and pickles like a `Path`, and cannot be opened as one."""

    def __str__(self) -> str:
        kind, colon, rest = super().__str__().partition(":/")
        return f"{kind}://{rest}" if colon else kind


def parse_url(text: str) -> Path:
    """Make the location of a URL such as ``s3://bucket/folder``.

    Raises:
        ValueError: there is no such kind of URL, a package is missing for it, or it names no bucket.
    """
    kind, rest = text.split("://", 1)
    if kind not in KINDS:
        raise ValueError(f"{text}: {kind}:// is not known; give a folder, or a URL such as s3://bucket/run")
    if not rest.strip("/"):
        raise ValueError(f"{text}: names no bucket; write {kind}://bucket/folder")
    found = RemotePath(text)
    if ".." in found.parts:
        raise ValueError(f"{text}: an object store has no '..'; write the folder's own URL")
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise ValueError(f"{text}: a URL needs a package more; install {EXTRA}") from None
    return cast("Path", found)


def address(path: Path) -> tuple[str, str]:
    """Split a location into the URL of its bucket and the key in it."""
    kind, bucket, *names = path.parts
    return f"{kind}//{bucket}", "/".join(names)


def _ask(path: Path, request: Callable[[Any, str], Any]) -> Any:
    """Send a request to the store of ``path``; ``request`` gets obstore's object and the key.

    obstore waits outside Python, where Ctrl-C is not heard, so that the main thread has another one wait.
    """
    root, key = address(path)
    with as_oserror(path):
        if threading.current_thread() is threading.main_thread():
            return _waiting.submit(lambda: request(connection(root), key)).result()
        return request(connection(root), key)


_waiting = ThreadPoolExecutor(4, thread_name_prefix="object-store")


class ObjectStore:
    """The `FileSystem` of locations in an object store. It has no folders, and no partially written files."""

    has_exact_times = False

    def __init__(self) -> None:
        self._knows_conditions: dict[str, bool] = {}
        self._probing = threading.Lock()

    def size(self, path: Path) -> int | None:
        found = self._find(path)
        return None if found is None else int(found["size"])

    def version_tag(self, path: Path) -> str | None:
        found = self._find(path)
        return None if found is None else f"{found['e_tag']} {found['last_modified']} {found['size']}"

    def modified(self, path: Path) -> float:
        return _ask(path, lambda store, key: store.head(key))["last_modified"].timestamp()

    def read_bytes(self, path: Path) -> bytes:
        return _ask(path, lambda store, key: store.get(key).bytes().to_bytes())

    def write_bytes(self, path: Path, *pieces: bytes | bytearray | memoryview) -> None:
        self._put(path, b"".join(pieces))

    def create_exclusive(self, path: Path, data: bytes) -> None:
        root = address(path)[0]
        known = self._knows_conditions.get(root)
        # Before it is known that the server heeds the condition, what is there is looked for and not overwritten.
        if not known and self._content(path) is not None:
            raise FileExistsError(errno.EEXIST, "is there already", str(path))
        if known is False:
            self._put(path, data)
        else:
            self._create(path, data)
        if known is None:
            with self._probing:
                known = self._knows_conditions[root] = self._is_refused(path, data)
        if not known:
            tell_limit(f"conditions of {root}", f"{root}: {NO_CONDITIONS}")
            time.sleep(SETTLE_SECONDS)
            if self._content(path) != data:
                raise FileExistsError(errno.EEXIST, "another writer came in the same moment", str(path))

    def _create(self, path: Path, data: bytes) -> None:
        for pause in (0.2, 1.0, None):
            try:
                return self._put(path, data, mode="create")
            except OSError as error:
                if error.errno == errno.ENOTSUP:
                    return self._put(path, data)
                # When an answer is lost, the library asks again and finds the object that it has just made.
                there = self._content(path)
                if there == data:
                    return None
                if there is not None:
                    raise FileExistsError(errno.EEXIST, "is there already", str(path)) from error
                if pause is None or isinstance(error, (PermissionError, FileNotFoundError)):
                    raise
                time.sleep(pause)  # of two requests at the same moment both may be refused, as if there were one
        return None

    def _is_refused(self, path: Path, data: bytes) -> bool:
        """Say whether the server refuses to make an object that is there, by trying with its own content."""
        try:
            self._put(path, data, mode="create")
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
        return False

    def refresh(self, path: Path, data: bytes) -> None:
        self.write_bytes(path, data)

    def remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            _ask(path, lambda store, key: store.delete(key))

    def remove_all(self, folder: Path, names: Iterable[str]) -> None:
        if names := list(names):
            _ask(folder, lambda store, key: store.delete([f"{key}/{name}".lstrip("/") for name in names]))

    def move(self, path: Path, target: Path) -> None:
        _ask(path, lambda store, key: store.copy(key, address(target)[1]))
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

    def blocking_file(self, folder: Path) -> Path | None:
        return None

    def make_folder(self, path: Path) -> None:
        pass

    def listing(self, folder: Path) -> Iterator[FileInfo]:
        key = address(folder)[1]
        start = len(f"{key}/") if key else 0
        pages = _ask(folder, lambda store, key: store.list(key or None, chunk_size=_PAGE))
        while page := _ask(folder, lambda store, key: next(pages, None)):
            for found in page:
                # A folder's own marker, which some tools make, comes without a name.
                if name := found["path"][start:]:
                    yield FileInfo(name, found["size"], int(found["last_modified"].timestamp() * 1e9))

    def remove_partials(self, folder: Path) -> None:
        pass

    def remove_folder(self, folder: Path) -> None:
        self.remove_all(folder, [found.name for found in self.listing(folder)])

    def free_bytes(self, folder: Path) -> int | None:
        return None

    def _find(self, path: Path) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return _ask(path, lambda store, key: store.head(key))
        return None

    def _put(self, path: Path, data: bytes, mode: str = "overwrite") -> None:
        _ask(path, lambda store, key: store.put(key, data, mode=mode, chunk_size=_PART_BYTES))

    def _content(self, path: Path) -> bytes | None:
        try:
            return self.read_bytes(path)
        except FileNotFoundError:
            return None
