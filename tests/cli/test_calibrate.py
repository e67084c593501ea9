"""`calibrate`: temperatures and weights from stored logits, used by `ensemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

from .bench import Bench, run
from .test_evaluate import ROOT, scored, truth

__all__ = ["scored"]


@pytest.fixture
def bench(scored: Bench, tmp_path: Path) -> Bench:
    """Members that err together and are too sure, the first more than the second, which errs more."""
    made = scored.copy(tmp_path / "bench")
    draw = np.random.default_rng(0)

    def mistaken(labels: np.ndarray, share: float) -> np.ndarray:
        return np.where(draw.random(labels.shape) < share, draw.integers(0, 19, labels.shape), labels)

    stores = [LogitStore.open(made.store("city", name), writable=True) for name in ("ant", "bee")]
    for image, labels in truth(made).items():
        said = mistaken(labels % 19, 0.4)
        for store, more, loud in zip(stores, (0.0, 0.2), (20.0, 9.0), strict=True):
            logits = draw.normal(0, 0.1, (19, *labels.shape))
            np.put_along_axis(logits, mistaken(said, more)[None], 1.0, 0)
            store.write(store.index[image], (loud * logits).astype(np.float16))
    return made


def calibrate(bench: Bench, *options: str) -> Any:
    result = bench.run("calibrate", "--write", str(bench.root / "c.yaml"), "--json", "-", *options)
    assert result.code == 0, result
    return result.figures


def written(bench: Bench) -> dict[str, dict[str, Any]]:
    tree = yaml.safe_load((bench.root / "c.yaml").read_text())
    return {member["name"]: member for member in tree["models"]}


def test_held_out_pixels_are_more_likely_afterwards(bench: Bench) -> None:
    figures = calibrate(bench)
    before, after = figures["ensemble"]["before"], figures["ensemble"]["after"]
    assert after["nll"] < before["nll"] - 0.1
    assert after["ece"] < before["ece"]
    for name in ("ant", "bee"):
        alone = figures["alone"][name]
        # One divisor of all logits moves no maximum.
        assert alone["after"]["miou"] == alone["before"]["miou"]
    assert figures["images"] == {"fitted": 1, "judged": 2}
    members = written(bench)
    assert members["ant"]["temperature"] != 1.0
    assert [m["temperature"] for m in figures["members"]] == [members[n]["temperature"] for n in ("ant", "bee")]
    assert (members["ant"]["weight"], members["bee"]["weight"]) == (1.0, 2.0)


def test_weights_are_fitted_if_asked_for(bench: Bench) -> None:
    fitted = calibrate(bench, "--weights")
    assert fitted["ensemble"]["after"]["nll"] < fitted["ensemble"]["before"]["nll"]
    members = written(bench)
    assert members["ant"]["weight"] / members["bee"]["weight"] not in (0.5, 1.0)
    assert members["ant"]["weight"] + members["bee"]["weight"] == pytest.approx(2.0, abs=1e-5)


def test_ensemble_uses_the_written_manifest(bench: Bench) -> None:
    calibrate(bench)
    manifest, output = str(bench.root / "c.yaml"), str(bench.output)
    said = run("ensemble", "--manifest", manifest, "--output", output).refusal()
    assert "holds predictions made in another way (temperature of ant 1.0 there" in said
    assert run("ensemble", "--manifest", manifest, "--output", output, "--overwrite").code == 0
    before = bench.run("calibrate", "--write", str(bench.root / "again.yaml"), "--json", "-").figures
    assert run("evaluate", "--manifest", manifest, "--output", output).code == 0
    # Calibrating what is calibrated changes nothing: the fit starts from the logits, not from the numbers.
    again = run("calibrate", "--manifest", manifest, "--write", str(bench.root / "d.yaml"), "--json", "-").figures
    assert again["members"] == before["members"]
    assert again["ensemble"]["before"] == again["ensemble"]["after"]


def test_the_written_manifest_keeps_datasets_that_nothing_is_fitted_to(bench: Bench) -> None:
    expected = calibrate(bench)["members"]
    bench.tree["datasets"].insert(0, {"name": "unlabelled", "type": "folder", "root": "photos"})
    bench.save()
    assert calibrate(bench, "--datasets", "city")["members"] == expected
    tree = yaml.safe_load((bench.root / "c.yaml").read_text())
    assert [entry["name"] for entry in tree["datasets"]] == ["unlabelled", "city"]


def test_the_same_seed_gives_the_same_numbers_and_fewer_pixels_will_do(bench: Bench) -> None:
    first, second = calibrate(bench, "--pixels", "3000"), calibrate(bench, "--pixels", "3000")
    assert first == second
    assert first["pixels"]["fitted"] + first["pixels"]["judged"] == 3000
    other = calibrate(bench, "--pixels", "3000", "--seed", "1")
    assert other["members"] != first["members"]
    assert other["members"][0]["temperature"] == pytest.approx(first["members"][0]["temperature"], rel=0.2)


def test_the_table(bench: Bench) -> None:
    result = bench.run("calibrate", "--write", str(bench.root / "c.yaml"))
    lines = result.out.splitlines()
    assert lines[0].startswith("fitted to ")
    assert [line.split()[0] for line in lines[2:5]] == ["ant", "bee", "ensemble"]
    assert lines[-1] == f"written: {bench.root}/c.yaml"


def test_a_mean_of_logits_is_calibrated_too(bench: Bench) -> None:
    bench.tree["ensemble"] = {"label": "mean-logit", "confidence": "mean-logit"}
    bench.save()
    figures = calibrate(bench)
    assert figures["ensemble"]["after"]["nll"] < figures["ensemble"]["before"]["nll"]
    assert calibrate(bench, "--weights")["ensemble"]["after"]["nll"] <= figures["ensemble"]["after"]["nll"] + 0.01


def test_what_cannot_be_calibrated_is_refused(bench: Bench, fresh: Bench) -> None:
    options = ("--write", str(bench.root / "c.yaml"))
    assert "no dataset of the manifest has labels" in fresh.run("calibrate", *options).refusal()
    assert bench.run("calibrate", *options, "--limit", "1").refusal() == (
        "city: 1 labelled image, and two are needed: one to fit to, and one to judge by; raise --limit, or name more "
        "datasets with labels"
    )
    image = next(iter(truth(bench)))
    bench.shard("city", "bee", image).unlink()
    assert f"lacks 1 of 3 images ({image})" in bench.run("calibrate", *options).refusal()
    bench.tree["models"][1]["weight"] = 1.0
    bench.tree["ensemble"] = {"label": "max-softmax"}
    bench.save()
    said = bench.run("calibrate", *options).refusal()
    assert said.startswith("ensemble.label max-softmax: gives no probabilities to calibrate")
    assert not (bench.root / "c.yaml").exists()


def test_given_weights_stay_to_the_last_digit(bench: Bench) -> None:
    bench.tree["models"][0]["weight"] = 1 / 3
    bench.save()
    calibrate(bench)
    assert written(bench)["ant"]["weight"] == 1 / 3


def test_images_without_a_label_are_refused(bench: Bench) -> None:
    for mask in (bench.root / "photos" / ROOT).rglob("*_labelIds.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    said = bench.run("calibrate", "--write", str(bench.root / "c.yaml")).refusal()
    assert "no pixel is labelled in this half of the images; take more images, or another --seed" in said


def test_where_to_write_is_looked_at_before_the_work(bench: Bench) -> None:
    own = bench.manifest.read_bytes()
    said = bench.run("calibrate", "--write", str(bench.manifest)).refusal()
    assert said.startswith(f"--write {bench.manifest}: is the manifest that is read, which would be lost")
    assert bench.manifest.read_bytes() == own
    # The stores are not even opened.
    bench.shard("city", "bee", next(iter(truth(bench)))).unlink()
    assert "a directory" in bench.run("calibrate", "--write", str(bench.root)).refusal().lower()
