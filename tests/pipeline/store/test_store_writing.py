"""Writing one image: all of it or nothing, on the disk before it counts, and readers beside the writer."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline import files
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.store.zarr_backend import DamagedShardError

from ..stores import CLASSES, SIZE, VERSIONS, begun, filled, identity, logits, photo, same_bits, tree

PHOTOS = [photo("a.png"), photo("b.png")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_half_way_leaves_nothing_behind_and_says_why(
    where: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = begun(where, PHOTOS)
    before = tree(where)

    def half(path: Path, pieces: tuple[bytes, ...]) -> None:
        content = b"".join(pieces)
        path.write_bytes(content[: len(content) // 2])
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files, "fill", half)
        with pytest.raises(OSError) as caught:
            store.write(0, logits(0, *SIZE))
    assert caught.value.errno == code
    assert tree(where) == before
    assert store.complete() == [False, False]
    # The same store goes on once there is room again.
    store.write(0, logits(0, *SIZE))
    assert same_bits(LogitStore.open(where).read(0), logits(0, *SIZE))


def test_a_table_that_cannot_be_written_leaves_the_old_one(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = filled(where, PHOTOS)
    before = tree(where)

    def full(_path: Path, _pieces: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "fill", full)
        with pytest.raises(OSError, match="No space"):
            begun(where, [*PHOTOS, photo("c.png")])
    assert tree(where) == before
    assert same_bits(LogitStore.open(where).read(0), made["a.png"])


def test_every_file_of_a_store_is_on_the_disk_before_its_name_is(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its name before the call returns: the folder is flushed after the rename."""
    flushed: set[int] = set()
    named: list[str] = []
    folders: list[int] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        fsync(handle)
        flushed.add(os.fstat(handle).st_ino)
        folders.append(os.fstat(handle).st_ino)

    def spy_replace(source: Any, target: Any) -> None:
        assert Path(source).stat().st_ino in flushed, f"{target} is renamed before it is flushed"
        replace(source, target)
        named.append(Path(target).relative_to(where).as_posix())

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    store = begun(where, PHOTOS[:1])
    store.register(PHOTOS)
    folders.clear()
    store.write(1, logits(1, *SIZE))
    assert folders[-1] == (where / "48x80").stat().st_ino
    columns = {"images/path/zarr.json", "images/path/c.0", "images/numbers/zarr.json", "images/numbers/c.0.0"}
    arrays = {"48x80/zarr.json", "48x80/c.1.0.0.0"}
    assert set(named) == set(tree(where)) == {"zarr.json", "images/zarr.json"} | columns | arrays


def test_a_disk_without_hard_links_will_do(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    _, made = filled(where, PHOTOS)
    assert same_bits(LogitStore.open(where).read(1), made["b.png"])


PARTIALS = ["48x80/.0f3a.partial", "48x80/c.1.0.0..9e.partial", "zarr..77.partial"]


def test_what_a_killed_writer_was_at_does_not_count_and_is_swept_by_the_next(where: Path) -> None:
    store = begun(where, PHOTOS)
    store.write(0, logits(0, *SIZE))
    before = tree(where)
    for name in PARTIALS:
        (where / name).write_bytes(b"half a shard")
    reader = LogitStore.open(where)
    assert reader.complete() == [True, False]
    assert reader.shard_sizes()[1] is None
    assert set(tree(where)) == set(before) | set(PARTIALS), "a reader sweeps nothing"
    LogitStore.for_writing(where, identity(), VERSIONS)
    assert tree(where) == before


def test_an_empty_shard_is_written_again(where: Path) -> None:
    store = begun(where, PHOTOS)
    shard = store.shard_path(0)
    assert shard is not None
    shard.touch()
    assert store.complete() == [False, False]
    store.write(0, logits(0, *SIZE))
    assert same_bits(store.read(0), logits(0, *SIZE))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_with_advice(where: Path, value: float) -> None:
    store = begun(where, PHOTOS)
    values = logits(0, *SIZE)
    values[18, 47, 79] = value
    with pytest.raises(StoreError, match=r"a\.png: the logits of 'ant' are not finite .*--precision bf16 or fp32"):
        store.write(0, values)
    assert store.complete() == [False, False]


def test_the_largest_and_smallest_halves_are_finite(where: Path) -> None:
    store = begun(where, PHOTOS)
    values = np.zeros((CLASSES, *SIZE), np.float16)
    values[:3, 0, 0] = np.finfo(np.float16).max, np.finfo(np.float16).min, np.finfo(np.float16).smallest_subnormal
    store.write(0, values)
    store.check(0)
    assert same_bits(store.read(0), values)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((CLASSES, 80, 48), np.float16),
        np.zeros((CLASSES - 1, 48, 80), np.float16),
        np.zeros((1, 48, 80), np.float16),
        np.zeros((48, 80), np.float16),
        np.zeros((1, CLASSES, 48, 80), np.float16),
        np.zeros((CLASSES, 48, 80), np.float32),
        np.zeros((CLASSES, 48, 80), ">f2"),
        np.zeros((CLASSES, 48, 80), np.int16),
    ],
    ids=lambda values: f"{values.dtype.str}{values.shape}",
)
def test_nothing_is_stretched_or_rounded_to_fit(where: Path, values: np.ndarray) -> None:
    store = begun(where, PHOTOS)
    with pytest.raises(ValueError, match=r"a\.png"):
        store.write(0, values)
    assert store.complete() == [False, False]


def test_logits_in_any_memory_order_are_stored_as_they_are(where: Path) -> None:
    store = begun(where, PHOTOS)
    values = logits(3, *SIZE)
    store.write(0, np.asfortranarray(values))
    store.write(1, np.ascontiguousarray(values[:, ::-1])[:, ::-1])
    assert same_bits(store.read(0), values)
    assert same_bits(store.read(1), values)


def test_readers_beside_a_writer_see_an_image_whole_or_not_at_all(where: Path) -> None:
    sizes = [(48, 80), (33, 57), (20, 20)]
    photos = [photo(f"{i:02}.png", sizes[i % 3]) for i in range(18)]
    writer = begun(where, photos[:9])
    done = threading.Event()

    def write() -> None:
        try:
            for index in range(9):
                writer.write(index, logits(index, *sizes[index % 3]))
            writer.register(photos)
            for index in range(9, 18):
                writer.write(index, logits(index, *sizes[index % 3]))
        finally:
            done.set()

    def read(store: LogitStore | None) -> int:
        seen: set[int] = set()
        while True:
            last = done.is_set()
            reader = store or LogitStore.open(where)
            there = {i for i, complete in enumerate(reader.complete()) if complete}
            assert seen <= there
            for index in there - seen:
                assert same_bits(reader.read(index), logits(index, *sizes[index % 3]))
            seen = there
            if last:
                return len(seen)

    with ThreadPoolExecutor(4) as pool:
        writing = pool.submit(write)
        reading = [pool.submit(read, store) for store in (None, None, LogitStore.open(where))]
        writing.result()
        # The third one opened the store before it grew.
        assert [future.result() for future in reading] == [18, 18, 9]


def test_a_shard_taken_away_during_a_scan_hides_no_other(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = filled(where, [photo(f"{i}.png", (9, 9)) for i in range(6)])
    scandir = os.scandir

    class Late:
        """A scan whose every file is there when it is listed, and the first of them gone when it is looked at."""

        def __init__(self, path: Path) -> None:
            with scandir(path) as scan:
                self.files = list(scan)
            next(Path(file) for file in self.files if file.name.startswith("c.")).unlink()

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.files

        def __exit__(self, *_: object) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Late)
        assert sum(store.complete()) == 5


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_store(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = filled(where, PHOTOS)

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(StoreError, match="48x80: cannot be read"):
            store.complete()

    stat = Path.stat

    def fail(path: Path, **kwargs: Any) -> os.stat_result:
        if path.name == "zarr.json" or path.name.startswith("c."):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return stat(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", fail)
        # Taken for "no store", it would be made afresh.
        with pytest.raises(StoreError, match=r"cannot be read \(Stale file handle\)"):
            LogitStore.for_writing(where, identity(), VERSIONS)
        with pytest.raises(StoreError, match="cannot be read") as caught:
            store.read(0)
    assert not isinstance(caught.value, DamagedShardError)
    assert LogitStore.open(where).complete() == [True, True]
