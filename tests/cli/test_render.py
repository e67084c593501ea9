"""`render`: predictions as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hmsa_pipeline.datasets.taxonomy import PALETTE
from hmsa_pipeline.pipeline.pictures.colours import confidence_as_float, heat_map
from PIL import Image

from .bench import Bench, files, listed, stored
from .conftest import MODELS


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_three_pictures_of_every_image(finished: Bench, tmp_path: Path) -> None:
    result = finished.run("render", "--write", str(tmp_path / "pictures"))
    assert (result.code, result.err) == (0, "")
    assert result.out == f"18 pictures, 0 images failed; {tmp_path}/pictures\n"
    stem = tmp_path / "pictures" / "street" / "day" / "a"
    label = opened(finished.predictions / "street" / "day" / "a_pred.png")
    confidence = opened(finished.predictions / "street" / "day" / "a_conf.png").astype(np.int64)
    photograph = opened(finished.root / "photos" / "street" / "day" / "a.png").astype(np.int64)

    colours = opened(Path(f"{stem}_colour.png"))
    for y, x in ((0, 0), (20, 40), (47, 79)):
        assert colours[y, x].tolist() == list(PALETTE[label[y, x]])
    mixed = opened(Path(f"{stem}_overlay.png")).astype(np.int64)
    assert np.abs(mixed - (photograph + colours) / 2).max() <= 1
    heat = opened(Path(f"{stem}_confidence.png")).astype(np.int64)
    order = np.argsort(confidence, axis=None)
    brightness = (heat @ np.array([2126, 7152, 722])).ravel()[order]
    assert (np.diff(brightness) >= -10_000).all(), "what is surer is brighter, but for rounding"


def test_the_ends_of_the_scale() -> None:
    assert heat_map(confidence_as_float(np.array([[0, 65535]], np.uint16))).tolist() == [
        [[0, 32, 77], [255, 234, 70]]
    ]


def test_kinds_width_and_opacity(finished: Bench, tmp_path: Path) -> None:
    options = ("--kinds", "overlay", "--width", "20", "--opacity", "0", "--datasets", "garden", "--json", "-")
    result = finished.run("render", "--write", str(tmp_path / "p"), *options)
    assert result.figures == [{"dataset": "garden", "pictures": 2, "failed": {}}]
    assert sorted(files(tmp_path / "p")) == ["garden/deep/tree_overlay.png", "garden/flower_overlay.png"]
    small = opened(tmp_path / "p" / "garden" / "flower_overlay.png")
    assert small.shape == (12, 20, 3)  # of 40x64; half to even
    whole = opened(finished.root / "photos" / "garden" / "flower.png")
    assert abs(small.mean() - whole.mean()) < 3


def test_a_sheet_shows_every_member_beside_the_ensemble(finished: Bench, tmp_path: Path) -> None:
    options = ("--kinds", "sheet", "--datasets", "street", "--limit", "1")
    result = finished.run("render", "--write", str(tmp_path / "p"), *options)
    assert (result.code, result.err) == (0, "")
    (name,) = files(tmp_path / "p")
    sheet = opened(tmp_path / "p" / name)
    image = name.removeprefix("street/").removesuffix("_sheet.png")
    photograph = opened(finished.root / "photos" / "street" / f"{image}.png")
    height, width = photograph.shape[:2]

    def tile(number: int) -> np.ndarray:
        row, column = divmod(number, 3)
        y, x = 16 + row * (height + 33), 16 + column * (width + 16)
        return sheet[y : y + height, x : x + width]

    assert np.array_equal(tile(0), photograph)
    for number, model in enumerate(MODELS, start=1):
        store = zarr.open_group(finished.store("street", model), mode="r")
        entry = next(e for e in listed(finished.store("street", model)) if e["path"] == f"{image}.png")
        label = store[entry["array"]][entry["row"]].astype(np.float64).argmax(0)
        assert np.array_equal(tile(number), np.array(PALETTE, np.uint8)[label])
    stem = finished.predictions / "street" / image
    assert np.array_equal(tile(4), np.array(PALETTE, np.uint8)[opened(Path(f"{stem}_pred.png"))])
    assert np.array_equal(tile(5), heat_map(confidence_as_float(opened(Path(f"{stem}_conf.png")))))


def test_uncertainty_by_any_function_is_brightest_where_the_members_are_least_sure(
    finished: Bench, tmp_path: Path
) -> None:
    kinds = ("mutual-information", "rba", "margin")
    options = ("--kinds", ",".join(kinds), "--datasets", "street", "--json", "-")
    result = finished.run("render", "--write", str(tmp_path / "p"), *options)
    assert result.figures == [{"dataset": "street", "pictures": 12, "failed": {}}]
    z = np.stack([stored(finished.store("street", model))["day/a.png"] for model in MODELS]).astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    information = -(mean * np.log(mean)).sum(0) + (p * np.log(p)).sum(1).mean(0)
    wanted = {
        "mutual-information": np.sqrt(information.clip(0) / np.log(19)),
        # From one accepted class, the others rejected, to all rejected.
        "rba": ((17 - np.tanh(z.mean(0)).sum(0) - 17) - 17) / 2,
        "margin": 1 - (np.sort(mean, 0)[-1] - np.sort(mean, 0)[-2]),
    }
    for kind in kinds:
        found = opened(tmp_path / "p" / "street" / "day" / f"a_{kind}.png").astype(int)
        assert np.abs(found - heat_map(wanted[kind].clip(0, 1)).astype(int)).max() <= 2, kind


def test_uncertainty_needs_every_members_logits(full: Bench, tmp_path: Path) -> None:
    full.shard("street", "bee", "day/a.png").unlink()
    said = full.run("render", "--write", str(tmp_path / "p"), "--kinds", "entropy").refusal()
    assert "bee.zarr: lacks 1 of" in said
    full.tree["models"][0]["weight"] = 2.0
    said = full.save().run("render", "--write", str(tmp_path / "p"), "--kinds", "min-softmax").refusal()
    assert said == "--kinds min-softmax: has no meaning for members of different weights; leave it out"


def test_a_sheet_needs_every_members_logits(full: Bench, tmp_path: Path) -> None:
    full.shard("street", "bee", "day/a.png").unlink()
    said = full.run("render", "--write", str(tmp_path / "p"), "--kinds", "sheet").refusal()
    assert "bee.zarr: lacks 1 of" in said
    assert not (tmp_path / "p").exists()


def test_a_photograph_that_is_damaged_is_listed(full: Bench, tmp_path: Path) -> None:
    (full.root / "photos" / "street" / "day" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    result = full.run("render", "--write", str(tmp_path / "p"), "--datasets", "street")
    assert result.code == 1
    assert result.err.startswith("failed: street: day/a.png: ")
    assert "9 pictures, 1 image failed" in result.out


def test_what_is_missing_is_counted(full: Bench, tmp_path: Path) -> None:
    (full.predictions / "street" / "day" / "a_conf.png").unlink()
    said = full.run("render", "--write", str(tmp_path / "p")).refusal()
    assert said.startswith(f"{full.predictions}/street: lacks 1 of 8 predictions (day/a_conf.png)")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("kinds", "said"), [("colours", "did you mean 'colour'?"), ("x,colour", "known: ")])
def test_an_unknown_kind_is_refused(finished: Bench, tmp_path: Path, kinds: str, said: str) -> None:
    assert said in finished.run("render", "--write", str(tmp_path / "p"), "--kinds", kinds).refusal()
