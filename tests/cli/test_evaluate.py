"""`evaluate`: predictions and members against labels, held against scikit-learn."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from PIL import Image

from .bench import Bench, run, stored
from .conftest import plain_cpu

ROOT = "Cityscapes-nvidia"


@pytest.fixture(scope="module")
def scored(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Two members over a drawn Cityscapes of three images, dumped and fused; tests must leave it as it is."""
    bench = fresh.copy(tmp_path_factory.mktemp("scored") / "bench")
    with plain_cpu():
        drawn = str(bench.root / "photos")
        size = ("--size", "64x128")
        assert run("datasets", "draw", "cityscapes", "--output", drawn, "--train", "1", "--val", "3", *size).code == 0
        bench.tree["models"] = bench.tree["models"][:2]
        bench.tree["models"][1]["weight"] = 2.0
        bench.tree["datasets"] = [{"name": "city", "type": "cityscapes", "root": f"photos/{ROOT}", "split": "val"}]
        bench.save()
        assert bench.run("dump").code == 0
        assert bench.run("ensemble").code == 0
        yield bench


@pytest.fixture
def bench(scored: Bench, tmp_path: Path) -> Bench:
    return scored.copy(tmp_path / "bench")


@pytest.mark.parametrize("extra", [["--per-model"], ["--confidences", "entropy"]])
def test_an_image_is_scored_in_one_thread(scored: Bench, extra: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are scored at a time as there are cores; torch's own threads beside made that four times as slow."""
    seen: list[int] = []
    read = LabelReader.read

    def noted(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return read(*arguments)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(LabelReader, "read", noted)
        assert scored.run("evaluate", *extra).code == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def truth(bench: Bench) -> dict[str, np.ndarray]:
    root = bench.root / "photos" / ROOT
    reader = LabelReader(root, dataset_spec("cityscapes"))
    return {pair.image: reader.read(pair) for pair in list_pairs(root, "cityscapes", "val")}


def predicted(bench: Bench, image: str, ending: str) -> Path:
    return bench.predictions / "city" / f"{image.rpartition('.')[0]}{ending}"


def expected(labels: np.ndarray, confidences: np.ndarray, truths: np.ndarray) -> dict[str, Any]:
    """The figures as scikit-learn computes them, from all pixels at once."""
    known = truths != 255
    labels, confidences, truths = labels[known], confidences[known].astype(np.int64), truths[known]
    right = labels == truths
    false, true, _ = sklearn.metrics.roc_curve(right, confidences, drop_intermediate=False)
    present = sorted(set(truths) | set(labels))
    iou = sklearn.metrics.jaccard_score(truths, labels, labels=present, average=None)
    sure = (confidences + 0.5) / 65536
    bins = np.digitize(confidences, np.round(np.linspace(0, 65536, 16))[1:-1])
    gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return {
        "pixels": len(truths),
        "miou": iou.mean(),
        "iou": {CLASS_NAMES[c]: value for c, value in zip(present, iou, strict=True)},
        "accuracy": sklearn.metrics.accuracy_score(truths, labels),
        "auroc": sklearn.metrics.roc_auc_score(right, confidences),
        "auprc_success": sklearn.metrics.average_precision_score(right, confidences),
        "auprc_error": sklearn.metrics.average_precision_score(~right, -confidences),
        "fpr95": false[np.flatnonzero(true >= 0.95)[0]],
        "ece": sum(gaps),
    }


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    iou = {name: value for name, value in zip(CLASS_NAMES, found["iou"], strict=True) if value is not None}
    return iou == pytest.approx(wanted["iou"], abs=1e-9) and all(
        found[name] == pytest.approx(wanted[name], abs=1e-9) for name in wanted if name != "iou"
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    z = np.exp(logits.astype(np.float64) - logits.max(0))
    return z / z.sum(0)


def test_the_figures_are_scikit_learns(scored: Bench) -> None:
    truths = truth(scored)
    result = scored.run("evaluate", "--json", "-")
    assert result.code == 0
    (figures,) = result.figures
    assert (figures["dataset"], figures["classes"], figures["failed"]) == ("city", list(CLASS_NAMES), {})
    labels = [np.array(Image.open(predicted(scored, image, "_pred.png"))).ravel() for image in truths]
    confidences = [np.array(Image.open(predicted(scored, image, "_conf.png"))).ravel() for image in truths]
    flat = np.concatenate([t.ravel() for t in truths.values()])
    wanted = expected(np.concatenate(labels), np.concatenate(confidences), flat)
    assert figures["scores"].keys() == {"ensemble"}
    assert figures["scores"]["ensemble"]["images"] == 3
    assert same(figures["scores"]["ensemble"], wanted)
    assert any(value is None for value in figures["scores"]["ensemble"]["iou"]) == (len(wanted["iou"]) < 19)


def test_members_and_what_is_left_without_them_come_from_the_stores(scored: Bench, tmp_path: Path) -> None:
    truths = truth(scored)
    result = scored.run(
        "evaluate",
        "--per-model",
        "--leave-one-out",
        "--json",
        str(tmp_path / "s.json"),
        "--csv",
        str(tmp_path / "s.csv"),
    )
    assert (result.code, result.err) == (0, "")
    scores = json.loads((tmp_path / "s.json").read_text())[0]["scores"]
    assert list(scores) == ["ensemble", "ant", "bee", "without ant", "without bee"]
    flat = np.concatenate([t.ravel() for t in truths.values()])
    for name, other in (("ant", "bee"), ("bee", "ant")):
        chances = [softmax(stored(scored.store("city", name))[image]) for image in truths]
        labels = np.concatenate([p.argmax(0).ravel() for p in chances])
        confidences = np.concatenate([np.minimum(p.max(0) * 65536, 65535).astype(np.int64).ravel() for p in chances])
        wanted = expected(labels, confidences, flat)
        # Single against double precision moves a few pixels by a level.
        assert scores[name]["miou"] == pytest.approx(wanted["miou"], abs=1e-6)
        assert scores[name]["auroc"] == pytest.approx(wanted["auroc"], abs=1e-5)
        assert scores[name]["ece"] == pytest.approx(wanted["ece"], abs=1e-5)
        # Of two members the one is what is left without the other.
        assert scores[f"without {other}"] == scores[name]

    lines = result.out.splitlines()
    assert lines[0] == f"city: 3 images, {scores['ant']['pixels']} labelled pixels"
    row = next(line for line in lines if line.startswith("bee"))
    assert row.split()[1] == f"{scores['bee']['miou']:.4f}"
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == list(scores)
    assert float(rows[1]["miou"]) == scores["ant"]["miou"]
    undefined = [f"iou {c}" for c, v in zip(CLASS_NAMES, scores["ant"]["iou"], strict=True) if v is None]
    assert all(rows[1][name] == "" for name in undefined)


def test_processes_count_the_same(scored: Bench) -> None:
    """Forty images, so that it pays to begin them."""
    bench = scored.copy(scored.root.with_name("many"))
    drawn, many = str(bench.root / "many"), ("--train", "1", "--val", "40", "--size", "32x64")
    assert run("datasets", "draw", "cityscapes", "--output", drawn, *many).code == 0
    bench.tree["datasets"][0]["root"] = f"many/{ROOT}"
    bench.save()
    folder = bench.root / "elsewhere"
    root = bench.root / "many" / ROOT
    draw = np.random.default_rng(0)
    for pair in list_pairs(root, "cityscapes", "val"):
        with Image.open(root / pair.image) as image:
            size = image.size[::-1]
        stem = folder / pair.image.rpartition(".")[0]
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 19, size).astype(np.uint8)).save(f"{stem}_pred.png")
        Image.fromarray(draw.integers(0, 65536, size).astype(np.uint16)).save(f"{stem}_conf.png")
    one, two = (
        bench.run("evaluate", "--predictions", str(folder), "--processes", count, "--json", "-") for count in "12"
    )
    assert (one.code, two.code) == (0, 0)
    assert one.figures[0]["scores"]["ensemble"]["images"] == 40
    assert one.out == two.out


def test_a_perfect_prediction(bench: Bench) -> None:
    for image, labels in truth(bench).items():
        Image.fromarray(np.where(labels == 255, 0, labels).astype(np.uint8)).save(
            predicted(bench, image, "_pred.png")
        )
    scores = bench.run("evaluate", "--json", "-").figures[0]["scores"]["ensemble"]
    assert (scores["miou"], scores["accuracy"], scores["auprc_success"]) == (1.0, 1.0, 1.0)
    assert (scores["auroc"], scores["auprc_error"], scores["fpr95"]) == (None, None, None)
    assert " - " in bench.run("evaluate").out


def test_a_class_map_may_say_anything_where_nothing_is_labelled(bench: Bench) -> None:
    plain = bench.run("evaluate", "--json", "-")
    for image, labels in truth(bench).items():
        path = predicted(bench, image, "_pred.png")
        with Image.open(path) as file:
            label = np.array(file)
        assert (labels == 255).any()
        Image.fromarray(np.where(labels == 255, 255, label).astype(np.uint8)).save(path)
    void = bench.run("evaluate", "--json", "-")
    assert (void.code, void.out) == (0, plain.out)
    image, labels = next(iter(truth(bench).items()))
    path = predicted(bench, image, "_pred.png")
    Image.fromarray(np.full(labels.shape, 255, np.uint8)).save(path)
    beyond = bench.run("evaluate")
    assert beyond.code == 1
    assert f"{path}: holds class 255 on labelled pixels, but predictions are train ids" in beyond.err


@pytest.fixture
def odd(fresh: Bench, tmp_path: Path) -> Bench:
    """A track of SMIYC of three images, two of them with a mask, and predictions of whatever."""
    bench = fresh.copy(tmp_path / "odd")
    track = "smiyc/dataset_AnomalyTrack"
    draw = np.random.default_rng(3)
    for name in ("validation0", "validation1", "test0"):
        bench.photo(f"{track}/images/{name}.jpg", seed=1)
        stem = bench.predictions / "odd" / "dataset_AnomalyTrack" / "images" / name
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 19, (48, 80)).astype(np.uint8)).save(f"{stem}_pred.png")
        Image.fromarray(draw.integers(0, 300, (48, 80)).astype(np.uint16)).save(f"{stem}_conf.png")
        if name != "test0":
            mask = bench.root / "photos" / track / "labels_masks" / f"{name}_labels_semantic.png"
            mask.parent.mkdir(exist_ok=True)
            Image.fromarray(draw.choice([0, 1, 255], (48, 80), p=[0.8, 0.1, 0.1]).astype(np.uint8)).save(mask)
    bench.tree["datasets"] = [{"name": "odd", "type": "smiyc", "root": "photos/smiyc", "split": "anomaly"}]
    return bench.save()


def masks(bench: Bench) -> list[Path]:
    return sorted((bench.root / "photos/smiyc/dataset_AnomalyTrack/labels_masks").iterdir())


def test_low_confidence_finds_what_is_out_of_distribution(odd: Bench, tmp_path: Path) -> None:
    result = odd.run("evaluate", "--json", "-", "--csv", str(tmp_path / "s.csv"))
    assert result.code == 0
    scores = result.figures[0]["scores"]["ensemble"]
    folder = odd.predictions / "odd/dataset_AnomalyTrack/images"
    confidence = np.concatenate(
        [np.array(Image.open(folder / f"{name}_conf.png")).ravel() for name in ("validation0", "validation1")]
    ).astype(np.int64)
    mask = np.concatenate([np.array(Image.open(path)).ravel() for path in masks(odd)])
    known = mask != 255
    wrong, doubt = mask[known] == 1, -confidence[known]
    assert (scores["images"], scores["pixels"]) == (2, int(known.sum()))
    assert scores["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(wrong, doubt), abs=1e-9)
    assert scores["auprc"] == pytest.approx(sklearn.metrics.average_precision_score(wrong, doubt), abs=1e-9)
    false, true, _ = sklearn.metrics.roc_curve(wrong, doubt, drop_intermediate=False)
    assert scores["fpr95"] == pytest.approx(false[np.flatnonzero(true >= 0.95)[0]], abs=1e-9)
    assert scores.keys() == {"images", "pixels", "auroc", "auprc", "fpr95"}
    assert len(result.err.splitlines()) == 3
    assert (
        (tmp_path / "s.csv")
        .read_text()
        .startswith("dataset,subject,images,pixels,auroc,auprc,fpr95\nodd,ensemble,2,")
    )


def test_masks_that_are_missing_or_something_else(odd: Bench) -> None:
    first, second = masks(odd)
    Image.fromarray(np.full((48, 80), 7, np.uint8)).save(first)
    result = odd.run("evaluate")
    assert result.code == 1
    assert f"{first}: holds other values than 0, 1 and 255" in result.err
    Image.fromarray(np.zeros((40, 80), np.uint8)).save(first)
    assert f"{first}: is 40x80, its image 48x80" in odd.run("evaluate").err
    first.unlink()
    second.unlink()
    assert (
        "no image has a mask (labels_masks/<name>_labels_semantic.png beside images/)"
        in odd.run("evaluate").refusal()
    )


def both_tracks(bench: Bench) -> Bench:
    """Two tracks, each told apart perfectly; all of the obstacle track is surer than most of the anomaly track."""
    for track, name, suffix, low, high in (
        ("dataset_AnomalyTrack", "validation0000", "jpg", 20000, 30000),
        ("dataset_ObstacleTrack", "validation_1", "webp", 40000, 60000),
    ):
        bench.photo(f"smiyc/{track}/images/{name}.{suffix}")
        mask = np.zeros((48, 80), np.uint8)
        mask[20:30, 20:40], mask[:8] = 1, 255
        folder = bench.root / "photos/smiyc" / track / "labels_masks"
        folder.mkdir()
        Image.fromarray(mask).save(folder / f"{name}_labels_semantic.png")
        stem = bench.predictions / "odd" / track / "images" / name
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros_like(mask)).save(f"{stem}_pred.png")
        Image.fromarray(np.where(mask == 1, low, high).astype(np.uint16)).save(f"{stem}_conf.png")
    bench.tree["datasets"] = [{"name": "odd", "type": "smiyc", "root": "photos/smiyc"}]
    return bench.save()


@pytest.fixture
def tracks(fresh: Bench, tmp_path: Path) -> Bench:
    return both_tracks(fresh.copy(tmp_path / "tracks"))


def test_each_track_has_a_row_of_its_own(tracks: Bench, tmp_path: Path) -> None:
    result = tracks.run("evaluate", "--json", "-", "--csv", str(tmp_path / "s.csv"))
    assert result.code == 0
    assert [one["dataset"] for one in result.figures] == ["odd/anomaly", "odd/obstacle"]
    for one in result.figures:
        scores = one["scores"]["ensemble"]
        assert (scores["images"], scores["auroc"], scores["auprc"], scores["fpr95"]) == (1, 1.0, 1.0, 0.0)
    rows = (tmp_path / "s.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["dataset", "odd/anomaly", "odd/obstacle"]
    lines = tracks.run("evaluate").out.splitlines()
    assert lines[0] == "odd/anomaly: 1 image of the 10 that its authors label, 3200 labelled pixels"


def test_a_track_that_is_named_keeps_the_datasets_name(tracks: Bench) -> None:
    tracks.tree["datasets"][0]["split"] = "obstacle"
    assert [one["dataset"] for one in tracks.save().run("evaluate", "--json", "-").figures] == ["odd"]


def test_the_limit_counts_images_of_the_whole_dataset(tracks: Bench) -> None:
    result = tracks.run("evaluate", "--limit", "1", "--json", "-")
    assert [one["dataset"] for one in result.figures] == ["odd/anomaly"]


def test_acdc_is_scored_by_class(fresh: Bench, tmp_path: Path) -> None:
    bench = fresh.copy(tmp_path / "acdc")
    for condition in ("fog", "night"):
        name = f"{condition}/val/GOPR0475/GOPR0475_frame_000041"
        bench.photo(f"ACDC/rgb_anon/{name}_rgb_anon.png")
        bench.photo(f"ACDC/rgb_anon/{name.replace('val', 'val_ref')}_rgb_ref_anon.png")
        labels = np.zeros((48, 80), np.uint8)
        labels[:10], labels[10:20] = 10, 255
        mask = bench.root / f"photos/ACDC/gt/{name}_gt_labelTrainIds.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(labels).save(mask)
        stem = bench.predictions / "bad" / "rgb_anon" / f"{name}_rgb_anon"
        stem.parent.mkdir(parents=True)
        label = np.where(labels == 10, 10 if condition == "fog" else 0, 0).astype(np.uint8)
        Image.fromarray(label).save(f"{stem}_pred.png")
        Image.fromarray(np.full((48, 80), 40000, np.uint16)).save(f"{stem}_conf.png")
    for split, accuracy in (("val_fog", 1.0), ("val_night", 28 / 38), (None, 66 / 76)):
        bench.tree["datasets"] = [{"name": "bad", "type": "acdc", "root": "photos/ACDC", "split": split}]
        (found,) = bench.save().run("evaluate", "--json", "-").figures
        assert found["scores"]["ensemble"]["accuracy"] == pytest.approx(accuracy), split
    bench.tree["datasets"][0]["split"] = "test"
    assert "the masks of split 'test' of ACDC are not published" in bench.save().run("evaluate").refusal()


# ------------------------------------------------------------------ wrong input


def test_predictions_that_are_missing_are_counted(bench: Bench) -> None:
    image = next(iter(truth(bench)))
    predicted(bench, image, "_conf.png").unlink()
    said = bench.run("evaluate").refusal()
    assert said.startswith(f"{bench.predictions}/city: lacks 1 of the 6 predictions that the labels call for (")
    assert bench.run("evaluate", "--limit", "0").code == 2


def test_members_that_lack_images_are_named(bench: Bench) -> None:
    image = next(iter(truth(bench)))
    bench.shard("city", "bee", image).unlink()
    assert bench.run("evaluate").code == 0
    said = bench.run("evaluate", "--per-model").refusal()
    assert said.startswith(f"{bench.store('city', 'bee')}: lacks 1 of 3 images ({image}); make them")


WRONG = {
    "eight bits": (
        "_conf.png",
        np.zeros((64, 128), np.uint8),
        "holds 8 bits a pixel, but confidences are stored in 16",
    ),
    "sixteen bits": ("_pred.png", np.zeros((64, 128), np.uint16), "holds 16 bits a pixel, but a class map takes 8"),
    "label ids": (
        "_pred.png",
        np.full((64, 128), 26, np.uint8),
        "holds class 26 on labelled pixels, but predictions are train ids, 0 to 18",
    ),
    "another size": ("_pred.png", np.zeros((32, 128), np.uint8), "is 64x128, its class map 32x128"),
    "colours": ("_pred.png", np.zeros((64, 128, 3), np.uint8), "8 or 16 bits of grey are expected"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_prediction_that_is_something_else_is_listed_and_the_rest_counted(bench: Bench, kind: str) -> None:
    ending, pixels, reason = WRONG[kind]
    image = next(iter(truth(bench)))
    Image.fromarray(pixels).save(predicted(bench, image, ending))
    result = bench.run("evaluate", "--json", "-")
    assert result.code == 1
    assert result.err.startswith(f"failed: city: {image}: ")
    assert reason in result.err
    assert result.figures[0]["scores"]["ensemble"]["images"] == 2
    assert list(result.figures[0]["failed"]) == [image]


def test_both_of_another_size_than_the_mask(bench: Bench) -> None:
    image = next(iter(truth(bench)))
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(predicted(bench, image, "_pred.png"))
    Image.fromarray(np.zeros((32, 64), np.uint16)).save(predicted(bench, image, "_conf.png"))
    result = bench.run("evaluate")
    assert result.code == 1
    assert "do not belong together" in result.err


def test_a_damaged_prediction(bench: Bench) -> None:
    path = predicted(bench, next(iter(truth(bench))), "_conf.png")
    path.write_bytes(path.read_bytes()[:-30])
    result = bench.run("evaluate")
    assert result.code == 1
    assert str(path) in result.err


def test_what_cannot_be_scored_is_refused(bench: Bench, fresh: Bench) -> None:
    assert "no dataset of the manifest has labels (types: bravo, folder)" in fresh.run("evaluate").refusal()
    assert (
        "--leave-one-out: there is one member"
        in bench.run("evaluate", "--leave-one-out", "--models", "ant").refusal()
    )
    twice = [*copy.deepcopy(bench.tree["datasets"]), {**bench.tree["datasets"][0], "name": "town"}]
    bench.tree["datasets"] = twice
    bench.save()
    said = bench.run("evaluate", "--predictions", str(bench.root)).refusal()
    assert said == "--predictions: belongs to one dataset; name it with --datasets, of city, town"


def test_a_member_without_a_weight_is_not_scored(bench: Bench) -> None:
    bench.tree["models"][1]["weight"] = 0.0
    bench.save()
    scores = bench.run("evaluate", "--per-model", "--json", "-").figures[0]["scores"]
    assert list(scores) == ["ensemble", "ant"]
    assert not math.isnan(scores["ant"]["miou"])
