"""`evaluate --figures` and `--confusion`: what is printed, drawn and written beside the basic figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.taxonomy import CATEGORIES, CLASS_NAMES
from hmsa_pipeline.pipeline.scoring.figures.names import BASIC, LISTS, LOWER_IS_BETTER, NUMBERS
from hmsa_pipeline.pipeline.scoring.store_answers import FIGURES as PROBABILITIES
from PIL import Image

from .bench import Bench, stored
from .conftest import plain_cpu
from .labelled_city import MODELS, TEMPERATURES, WEIGHTS, draw_city, ids

FINE = ("--datasets", "fine")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Three labelled images with masks of instances, and logits of three members, fused."""
    with plain_cpu():
        bench = draw_city(tmp_path_factory.mktemp("city"))
        assert bench.run("ensemble", *FINE).code == 0
        for path in (bench.root / "data").rglob("val/*/*_gtFine_labelIds.png"):
            raw = ids(path).astype(np.uint16)
            raw[raw >= 24] = raw[raw >= 24] * 1000 + 3
            Image.fromarray(raw).save(str(path).replace("labelIds", "instanceIds"))
        yield bench


def test_all_figures_are_in_json_and_csv_and_some_are_printed(city: Bench, tmp_path: Path) -> None:
    scored, table = str(tmp_path / "s.json"), str(tmp_path / "t.csv")
    basic = city.run("evaluate", *FINE, "--json", scored, "--csv", table)
    assert basic.code == 0
    (found,) = json.loads(Path(scored).read_text())
    scores = found["scores"]["ensemble"]
    of_classes = {*NUMBERS, *LISTS, "images", "pixels"} - {"auprc", *PROBABILITIES}
    assert scores.keys() == of_classes
    assert (len(scores["iiou"]), len(scores["category_iou"])) == (len(CLASS_NAMES), len(CATEGORIES))
    reason = "probabilities are read from stores, with --per-model, --leave-one-out or --compare"
    assert found["left_out"] == dict.fromkeys(PROBABILITIES, reason)
    with Path(table).open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["smooth_ece"]) == scores["smooth_ece"]
    assert float(row["category_iou flat"]) == scores["category_iou"][0]
    assert float(row["recall road"]) == scores["recall"][0]
    assert "aurc" not in basic.out.split()
    heads = next(line for line in basic.out.splitlines() if "miou_classes " in line and "accuracy" in line)
    assert heads.split() == [name for name in BASIC if name in of_classes and name != "iou"]

    whole = city.run("evaluate", *FINE, "--figures", "all").out
    for name in NUMBERS:
        assert (name in whole.split()) == (name in of_classes), name
    assert f"no nll, brier, classwise_ece: {reason}" in whole
    assert max(map(len, whole.splitlines())) < 160
    lines = whole.splitlines()
    vehicle = next(line for line in lines if line.startswith("vehicle "))
    assert vehicle.split()[1] == f"{scores['category_iou'][-1]:.4f}"

    some = city.run("evaluate", *FINE, "--figures", "aurc, recall").out.splitlines()
    start = next(number for number, line in enumerate(some) if line.split() == ["aurc"])
    assert some[start + 1].split() == ["ensemble", f"{scores['aurc']:.4f}"]
    assert some[start + 2].split() == ["recall", "ensemble"]
    assert len(some) == start + 3 + len(CLASS_NAMES)


def test_the_confusion_matrix_is_that_of_the_files(city: Bench, tmp_path: Path) -> None:
    drawings = tmp_path / "matrices"
    result = city.run("evaluate", *FINE, "--per-model", "--confusion", str(drawings), "--json", "-")
    (found,) = result.figures
    matrix = np.zeros((19, 19), int)
    root = city.root / "data" / "Cityscapes-nvidia"
    reader = LabelReader(root, dataset_spec("cityscapes"))
    for pair in list_pairs(root, "cityscapes", "val"):
        truth = reader.read(pair)
        with Image.open(city.predictions / "fine" / f"{pair.image.rpartition('.')[0]}_pred.png") as file:
            label = np.asarray(file)
        np.add.at(matrix, (truth[truth != 255], label[truth != 255]), 1)
    assert found["confusion"]["ensemble"] == matrix.tolist()
    assert found["confusion"].keys() == {"ensemble", "ant", "bee", "cat"}
    assert sorted(path.name for path in drawings.iterdir()) == [
        f"fine-{name}.svg" for name in ("ant", "bee", "cat", "ensemble")
    ]
    drawn = (drawings / "fine-ensemble.svg").read_text()
    assert drawn.startswith("<?xml")
    again = tmp_path / "again"
    city.run("evaluate", *FINE, "--confusion", str(again))
    assert (again / "fine-ensemble.svg").read_text() == drawn
    assert drawn != (drawings / "fine-ant.svg").read_text()


def test_a_figure_that_the_data_does_not_give_is_left_out_with_the_reason(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "less")
    mask = next((bench.root / "data").rglob("val/*/*_instanceIds.png"))
    bench.tree["datasets"][0]["root"] = str(bench.root / "data" / "Cityscapes-nvidia")
    bench.save()
    # A mask that is something else is an image that fails.
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(mask)
    failed = bench.run("evaluate", *FINE)
    assert failed.code == 1
    assert f"{mask}: is 4x4, its mask of classes 48x96" in failed.err
    mask.unlink()
    (found,) = bench.run("evaluate", *FINE, "--json", "-").figures
    assert not {"iiou", "miiou"} & found["scores"]["ensemble"].keys()
    reason = (
        "1 of 3 images have no *_gtFine_instanceIds.png, which Cityscapes distributes in the archive of its masks"
    )
    assert {name: found["left_out"][name] for name in ("iiou", "miiou")} == {"iiou": reason, "miiou": reason}
    assert f"no iiou, miiou: {reason}" in bench.run("evaluate", *FINE, "--figures", "all").out
    assert "no iiou" not in bench.run("evaluate", *FINE).out


def chances(city: Bench, image: str) -> dict[str, np.ndarray]:
    """The probabilities (C, H, W) of each member and of the ensemble, in double precision, from plain Zarr."""
    found, mean = {}, 0.0
    for name, heat, weight in zip(MODELS, TEMPERATURES, WEIGHTS, strict=True):
        z = stored(city.store("fine", name))[image].astype(np.float64) / heat
        powers = np.exp(z - z.max(0))
        found[name] = powers / powers.sum(0)
        mean = mean + weight / sum(WEIGHTS) * found[name]
    return {"ensemble": mean, **found}


@pytest.mark.parametrize("options", [("--per-model",), ("--compare", "ensemble", "bee"), ("--leave-one-out",)])
def test_figures_of_probabilities_are_those_of_the_stores(city: Bench, options: tuple[str, ...]) -> None:
    (found,) = city.run("evaluate", *FINE, *options, "--json", "-").figures
    assert found["left_out"] == {}
    root = city.root / "data" / "Cityscapes-nvidia"
    reader = LabelReader(root, dataset_spec("cityscapes"))
    labels, rows = [], {name: [] for name in ("ensemble", *MODELS)}
    for pair in list_pairs(root, "cityscapes", "val"):
        truth = reader.read(pair)
        labels.append(truth[truth != 255])
        for name, p in chances(city, pair.image).items():
            rows[name].append(p[:, truth != 255].T)
    label = np.concatenate(labels)
    once = np.eye(19)[label]
    for name in rows.keys() & found["scores"].keys():
        p, scores = np.concatenate(rows[name]), found["scores"][name]
        assert scores["nll"] == pytest.approx(sklearn.metrics.log_loss(label, p, labels=range(19)), abs=1e-6)
        # scikit-learn's is the mean over pixels of the sum over classes, too, unless it is told to halve it.
        brier = sklearn.metrics.brier_score_loss(label, p, labels=range(19), scale_by_half=False)
        assert scores["brier"] == pytest.approx(brier, abs=1e-6)
        bins = np.minimum((p * 15).astype(int), 14)
        gaps = [abs((once[:, c] - p[:, c])[bins[:, c] == b].sum()) for c in range(19) for b in range(15)]
        assert scores["classwise_ece"] == pytest.approx(sum(gaps) / 19 / len(p), abs=1e-6)
    assert "ensemble" in found["scores"]


def test_what_has_no_probabilities_says_so(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "lowest")
    for model in bench.tree["models"]:
        model["weight"] = 1.0
    bench.tree["ensemble"] = {"label": "min-softmax", "confidence": "min-softmax"}
    bench.save()
    assert bench.run("ensemble", *FINE, "--overwrite").code == 0
    (found,) = bench.run("evaluate", *FINE, "--per-model", "--json", "-").figures
    reason = "ensemble.label min-softmax takes the highest of numbers that are no probabilities"
    assert found["left_out"] == dict.fromkeys(PROBABILITIES, reason)
    folder = str(city.predictions / "fine")
    (found,) = city.run("evaluate", *FINE, "--per-model", "--predictions", folder, "--json", "-").figures
    assert found["left_out"] == dict.fromkeys(PROBABILITIES, "the folder of --predictions holds no probabilities")


def test_names_that_are_no_figures_are_refused(city: Bench) -> None:
    said = city.run("evaluate", *FINE, "--figures", "aurcs").refusal()
    assert said == "--figures aurcs: is no figure; did you mean 'aurc'?"
    assert "--figures: names nothing" in city.run("evaluate", *FINE, "--figures", ",").refusal()


def test_every_figure_is_either_better_high_or_low(city: Bench) -> None:
    """A perfect prediction that is sure has the best value of each."""
    assert set(NUMBERS) >= LOWER_IS_BETTER


@pytest.mark.parametrize("label", ["mean-softmax", "mean-logit", "max-softmax"])
def test_the_report_has_the_same_figures(city: Bench, label: str, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    bench.tree["ensemble"] = {"label": label, "confidence": "entropy"}
    if label == "max-softmax":
        for member in bench.tree["models"]:
            member["weight"] = 1.0
    bench.save()
    assert bench.run("ensemble", *FINE, "--overwrite").code == 0
    evaluated = bench.run("evaluate", *FINE, "--per-model", "--json", "-")
    reported = bench.run("report", *FINE, "--write", str(tmp_path / "r"), "--json", "-")
    assert (evaluated.code, reported.code) == (0, 0), (evaluated.err, reported.err)
    (found,), (shown,) = evaluated.figures, reported.figures
    assert shown["left_out"] == found["left_out"]
    assert ("nll" in found["scores"]["ensemble"]) == (label != "max-softmax")
    assert "miiou" in found["scores"]["ensemble"]
    for subject, scores in found["scores"].items():
        for name in PROBABILITIES:
            if name in scores:
                assert shown["scores"][subject].pop(name) == pytest.approx(scores.pop(name), rel=1e-6)
    assert shown["scores"] == found["scores"]
