"""`calibrate --method`: numbers that every command which fuses takes from the manifest."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image
from scipy.special import log_softmax, softmax

from .bench import Bench, ended, files, run, stored
from .test_calibrate import bench, written
from .test_evaluate import predicted, scored, truth

__all__ = ["bench", "scored"]
METHODS = ("vector", "class-conditional", "dirichlet")


def calibrate(bench: Bench, *options: str) -> Any:
    result = bench.run("calibrate", "--write", str(bench.root / "c.yaml"), "--json", "-", *options)
    assert result.code == 0, result
    return result.figures


def fused(bench: Bench, dataset: str, image: str, members: dict[str, dict[str, Any]]) -> np.ndarray:
    """Mean softmax (19, H, W) of the stored logits, by the plain formulas."""
    total = 0.0
    mean = 0.0
    for name, member in members.items():
        z = stored(bench.store(dataset, name))[image].astype(np.float64)
        entries = {one["dataset"]: one for one in member.get("calibration", [])}
        one = entries.get(dataset, entries.get(None)) or {"method": "temperature", "temperature": None}
        if one["method"] == "vector":
            z = np.array(one["scale"])[:, None, None] * z + np.array(one["bias"])[:, None, None]
        elif one["method"] == "class-conditional":
            z = z / np.array(one["temperatures"])[z.argmax(0)]
        elif one["method"] == "dirichlet":
            z = np.einsum("cd,dhw->chw", one["matrix"], log_softmax(z, 0)) + np.array(one["bias"])[:, None, None]
        mean = mean + member["weight"] * softmax(z / (one["temperature"] or member["temperature"]), 0)
        total += member["weight"]
    return mean / total


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_those_of_the_written_numbers(bench: Bench, method: str) -> None:
    figures = calibrate(bench, "--method", method)
    assert (figures["method"], figures["kept"]) == (method, True)
    assert figures["ensemble"]["after"]["nll"] < figures["ensemble"]["temperatures"]["nll"]
    members = written(bench)
    assert [one["method"] for m in members.values() for one in m["calibration"]] == [method, method]
    manifest = str(bench.root / "c.yaml")
    said = run("ensemble", "--manifest", manifest).refusal()
    assert "holds predictions made in another way" in said
    assert run("ensemble", "--manifest", manifest, "--overwrite").code == 0
    loss, pixels = 0.0, 0
    for image, labels in truth(bench).items():
        expected = fused(bench, "city", image, members)
        label = np.asarray(Image.open(predicted(bench, image, "_pred.png")))
        confidence = np.asarray(Image.open(predicted(bench, image, "_conf.png"))) / 65536
        assert np.abs(confidence - expected.max(0)).max() < 1e-4
        assert (label == expected.argmax(0)).mean() > 0.999
        known = labels != 255
        loss -= np.log(np.take_along_axis(expected, (labels % 19)[None].astype(int), 0)[0][known]).sum()
        pixels += known.sum()
    # The last calibration judges two of three images by samples of their pixels.
    again = run("calibrate", "--manifest", manifest, "--write", str(bench.root / "d.yaml"), "--json", "-").figures
    assert again["ensemble"]["before"]["nll"] == pytest.approx(figures["ensemble"]["after"]["nll"], rel=1e-6)
    assert again["ensemble"]["before"]["nll"] == pytest.approx(loss / pixels, rel=0.1)
    assert run("ensemble", "--manifest", manifest).code == 0, "nothing to do"


# The process is killed when a member is fitted, or right before or after the manifest takes its place.
_KILLED = """
import os, pathlib, signal
from hmsa_pipeline.pipeline.scoring.calibration import calibrate

_fit, _replace = calibrate.fit_map, pathlib.Path.replace

def _end(moment):
    if moment == "{moment}":
        os.kill(os.getpid(), signal.SIGKILL)

def fit_map(*arguments, **options):
    _end("fit")
    return _fit(*arguments, **options)

def replace(path, target):
    _end("before" if pathlib.Path(target).name == "c.yaml" else "")
    found = _replace(path, target)
    _end("after" if pathlib.Path(target).name == "c.yaml" else "")
    return found

calibrate.fit_map, pathlib.Path.replace = fit_map, replace
"""


def test_a_calibration_that_is_killed_leaves_the_old_manifest_or_the_new_one(bench: Bench, tmp_path: Path) -> None:
    target, options = bench.root / "c.yaml", ("--method", "vector", "--pixels", "3000")
    calibrate(bench, *options)
    whole, stores = target.read_bytes(), files(bench.logits)
    for moment, kept in (("fit", b"mine"), ("before", b"mine"), ("after", whole)):
        target.write_bytes(b"mine")
        site = tmp_path / moment
        site.mkdir()
        (site / "sitecustomize.py").write_text(_KILLED.format(moment=moment))
        env = {"PYTHONPATH": str(site)}
        process = bench.start("calibrate", "--write", str(target), *options, env=env)
        assert ended(process).code == -signal.SIGKILL, moment
        assert target.read_bytes() == kept, moment
    assert files(bench.logits) == stores
    calibrate(bench, *options)
    assert target.read_bytes() == whole


def test_another_calibration_is_noticed(bench: Bench) -> None:
    calibrate(bench, "--method", "class-conditional")
    manifest = bench.root / "c.yaml"
    assert run("ensemble", "--manifest", str(manifest), "--overwrite").code == 0
    tree = yaml.safe_load(manifest.read_text())
    tree["models"][1]["calibration"][0]["temperatures"][3] = 1.25
    manifest.write_text(yaml.safe_dump(tree))
    assert "calibration of bee " in run("ensemble", "--manifest", str(manifest)).refusal()
    del tree["models"][1]["calibration"]
    manifest.write_text(yaml.safe_dump(tree))
    assert ", none now" in run("ensemble", "--manifest", str(manifest)).refusal()


def test_what_gains_nothing_on_other_images_is_not_kept(bench: Bench) -> None:
    """Noise instead of logits: whatever more numbers find in it is not there in other images."""
    draw = np.random.default_rng(5)
    for name in ("ant", "bee"):
        store = LogitStore.open(bench.store("city", name), writable=True)
        for image, labels in truth(bench).items():
            store.write(store.index[image], draw.normal(0, 1, (19, *labels.shape)).astype(np.float16))
    for image in bench.root.rglob("*_labelIds.png"):
        ids = np.asarray(Image.open(image))
        Image.fromarray(draw.choice(np.array([7, 8, 11, 12, 17, 23], np.uint8), ids.shape)).save(image)
    options = ("--method", "dirichlet", "--pixels", "120")
    result = bench.run("calibrate", "--write", str(bench.root / "c.yaml"), *options)
    figures = calibrate(bench, *options)
    if figures["kept"]:
        pytest.fail(f"dirichlet found something in noise: {figures['ensemble']}")
    assert "dirichlet: NLL " in result.out
    assert "no better on the images that judge, so temperatures alone are kept" in result.out
    assert figures["ensemble"]["rejected"]["nll"] >= figures["ensemble"]["after"]["nll"]
    assert figures["ensemble"]["after"] == figures["ensemble"]["temperatures"]
    assert all("calibration" not in member for member in written(bench).values())


def test_each_dataset_can_have_numbers_of_its_own(bench: Bench) -> None:
    """A second dataset of the same images, whose logits are half as large."""
    bench.tree["datasets"].append(bench.tree["datasets"][0] | {"name": "town"})
    bench.save()
    shutil.copytree(bench.logits / "city", bench.logits / "town")
    for name in ("ant", "bee"):
        store = LogitStore.open(bench.store("town", name), writable=True)
        for image, logits in stored(bench.store("city", name)).items():
            store.write(store.index[image], logits / 2)
    figures = calibrate(bench, "--per-dataset")["datasets"]
    assert list(figures) == ["city", "town"]
    options = ("--write", str(bench.root / "not.yaml"), "--per-dataset", "--limit", "1")
    assert bench.run("calibrate", *options).refusal() == (
        "city: 1 labelled image, and --per-dataset needs two of each dataset: one to fit to, and one to judge by; "
        "raise --limit, leave this dataset out of --datasets, or leave out --per-dataset"
    )
    heats = [[member["temperature"] for member in figures[name]["members"]] for name in figures]
    assert heats[0][1] > 1.5 * heats[1][1], "one image says little, so it is less than twice as much"
    members = written(bench)
    assert [member["temperature"] for member in members.values()] == [1.0, 1.0]
    entries = [(one["dataset"], one["temperature"]) for one in members["ant"]["calibration"]]
    assert entries == [("city", heats[0][0]), ("town", heats[1][0])]
    calibrate(bench, "--per-dataset", "--method", "class-conditional")
    members = written(bench)
    manifest = str(bench.root / "c.yaml")
    assert run("ensemble", "--manifest", manifest, "--overwrite").code == 0
    for dataset in ("city", "town"):
        image = next(iter(truth(bench)))
        path = bench.predictions / dataset / f"{image.rpartition('.')[0]}_conf.png"
        expected = fused(bench, dataset, image, members).max(0)
        assert np.abs(np.asarray(Image.open(path)) / 65536 - expected).max() < 1e-4
        label = np.asarray(Image.open(path.with_name(path.name.replace("_conf", "_pred"))))
        assert (label == fused(bench, dataset, image, members).argmax(0)).mean() > 0.999


def test_predict_fuses_what_dump_and_ensemble_do(empty: Bench, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    matrix = (np.eye(19) + draw.normal(0, 0.05, (19, 19))).round(4).tolist()
    vector = {"method": "vector", "scale": [1.2] * 19, "bias": draw.normal(0, 1, 19).round(4).tolist()}
    empty.tree["models"][0]["calibration"] = [
        vector,
        {"dataset": "garden", "method": "temperature", "temperature": 3},
    ]
    empty.tree["models"][1]["calibration"] = [{"method": "dirichlet", "matrix": matrix, "bias": [0.1] * 19}]
    empty.tree["models"][2]["calibration"] = [
        {"dataset": "street", "method": "class-conditional", "temperatures": [0.5 + k / 10 for k in range(19)]}
    ]
    empty.save()
    other = empty.copy(tmp_path / "other")
    for command in ("dump", "ensemble"):
        assert empty.run(command).code == 0
    assert other.run("predict").code == 0
    assert files(empty.predictions) == files(other.predictions)
    image = "flower.png"
    expected = fused(
        empty, "garden", image, {m["name"]: {"weight": 1.0, "temperature": 1.0} | m for m in _filled(empty)}
    )
    confidence = np.asarray(Image.open(empty.predictions / "garden" / "flower_conf.png")) / 65536
    assert np.abs(confidence - expected.max(0)).max() < 1e-4


def _filled(bench: Bench) -> list[dict[str, Any]]:
    blank = {"dataset": None, "temperature": None}
    models = bench.tree["models"]
    return [m | {"calibration": [blank | one for one in m.get("calibration", [])]} for m in models]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"method": "vector", "scale": [1.0] * 19}, "bias: is missing; vector needs it"),
        ({"method": "vector", "scale": [1.0], "bias": [0.0]}, "scale: is of 1 classes, but the manifest has 19"),
        ({"method": "temperature"}, "temperature: is missing"),
        ({"method": "dirichlet", "matrix": [[1.0], [1.0, 2.0]], "bias": [0.0]}, "has 1 numbers in 2 rows"),
        ({"method": "class-conditional", "temperatures": [1.0] * 18 + [0.0]}, "must be above 0, not 0"),
        ({"method": "class-conditional", "temperatures": [1.0] * 19, "bias": [0.0]}, "means nothing to class-cond"),
        ({"method": "beta"}, "method"),
    ],
)
def test_a_wrong_calibration_is_refused(fresh: Bench, tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    bench = fresh.copy(tmp_path / "b")
    bench.tree["models"][1]["calibration"] = [entry]
    bench.save()
    refusal = run("manifest", "show", "--manifest", str(bench.manifest))
    assert said in refusal.refusal()
    assert "models[1].calibration[0]" in refusal.err


def test_two_entries_of_one_dataset_are_refused(fresh: Bench, tmp_path: Path) -> None:
    bench = fresh.copy(tmp_path / "b")
    entry = {"dataset": "street", "method": "temperature", "temperature": 2.0}
    bench.tree["models"][0]["calibration"] = [entry, entry | {"dataset": "Street"}]
    bench.save()
    assert "there are two for Street" in run("manifest", "show", "--manifest", str(bench.manifest)).refusal()


def test_options_that_do_not_go_together(bench: Bench) -> None:
    options = ("--write", str(bench.root / "c.yaml"))
    assert "did you mean 'vector'?" in bench.run("calibrate", *options, "--method", "vectors").refusal()
    said = bench.run("calibrate", *options, "--per-dataset", "--weights").refusal()
    assert said.startswith("--weights: a member has one weight for all datasets")
    assert not (bench.root / "c.yaml").exists()
