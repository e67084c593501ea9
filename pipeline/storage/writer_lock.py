"""One writer per store or prediction folder: a lock file that names its holder and outlives no dead one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import DiskError, StoreError
from .filesystem import create_exclusive, make_folder, modified, read_bytes, refresh, remove, short_lock

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
_HIDDEN = "hidden"


@contextlib.contextmanager
def writer_lock(target: Path) -> Iterator[str]:
    """Hold the lock of the folder ``target`` while the block runs.

    The lock is the file ``<target>.lock`` beside it, so that the folder may be removed and holds
    nothing but results. The lock of a process of this host that is gone is free at once; that of another
    host, or from before a restart, after five minutes without heartbeat (its file's modification time,
    renewed every 30 s).

    Yields:
        a token, by which others may ask whether the lock is still this holder's (`require_held`).

    Raises:
        StoreError: somebody else holds it, or the folder cannot be written.
    """
    path = _lock_file(target)
    token = uuid.uuid4().hex
    try:
        make_folder(path.parent)
        _acquire(path, token)
    except OSError as error:
        raise DiskError(
            f"{path.parent}: cannot be written ({error.strerror or error}); free it or choose another --output"
        ) from error
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, token, stop), name="lock-heartbeat", daemon=True)
    beat.start()
    try:
        yield token
    finally:
        stop.set()
        beat.join()
        # A lock that cannot be removed is free all the same once its process is gone.
        with contextlib.suppress(OSError):
            _release(path, token)


def require_free(target: Path) -> None:
    """Raise StoreError if somebody holds the lock of ``target`` now; nothing is written."""
    _require_dead(_lock_file(target))


def require_held(target: Path, token: str) -> None:
    """Raise StoreError unless the lock of ``target`` is still held by who got ``token``, and beats.

    A worker on another machine asks before it writes: the run that sent it may be dead, and replaced.
    """
    path = _lock_file(target)
    try:
        held = _token(path) == token and time.time() - modified(path) < STALE_SECONDS
    except FileNotFoundError:
        held = False
    if not held:
        raise StoreError(
            f"{path}: is no longer held by the run that this work belongs to; run the same command again"
        )


def _lock_file(target: Path) -> Path:
    return target.with_name(target.name + ".lock")


def _guard(path: Path) -> contextlib.AbstractContextManager[None]:
    """Without it, of two that find a dead lock, one could remove what the other has just made its own."""
    return short_lock(path.with_name(f".{path.name}.guard"))


def _acquire(path: Path, token: str) -> None:
    holder = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "token": token,
    }
    with _guard(path):
        _clear_dead(path)
        try:
            create_exclusive(path, json.dumps(holder).encode())
        except FileExistsError as error:
            raise StoreError(f"{path}: another process has just taken it; wait for it, or stop it first") from error


def _release(path: Path, token: str) -> None:
    with _guard(path):
        if _token(path) == token:
            remove(path)


def _clear_dead(path: Path) -> None:
    """Remove a dead holder's lock; StoreError if its holder lives."""
    if _require_dead(path):
        remove(path)


def _require_dead(path: Path) -> bool:
    """Whether there is the lock of a dead holder; StoreError if its holder lives."""
    holder = _holder(path)
    if holder is None:
        return False
    if _alive(holder, path):
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "a process"
        dead = "" if _is_here(holder) else "; if it died, its lock is free five minutes after its last sign of life"
        raise StoreError(f"{path}: held by {who}; wait for it, or stop it first{dead}")
    return True


def _holder(path: Path) -> dict[str, Any] | None:
    """The holder that the lock names; an empty one if the file does not name one."""
    try:
        return _named(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _named(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    named = isinstance(value, dict) and {"host", "machine", "pid", "started", "since", "token"} <= value.keys()
    return value if named and isinstance(value["pid"], int) and 0 < value["pid"] < 2**31 else {}


def _token(path: Path) -> str | None:
    return (_holder(path) or {}).get("token")


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether its process numbers are ours: this machine, since its last start."""
    return bool(holder) and (holder["host"], holder["machine"]) == (socket.gethostname(), _machine())


def _alive(holder: dict[str, Any], path: Path) -> bool:
    if _is_here(holder):
        started = _process_start(holder["pid"])
        return started is not None and (started == holder["started"] or _HIDDEN in (started, holder["started"]))
    try:
        return time.time() - modified(path) < STALE_SECONDS
    except FileNotFoundError:
        return False


def _machine() -> str:
    """Where process numbers mean the same: the boot and the container. Many hosts share one name."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115  it is no path
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """When a process of this machine started (a number given anew is another process); None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _signalled(pid)
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _signalled(pid: int) -> str | None:
    """The same where there is no /proc, or where it does not show other users' processes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return _HIDDEN


def _heartbeat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        # A missed beat only brings the lock nearer to being stale; the next one mends it.
        with contextlib.suppress(OSError):
            content = read_bytes(path)
            if _named(content).get("token") == token:
                refresh(path, content)
