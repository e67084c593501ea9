"""Images without masks, other mappings and incomplete datasets, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from PIL import Image

from .bench import files, run

SIZE = (32, 64)


@pytest.fixture
def bdd100k(tmp_path: Path) -> Path:
    """The folder of a drawn BDD100K of which one validation image has lost its mask."""
    root = write_source(tmp_path / "data", "bdd100k", train=2, val=3, size=SIZE)
    sorted((root / "labels/sem_seg/masks/val").iterdir())[1].unlink()
    return root


def lost(root: Path) -> str:
    return "images/10k/val/" + sorted(path.name for path in (root / "images/10k/val").iterdir())[1]


def manifest(root: Path, output: Path, **more: object) -> Path:
    """A manifest of that dataset, with perfect predictions in its output."""
    entry = {"name": "bdd", "type": "bdd100k", "root": str(root), "split": "val"} | more
    model = {"name": "m", "arch": "external"}
    content = {"version": 1, "output": str(output), "models": [model], "datasets": [entry]}
    output.mkdir(parents=True, exist_ok=True)
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    for mask in (root / "labels/sem_seg/masks/val").iterdir():
        target = output / "predictions/bdd/images/10k/val"
        target.mkdir(parents=True, exist_ok=True)
        with Image.open(mask) as file:
            ids = np.array(file)
        Image.fromarray(np.where(ids == 255, 0, ids).astype(np.uint8)).save(target / f"{mask.stem}_pred.png")
        Image.fromarray(np.full(ids.shape, 60000, np.uint16)).save(target / f"{mask.stem}_conf.png")
    return path


def test_images_without_masks_are_scored_around_where_that_is_said(bdd100k: Path, tmp_path: Path) -> None:
    plain = manifest(bdd100k, tmp_path / "plain")
    before = files(bdd100k)
    refused = run("evaluate", "--manifest", str(plain)).refusal()
    assert "1 of the 3 images of split 'val' have no mask" in refused and "--allow-unlabelled" in refused
    allowed = run("evaluate", "--manifest", str(plain), "--allow-unlabelled", "--json", "-")
    assert f"note: bdd: 1 image has no mask and is left out ({lost(bdd100k)})" in allowed.err
    (scored,) = allowed.figures
    assert scored["without_mask"] == [lost(bdd100k)]
    assert scored["scores"]["ensemble"]["miou"] == pytest.approx(1)
    named = manifest(bdd100k, tmp_path / "named", without_masks=[lost(bdd100k)])
    assert run("evaluate", "--manifest", str(named), "--json", "-").figures[0]["scores"] == scored["scores"]
    always = manifest(bdd100k, tmp_path / "always", allow_unlabelled=True)
    assert run("evaluate", "--manifest", str(always), "--json", "-").figures[0]["scores"] == scored["scores"]
    wrong = manifest(bdd100k, tmp_path / "wrong", without_masks=["a.jpg"])
    assert (
        "without_masks names 1 images that split 'val' does not hold"
        in run("evaluate", "--manifest", str(wrong)).refusal()
    )
    assert files(bdd100k) == before


def dry(root: Path, tmp_path: Path, name: str, *options: str):
    tiny = ("--arch", "hrnet_tiny_ocr_mscale", "--init", "random", "--device", "cpu", "--crop-size", "32x64")
    small = ("--global-batch", "2", "--batch-size", "2", "--output", str(tmp_path / "run"))
    return run("train", "--dataset", name, "--root", str(root), *tiny, *small, "--dry-run", *options)


def test_training_leaves_images_without_masks_out_where_that_is_said(bdd100k: Path, tmp_path: Path) -> None:
    assert "1 of the 3 images" in dry(bdd100k, tmp_path, "bdd100k").refusal()
    for options in (["--allow-unlabelled"], ["--set", f"data.without_masks=[{lost(bdd100k)}]"]):
        done = dry(bdd100k, tmp_path, "bdd100k", *options)
        assert done.code == 0, done
        said = done.out + done.err
        assert "2 images to learn from, 2 to score on" in said
        assert f"bdd100k: 1 image has no mask and is left out ({lost(bdd100k)})" in said


def test_a_mapping_that_there_is_not_is_refused(tmp_path: Path) -> None:
    root = write_source(tmp_path / "data", "mapillary", train=2, val=2, size=SIZE)
    assert dry(root, tmp_path, "mapillary", "--set", "data.mapping=robustnet").code == 0
    assert (
        "no mapping 'robustnt'; did you mean 'robustnet'?"
        in dry(root, tmp_path, "mapillary", "--set", "data.mapping=robustnt").refusal()
    )
    wrong = manifest_of(tmp_path, type="bdd100k", root=str(root), mapping="robustnet")
    assert "BDD100K has no other mappings" in run("manifest", "check", "--manifest", str(wrong)).refusal()


def manifest_of(folder: Path, **entry: str) -> Path:
    model = {"name": "m", "arch": "external"}
    content = {"version": 1, "output": "out", "models": [model], "datasets": [{"name": "d"} | entry]}
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_check_says_what_is_missing_of_the_official_images(tmp_path: Path) -> None:
    root = write_source(tmp_path / "data", "idd", train=1, val=1, size=SIZE)
    (root / ".drawn.json").unlink()
    result = run("datasets", "check", "idd", "--data-root", str(root.parent), "--output", str(tmp_path / "out"))
    assert result.code == 1
    whose = "(counted by others, not stated by the authors)"
    said = f"problem: train: 14026 images of the 14027 that are distributed {whose} are missing; unpack idd-"
    assert said in result.err
    figures = json.loads((tmp_path / "out/check.json").read_text())
    val = figures["splits"]["val"]
    assert (val["distributed"], val["distributed_is_unsure"]) == (2036, True)


def test_the_list_says_in_what_the_mappings_differ() -> None:
    out = " ".join(run("datasets", "list", "mapillary").out.split())
    assert "robustnet differs from hmsa in 12 ids: 2 curb (ignored -> sidewalk)" in out
    assert "18000" in out and "another figure than the one over the 19 classes" in out
    assert "26 classes" in " ".join(run("datasets", "list", "idd").out.split())
