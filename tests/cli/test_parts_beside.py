"""IDD's part II beside part I's folder, as both archives unpack: every command reads it, under names that stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build

from .bench import TINY, Bench, files, listed, run, stored

SIZE = (32, 64)


@pytest.fixture
def idd(tmp_path: Path) -> Path:
    """Part I's folder; part II is still elsewhere, see `unpack`."""
    first = write_source(tmp_path / "data", "idd", train=2, val=2, size=SIZE)
    second = write_source(tmp_path / "elsewhere", "idd", train=2, val=2, size=SIZE, seed=1)
    for mark in (*first.glob(".*"), *second.glob(".*")):
        mark.unlink()
    return first


def unpack(idd: Path, where: Path) -> Path:
    return Path(shutil.copytree(idd.parents[1] / "elsewhere" / idd.name, where / "idd20kII"))


def bench(idd: Path, tmp_path: Path) -> Bench:
    save_checkpoint(tmp_path / "ant.pth", build(TINY), arch=TINY)
    tree = {
        "version": 1,
        "inference": {"scales": [1.0], "precision": "fp32"},
        "models": [{"name": "ant", "arch": TINY, "checkpoint": str(tmp_path / "ant.pth")}],
        "datasets": [{"name": "idd", "type": "idd", "root": str(idd), "split": "val"}],
    }
    return Bench(tmp_path, tree).save()


def test_a_store_of_part_one_grows_and_every_stage_reads_both(idd: Path, tmp_path: Path) -> None:
    project = bench(idd, tmp_path)
    assert project.run("dump").code == 0
    alone = listed(project.store("idd", "ant"))
    shards = files(project.store("idd", "ant"))
    first = [image["path"] for image in alone]
    assert len(first) == 2 and all(path.startswith("leftImg8bit/val/") for path in first)

    part = unpack(idd, idd.parent)
    done = project.run("dump")
    assert done.code == 0 and f"idd: 2 of the photographs lie beside the root, in {part}" in done.err
    grown = [image["path"] for image in listed(project.store("idd", "ant"))]
    assert grown == first + [f"idd20kII/{path}" for path in first]  # the same drives, drawn otherwise
    after = files(project.store("idd", "ant"))
    assert {name: after[name] for name in shards if name.endswith(".0.0.0")} == {
        name: content for name, content in shards.items() if name.endswith(".0.0.0")
    }
    assert all(np.isfinite(logits).all() for logits in stored(project.store("idd", "ant")).values())

    assert project.run("ensemble").code == 0
    (scored,) = project.run("evaluate", "--json", "-").figures
    assert scored["scores"]["ensemble"]["images"] == 4
    assert project.run("render", "--write", str(project.root / "pictures")).code == 0
    assert len([*project.output.rglob("idd20kII/leftImg8bit/val/**/*_pred.png")]) == 2

    # Moved inside, it keeps its names, so that nothing is left to do.
    shutil.move(part, idd / "idd20kII")
    assert project.run("dump").out == "nothing to do: all 4 images are complete\n"
    assert files(project.store("idd", "ant")) == after


def test_a_photograph_beside_the_root_that_is_gone_is_named_where_it_lay(idd: Path, tmp_path: Path) -> None:
    project = bench(idd, tmp_path)
    part = unpack(idd, idd.parent)
    broken = min((part / "leftImg8bit/val").rglob("*_leftImg8bit.*"))
    broken.write_bytes(b"no picture")
    failed = project.run("dump")
    assert failed.code == 1 and str(broken) in failed.out + failed.err


def test_the_check_counts_both_and_says_where_part_two_lies(idd: Path, tmp_path: Path) -> None:
    part = unpack(idd, idd.parent)
    options = ("--data-root", str(idd.parent), "--output", str(tmp_path / "out"))
    said = run("datasets", "check", "idd", *options)
    assert f"  with {part}" in said.out.splitlines()
    assert "4 of 14027 images, 4 masks, 4 sound" in said.out
    figures = json.loads((tmp_path / "out" / "check.json").read_text())
    assert figures["parts_beside"] == ["idd20kII"]
    assert {name: split["sound"] for name, split in figures["splits"].items()} == {"train": 4, "val": 4}
    # A mask of part II without its image is a stray there, too.
    min((part / "leftImg8bit/val").rglob("*_leftImg8bit.*")).unlink()
    run("datasets", "check", "idd", *options)
    (stray,) = json.loads((tmp_path / "out" / "check.json").read_text())["masks_without_image"]
    assert stray.startswith("idd20kII/gtFine/val/")


def test_training_learns_from_both(idd: Path, tmp_path: Path) -> None:
    unpack(idd, idd.parent)
    options = [
        *("train", "--dataset", "idd", "--data-root", str(idd.parent), "--arch", TINY, "--init", "random"),
        *("--device", "cpu", "--crop-size", "32x64", "--global-batch", "2", "--batch-size", "2"),
        *("--output", str(tmp_path / "run"), "--set", "augmentation.long_edge=64", "--set", "workers=0"),
    ]
    done = run(*options, "--epochs", "1")
    assert done.code == 0, done
    assert "4 images to learn from, 4 to score on" in done.out + done.err
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("masks/idd/idd20kII/**/*.png")}
    assert len(drawn) == 4


def test_the_check_of_the_manifest_names_part_two(idd: Path, tmp_path: Path) -> None:
    project = bench(idd, tmp_path)
    part = unpack(idd, idd.parent)
    shown = run("manifest", "check", "--manifest", str(project.manifest))
    assert shown.code == 0, shown
    assert f"lie beside the root, in {part}" in shown.out + shown.err
