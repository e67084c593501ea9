"""The table of images: what is appended, renewed and refused, and how a store recovers from a death in between."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hypothesis import given, settings
from hypothesis import strategies as st

from ..stores import (
    CLASSES,
    SIZE,
    VERSIONS,
    begun,
    edit_json,
    filled,
    identity,
    logits,
    made_version_1,
    photo,
    same_bits,
    tree,
)

SOME = [photo("a.png"), photo("b.png"), photo("c.png", (33, 57))]


def places(store: LogitStore) -> list[tuple[str, str | None, int | None]]:
    return [(entry.path, entry.array, entry.row) for entry in store.images]


def test_photographs_that_came_later_stand_at_the_end(where: Path) -> None:
    store = begun(where, [photo("b.png"), photo("d.png", (33, 57))])
    assert store.register([photo("a.png"), photo("b.png"), photo("c.png", (33, 57)), photo("d.png", (33, 57))]) == 2
    expected = [("b.png", "48x80", 0), ("d.png", "33x57", 0), ("a.png", "48x80", 1), ("c.png", "33x57", 1)]
    assert places(store) == places(LogitStore.open(where)) == expected
    assert store.index == {"b.png": 0, "d.png": 1, "a.png": 2, "c.png": 3}


def test_a_photograph_that_left_the_folder_keeps_its_place(where: Path) -> None:
    store, made = filled(where, SOME)
    assert store.register([SOME[2]]) == 0
    assert places(store)[0] == ("a.png", "48x80", 0)
    assert same_bits(store.read(0), made["a.png"])


def test_nothing_is_written_where_nothing_is_new(where: Path) -> None:
    store, _ = filled(where, SOME)
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*")}
    assert store.register(SOME) == 0
    assert {path: path.stat().st_mtime_ns for path in where.rglob("*")} == before


SIZES = st.sampled_from([(8, 3), (5, 7), None])
DATASETS = st.lists(
    st.dictionaries(st.sampled_from("abcdefg"), st.tuples(SIZES, st.integers(1, 2)), max_size=7), max_size=5
)


@settings(max_examples=20, deadline=None)
@given(datasets=DATASETS, dumped=st.sets(st.sampled_from("abcdefg")))
def test_however_a_dataset_changes_no_image_ever_gets_the_place_or_the_logits_of_another(
    datasets: list[dict[str, tuple[tuple[int, int] | None, int]]], dumped: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder, "ant.zarr"), {}
        begun(path, [])
        for dataset in datasets:
            store = LogitStore.for_writing(path, identity(), VERSIONS)
            before = [entry.path for entry in store.images]
            try:
                store.register([photo(name, size, length) for name, (size, length) in sorted(dataset.items())])
            except StoreError:
                assert any(
                    store.images[store.index[name]].bytes != dataset[name][1] for name in made if name in dataset
                )
                continue
            assert [entry.path for entry in store.images][: len(before)] == before
            assert set(before) | set(dataset) == set(store.index)
            taken = [(entry.array, entry.row) for entry in store.images if entry.array]
            assert len(set(taken)) == len(taken)
            for index, entry in enumerate(store.images):
                if entry.path in dumped - made.keys() and entry.height and entry.width:
                    made[entry.path] = logits(ord(entry.path), entry.height, entry.width)
                    store.write(index, made[entry.path])
            read = LogitStore.open(path)
            done = {entry.path for entry, there in zip(read.images, read.complete(), strict=True) if there}
            assert done == set(made)
            assert all(same_bits(read.read(read.index[name]), value) for name, value in made.items())


def test_a_photograph_that_changed_under_its_logits_is_an_error_that_counts_and_names(where: Path) -> None:
    store, _ = filled(where, SOME)
    before = tree(where)
    with pytest.raises(StoreError, match=r"2 photographs .*\(first: a.png\).*--overwrite"):
        store.register(
            [photo("a.png", length=1), photo("b.png"), photo("c.png", (33, 57), length=1), photo("new.png")]
        )
    assert tree(where) == before


@pytest.mark.parametrize("size", [SIZE, (33, 57), (9, 9), None])
def test_a_photograph_that_changed_before_it_was_dumped_is_renewed_in_its_line(
    where: Path, size: tuple[int, int] | None
) -> None:
    store = begun(where, SOME)
    store.write(1, logits(1, *SIZE))
    assert store.register([photo("a.png", size, length=7), *SOME[1:]]) == 0
    store = LogitStore.open(where)
    expected = {SIZE: ("48x80", 0), (33, 57): ("33x57", 1), (9, 9): ("9x9", 0), None: (None, None)}[size]
    assert places(store) == [("a.png", *expected), ("b.png", "48x80", 1), ("c.png", "33x57", 0)]
    assert store.images[0].bytes == 7
    assert store.complete() == [False, True, False]
    if size:
        LogitStore.open(where, writable=True).write(0, logits(9, *size))
        assert same_bits(store.read(0), logits(9, *size))


def test_a_file_without_a_readable_header_has_no_place_and_is_never_complete(where: Path) -> None:
    store = begun(where, [photo("a.png", None)])
    assert (store.complete(), store.shard_sizes(), store.shard_path(0), store.strips(0)) == (
        [False],
        [None],
        None,
        [],
    )
    with pytest.raises(StoreError, match=r"has no logits of a\.png"):
        store.read(0)
    with pytest.raises(ValueError, match=r"a\.png"):
        store.write(0, logits(0, *SIZE))


def test_a_header_mended_without_a_change_of_the_files_size_gets_its_place(where: Path) -> None:
    store = begun(where, [photo("a.png", None), photo("b.png")])
    assert store.register([photo("a.png", SIZE), photo("b.png")]) == 0
    store.write(0, logits(0, *SIZE))
    assert places(store) == [("a.png", "48x80", 1), ("b.png", "48x80", 0)]
    assert store.complete() == [True, False]


def test_a_death_between_table_and_arrays_is_made_good_by_the_next_writer(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", die)
        patch.setattr(zarr.Array, "resize", die)
        with pytest.raises(KeyboardInterrupt):
            begun(where, SOME[:1])
    # Readers come by before the next writer does.
    reader = LogitStore.open(where)
    assert (places(reader), reader.complete()) == ([("a.png", "48x80", 0)], [False])
    with pytest.raises(StoreError, match=r"has no logits of a\.png"):
        reader.read(0)
    store = begun(where, SOME[:1])
    store.write(0, logits(0, *SIZE))
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", die)
        patch.setattr(zarr.Array, "resize", die)
        with pytest.raises(KeyboardInterrupt):
            store.register(SOME)
    assert LogitStore.open(where).complete() == [True, False, False]
    store = begun(where, SOME)
    for index, entry in enumerate(store.images[1:], 1):
        assert entry.height and entry.width
        store.write(index, logits(index, entry.height, entry.width))
    whole, _ = filled(where.with_name("whole.zarr"), SOME)
    assert tree(where) == tree(whole.path)


def test_an_array_that_lost_its_metadata_gets_them_again_and_keeps_its_logits(where: Path) -> None:
    _, made = filled(where, SOME)
    before = tree(where)
    (where / "48x80" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"48x80/zarr.json.*'hmsa-pipeline dump'.*writes it again"):
        LogitStore.open(where).read(0)
    store = begun(where, SOME)
    assert tree(where) == before
    assert same_bits(store.read(0), made["a.png"])


def test_an_array_that_lost_its_folder_is_dumped_again(where: Path) -> None:
    _, made = filled(where, SOME)
    shutil.rmtree(where / "48x80")
    store = begun(where, SOME)
    assert store.complete() == [False, False, True]
    store.write(0, made["a.png"])
    assert same_bits(LogitStore.open(where).read(0), made["a.png"])


def test_logits_in_a_row_that_the_table_does_not_know_never_pass_for_a_new_images(where: Path) -> None:
    store = begun(where, SOME[:1])
    older = (where / "zarr.json").read_bytes()
    store.register(SOME[:2])
    store.write(1, logits(1, *SIZE))
    (where / "zarr.json").write_bytes(older)
    with pytest.raises(StoreError, match="row 1 of 48x80 holds logits that the table of images does not list"):
        begun(where, [SOME[0], photo("another.png")])
    assert places(LogitStore.open(where)) == [("a.png", "48x80", 0)]
    assert (where / "48x80" / "c.1.0.0.0").exists()


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/x.png", "..", "..\\x.png", "", ".", "a\0b.png"])
def test_a_path_that_leads_out_of_the_output_is_refused_on_its_way_in_and_out(where: Path, path: str) -> None:
    store = begun(where, SOME[:1])
    before = tree(where)
    with pytest.raises(StoreError, match="leaves the output folder"):
        store.register([*SOME, photo(path)])
    assert tree(where) == before
    made_version_1(where)
    edit_json(where / "zarr.json", lambda group: group["attributes"]["images"][0].update(path=path))
    with pytest.raises(StoreError, match="leaves the output folder"):
        LogitStore.open(where)


def rows(change: Callable[[list[Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda group: change(group["attributes"]["images"])


BAD_TABLES: dict[str, Callable[[dict[str, Any]], object]] = {
    "not a list": lambda group: group["attributes"].update(images=3),
    "a row that is no object": rows(lambda images: images.append(3)),
    "a row with a key too many": rows(lambda images: images[0].update(colour="red")),
    "a row with a key too few": rows(lambda images: images[0].pop("row")),
    "a path that is no text": rows(lambda images: images[0].update(path=3)),
    "a size that is no number": rows(lambda images: images[0].update(bytes="many")),
    "one path twice": rows(lambda images: images[0].update(path="b.png")),
    "one place twice": rows(lambda images: images[0].update(row=1)),
    "a row below zero": rows(lambda images: images[0].update(row=-1)),
    "an array of another size": rows(lambda images: images[0].update(array="48x81")),
    "an array outside of the store": rows(lambda images: images[0].update(array="../bee.zarr/48x80")),
    "a size without an array": rows(lambda images: images[0].update(array=None)),
    "no height": rows(lambda images: images[0].update(height=0, array="0x80")),
}


@pytest.mark.parametrize("bad", BAD_TABLES)
def test_a_table_of_version_1_that_this_package_would_not_write_is_refused(where: Path, bad: str) -> None:
    filled(where, SOME)
    made_version_1(where)
    edit_json(where / "zarr.json", BAD_TABLES[bad])
    with pytest.raises(StoreError, match="its metadata cannot be understood"):
        LogitStore.open(where)


def test_ten_thousand_photographs_of_one_size_are_one_array(where: Path) -> None:
    store = begun(where, [photo(f"{i:05}.png") for i in range(10_000)])
    array = json.loads((where / "48x80" / "zarr.json").read_text())
    assert array["shape"] == [10_000, CLASSES, *SIZE]
    store.write(9_999, logits(0, *SIZE))
    assert (where / "48x80" / "c.9999.0.0.0").is_file()
    assert [i for i, there in enumerate(LogitStore.open(where).complete()) if there] == [9_999]
