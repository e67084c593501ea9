"""What lies on a disk and what lies in an object store behave alike."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.storage import filesystem as places
from hmsa_pipeline.pipeline.storage import object_store
from hmsa_pipeline.pipeline.storage import writer_lock as lock
from hmsa_pipeline.pipeline.storage.filesystem import (
    create_exclusive,
    listing,
    parse_location,
    read_bytes,
    short_lock,
    size,
    version_tag,
    write_bytes,
)
from hmsa_pipeline.pipeline.storage.writer_lock import require_free, require_held, writer_lock


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "disk":
        return tmp_path / "run"
    return parse_location(request.getfixturevalue("bucket") + "/run")


@pytest.fixture
def remote(bucket: str) -> Path:
    return parse_location(f"{bucket}/run")


# ------------------------------------------------------------------ names


def test_a_place_is_a_path_or_a_url(tmp_path: Path) -> None:
    assert parse_location("runs/a") == Path("runs/a")
    assert parse_location(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    found = parse_location("s3://bucket/run/")
    assert (str(found), places.is_remote(found)) == ("s3://bucket/run", True)
    below = found / "logits" / "a b#c.zarr"
    assert (str(below), below.name, str(below.parent)) == (
        "s3://bucket/run/logits/a b#c.zarr",
        "a b#c.zarr",
        "s3://bucket/run/logits",
    )
    assert pickle.loads(pickle.dumps(below)) == below
    assert str(below.with_name("x.lock")) == "s3://bucket/run/logits/x.lock"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://", "names no bucket; write s3://bucket/folder"),
        ("cloud://bucket", "give a folder, or a URL such as s3://bucket/run"),
        ("s3://bucket/../run", r"an object store has no '\.\.'"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_location(text)


# ------------------------------------------------------------------ files


def test_what_is_written_is_there_and_what_is_removed_is_not(folder: Path) -> None:
    file = folder / "a" / "b.bin"
    assert (size(file), version_tag(file)) == (None, None)
    with pytest.raises(FileNotFoundError):
        read_bytes(file)
    with pytest.raises(FileNotFoundError):
        places.modified(file)
    write_bytes(file, memoryview(b"one"))
    first = version_tag(file)
    assert (size(file), read_bytes(file), first) == (3, b"one", version_tag(file))
    assert abs(places.modified(file) - time.time()) < 60
    write_bytes(file, b"three")
    assert (size(file), read_bytes(file)) == (5, b"three")
    assert version_tag(file) != first
    assert size(folder / "a") is None  # a folder is no file
    places.remove(file)
    places.remove(file)
    assert size(file) is None


def test_json_is_written_as_everywhere(folder: Path) -> None:
    places.write_json(folder / "x.json", {"ä": [1.5, None]})
    content = read_bytes(folder / "x.json")
    assert json.loads(content) == {"ä": [1.5, None]}
    assert content.endswith(b"}\n")
    assert "ä".encode() in content


def test_a_listing_tells_names_sizes_and_times(folder: Path) -> None:
    assert list(listing(folder)) == []
    before = time.time_ns()
    for name, content in {"a.png": b"1", "deep/er/b.png": b"22", "c d#.png": b""}.items():
        write_bytes(folder / name, content)
    write_bytes(folder.with_name("run2") / "other.png", b"is beside it")
    found = {f.name: f for f in listing(folder)}
    assert {name: f.bytes for name, f in found.items()} == {"a.png": 1, "deep/er/b.png": 2, "c d#.png": 0}
    assert all(before - 10**9 <= f.modified <= time.time_ns() + 10**9 for f in found.values())

    places.move(folder / "a.png", folder / "moved" / "a.png")
    places.remove_all(folder, ["c d#.png"])
    places.remove_all(folder, [])
    assert sorted(f.name for f in listing(folder)) == ["deep/er/b.png", "moved/a.png"]
    places.remove_folder(folder)
    places.remove_folder(folder)
    assert list(listing(folder)) == []
    assert size(folder.with_name("run2") / "other.png") == 12


def test_a_thousand_files_are_listed_and_removed(remote: Path) -> None:
    """An object store gives a thousand names at a time."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_bytes(remote / f"{n}.png", b"x"), range(1003)))
    names = [f.name for f in listing(remote)]
    assert len(names) == len(set(names)) == 1003
    places.remove_all(remote, names)
    assert list(listing(remote)) == []


def test_a_file_is_created_once(folder: Path) -> None:
    places.make_folder(folder)
    create_exclusive(folder / "x.lock", b"first")
    with pytest.raises(FileExistsError):
        create_exclusive(folder / "x.lock", b"second")
    assert read_bytes(folder / "x.lock") == b"first"


def test_refreshing_renews_the_time_and_keeps_the_content(folder: Path) -> None:
    write_bytes(folder / "x.lock", b"held")
    before = places.modified(folder / "x.lock")
    time.sleep(1.1)
    places.refresh(folder / "x.lock", b"held")
    assert places.modified(folder / "x.lock") > before
    assert read_bytes(folder / "x.lock") == b"held"


def test_free_space_is_known_of_disks_alone(tmp_path: Path, remote: Path) -> None:
    assert (places.free_bytes(tmp_path / "not" / "there") or 0) > 0
    assert places.free_bytes(remote) is None


# ------------------------------------------------------------------ one at a time


def test_a_guard_lets_one_in(folder: Path) -> None:
    places.make_folder(folder)
    write_bytes(folder / "count", b"0")

    def add() -> None:
        for _ in range(5):
            with short_lock(folder / ".count.lock"):
                write_bytes(folder / "count", str(int(read_bytes(folder / "count")) + 1).encode())

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_bytes(folder / "count") == b"20"
    assert [f.name for f in listing(folder)] == ["count"]


def test_the_guard_of_the_dead_is_taken_over(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "TAKEOVER_SECONDS", 0.5)
    write_bytes(remote / ".x.lock", b"somebody who died")
    begun = time.monotonic()
    with short_lock(remote / ".x.lock"):
        assert time.monotonic() - begun > 0.5
        assert read_bytes(remote / ".x.lock") != b"somebody who died"
    assert size(remote / ".x.lock") is None


def test_a_guard_that_was_taken_away_is_left_to_its_new_holder(remote: Path) -> None:
    with short_lock(remote / ".x.lock"):
        write_bytes(remote / ".x.lock", b"another's by now")
    assert read_bytes(remote / ".x.lock") == b"another's by now"


def test_a_store_has_one_writer_in_an_object_store_too(remote: Path) -> None:
    target = remote / "ant.zarr"
    require_free(target)
    with writer_lock(target) as token:
        require_held(target, token)
        with pytest.raises(StoreError, match=f"held by process {os.getpid()} on "), writer_lock(target):
            pass
        with pytest.raises(StoreError, match="held by process"):
            require_free(target)
    with pytest.raises(StoreError, match="is no longer held by the run"):
        require_held(target, token)
    assert list(listing(remote)) == []


def test_the_lock_of_another_machine_lives_by_its_beats(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = remote / "ant.zarr"
    holder = {"host": "elsewhere", "machine": "x", "pid": 1, "started": "1", "since": "noon", "token": "t"}
    write_bytes(remote / "ant.zarr.lock", json.dumps(holder).encode())
    with (
        pytest.raises(StoreError, match=r"held by process 1 on elsewhere since noon.*five minutes"),
        writer_lock(target),
    ):
        pass
    require_held(target, "t")
    monkeypatch.setattr(lock, "STALE_SECONDS", -10.0)
    with pytest.raises(StoreError, match="is no longer held"):
        require_held(target, "t")
    with writer_lock(target):
        assert json.loads(read_bytes(remote / "ant.zarr.lock"))["pid"] == os.getpid()


def test_a_held_lock_beats(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.2)
    with writer_lock(remote / "ant.zarr"):
        before = places.modified(remote / "ant.zarr.lock")
        time.sleep(1.5)
        assert places.modified(remote / "ant.zarr.lock") > before
