"""Writing files: the old content, the new one, and nothing between; and one at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline import files
from hmsa_pipeline.files import atomic_path, guarded, is_partial, sha256, write_bytes, write_json, write_text
from hypothesis import given
from hypothesis import strategies as st


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_written_with_the_folders_it_needs(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.bin"
    write_bytes(target, memoryview(b"\x00\xff"))
    assert target.read_bytes() == b"\x00\xff"
    write_bytes(target, b"")
    assert target.read_bytes() == b""
    assert names(target.parent) == {"c.bin"}


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), SystemExit(1), ValueError()])
def test_after_any_exception_the_file_is_as_it_was(
    tmp_path: Path, before: bytes | None, error: BaseException
) -> None:
    target = tmp_path / "file"
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_bytes(b"new, but only ha")
        raise error
    assert (target.read_bytes() if target.exists() else None) == before
    assert names(tmp_path) == ({"file"} if before is not None else set())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_to_flush_or_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="Input/output"):
            write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}


def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, steps = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        fsync(handle)
        steps.append(("flush", os.fstat(handle).st_ino))

    def spy_replace(source: Any, goal: Any) -> None:
        steps.append(("rename", Path(source).stat().st_ino))
        replace(source, goal)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_bytes(target, b"content")
    file, folder = target.stat().st_ino, tmp_path.stat().st_ino
    assert steps == [("flush", file), ("rename", file), ("flush", folder)]


def test_what_lies_there_meanwhile_is_known_as_unfinished_by_its_name(tmp_path: Path) -> None:
    target = tmp_path / "c.0.0.0.0"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        assert (temporary.parent, is_partial(temporary.name)) == (tmp_path, True)
        assert temporary.name.startswith(".")
        assert not target.exists()
    assert not is_partial(target.name)


def test_the_longest_name_that_a_folder_takes_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    write_bytes(target, b"x")
    assert target.read_bytes() == b"x"


def test_a_new_file_has_the_rights_that_any_other_has(tmp_path: Path) -> None:
    """A temporary file for its owner's eyes alone would lock colleagues out of the results."""
    (tmp_path / "plain").write_bytes(b"x")
    write_bytes(tmp_path / "ours", b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_utf8_whatever_the_machines_own_encoding(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    target = tmp_path_factory.getbasetemp() / "text"
    write_text(target, text)
    assert target.read_bytes() == text.encode("utf-8")


def test_json_is_readable_ends_in_a_newline_and_takes_no_nan(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, {"straße": [1, 2.5, None]})
    text = target.read_text(encoding="utf-8")
    assert json.loads(text) == {"straße": [1, 2.5, None]}
    assert "straße" in text
    assert text.endswith("}\n")
    # Other languages' readers stop at it.
    with pytest.raises(ValueError, match=r"[Nn]a[Nn]|JSON"):
        write_json(target, math.nan)
    assert target.read_text(encoding="utf-8") == text


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


COUNT_UP = """
import sys
from pathlib import Path
from hmsa_pipeline.files import guarded

target = Path(sys.argv[1])
for _ in range(100):
    with guarded(Path(f"{target}.guard")):
        target.write_text(str(int(target.read_text()) + 1))
"""


def count_up(target: Path, times: int) -> None:
    for _ in range(times):
        with guarded(Path(f"{target}.guard")):
            target.write_text(str(int(target.read_text()) + 1))


def test_processes_and_threads_take_turns_under_a_guard(tmp_path: Path) -> None:
    """Read, change, put back: counts are lost where two do it at once."""
    target = tmp_path / "count"
    target.write_text("0")
    count = [sys.executable, "-c", COUNT_UP, target]
    with subprocess.Popen(count) as first, subprocess.Popen(count) as second:
        threads = [threading.Thread(target=count_up, args=(target, 50)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (first.returncode, second.returncode) == (0, 0)
    assert int(target.read_text()) == 2 * 100 + 4 * 50
    assert names(tmp_path) == {"count"}


def test_the_guard_of_a_killed_process_is_free(tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from hmsa_pipeline.files import guarded\n"
        "with guarded(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(7200)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, guard], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        child.send_signal(signal.SIGKILL)
    assert guard.exists()
    with guarded(guard):
        pass
    assert not guard.exists()


def test_a_guard_is_given_back_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), guarded(tmp_path / "guard"):
        raise KeyError
    with guarded(tmp_path / "guard"):
        pass
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        (errno.ENOSYS, True),
        (errno.ENOTSUP, True),
        (errno.ENOLCK, True),
        (errno.EINVAL, True),
        (errno.EIO, False),
    ],
)
def test_where_the_disk_knows_no_guards_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with contextlib.nullcontext() if passes else pytest.raises(OSError, match=os.strerror(code)):
        with guarded(tmp_path / "guard"):
            entered = True
        assert entered
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_where_the_disk_cannot_flush_a_folder_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool
) -> None:
    flush, told = os.fsync, []

    def fail_for_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    files.tell_limits(told.append)
    with contextlib.nullcontext() if passes else pytest.raises(OSError, match=os.strerror(code)):
        for name in ("one", "two"):
            write_bytes(tmp_path / name, b"whole")
            assert (tmp_path / name).read_bytes() == b"whole"
    assert len(told) == passes


@pytest.mark.parametrize("across", [False, True])
def test_a_file_is_moved_also_to_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, across: bool) -> None:
    source, target = tmp_path / "a" / "file", tmp_path / "b" / "c" / "file"
    write_bytes(source, b"content")
    os.utime(source, ns=(10**18, 10**18))
    if across:
        monkeypatch.setattr(Path, "rename", _across)
    files.move(source, target)
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (b"content", 10**18)
    assert not source.exists()
    assert names(target.parent) == {"file"}


def test_a_move_to_a_full_disk_leaves_the_file_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, target = tmp_path / "file", tmp_path / "b" / "file"
    write_bytes(source, b"content")
    monkeypatch.setattr(Path, "rename", _across)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        files.move(source, target)
    assert source.read_bytes() == b"content"
    assert names(target.parent) == set()


def _across(path: Path, target: Path) -> Path:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path), None, str(target))
