"""`ensemble`: stores into class maps and confidences, and again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.config.calibration_field import MaxLogits
from hmsa_pipeline.pipeline.fusion import member_stores
from hmsa_pipeline.pipeline.fusion.fuse import CONFIDENCES, LABELS, fuse, quantise
from hmsa_pipeline.pipeline.fusion.kernel import library
from PIL import Image

from .bench import Bench, changed, ended, files, quiet, stored

MODELS = ("ant", "bee", "cat")
IMAGES = {
    "street": ["day/a.png", "day/b.jpg", "night/c.png", "night/d.png"],
    "garden": ["deep/tree.JPG", "flower.png"],
}


def prediction(bench: Bench, dataset: str, image: str) -> tuple[np.ndarray, np.ndarray]:
    """The class map and the confidence of an image, as they lie on the disk."""
    stem = bench.predictions / dataset / image.rpartition(".")[0]
    found = []
    for ending, kind in (("pred", np.uint8), ("conf", np.uint16)):
        with Image.open(f"{stem}_{ending}.png") as picture:
            assert picture.format == "PNG"
            found.append(np.asarray(picture))
        assert found[-1].dtype == kind
    return found[0], found[1]


def fused(
    bench: Bench, dataset: str, image: str, models: Sequence[str] = MODELS, **functions: Any
) -> tuple[np.ndarray, np.ndarray]:
    """What the prediction has to be, from the logits as plain zarr-python gives them."""
    logits = [torch.from_numpy(stored(bench.store(dataset, model))[image]) for model in models]
    weights = functions.pop("weights", [1.0] * len(models))
    label, confidence = fuse(logits, weights, functions.pop("temperatures", None), **functions)
    return label.numpy(), quantise(confidence).numpy()


def check(bench: Bench, models: Sequence[str] = MODELS, **functions: Any) -> None:
    """Every image of every dataset is predicted as it has to be."""
    for dataset, images in IMAGES.items():
        for image in images:
            for found, expected in zip(
                prediction(bench, dataset, image), fused(bench, dataset, image, models, **functions), strict=True
            ):
                np.testing.assert_array_equal(found, expected)


def record(bench: Bench, dataset: str) -> dict[str, Any]:
    return json.loads((bench.predictions / dataset / "ensemble.json").read_text())


def test_predictions_are_the_fused_logits_in_the_photographs_tree_and_sizes(finished: Bench) -> None:
    check(finished)
    for dataset, images in IMAGES.items():
        expected = {f"{image.rpartition('.')[0]}_{kind}.png" for image in images for kind in ("pred", "conf")}
        assert files(finished.predictions / dataset).keys() == expected | {"ensemble.json"}
        for image in images:
            with Image.open(finished.root / "photos" / dataset / image) as photo:
                sizes = {pixels.shape for pixels in prediction(finished, dataset, image)}
                assert sizes == {(photo.height, photo.width)}


@pytest.mark.parametrize("pixels", [1, 300])
def test_blocks_that_fit_into_a_cache_change_no_bit(
    full: Bench, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_stores, "CACHED_PIXELS", pixels)
    assert full.run("ensemble", "--overwrite").code == 0
    check(full)


def test_again_it_does_nothing_and_says_so(full: Bench) -> None:
    def again() -> None:
        result = full.run("ensemble")
        assert (result.code, result.out, result.err) == (0, "nothing to do: all 6 predictions are there\n", "")

    assert changed(full.predictions, again) == set()


def test_a_process_of_its_own_makes_the_same_predictions(finished: Bench, full: Bench) -> None:
    result = ended(full.start("ensemble", "--overwrite"))
    assert (result.code, quiet(result.err)) == (0, [])
    assert files(full.predictions) == files(finished.predictions)


@pytest.mark.parametrize(
    ("label", "confidence"),
    [(label, "mean-softmax") for label in LABELS]
    + [(LABELS[number % len(LABELS)], confidence) for number, confidence in enumerate(CONFIDENCES[1:])],
)
def test_every_function_can_be_chosen_by_flag(finished: Bench, tmp_path: Path, label: str, confidence: str) -> None:
    bench = finished.copy(tmp_path / "bench")
    standards = [MaxLogits(mean=(0.1 * seed,) * 19, deviation=(0.5 + seed,) * 19) for seed in range(3)]
    for model, standard in zip(bench.tree["models"], standards, strict=True):
        model["max_logits"] = standard.resolved()
    bench.save()
    flags = ("--label", label, "--confidence", confidence, "--limit", "1", "--overwrite")
    result = bench.run("ensemble", *flags)
    assert (result.code, result.err) == (0, "")
    for dataset, images in IMAGES.items():
        found = prediction(bench, dataset, images[0])
        expected = fused(bench, dataset, images[0], standards=standards, label=label, confidence=confidence)
        np.testing.assert_array_equal(found, expected)


def test_weights_and_temperatures_come_from_the_manifest(full: Bench) -> None:
    full.tree["models"][0] |= {"weight": 3.0, "temperature": 2.0}
    full.tree["models"][2] |= {"weight": 0.5}
    assert full.save().run("ensemble", "--overwrite").code == 0
    check(full, weights=[3.0, 1.0, 0.5], temperatures=[2.0, 1.0, 1.0])


def test_a_member_of_weight_0_is_left_out_and_needs_no_store(full: Bench, tmp_path: Path) -> None:
    full.tree["models"][1]["weight"] = 0.0
    full.save()
    full.store("street", "bee").rename(tmp_path / "bee.zarr")
    full.shard("garden", "bee", "flower.png").unlink()
    result = full.run("ensemble", "--overwrite")
    assert (result.code, result.err) == (0, "")
    check(full, ("ant", "cat"))


def test_an_image_that_only_a_member_of_weight_0_has_is_in_no_store(full: Bench) -> None:
    full.tree["models"][1]["weight"] = 0.0
    full.save()
    for model in ("ant", "cat"):
        full.shard("garden", model, "flower.png").unlink()
    result = full.run("ensemble", "--allow-missing", "--overwrite")
    assert result.code == 1
    assert result.err.startswith("failed: garden: flower.png: ")


def test_limit_models_and_datasets_choose_what_is_fused(full: Bench) -> None:
    output = full.output / "predictions"
    result = full.run("ensemble", "--models", "cat,ant", "--datasets", "street", "--limit", "2", "--overwrite")
    assert "2 images fused, 0 done before, 0 failed" in result.out
    for image in IMAGES["street"][:2]:
        expected = fused(full, "street", image, ("ant", "cat"))
        np.testing.assert_array_equal(prediction(full, "street", image), expected)
    assert len(list((output / "street").rglob("*_pred.png"))) == 2
    again = full.run("ensemble", "--models", "cat,ant", "--datasets", "street")
    assert "2 images fused, 2 done before" in again.out


def test_figures_and_a_dry_run(full: Bench) -> None:
    for path in full.predictions.rglob("flower_pred.png"):
        path.unlink()
    before = files(full.root)
    planned = full.run("ensemble", "--dry-run", "--json", "-")
    assert planned.figures == [
        {"dataset": "street", "todo": 0, "skipped": 4},
        {"dataset": "garden", "todo": 1, "skipped": 1},
    ]
    assert "garden: 1 to fuse, 1 done before, 0 in no store" in planned.err
    assert files(full.root) == before
    street, garden = full.run("ensemble", "--json", "-").figures
    assert (street["done"], street["skipped"]) == (0, 4)
    assert (garden["done"], garden["skipped"], garden["partial"], garden["failed"]) == (1, 1, 0, {})


def test_no_checkpoint_photograph_or_variable_is_needed(full: Bench) -> None:
    full.tree["models"][0]["checkpoint"] = "${HMSA_ASSETS}/ant.pth"
    full.tree["datasets"][0]["root"] = "${HMSA_DATA_ROOT}/street"
    full.save()
    (full.root / "photos").rename(full.root / "elsewhere")
    assert full.run("ensemble", "--overwrite").code == 0
    check(full)


OTHER_WORK = {
    "label": ("--label", "mean-logit"),
    "confidence": ("--confidence", "entropy"),
    "members": ("--models", "ant,bee"),
}


@pytest.mark.parametrize("what", OTHER_WORK)
def test_predictions_made_in_another_way_are_refused_by_flag(full: Bench, what: str) -> None:
    def again() -> None:
        message = full.run("ensemble", *OTHER_WORK[what]).refusal()
        assert f"holds predictions made in another way ({what} " in message
        assert "--overwrite" in message

    assert changed(full.output, again) == set()


@pytest.mark.parametrize(
    ("key", "said"),
    [("weight", "weight of bee 1.0 there, 2.0 now"), ("temperature", "temperature of bee 1.0 there, 2.0 now")],
)
def test_predictions_made_in_another_way_are_refused_by_manifest(full: Bench, key: str, said: str) -> None:
    full.tree["models"][1][key] = 2.0
    assert f"another way ({said})" in full.save().run("ensemble").refusal()


def test_predictions_made_from_another_store_are_refused(full: Bench) -> None:
    full.tree["inference"]["flip"] = True
    assert full.save().run("dump", "--models", "bee", "--overwrite").code == 0
    assert "another way (store of bee made with other settings)" in full.run("ensemble").refusal()
    assert full.run("ensemble", "--overwrite").code == 0
    check(full)


def test_overwrite_removes_predictions_that_are_no_longer_made(full: Bench) -> None:
    stale = full.predictions / "street" / "gone_pred.png"
    stale.write_bytes(b"of a photograph that is no more")
    foreign = full.predictions / "street" / "notes.txt"
    foreign.write_text("mine")
    assert full.run("ensemble", "--label", "mean-logit", "--overwrite").code == 0
    assert not stale.exists()
    assert foreign.read_text() == "mine"
    check(full, label="mean-logit")


def test_another_output_takes_predictions_made_in_another_way(full: Bench) -> None:
    (full.root / "logits").symlink_to(full.logits)
    assert full.run("ensemble", "--label", "mean-logit", "--output", str(full.root)).code == 0
    assert "nothing to do" in full.run("ensemble").out


def test_an_image_that_a_member_lacks_stops_everything(full: Bench) -> None:
    for image in ("day/a.png", "day/b.jpg"):
        full.shard("street", "bee", image).unlink()
    full.shard("street", "cat", "day/a.png").unlink()
    for path in full.predictions.rglob("*.png"):
        path.unlink()

    def again() -> None:
        message = full.run("ensemble").refusal()
        assert message.startswith("street: of 4 images bee lacks 2, cat lacks 1; ")
        assert "--allow-missing" in message

    assert changed(full.output, again) == set()


def test_allow_missing_fuses_what_is_there_and_later_redoes_it(full: Bench) -> None:
    whole = files(full.predictions)
    shard = full.shard("street", "bee", "day/a.png")
    content = shard.read_bytes()
    shard.unlink()
    for path in full.predictions.rglob("*.png"):
        path.unlink()
    result = full.run("ensemble", "--allow-missing")
    assert result.code == 0
    assert result.err == "street: 1 image is fused from fewer than all members\n"
    assert record(full, "street")["partial"] == {"day/a.png": ["ant", "cat"]}
    expected = fused(full, "street", "day/a.png", ("ant", "cat"))
    np.testing.assert_array_equal(prediction(full, "street", "day/a.png"), expected)
    assert changed(full.predictions, lambda: full.run("ensemble", "--allow-missing")) == set()

    # Logits that were copied from elsewhere can be older than the prediction that lacks them.
    shard.write_bytes(content)
    os.utime(shard, ns=(0, 0))

    def again() -> None:
        assert "1 image fused, 5 done before" in full.run("ensemble").out

    redone = {"street/day/a_pred.png", "street/day/a_conf.png", "street/ensemble.json"}
    assert changed(full.predictions, again) == redone
    assert files(full.predictions) == whole


def test_allow_missing_takes_a_member_without_a_store_and_later_its_store(full: Bench, tmp_path: Path) -> None:
    whole = files(full.predictions)
    for path in full.predictions.rglob("*"):
        if path.is_file():
            path.unlink()
    store = full.store("street", "cat")
    store.rename(tmp_path / "cat.zarr")
    message = full.run("ensemble").refusal()
    assert message.startswith(f"{store}: there is no store")
    result = full.run("ensemble", "--allow-missing")
    assert result.code == 0
    assert result.err == "street: 4 images are fused from fewer than all members\n"
    assert record(full, "street")["partial"] == {image: ["ant", "bee"] for image in IMAGES["street"]}
    (tmp_path / "cat.zarr").rename(store)
    assert "4 images fused, 2 done before" in full.run("ensemble").out
    assert files(full.predictions) == whole


def test_images_in_no_store_are_listed_and_the_rest_is_fused(full: Bench) -> None:
    for path in full.predictions.rglob("*.png"):
        path.unlink()
    for model in MODELS:
        full.shard("street", model, "day/a.png").unlink()
    result = full.run("ensemble")
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith("failed: street: day/a.png: is in no member's store yet")
    assert "5 images fused, 0 done before, 1 failed" in result.out
    assert not list(full.predictions.rglob("a_*.png"))


def test_images_that_no_member_could_decode_are_listed_with_the_reason(empty: Bench) -> None:
    (empty.root / "photos/garden/flower.png").write_bytes(b"no picture")
    assert empty.run("dump").code == 1
    result = empty.run("ensemble")
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith(f"failed: garden: flower.png: {empty.root / 'photos/garden/flower.png'}: ")
    assert "5 images fused" in result.out


def flip_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)


def cut_short(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short])
def test_an_image_whose_shard_is_damaged_is_listed_and_the_rest_is_fused(full: Bench, damage: Any) -> None:
    shard = full.shard("street", "bee", "day/a.png")
    damage(shard)
    for path in full.predictions.rglob("*.png"):
        path.unlink()
    result = full.run("ensemble")
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith(f"failed: street: day/a.png: {shard}: ")
    assert "verify --repair" in line
    assert "5 images fused, 0 done before, 1 failed" in result.out
    assert not list(full.predictions.rglob("a_*.png"))


def test_a_shard_that_was_made_again_is_fused_again(full: Bench) -> None:
    full.shard("street", "bee", "day/a.png").unlink()
    assert full.run("dump").code == 0

    def again() -> None:
        assert "1 image fused, 5 done before" in full.run("ensemble").out

    assert changed(full.predictions, again) == {"street/day/a_pred.png", "street/day/a_conf.png"}


def test_photographs_that_were_added_are_fused(full: Bench) -> None:
    full.photo("street/day/aa.png", seed=9)
    assert full.run("dump").code == 0
    assert "1 image fused, 6 done before" in full.run("ensemble").out
    np.testing.assert_array_equal(prediction(full, "street", "day/aa.png"), fused(full, "street", "day/aa.png"))


def test_a_missing_compiled_library_is_noted_where_something_is_to_be_fused(
    full: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "library", lambda: None)
    note = "note: fusing has no compiled library here and takes longer; docs/performance.md says how to get it\n"
    first, again = full.run("ensemble", "--overwrite"), full.run("ensemble")
    assert (first.code, again.code) == (0, 0)
    assert (first.err.count(note), again.err.count(note)) == (1, 0)
    check(full)
