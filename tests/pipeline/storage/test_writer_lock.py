"""One writer at a time, and no dead one in anybody's way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.storage import writer_lock as lock_module
from hmsa_pipeline.pipeline.storage.writer_lock import STALE_SECONDS, require_free, require_held, writer_lock

from ...limits import PATIENCE
from ..stores import edit_json

HOLD = """
import sys, time
from pathlib import Path
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock

with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(7200)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "logits" / "ant.zarr"


@pytest.fixture
def path(target: Path) -> Path:
    """The lock file."""
    return target.with_name("ant.zarr.lock")


@contextlib.contextmanager
def another_holder(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            yield child
        finally:
            child.kill()


def left_behind(target: Path, path: Path, **changes: Any) -> None:
    """A lock file as a process of ours writes it, with some of it changed."""
    with writer_lock(target):
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def grow_old(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def others(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()} - {path.name}


def test_the_lock_stands_beside_its_folder_and_is_gone_afterwards(target: Path, path: Path) -> None:
    with writer_lock(target):
        holder = json.loads(path.read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert not target.exists()
        assert others(path) == set()
    assert list(path.parent.iterdir()) == []


def test_an_exception_gives_it_back(target: Path, path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writer_lock(target):
        raise KeyboardInterrupt
    with writer_lock(target):
        pass
    assert not path.exists()


def test_a_second_holder_is_refused_and_told_by_whom(target: Path, path: Path) -> None:
    with another_holder(target) as child:
        before = path.read_bytes()
        since = json.loads(before)["since"]
        with pytest.raises(StoreError) as caught, writer_lock(target):
            pass
        expected = f"{path}: held by process {child.pid} on {socket.gethostname()} since {since}; "
        assert str(caught.value).startswith(expected)
        assert path.read_bytes() == before


def test_one_process_cannot_hold_it_twice_but_may_hold_two(target: Path) -> None:
    with writer_lock(target), writer_lock(target.with_name("bee.zarr")):
        with pytest.raises(StoreError, match=f"held by process {os.getpid()}"), writer_lock(target):
            pass
        with pytest.raises(StoreError), writer_lock(target):
            pass


def test_the_lock_of_a_killed_process_is_free_at_once(target: Path, path: Path) -> None:
    with another_holder(target) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert path.exists()
        with writer_lock(target):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_killed_process_that_nobody_has_waited_for_is_dead(target: Path, path: Path) -> None:
    with another_holder(target) as child:
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with writer_lock(target):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_process_number_given_anew_is_another_process(target: Path, path: Path) -> None:
    with another_holder(target) as dead:
        dead.kill()
        dead.wait()
        with another_holder(target.with_name("bee.zarr")) as alive:
            edit_json(path, lambda holder: holder.update(pid=alive.pid))
            with writer_lock(target):
                assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_live_process_that_proc_does_not_show_keeps_its_lock(
    target: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_text = Path.read_text

    def hidden(file: Path, *args: Any, **kwargs: Any) -> str:
        if file.parts[1:2] == ("proc",) and file.name == "stat":
            raise FileNotFoundError(errno.ENOENT, "No such file")
        return read_text(file, *args, **kwargs)

    with another_holder(target) as child:
        monkeypatch.setattr(Path, "read_text", hidden)
        with pytest.raises(StoreError, match=f"held by process {child.pid}"), writer_lock(target):
            pass
        child.kill()
        child.wait()
        with writer_lock(target):
            pass


ELSEWHERE = {
    "another host": {"host": "elsewhere", "machine": "another boot", "pid": 1},
    "another host that has a process of that number": {"host": "elsewhere", "machine": "another boot"},
    "another host of the same name": {"machine": "another boot", "pid": 2**22 + 1},
    "another container of this host": {"host": "elsewhere", "pid": 2**22 + 1},
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_the_lock_of_another_host_lives_as_long_as_its_heartbeat(target: Path, path: Path, where: str) -> None:
    left_behind(target, path, **ELSEWHERE[where])
    before = path.read_bytes()
    for age in (0, STALE_SECONDS - 20):
        grow_old(path, age)
        with pytest.raises(StoreError, match="held by process"), writer_lock(target):
            pass
    assert path.read_bytes() == before
    grow_old(path, STALE_SECONDS + 1)
    with writer_lock(target):
        assert json.loads(path.read_text())["machine"] == lock_module.machine_id()
    assert not path.exists()


def test_the_lock_of_a_live_process_of_this_host_lives_without_heartbeat(target: Path, path: Path) -> None:
    """A process that is stopped, or swapped out, still holds it."""
    with another_holder(target) as child:
        child.send_signal(signal.SIGSTOP)
        grow_old(path, 10 * STALE_SECONDS)
        with pytest.raises(StoreError, match=f"held by process {child.pid}"), writer_lock(target):
            pass


NAMELESS = ["", "{", "null", "[]", "3", "{}", '{"host": "here"}', "\xff\x00"]


@pytest.mark.parametrize("content", NAMELESS)
def test_a_lock_that_names_nobody_is_held_until_it_is_old(target: Path, path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    with (
        pytest.raises(
            StoreError,
            match="held by a process; wait for it, or stop it first; if it died, its lock is free five minutes",
        ),
        writer_lock(target),
    ):
        pass
    grow_old(path, STALE_SECONDS + 1)
    with writer_lock(target):
        pass
    assert not path.exists()


@pytest.mark.parametrize("number", [0, -1, "7", None, 2**40, 1.5])
def test_a_process_number_that_can_be_none_names_nobody(target: Path, path: Path, number: object) -> None:
    left_behind(target, path, pid=number)
    with pytest.raises(StoreError, match="held by a process;"), writer_lock(target):
        pass


def test_a_lock_that_is_being_written_is_read_when_it_is(target: Path, path: Path) -> None:
    left_behind(target, path, host="elsewhere")
    written = path.read_bytes()
    path.write_bytes(b"")
    later = threading.Timer(0.05, lambda: path.write_bytes(written))
    later.start()
    with pytest.raises(StoreError, match=r"held by process .* on elsewhere"):
        require_free(target)
    later.join()


def test_the_heartbeat_renews_the_files_time(target: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.01)
    with writer_lock(target):
        grow_old(path, 10 * STALE_SECONDS)
        deadline = time.monotonic() + PATIENCE
        while time.time() - path.stat().st_mtime > STALE_SECONDS:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.005)
    assert not any(thread.name == "lock-heartbeat" for thread in threading.enumerate())


def test_a_lock_that_was_taken_from_us_is_neither_removed_nor_kept_alive_by_us(
    target: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.01)
    with writer_lock(target):
        edit_json(path, lambda holder: holder.update(token="somebody else's", host="elsewhere", machine="there"))
        taken = path.read_bytes()
        grow_old(path, 100)
        then = path.stat().st_mtime_ns
        time.sleep(0.1)
        assert path.stat().st_mtime_ns == then
    assert path.read_bytes() == taken


@pytest.mark.parametrize("gone", ["the lock", "the folder"])
def test_a_lock_that_is_gone_when_it_is_given_back_is_no_error(target: Path, path: Path, gone: str) -> None:
    with writer_lock(target):
        path.unlink()
        if gone == "the folder":
            path.parent.rmdir()
    assert not path.exists()


def test_a_full_disk_leaves_no_lock_behind(target: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a name would be in the way for five minutes after room was made."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"), writer_lock(target):
            pass
    with writer_lock(target):
        pass
    assert not path.exists()


def test_an_output_that_cannot_be_made_is_an_error_with_its_mend(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be written .*--output"), writer_lock(tmp_path / "out" / "ant.zarr"):
        pass


RACE = """
import os, random, sys, time
from pathlib import Path
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock

def slow(step):
    def late(*args, **kwargs):
        time.sleep(random.random() / 500)
        return step(*args, **kwargs)
    return late

# Every step on a file takes its time, so that others come between any two of them.
for name in ("open", "rename", "replace", "link", "unlink"):
    setattr(os, name, slow(getattr(os, name)))

target, alone, dead, rounds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
won = 0
while won < rounds:
    try:
        with writer_lock(target):
            # Whoever else is in here at the same time runs into this file.
            os.close(os.open(alone, os.O_CREAT | os.O_EXCL))
            won += 1
            os.unlink(alone)
            # What a killed holder leaves: the next round is a race for a dead lock.
            lock = target.with_name(target.name + ".lock")
            other = lock.with_name(f"{os.getpid()}.new")
            other.write_text(dead)
            os.rename(other, lock)
    except StoreError:
        pass
"""


def test_of_many_that_race_for_a_dead_lock_one_at_a_time_gets_it(target: Path, path: Path, tmp_path: Path) -> None:
    left_behind(target, path, started="long ago")
    command = [sys.executable, "-c", RACE, target, tmp_path / "alone", path.read_text(), "8"]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(5)]
    errors = [racer.communicate(timeout=PATIENCE)[1].decode() for racer in racers]
    assert errors == [""] * 5
    assert others(path) == set()


def test_whoever_works_for_the_holder_can_ask_whether_it_still_holds(target: Path, path: Path) -> None:
    with writer_lock(target) as token:
        require_held(target, token)
        with pytest.raises(StoreError, match=r"ant\.zarr\.lock: is no longer held by the run"):
            require_held(target, "another's")
        os.utime(path, (time.time() - 2 * STALE_SECONDS,) * 2)  # a run that does not beat any more is dead
        with pytest.raises(StoreError, match="is no longer held"):
            require_held(target, token)
    with pytest.raises(StoreError, match="is no longer held"):
        require_held(target, token)
