"""`status` and `verify`: how far the stores are, and whether they can be read back."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from .bench import Bench, changed, ended, files


def flip_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 16
    shard.write_bytes(content)


def cut_short(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def fill_with_zeros(shard: Path) -> None:
    shard.write_bytes(bytes(shard.stat().st_size))


def empty_out(shard: Path) -> None:
    shard.write_bytes(b"")


def put_infinity_in(shard: Path) -> None:
    """What no checksum notices: a sound shard whose values are none."""
    array = zarr.open_array(shard.parent, mode="r+")
    array[int(shard.name.split(".")[1]), 3, 5, 7] = np.float16(np.inf)


DAMAGES: list[Callable[[Path], None]] = [flip_a_bit, cut_short, fill_with_zeros, empty_out, put_infinity_in]


def test_status_before_anything_is_there(empty: Bench) -> None:
    result = empty.run("status")
    assert (result.code, result.err) == (0, "")
    assert [line.split(maxsplit=1) for line in result.out.splitlines()] == [
        [f"{dataset}/{model}", "no store yet"] for dataset in ("street", "garden") for model in ("ant", "bee", "cat")
    ]
    assert not empty.output.exists()


def test_status_counts_images_and_bytes_and_says_when(full: Bench) -> None:
    full.shard("street", "ant", "day/a.png").unlink()
    empty_out(full.shard("street", "ant", "day/b.jpg"))
    lines = full.run("status").out.splitlines()
    assert lines[0].split()[:4] == ["street/ant", "2", "/", "4"]
    assert lines[1].split()[:4] == ["street/bee", "4", "/", "4"]
    shards = [
        full.shard("street", "bee", image) for image in ("day/a.png", "day/b.jpg", "night/c.png", "night/d.png")
    ]
    figures = {(row["dataset"], row["model"]): row for row in full.run("status", "--json", "-").figures}
    row = figures["street", "bee"]
    assert (row["complete"], row["total"], row["problem"]) == (4, 4, None)
    assert row["bytes"] == sum(shard.stat().st_size for shard in shards)
    newest = datetime.fromtimestamp(int(max(shard.stat().st_mtime for shard in shards)), UTC)
    assert datetime.fromisoformat(row["written"]) == newest


def test_status_and_verify_can_be_narrowed(finished: Bench) -> None:
    wanted = ("--models", "bee,cat", "--datasets", "garden")
    lines = finished.run("status", *wanted).out.splitlines()
    assert [line.split()[0] for line in lines] == ["garden/bee", "garden/cat"]
    assert finished.run("verify", *wanted).out == "4 images are sound, 0 damaged, 0 unreadable\n"


def test_status_says_what_is_wrong_with_a_store_and_goes_on(full: Bench) -> None:
    metadata = full.store("street", "ant") / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"format_version": 2', '"format_version": 9'))
    result = full.run("status")
    assert result.code == 0
    lines = result.out.splitlines()
    assert "is of format version 9" in lines[0]
    assert lines[1].split()[:4] == ["street/bee", "4", "/", "4"]


def test_status_goes_to_standard_error_beside_figures(finished: Bench) -> None:
    result = ended(finished.start("status", "--json", "-"))
    assert [row["complete"] for row in result.figures] == [4, 4, 4, 2, 2, 2]
    assert len(result.err.splitlines()) == 6


def test_sound_stores_are_read_and_left_as_they_are(full: Bench) -> None:
    def look() -> None:
        for options in ((), ("--repair",)):
            result = full.run("verify", *options)
            assert (result.code, result.err) == (0, "")
            assert result.out.startswith("18 images are sound, 0 damaged, 0 unreadable")

    assert changed(full.output, look) == set()


def test_verify_needs_neither_checkpoints_nor_photographs(full: Bench) -> None:
    for folder in ("weights", "photos"):
        (full.root / folder).rename(full.root / f"no {folder}")
    assert full.run("verify").code == 0
    assert full.run("status").code == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_listed_moved_aside_and_made_again(full: Bench, damage: Callable[[Path], None]) -> None:
    before = files(full.logits)
    shard = full.shard("street", "bee", "night/c.png")
    damage(shard)
    damaged = shard.read_bytes()
    result = full.run("verify")
    assert result.code == 1
    assert result.out == "17 images are sound, 1 damaged, 0 unreadable\n"
    (line,) = result.err.splitlines()
    assert line.startswith(f"damaged: street/bee: night/c.png: {shard}: ")
    assert shard.read_bytes() == damaged

    result = full.run("verify", "--repair", "--json", "-")
    assert result.code == 0
    assert sum(row["moved"] for row in result.figures) == 1
    assert not shard.exists()
    assert files(full.output / "damaged") == {"street/bee/33x57/c.0.0.0.0": damaged}
    assert "1 image dumped, 17 complete before" in full.run("dump").out
    assert files(full.logits) == before
    assert full.run("verify").code == 0


def test_the_same_shard_damaged_twice_is_kept_twice(full: Bench) -> None:
    for damage in (flip_a_bit, cut_short):
        damage(full.shard("garden", "ant", "flower.png"))
        assert full.run("verify", "--repair").code == 0
        assert full.run("dump").code == 0
    assert len(files(full.output / "damaged")) == 2


def test_an_emptied_shard_is_no_complete_image(full: Bench) -> None:
    before = files(full.logits)
    empty_out(full.shard("street", "bee", "night/c.png"))
    assert full.run("ensemble").refusal().startswith("street: of 4 images bee lacks 1; ")
    assert "1 image dumped, 17 complete before" in full.run("dump").out
    assert files(full.logits) == before


def test_what_the_disk_does_not_give_is_no_damage(full: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = full.shard("street", "bee", "night/c.png")
    opened = Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == shard:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)

    def look() -> None:
        for options in ((), ("--repair",)):
            result = full.run("verify", *options)
            assert result.code == 1
            assert result.out.startswith("17 images are sound, 0 damaged, 1 unreadable")
            (line,) = result.err.splitlines()
            assert line.startswith(f"unreadable: street/bee: night/c.png: {shard}: ")
            assert "Input/output error" in line

    assert changed(full.output, look) == set()


def test_a_damaged_import_is_imported_again(full: Bench) -> None:
    folder = full.root / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("deep/tree", "flower"):
        np.savez(folder / f"{name}_logits.npz", logits=draw.standard_normal((19, 40, 64)).astype(np.float16))
    full.tree["models"] = [{"name": "dog", "arch": "external"}]
    fill = ("import-logits", "--model", "dog", "--dataset", "garden", str(folder))
    assert full.save().run(*fill).code == 0
    before = files(full.store("garden", "dog"))
    cut_short(full.shard("garden", "dog", "flower.png"))
    assert full.run("verify", "--repair").code == 0
    assert "1 image imported, 1 complete before" in full.run(*fill).out
    assert files(full.store("garden", "dog")) == before


def test_figures_of_verify(full: Bench) -> None:
    shard = full.shard("garden", "cat", "flower.png")
    flip_a_bit(shard)
    target = full.root / "verified.json"
    assert full.run("verify", "--json", str(target)).code == 1
    rows = json.loads(target.read_text())
    (row,) = [row for row in rows if row["damaged"]]
    assert (row["dataset"], row["model"], row["sound"], row["unreadable"]) == ("garden", "cat", 1, {})
    assert list(row["damaged"]) == ["flower.png"]


def test_without_any_store_there_is_nothing_to_verify(empty: Bench) -> None:
    assert empty.run("verify").refusal() == f"{empty.output}: holds no store; make them with 'hmsa-pipeline dump'"
