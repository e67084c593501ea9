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

from ..errors import StoreError

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0


@contextlib.contextmanager
def writer_lock(target: Path) -> Iterator[None]:
    """Hold the lock of the folder ``target`` while the block runs.

    The lock is the file ``<target>.lock`` beside it, so that the folder may be removed and holds
    nothing but results. On one host the lock of a process that is
    gone is free at once; that of another host after five minutes without heartbeat (its file's
    modification time, renewed every 30 s).

    Raises:
        StoreError: somebody else holds it, or the folder cannot be written.
    """
    path = target.with_name(target.name + ".lock")
    token = uuid.uuid4().hex
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(path, token)
    except OSError as error:
        raise StoreError(
            f"{path.parent}: cannot be written ({error.strerror}); free it or choose another --output"
        ) from error
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, stop), name="lock-heartbeat", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if (_holder(path) or {}).get("token") == token:
            path.unlink(missing_ok=True)


def _acquire(path: Path, token: str) -> None:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "token": token,
    }
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _clear_dead(path)
            continue
        with os.fdopen(handle, "w") as file:
            json.dump(holder, file)
        return


def _clear_dead(path: Path) -> None:
    """Move a dead holder's lock out of the way; StoreError if its holder lives."""
    holder = _holder(path)
    if holder is None:
        return
    if _alive(holder, path):
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "a process"
        raise StoreError(f"{path}: held by {who}; wait for it, or stop it first")
    aside = path.with_name(f".{uuid.uuid4().hex}.lock.partial")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    # Between reading and moving, another process may have taken the dead lock over: give its lock back.
    moved = _holder(aside)
    if moved is not None and moved.get("token") != holder.get("token"):
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _holder(path: Path) -> dict[str, Any] | None:
    """The holder that the lock names; an empty one while its maker has not yet written the name."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    named = isinstance(value, dict) and {"host", "pid", "started", "since", "token"} <= value.keys()
    return value if named else {}


def _alive(holder: dict[str, Any], path: Path) -> bool:
    if holder and holder["host"] == socket.gethostname():
        started = _process_start(holder["pid"])
        return started is not None and started == holder["started"]
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def _process_start(pid: int) -> str | None:
    """When a process of this host started (a number reused by the kernel is another process)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _signalled(pid)
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _signalled(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        # A missed beat only brings the lock nearer to being stale; the next one mends it.
        with contextlib.suppress(OSError):
            os.utime(path)
