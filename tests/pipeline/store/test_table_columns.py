"""The columns of the table of images: what plain Zarr sees, what an interrupted writer leaves, and damage."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hmsa_pipeline import files
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from ..stores import (
    SIZE,
    VERSIONS,
    begun,
    edit_json,
    flip_bit,
    identity,
    logits,
    made_version_1,
    photo,
    same_bits,
    tree,
)

CHUNK = 5
COUNT = 5 * CHUNK + 3
SIZES = (SIZE, (33, 57), None)


def photographs(count: int) -> list[Photograph]:
    """Two sizes, some unreadable files, and names with letters of one to four bytes."""
    return [photo(f"{i // 10}/ä{i:02}–𝄞.png", SIZES[i % 7 % 3], 1000 + i) for i in range(count)]


def rows(store: LogitStore) -> list[tuple[Any, ...]]:
    return [(e.path, e.bytes, e.height, e.width, e.array, e.row) for e in store.images]


def expected(photos: list[Photograph]) -> list[tuple[Any, ...]]:
    """The table, made in the plainest way."""
    found: list[tuple[Any, ...]] = []
    next_row = dict.fromkeys(SIZES, 0)
    for one in photos:
        if one.size is None:
            found.append((one.path, one.bytes, None, None, None, None))
            continue
        found.append((one.path, one.bytes, *one.size, "{}x{}".format(*one.size), next_row[one.size]))
        next_row[one.size] += 1
    return found


pytestmark = pytest.mark.usefixtures("short_chunks")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A store of six chunks, the last one cut short."""
    path = tmp_path / "large.zarr"
    begun(path, photographs(COUNT))
    return path


def test_a_table_of_several_chunks_is_read_as_it_was_given(large: Path) -> None:
    photos = photographs(COUNT)
    store = LogitStore.open(large)
    assert len(store.images) == len(photos)
    assert rows(store) == expected(photos)
    for index in (0, CHUNK - 1, CHUNK, COUNT - 1, -1):
        assert store.images[index].path == photos[index].path
    assert [entry.path for entry in store.images[CHUNK - 1 : CHUNK + 1]] == [p.path for p in photos[CHUNK - 1 :][:2]]
    with pytest.raises(IndexError):
        store.images[len(photos)]


def test_plain_zarr_writes_the_same_bytes(large: Path, tmp_path: Path) -> None:
    group = zarr.open_group(large, mode="r")
    paths, numbers = (np.asarray(group[f"images/{name}"][:]) for name in ("path", "numbers"))  # type: ignore[index]
    plain = zarr.create_group(tmp_path / "plain.zarr").create_group("images")
    keys: Any = {"name": "default", "separator": "."}
    plain.create_array(
        "path",
        shape=paths.shape,
        dtype=str,
        chunks=(CHUNK,),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        chunk_key_encoding=keys,
        dimension_names=["image"],
    )[:] = paths
    plain.create_array(
        "numbers",
        shape=numbers.shape,
        dtype="int64",
        fill_value=-1,
        chunks=(CHUNK, 4),
        compressors=[BloscCodec(typesize=8, cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
        chunk_key_encoding=keys,
        dimension_names=["image", "column"],
        attributes={"columns": ["bytes", "height", "width", "row"]},
    )[:] = numbers
    mine, theirs = tree(large / "images"), tree(tmp_path / "plain.zarr/images")
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if "/c." in name and mine[name] != theirs[name]] == []
    for name in ("path", "numbers"):
        group_of = (zarr.open_group(at, mode="r")[name].metadata for at in (large / "images", plain.store_path))
        first, second = (one.to_dict() for one in group_of)
        assert first == second


def test_an_image_is_read_without_the_chunks_of_others(large: Path, tmp_path: Path) -> None:
    path = tmp_path / "ant.zarr"
    shutil.copytree(large, path)
    for file in (path / "images").glob("*/c.*"):
        if file.name not in ("c.1", "c.1.0"):
            file.unlink()
    store = LogitStore.open(path)
    image = photographs(COUNT)[CHUNK + 2].path
    assert store.images[CHUNK + 2].path == image
    store.index.expect([CHUNK + 2])
    assert store.index[image] == CHUNK + 2
    for attempt in (lambda: store.images[0], lambda: store.index["another.png"], store.complete, store.images.check):
        with pytest.raises(StoreError, match=r"images/(path|numbers)/c\.0.* is missing.*--overwrite"):
            attempt()


def test_an_image_that_was_not_expected_is_found_all_the_same(large: Path) -> None:
    store = LogitStore.open(large)
    photos = photographs(COUNT)
    store.index.expect([3, 5])
    assert [store.index[photos[i].path] for i in (3, 4, CHUNK)] == [3, 4, CHUNK]
    assert "no.png" not in store.index
    with pytest.raises(KeyError):
        store.index["no.png"]


@settings(max_examples=40, deadline=None)
@given(names=st.permutations([f"{i}.png" for i in range(12)]), known=st.integers(0, 12), asked=st.data())
def test_images_are_located_whatever_their_order(
    names: list[str], known: int, asked: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("order") / "ant.zarr"
    store = begun(path, [photo(name) for name in names[:known]])
    wanted = asked.draw(st.lists(st.sampled_from([*names, "no.png"]), unique=True))
    place = {name: i for i, name in enumerate(names[:known])}
    assert store.images.locate(wanted).tolist() == [place.get(name, -1) for name in wanted]


def test_a_dataset_that_grew_in_its_middle_is_appended_and_located(large: Path, tmp_path: Path) -> None:
    path = tmp_path / "ant.zarr"
    shutil.copytree(large, path)
    photos = photographs(COUNT)
    new = [photo("0/new.png", (9, 9), 5), photo("1/new.png", SIZE, 6)]
    grown = sorted([*photos, *new], key=lambda one: one.path)
    store = LogitStore.for_writing(path, identity(), VERSIONS)
    before = rows(store)
    assert store.register(grown) == 2
    last = [entry[5] for entry in before if entry[4] == "48x80"][-1]
    assert rows(store) == [
        *before,
        ("0/new.png", 5, 9, 9, "9x9", 0),
        ("1/new.png", 6, *SIZE, "48x80", last + 1),
    ]
    found = store.images.locate([one.path for one in grown]).tolist()
    assert [store.images[i].path for i in found] == [one.path for one in grown]


class DeathError(Exception):
    """Stands for ``kill -9``; no KeyboardInterrupt, which Zarr's own thread does not survive."""


def die_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Kill the process, so to speak, when it is about to write its ``number``-th file."""
    fill, count = files.fill, itertools.count()

    def dying(path: Path, pieces: Any) -> None:
        if next(count) == number:
            raise DeathError
        fill(path, pieces)

    patch.setattr(files, "fill", dying)


def deaths(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], after: Callable[[], object]) -> int:
    """Do ``work`` with a death at its first write, its second, and so on, and ``after`` behind each; their number."""
    for number in itertools.count():
        with monkeypatch.context() as patch:
            die_at(patch, number)
            try:
                work()
            except DeathError:
                pass
            else:
                return number
        after()
    raise AssertionError


@pytest.mark.parametrize("first", [CHUNK - 2, CHUNK, 1])
def test_a_writer_that_dies_while_the_table_grows_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    photos = photographs(COUNT)
    # The file at the table's start was damaged and is repaired at the same time.
    repaired = [photo(photos[0].path, SIZE, 7), *photos[1:]]
    begun(tmp_path / "old.zarr", photos[:first])
    shutil.copytree(tmp_path / "old.zarr", tmp_path / "new.zarr")
    begun(tmp_path / "new.zarr", repaired)
    old, new = tree(tmp_path / "old.zarr"), tree(tmp_path / "new.zarr")
    assert old != new
    path = tmp_path / "ant.zarr"

    def work() -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "old.zarr", path)
        begun(path, repaired)

    def after() -> None:
        reader = LogitStore.open(path)
        count = len(reader.images)
        assert count in (first, len(photos))
        reader.images.check()
        assert [entry.path for entry in reader.images] == [one.path for one in photos[:count]]
        assert rows(reader)[1:] == expected(photos)[1:count]
        shutil.copytree(path, tmp_path / "again.zarr")
        begun(tmp_path / "again.zarr", repaired)
        assert tree(tmp_path / "again.zarr") == new
        shutil.rmtree(tmp_path / "again.zarr")
        if count == first and reader.images[0].bytes == photos[0].bytes:
            # The photographs that were new have gone again.
            begun(path, photos[:first])
            found = tree(path)
            assert {name: content for name, content in found.items() if name in old} == old
            assert all(name.endswith("zarr.json") and "images" not in name for name in found.keys() - old.keys())

    assert deaths(monkeypatch, work, after) >= 9


def test_a_writer_that_dies_while_it_converts_a_store_of_version_1_leaves_it_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photographs(CHUNK + 3)
    begun(tmp_path / "new.zarr", photos).write(0, logits(0, *SIZE))
    new = tree(tmp_path / "new.zarr")
    shutil.copytree(tmp_path / "new.zarr", tmp_path / "old.zarr")
    made_version_1(tmp_path / "old.zarr")
    path = tmp_path / "ant.zarr"

    def work() -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "old.zarr", path)
        LogitStore.for_writing(path, identity(), VERSIONS)

    def after() -> None:
        reader = LogitStore.open(path)
        assert rows(reader) == expected(photos)
        assert same_bits(reader.read(0), logits(0, *SIZE))
        assert LogitStore.for_writing(path, identity(), VERSIONS).register(photos) == 0
        assert tree(path) == new

    assert deaths(monkeypatch, work, after) >= 8
    assert tree(path) == new


def test_readers_of_a_store_of_version_1_leave_it_as_it_is(where: Path) -> None:
    photos = [photo("b.png", None), photo("a.png"), photo("c.png", (33, 57))]
    begun(where, photos).write(1, logits(1, *SIZE))
    made_version_1(where)
    before = tree(where)
    store = LogitStore.open(where)
    assert [(e.path, e.array, e.row) for e in store.images] == [
        ("b.png", None, None),
        ("a.png", "48x80", 0),
        ("c.png", "33x57", 0),
    ]
    assert same_bits(store.read(store.index["a.png"]), logits(1, *SIZE))
    assert store.completed(photos).tolist() == [False, True, False]
    store.require_complete(["a.png"])
    assert tree(where) == before


def test_an_empty_store_of_version_1_is_converted(where: Path) -> None:
    begun(where, [])
    now = tree(where)
    made_version_1(where)
    begun(where, [])
    assert tree(where) == now


@pytest.mark.parametrize("count", [True, -1, "3", 2.0, None, 4, 10**12])
def test_a_number_of_images_that_the_columns_do_not_have_is_refused(where: Path, count: object) -> None:
    begun(where, [photo("a.png"), photo("b.png"), photo("c.png")])
    edit_json(where / "zarr.json", lambda group: group["attributes"].update(images=count))
    with pytest.raises(StoreError, match="its metadata cannot be understood"):
        LogitStore.open(where)


def wrong_numbers(change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array: Any = zarr.open_group(path, mode="r+")["images/numbers"]
        numbers = array[:]
        change(numbers)
        array[:] = numbers

    return write


def wrong_path(value: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array: Any = zarr.open_group(path, mode="r+")["images/path"]
        array[1] = value

    return write


BAD_COLUMNS: dict[str, Callable[[Path], None]] = {
    "one place twice": wrong_numbers(lambda numbers: numbers.__setitem__((0, 3), 1)),
    "a row below zero": wrong_numbers(lambda numbers: numbers.__setitem__((0, 3), -2)),
    "no row": wrong_numbers(lambda numbers: numbers.__setitem__((0, 3), -1)),
    "no height": wrong_numbers(lambda numbers: numbers.__setitem__((0, 1), 0)),
    "a width beyond all": wrong_numbers(lambda numbers: numbers.__setitem__((0, 2), 2**40)),
    "bytes below zero": wrong_numbers(lambda numbers: numbers.__setitem__((0, 0), -5)),
    "one path twice": wrong_path("a.png"),
    "no path": wrong_path(""),
    **{f"a path {path!r}": wrong_path(path) for path in ("../x.png", "/etc/x", "a/../../x.png", "\\x", "a\0b", ".")},
    "a chunk of fewer paths": lambda path: shutil.copy(path / "images/numbers/c.0.0", path / "images/path/c.0"),
    "a chunk of no numbers": lambda path: shutil.copy(path / "images/path/c.0", path / "images/numbers/c.0.0"),
    "an empty chunk": lambda path: (path / "images/path/c.0").write_bytes(b""),
    "other chunks": lambda path: edit_json(
        path / "images/path/zarr.json",
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[10]),
    ),
    "no numbers": lambda path: (path / "images/numbers/zarr.json").unlink(),
}


@pytest.mark.parametrize("bad", BAD_COLUMNS)
def test_columns_that_this_package_would_not_write_are_refused(where: Path, bad: str) -> None:
    begun(where, [photo("a.png"), photo("b.png"), photo("c.png", (33, 57))])
    BAD_COLUMNS[bad](where)
    before = tree(where)
    with pytest.raises(StoreError, match=r"cannot be understood \(.*\); put .*, or start it over") as caught:
        LogitStore.open(where).images.check()
    assert "\n" not in str(caught.value)
    assert tree(where) == before


def test_a_bit_that_flipped_in_a_chunk_never_gives_another_table(large: Path, tmp_path: Path) -> None:
    path = tmp_path / "ant.zarr"
    shutil.copytree(large, path)
    draw = np.random.default_rng(0)
    for file in [*sorted((path / "images").glob("*/c.*"))] * 4:
        content = file.read_bytes()
        flip_bit(file, int(draw.integers(8 * len(content))))
        with pytest.raises(StoreError, match="cannot be understood"):
            LogitStore.open(path).images.check()
        file.write_bytes(content)
    LogitStore.open(path).images.check()


def test_a_photograph_that_is_given_twice_is_refused(where: Path) -> None:
    store = begun(where, [photo("a.png")])
    before = tree(where)
    with pytest.raises(StoreError, match="cannot list these photographs"):
        store.register([photo("a.png"), photo("b.png"), photo("b.png")])
    assert tree(where) == before


def test_a_handle_that_was_opened_before_another_one_added_images_keeps_them(tmp_path: Path) -> None:
    """Each holds the lock while it adds images, and not from the moment when it was opened."""
    path = tmp_path / "ant.zarr"
    photos = [photo(f"{i}.png", SIZE, 10 + i) for i in range(6)]
    begun(path, photos[:1])
    handles = [LogitStore.open(path, writable=True) for _ in range(2)]
    for count, handle in zip(range(2, 6), [*handles, *handles], strict=True):
        assert handle.register(photos[:count]) == 1
        assert [entry.path for entry in handle.images] == [one.path for one in photos[:count]]
        handle.write(count - 1, logits(count, *SIZE))
    reader = LogitStore.open(path)
    assert rows(reader) == expected(photos)[:5]
    for index in range(1, 5):
        np.testing.assert_array_equal(reader.read(index), logits(index + 1, *SIZE))
