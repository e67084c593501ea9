"""One writer per store or prediction folder: a lock file that names its holder and is free once that is dead."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import DiskError, StoreError, reason
from .filesystem import create_exclusive, make_folder, modified, read_bytes, refresh, remove, short_lock
from .slurm import job_is_over, own_slurm_job

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
_WRITE_SECONDS = 0.2
_HIDDEN = "hidden"


class LockHeldError(StoreError):
    """Another process holds the lock of ``target``.

    Args:
        message: for the user.
        target: the folder.
    """

    def __init__(self, message: str, target: Path) -> None:
        super().__init__(message)
        self.target = target


@contextlib.contextmanager
def writer_lock(target: Path) -> Iterator[str]:
    """Hold the lock of the folder ``target`` while the block runs.

    The lock is the file ``<target>.lock`` beside the folder, so that the folder may be removed and holds nothing but
    results. The lock of a dead process of this host is free at once. That of another host, or from before a restart,
    is free after five minutes without heartbeat (the file's modification time, renewed every 30 s), or at once if
    its Slurm job is known to be over.

    Yields:
        A token with which others check that this holder still has the lock (`require_held`).

    Raises:
        LockHeldError: another process holds the lock.
        StoreError: the folder cannot be written.
    """
    path = _lock_file(target)
    token = uuid.uuid4().hex
    try:
        make_folder(path.parent)
        _acquire(path, token)
    except OSError as error:
        raise DiskError(
            f"{path.parent}: cannot be written ({reason(error)}); free it or choose another --output"
        ) from error
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, token, stop), name="lock-heartbeat", daemon=True)
    beat.start()
    try:
        yield token
    finally:
        stop.set()
        beat.join()
        # A lock that cannot be removed is free once this process has ended.
        with contextlib.suppress(OSError):
            _release(path, token)


def require_free(target: Path) -> None:
    """Raise LockHeldError if a process holds the lock of ``target`` now; nothing is written."""
    _require_dead(_lock_file(target))


@dataclass(frozen=True)
class LockHolder:
    """The process that holds a lock, or that held it and died.

    Attributes:
        who: process and host.
        since: when it took the lock, ISO 8601.
        alive: whether the lock is held.
        here: whether it runs on this machine.
        modified: time of its last sign of life, in seconds since 1970, by the clock of the disk.
        silent: seconds since then, by the clock of this machine.
    """

    who: str
    since: str
    alive: bool
    here: bool
    modified: float
    silent: float


def lock_holder(target: Path) -> LockHolder | None:
    """Say who holds the lock of the folder ``target``; None if nobody does. OSError if the lock cannot be read."""
    path = _lock_file(target)
    try:
        holder = _holder(path)
        if holder is None:
            return None
        renewed = modified(path)
    except FileNotFoundError:
        return None
    who = f"process {holder['pid']} on {holder['host']}" if holder else "a process"
    since = holder.get("since", datetime.fromtimestamp(renewed, UTC).isoformat(timespec="seconds"))
    return LockHolder(who, since, _alive(holder, path), _is_here(holder), renewed, max(0.0, time.time() - renewed))


def require_held(target: Path, token: str) -> None:
    """Raise StoreError unless the holder with ``token`` still has the lock of ``target`` and renews it.

    A worker on another machine calls this before it writes: the run that started it may be dead and replaced.
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


def _target(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".lock"))


def _guard(path: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the lock file itself: of two processes that find a dead lock, one could remove the other's new one."""
    return short_lock(path.with_name(f".{path.name}.guard"))


def _acquire(path: Path, token: str) -> None:
    holder = {
        "host": socket.gethostname(),
        "machine": machine_id(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "token": token,
        **own_slurm_job(),
    }
    with _guard(path):
        _clear_dead(path)
        try:
            create_exclusive(path, json.dumps(holder).encode())
        except FileExistsError as error:
            raise LockHeldError(
                f"{path}: another process has just taken it; wait for it, or stop it first", _target(path)
            ) from error


def _release(path: Path, token: str) -> None:
    with _guard(path):
        if _token(path) == token:
            remove(path)


def _clear_dead(path: Path) -> None:
    """Remove a dead holder's lock; LockHeldError if the holder is alive."""
    if _require_dead(path):
        remove(path)


def _require_dead(path: Path) -> bool:
    """Say whether there is the lock of a dead holder; LockHeldError if the holder is alive."""
    holder = _holder(path)
    if holder is None:
        return False
    if _alive(holder, path):
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "a process"
        dead = "" if _is_here(holder) else "; if it died, its lock is free five minutes after its last sign of life"
        raise LockHeldError(f"{path}: held by {who}; wait for it, or stop it first{dead}", _target(path))
    return True


def _holder(path: Path) -> dict[str, Any] | None:
    """Read the holder from the lock file; empty if the file names none, None if there is no file."""
    try:
        content = read_bytes(path)
        if not content:  # it may have been made just now, and be written next
            time.sleep(_WRITE_SECONDS)
            content = read_bytes(path)
        return _parsed(content)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    named = isinstance(value, dict) and {"host", "machine", "pid", "started", "since", "token"} <= value.keys()
    return value if named and isinstance(value["pid"], int) and 0 < value["pid"] < 2**31 else {}


def _token(path: Path) -> str | None:
    return (_holder(path) or {}).get("token")


def _is_here(holder: dict[str, Any]) -> bool:
    """Say whether the holder runs on this machine since its last start, so that its process number can be checked."""
    return bool(holder) and (holder["host"], holder["machine"]) == (socket.gethostname(), machine_id())


def _alive(holder: dict[str, Any], path: Path) -> bool:
    if _is_here(holder):
        started = _process_start(holder["pid"])
        return started is not None and (started == holder["started"] or _HIDDEN in (started, holder["started"]))
    try:
        renewed = time.time() - modified(path) < STALE_SECONDS
    except FileNotFoundError:
        return False
    return renewed and not job_is_over(holder)


def machine_id() -> str:
    """Name the boot and the container, within which process numbers are unique; host names may not be."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115  it is no path
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """Return when a process of this machine started, since process numbers are used again; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _process_by_signal(pid)
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _process_by_signal(pid: int) -> str | None:
    """Replace `_process_start` where /proc is missing or hides processes: signal 0 shows that one exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return _HIDDEN


def _heartbeat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        # One missed heartbeat does no harm: the next one renews the lock.
        with contextlib.suppress(OSError):
            content = read_bytes(path)
            if _parsed(content).get("token") == token:
                refresh(path, content)
