"""The stores' state and health: what is complete, what is damaged, and what is moved away."""

from __future__ import annotations

import errno
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.config.manifest import Manifest
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from hmsa_pipeline.pipeline.store import shard_reader, shard_writer
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.store.shard_file import read_chunk
from hmsa_pipeline.pipeline.store.verify import VerifyResult, store_status, verify

from ..stores import begun, edit_json, filled, flip_bit, logits, manifest_of, photo, same_bits, store_at, tree

SIZE = (9, 11)
PHOTOS = [photo(f"{name}.png", SIZE) for name in "abcd"]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Two members over two datasets, all four stores filled but for one that was never begun."""
    found = manifest_of(tmp_path, ["ant", "bee"], {"street": tmp_path / "street", "garden": tmp_path / "garden"})
    filled(store_at(found, "street", "ant"), PHOTOS)
    filled(store_at(found, "street", "bee"), PHOTOS[:3], model="bee")
    filled(store_at(found, "garden", "ant"), PHOTOS[:2])
    return found


def shard(manifest: Manifest, row: int, dataset: str = "street", model: str = "ant") -> Path:
    return store_at(manifest, dataset, model) / "9x11" / f"c.{row}.0.0.0"


def damage(path: Path) -> None:
    flip_bit(path, 8 * 40)


def by_store(results: list[VerifyResult]) -> dict[str, VerifyResult]:
    return {f"{result.dataset}/{result.model}": result for result in results}


# ------------------------------------------------------------------ status


def test_status_counts_what_is_complete_and_says_when(manifest: Manifest) -> None:
    store = begun(store_at(manifest, "street", "bee"), [*PHOTOS, photo("odd.png", None)], model="bee")
    assert store.complete() == [True, True, True, False, False]
    then = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    for row in range(3):
        os.utime(shard(manifest, row, model="bee"), (then - row, then - row))
    cells = {f"{cell.dataset}/{cell.model}": cell for cell in store_status(manifest.stores())}
    assert list(cells) == ["street/ant", "street/bee", "garden/ant", "garden/bee"]
    bee = cells["street/bee"]
    assert (bee.complete, bee.total, bee.problem) == (3, 5, None)
    assert bee.bytes == sum(shard(manifest, row, model="bee").stat().st_size for row in range(3))
    assert bee.written == "2026-01-02T03:04:05+00:00"
    nothing = cells["garden/bee"]
    assert (nothing.complete, nothing.total, nothing.bytes, nothing.written, nothing.problem) == (0, 0, 0, None, None)
    assert nothing.dataset == "garden"


def test_an_empty_shard_and_an_unfinished_file_are_not_complete(manifest: Manifest) -> None:
    shard(manifest, 0).write_bytes(b"")
    shard(manifest, 1).rename(shard(manifest, 1).with_name(".77.partial"))
    cell = store_status(manifest.stores())[0]
    assert (cell.complete, cell.total) == (2, 4)
    assert cell.bytes == sum(shard(manifest, row).stat().st_size for row in (2, 3))


@pytest.mark.parametrize("kind", ["damaged", "another version", "an array that cannot be listed"])
def test_a_store_in_trouble_does_not_hide_the_others(
    manifest: Manifest, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(manifest, "street", "ant")
    if kind == "damaged":
        (store / "zarr.json").write_text("{")
    elif kind == "another version":
        edit_json(store / "zarr.json", lambda group: group["attributes"].update(format_version=9))
    else:
        scandir, refused = os.scandir, store / "9x11"

        def refuse(path: str | Path) -> object:
            if Path(path) == refused:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
    first, second, third, fourth = store_status(manifest.stores())
    assert first.problem is not None
    assert first.problem.startswith(str(store))
    assert "\n" not in first.problem
    assert (first.complete, first.total) == (0, 0)
    assert [(cell.complete, cell.total, cell.problem) for cell in (second, third, fourth)] == [
        (3, 3, None),
        (2, 2, None),
        (0, 0, None),
    ]


# ------------------------------------------------------------------ verify


def test_sound_stores_are_sound_and_left_as_they_are(manifest: Manifest) -> None:
    before = tree(manifest.output)
    for repair in (False, True):
        results = by_store(verify(manifest.output, manifest.stores(), repair=repair))
        assert {name: result.sound for name, result in results.items()} == {
            "street/ant": 4,
            "street/bee": 3,
            "garden/ant": 2,
        }
        assert all(not (r.damaged or r.unreadable or r.moved) for r in results.values())
    assert tree(manifest.output) == before


def test_damage_of_every_kind_is_listed_by_image_and_nothing_is_moved_unasked(manifest: Manifest) -> None:
    damage(shard(manifest, 0))
    shard(manifest, 1).write_bytes(b"")
    shard(manifest, 2).write_bytes(shard(manifest, 2).read_bytes()[:100])
    shard(manifest, 3).unlink()
    damage(shard(manifest, 1, "garden"))
    before = tree(manifest.output)
    results = by_store(verify(manifest.output, manifest.stores()))
    street = results["street/ant"]
    assert (street.sound, street.moved, street.unreadable) == (0, 0, {})
    assert list(street.damaged) == ["a.png", "b.png", "c.png"], "a missing shard is no damage"
    assert all(str(shard(manifest, row)) in reason for row, reason in enumerate(street.damaged.values()))
    assert "is empty" in street.damaged["b.png"]
    assert list(results["garden/ant"].damaged) == ["b.png"]
    assert results["garden/ant"].sound == 1
    assert tree(manifest.output) == before


def test_values_that_are_not_finite_are_damage(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LogitStore.open(store_at(manifest, "street", "ant"), writable=True)
    values = logits(0, *SIZE)
    values[3, 4, 5] = float("inf")
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "is_finite", lambda _: True)
        store.write(2, values)
    (result,) = [r for r in verify(manifest.output, manifest.stores()) if (r.dataset, r.model) == ("street", "ant")]
    assert list(result.damaged) == ["c.png"]
    assert "not all finite" in result.damaged["c.png"]


def test_repair_moves_damaged_shards_so_that_they_are_made_again(manifest: Manifest) -> None:
    damage(shard(manifest, 1))
    damaged = shard(manifest, 1).read_bytes()
    shard(manifest, 2).write_bytes(b"")
    others = {name: data for name, data in tree(manifest.output).items() if "ant.zarr/9x11/c.1." not in name}
    result = by_store(verify(manifest.output, manifest.stores(), repair=True))["street/ant"]
    assert (result.sound, list(result.damaged), result.moved) == (2, ["b.png", "c.png"], 2)
    after = tree(manifest.output)
    assert after["damaged/street/ant/9x11/c.1.0.0.0"] == damaged
    assert after["damaged/street/ant/9x11/c.2.0.0.0"] == b""
    store = begun(store_at(manifest, "street", "ant"), PHOTOS)
    assert store.complete() == [True, False, False, True]
    store.write(1, logits(1, *SIZE))
    assert same_bits(store.read(1), logits(1, *SIZE))
    kept = {name for name in others if "/9x11/c.2." not in name or "bee" in name}
    assert all(after[name] == others[name] for name in kept)


def test_what_was_moved_before_is_never_overwritten(manifest: Manifest) -> None:
    moved = []
    for seed in range(3):
        store = LogitStore.open(store_at(manifest, "street", "ant"), writable=True)
        store.write(1, logits(seed, *SIZE))
        damage(shard(manifest, 1))
        moved.append(shard(manifest, 1).read_bytes())
        assert by_store(verify(manifest.output, manifest.stores(), repair=True))["street/ant"].moved == 1
    folder = manifest.output / "damaged" / "street" / "ant" / "9x11"
    assert sorted(path.read_bytes() for path in folder.iterdir()) == sorted(moved)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), MemoryError(), RuntimeError("no thread")]
)
def test_what_the_machine_does_not_give_is_unreadable_and_never_moved(
    manifest: Manifest, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(shard(manifest, 3))
    before = tree(store_at(manifest, "street", "ant"))

    def fail(shard: Path, *arguments: Any) -> None:
        if shard.name.startswith("c.1.") and shard.parent.parent.name == "ant.zarr":
            raise error
        read_chunk(shard, *arguments)

    monkeypatch.setattr(shard_reader, "read_chunk", fail)
    result = by_store(verify(manifest.output, manifest.stores(), repair=True))["street/ant"]
    assert (result.sound, list(result.damaged), list(result.unreadable), result.moved) == (2, ["d.png"], ["b.png"], 1)
    assert re.search(r"c\.1\.0\.0\.0: cannot be read", result.unreadable["b.png"])
    after = tree(store_at(manifest, "street", "ant"))
    assert before.keys() - after.keys() == {"9x11/c.3.0.0.0"}


def test_damaged_metadata_of_an_array_move_no_sound_shard(manifest: Manifest) -> None:
    edit_json(store_at(manifest, "street", "ant") / "9x11" / "zarr.json", lambda array: array["shape"].reverse())
    result = by_store(verify(manifest.output, manifest.stores(), repair=True))["street/ant"]
    assert (result.sound, result.damaged, result.unreadable, result.moved) == (0, {}, {}, 0)
    assert "9x11/zarr.json: cannot be understood" in (result.problem or "")
    assert shard(manifest, 0).exists()


def test_an_index_codec_without_its_byte_order_moves_no_sound_shard(manifest: Manifest) -> None:
    def cut(array: dict[str, Any]) -> None:
        array["codecs"][0]["configuration"]["index_codecs"][0].pop("configuration")

    store = store_at(manifest, "street", "ant")
    edit_json(store / "9x11" / "zarr.json", cut)
    before = tree(store)
    result = by_store(verify(manifest.output, manifest.stores(), repair=True))["street/ant"]
    assert "9x11/zarr.json: cannot be understood" in (result.problem or "")
    assert (result.damaged, result.moved) == ({}, 0)
    assert tree(store) == before


def test_repair_needs_the_lock_and_looking_does_not(manifest: Manifest) -> None:
    damage(shard(manifest, 0))
    with writer_lock(store_at(manifest, "street", "ant")):
        assert by_store(verify(manifest.output, manifest.stores()))["street/ant"].sound == 3
        with pytest.raises(StoreError, match="held by process"):
            verify(manifest.output, manifest.stores(), repair=True)
    assert shard(manifest, 0).exists()
    verify(manifest.output, manifest.stores(), repair=True)
    assert not any(path.suffix == ".lock" for path in manifest.output.rglob("*"))


def test_repair_goes_by_the_table_as_it_is_under_the_lock(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer may have started the store afresh between the first look and the lock."""
    path, open_store, opened = store_at(manifest, "street", "ant"), LogitStore.open, []

    def late(at: Path, **kwargs: bool) -> LogitStore:
        store = open_store(at, **kwargs)
        if at == path and not opened:
            opened.append(store)
            LogitStore.remove(path)
            filled(path, [photo("new.png", (20, 20)), *PHOTOS])
        return store

    monkeypatch.setattr(LogitStore, "open", late)
    result = by_store(verify(manifest.output, manifest.stores(), repair=True))["street/ant"]
    assert (result.sound, result.damaged, result.unreadable, result.moved) == (5, {}, {}, 0)


def test_a_folder_for_damage_that_cannot_be_made_is_an_error_and_moves_nothing(manifest: Manifest) -> None:
    damage(shard(manifest, 0))
    (manifest.output / "damaged").write_text("a file")
    with pytest.raises(StoreError, match=r"c\.0\.0\.0\.0: cannot be moved to "):
        verify(manifest.output, manifest.stores(), repair=True)
    assert shard(manifest, 0).exists()


def test_no_store_at_all_is_an_error(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, ["ant"], {"street": tmp_path})
    with pytest.raises(StoreError, match="holds no store; make them with 'hmsa-pipeline dump'"):
        verify(manifest.output, manifest.stores())
    assert not manifest.output.exists()


def test_a_store_whose_metadata_cannot_be_read_does_not_hide_the_damage_of_others(manifest: Manifest) -> None:
    damage(shard(manifest, 0))
    (store_at(manifest, "garden", "ant") / "zarr.json").write_text("{")
    found = {
        (result.dataset, result.model): result for result in verify(manifest.output, manifest.stores(), repair=True)
    }
    assert "its metadata cannot be understood" in (found["garden", "ant"].problem or "")
    assert sum(result.moved for result in found.values()) == 1
    assert not shard(manifest, 0).exists()
