"""`evaluate` on detection: several confidences from the stores, components, and whole images, held against NumPy."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.pipeline.scoring.detection.components import ANOMALIES, OBSTACLES
from hmsa_pipeline.pipeline.scoring.resampling.bootstrap import Resampling, draws
from PIL import Image

from ..slow_components import slow_figures
from .bench import Bench, stored
from .conftest import plain_cpu
from .labelled_city import MODELS, TEMPERATURES, WEIGHTS, draw_city

SHARES = np.array(WEIGHTS) / sum(WEIGHTS)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Three members of other weights over two splits of a drawn Cityscapes, fused; tests must leave it as it is."""
    bench = draw_city(tmp_path_factory.mktemp("city"))
    with plain_cpu():
        assert bench.run("ensemble").code == 0
        yield bench


@pytest.fixture
def bench(city: Bench, tmp_path: Path) -> Bench:
    return city.copy(tmp_path / "bench")


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(0)


def uncertainties(logits: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Of one image, in double precision: what rises with uncertainty, in the units of the literature."""
    z = [member.astype(np.float64) / heat for member, heat in zip(logits, TEMPERATURES, strict=True)]
    p = [np.exp(member - member.max(0)) for member in z]
    p = [member / member.sum(0) for member in p]
    mean = sum(w * member for w, member in zip(SHARES, p, strict=True))
    expected = sum(w * entropy(member) for w, member in zip(SHARES, p, strict=True))
    says = [member.argmax(0) for member in z]
    votes = np.stack([sum(w * (said == c) for w, said in zip(SHARES, says, strict=True)) for c in range(19)])
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    apart = sum(SHARES[i] * SHARES[j] * (says[i] != says[j]) for i, j in pairs)
    ordered = np.sort(mean, 0)
    return {
        "mean-softmax": 1 - mean.max(0),
        "margin": 1 - (ordered[-1] - ordered[-2]),
        "entropy": entropy(mean),
        "expected-entropy": expected,
        "mutual-information": entropy(mean) - expected,
        "variation-ratio": 1 - votes.max(0),
        "disagreement": apart / sum(SHARES[i] * SHARES[j] for i, j in pairs),
        "max-logit": -sum(w * member for w, member in zip(SHARES, z, strict=True)).max(0),
    }


NAMES = tuple(uncertainties([np.zeros((19, 1, 1))] * 3))


def of_images(bench: Bench, dataset: str) -> dict[str, dict[str, np.ndarray]]:
    members = [stored(bench.store(dataset, name)) for name in MODELS]
    return {image: uncertainties([member[image] for member in members]) for image in members[0]}


# ------------------------------------------------------------------ several confidences


def test_several_confidences_are_scored_from_one_look_at_the_stores(city: Bench, tmp_path: Path) -> None:
    result = city.run(
        "evaluate",
        *("--datasets", "fine", "--confidences", ",".join(NAMES)),
        *("--json", "-", "--csv", str(tmp_path / "s.csv")),
    )
    assert result.code == 0
    (figures,) = result.figures
    assert list(figures["confidences"]) == list(NAMES)
    root = Path(city.tree["datasets"][0]["root"])
    reader = LabelReader(root, dataset_spec("cityscapes"))
    truths = {pair.image: reader.read(pair) for pair in list_pairs(root, "cityscapes", "val")}
    known = np.concatenate([truths[image].ravel() for image in truths]) != 255
    right = np.concatenate([(label_of(city, image) == truths[image]).ravel() for image in truths])[known]
    found = of_images(city, "fine")
    for name in NAMES:
        doubt = np.concatenate([found[image][name].ravel() for image in truths])[known]
        scores = figures["confidences"][name]
        sure = np.round(-doubt, 12)  # votes of the same members in another order are the same
        assert scores["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(right, sure), abs=1e-4), name
        wanted = sklearn.metrics.average_precision_score(~right, -sure)
        assert scores["auprc_error"] == pytest.approx(wanted, abs=1e-3), name
        wanted = sklearn.metrics.average_precision_score(right, sure)
        assert scores["auprc_success"] == pytest.approx(wanted, abs=1e-4), name
        false, true, _ = sklearn.metrics.roc_curve(right, sure, drop_intermediate=False)
        assert scores["fpr95"] == pytest.approx(false[np.flatnonzero(true >= 0.95)[0]], abs=2e-3), name
    # The manifest's function has the figures of what `ensemble` wrote.
    ensemble = figures["scores"]["ensemble"]
    assert {key: ensemble[key] for key in scores} == figures["confidences"]["mean-softmax"]
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [row["subject"] for row in rows] == ["ensemble", *(f"ensemble, {name}" for name in NAMES)]
    assert float(rows[2]["auroc"]) == figures["confidences"]["margin"]["auroc"]
    said = city.run("evaluate", "--datasets", "fine", "--confidences", "margin,entropy").out
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["confidence", "margin", "entropy"]


def label_of(bench: Bench, image: str) -> np.ndarray:
    with Image.open(bench.predictions / "fine" / f"{image.rpartition('.')[0]}_pred.png") as file:
        return np.asarray(file)


def test_confidences_have_intervals_over_images(city: Bench, tmp_path: Path) -> None:
    table = str(tmp_path / "s.csv")
    options = ("--datasets", "fine", "--confidences", "mean-softmax,margin", "--bootstrap", "60", "--seed", "5")
    said = city.run("evaluate", *options, "--json", str(tmp_path / "s.json"), "--csv", table).out.splitlines()
    (figures,) = json.loads((tmp_path / "s.json").read_text())
    found = figures["confidence_intervals"]
    # The manifest's function has those of what `ensemble` wrote, from the same draws.
    assert found["mean-softmax"].items() <= figures["intervals"]["ensemble"].items()
    root = Path(city.tree["datasets"][0]["root"])
    reader = LabelReader(root, dataset_spec("cityscapes"))
    parts = []
    for pair in list_pairs(root, "cityscapes", "val"):
        truth = reader.read(pair)
        own = uncertainties([stored(city.store("fine", name))[pair.image] for name in MODELS])["margin"]
        parts.append(((label_of(city, pair.image) == truth)[truth != 255], -own[truth != 255]))
    right, sure = (np.concatenate(one) for one in zip(*parts, strict=True))
    sizes = [len(one) for one, _ in parts]
    times = np.stack(list(draws(len(parts), Resampling(60, 5))), 1)
    areas = [sklearn.metrics.roc_auc_score(right, sure, sample_weight=np.repeat(one, sizes)) for one in times]
    assert found["margin"]["auroc"] == pytest.approx(np.quantile(areas, (0.025, 0.975)), abs=1e-3)
    assert found["margin"]["auroc"][0] < found["margin"]["auroc"][1]
    assert said[-2].split() == ["2.5", "%", *(f"{low:.4f}" for low, _ in found["margin"].values())]
    row = next(row for row in csv.DictReader((tmp_path / "s.csv").open()) if row["subject"] == "ensemble, margin")
    assert [float(row[f"fpr95 {end}"]) for end in ("low", "high")] == found["margin"]["fpr95"]
    plain = city.run("evaluate", *options[:4], "--json", "-").figures[0]
    assert "confidence_intervals" not in plain
    assert plain["confidences"] == figures["confidences"]


def test_members_that_are_chosen_are_those_whose_confidences_are_scored(city: Bench) -> None:
    both, one = (
        city.run("evaluate", "--datasets", "fine", "--confidences", "disagreement", *models, "--json", "-").figures
        for models in ((), ("--models", "ant"))
    )
    assert both[0]["confidences"]["disagreement"]["auroc"] > 0.6
    assert one[0]["confidences"]["disagreement"]["auroc"] == 0.5, "one member contradicts nobody"


def test_an_image_whose_logits_are_damaged_is_listed_and_the_others_are_scored(bench: Bench) -> None:
    images = list(of_images(bench, "fine"))
    shard = bench.shard("fine", "bee", images[0])
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    result = bench.run("evaluate", "--datasets", "fine", "--confidences", "entropy", "--json", "-")
    assert result.code == 1
    assert result.err.count(f"failed: fine: {images[0]}: ") == 1
    assert 0 < result.figures[0]["confidences"]["entropy"]["auroc"] < 1
    result = bench.run("evaluate", "--ood-datasets", "extra", "--confidences", "entropy", "--json", "-")
    assert result.code == 1
    assert list(result.figures["failed"]["fine"]) == [images[0]]
    assert result.figures["figures"][0]["images_in"] == 2


# ------------------------------------------------------------------ whole images


def patch(pixels: np.ndarray, side: int) -> float:
    rows, columns = pixels.shape[0] - side + 1, pixels.shape[1] - side + 1
    return max(pixels[y : y + side, x : x + side].mean() for y in range(rows) for x in range(columns))


AGGREGATES: Mapping[str, Callable[[np.ndarray], float]] = {
    "mean": lambda pixels: float(pixels.mean()),
    "q90": lambda pixels: float(np.quantile(pixels, 0.9)),
    "patch7": lambda pixels: patch(pixels, 7),
}


def test_whole_images_are_told_apart_by_aggregates_of_their_uncertainty(city: Bench, tmp_path: Path) -> None:
    target = tmp_path / "s.csv"
    options = ("--ood-datasets", "extra", "--confidences", ",".join(NAMES), "--aggregate", ",".join(AGGREGATES))
    result = city.run("evaluate", *options, "--json", "-", "--csv", str(target))
    assert (result.code, result.figures["failed"]) == (0, {"fine": {}, "extra": {}})
    inside, outside = of_images(city, "fine"), of_images(city, "extra")
    rows = {(row["confidence"], row["aggregate"]): row for row in result.figures["figures"]}
    assert list(rows) == [(name, how) for name in NAMES for how in AGGREGATES]
    truth = [0] * len(inside) + [1] * len(outside)
    for (name, how), row in rows.items():
        assert (row["dataset"], row["images_in"], row["images_out"]) == ("extra", 3, 4)
        scores = [AGGREGATES[how](image[name]) for image in (*inside.values(), *outside.values())]
        scores = np.round(scores, 9)
        assert row["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores)), (name, how)
        assert row["auprc"] == pytest.approx(sklearn.metrics.average_precision_score(truth, scores)), (name, how)
        lowest = min(scores[3:])
        assert row["fpr95"] == pytest.approx((scores[:3] >= lowest).mean()), (name, how)
    written = list(csv.DictReader(target.open()))
    assert [row["aggregate"] for row in written[:3]] == list(AGGREGATES)
    lines = city.run("evaluate", *options).out.splitlines()
    assert lines[0] == "extra: 4 against 3 images in distribution"
    assert len(lines) == 2 + len(rows)


def slow_figures_of_images(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    truth, scores = np.repeat((0, 1), (len(inside), len(outside))), np.concatenate([inside, outside])
    threshold = np.sort(outside)[::-1][math.ceil(0.95 * len(outside)) - 1]
    return {
        "auroc": float(sklearn.metrics.roc_auc_score(truth, scores)),
        "auprc": float(sklearn.metrics.average_precision_score(truth, scores)),
        "fpr95": float((inside >= threshold).mean()),
    }


def test_figures_of_whole_images_have_intervals_over_images(city: Bench, tmp_path: Path) -> None:
    table, scored = str(tmp_path / "s.csv"), str(tmp_path / "s.json")
    options = ("--ood-datasets", "extra", "--confidences", "entropy,margin", "--aggregate", "mean")
    drawn = (*options, "--bootstrap", "90", "--seed", "4")
    said = city.run("evaluate", *drawn, "--json", scored, "--csv", table)
    assert said.code == 0
    result = json.loads(Path(scored).read_text())
    assert result["bootstrap"] == {"replicates": 90, "seed": 4, "interval": 0.95}
    kinds = [of_images(city, dataset) for dataset in ("fine", "extra")]
    times = [np.stack(list(draws(len(kind), Resampling(90, 4), group))) for group, kind in enumerate(kinds)]
    assert (times[0].sum(0) == 3).all(), "each kind keeps its number of images"
    assert (times[1].sum(0) == 4).all()
    for row in result["figures"]:
        name = row["confidence"]
        inside, outside = (np.array([image[name].mean() for image in kind.values()]).round(9) for kind in kinds)
        slow = [
            slow_figures_of_images(np.repeat(inside, one), np.repeat(outside, other))
            for one, other in zip(times[0].T, times[1].T, strict=True)
        ]
        for figure, ends in row["intervals"].items():
            wanted = np.quantile([one[figure] for one in slow], (0.025, 0.975))
            assert ends == pytest.approx(wanted), (name, figure)
            assert ends[0] <= row[figure] <= ends[1]
        assert set(row["intervals"]) == {"auroc", "auprc", "fpr95"}
    assert any(low < high for row in result["figures"] for low, high in row["intervals"].values())
    with Path(table).open() as file:
        cells = list(csv.DictReader(file))[1]
    assert [float(cells[f"auprc {end}"]) for end in ("low", "high")] == result["figures"][1]["intervals"]["auprc"]
    lines = said.out.splitlines()
    assert lines[1] == "95 % intervals: 90 resamplings of the images, seed 4; too narrow for fewer than 20 images"
    assert lines[4].split()[:3] == ["2.5", "%", f"{result['figures'][0]['intervals']['auroc'][0]:.4f}"]

    plain = city.run("evaluate", *options, "--json", "-").figures
    assert "bootstrap" not in plain
    assert plain["figures"] == [{k: v for k, v in row.items() if k != "intervals"} for row in result["figures"]]
    other = city.run("evaluate", *options, "--bootstrap", "90", "--seed", "5", "--json", "-").figures["figures"]
    assert other != result["figures"]
    few = city.run("evaluate", *options, "--bootstrap", "90", "--limit", "1")
    assert few.out.splitlines()[1] == "no intervals: there are fewer than two images to resample"


def test_draws_of_two_groups_are_independent_and_one_group_keeps_its_draws() -> None:
    one, same, other = (np.stack(list(draws(50, Resampling(400, 3), *group))) for group in ((), (0,), (1,)))
    assert np.array_equal(one, same)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


def test_without_confidences_it_is_what_ensemble_wrote(bench: Bench) -> None:
    def figures(*options: str) -> list[dict[str, Any]]:
        return bench.run("evaluate", "--ood-datasets", "extra", *options, "--json", "-").figures["figures"]

    assert figures() == figures("--confidences", "mean-softmax")
    assert [row["aggregate"] for row in figures()] == ["mean", "q95", "patch10"]
    assert bench.run("ensemble", "--confidence", "entropy", "--overwrite").code == 0
    assert figures() == figures("--confidences", "entropy"), "the record says which function it was"
    assert bench.run("ensemble", "--overwrite", "--datasets", "fine").code == 0
    said = bench.run("evaluate", "--ood-datasets", "extra").refusal()
    assert "holds confidences by entropy, and " in said
    assert [row["images_out"] for row in figures("--confidences", "margin", "--limit", "2")] == [2] * 3


def test_several_datasets_out_of_distribution_are_also_taken_together(bench: Bench) -> None:
    bench.tree["datasets"].append(bench.tree["datasets"][1] | {"name": "again"})
    bench.save()
    shutil.copytree(bench.logits / "extra", bench.logits / "again")
    options = ("--ood-datasets", "again,extra", "--confidences", "entropy", "--aggregate", "mean", "--json", "-")
    found = bench.run("evaluate", *options).figures["figures"]
    assert [(row["dataset"], row["images_out"]) for row in found] == [("extra", 4), ("again", 4), ("all of them", 8)]
    assert found[0]["auroc"] == found[1]["auroc"] == found[2]["auroc"]


# ------------------------------------------------------------------ components


@pytest.fixture(scope="module")
def tracks(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Both tracks of SMIYC with things and gaps, dumped and fused by two tiny members; tests must leave it so."""
    bench = fresh.copy(tmp_path_factory.mktemp("tracks") / "bench")
    draw = np.random.default_rng(7)
    for track, names, suffix in (
        ("dataset_AnomalyTrack", ("validation0000", "validation0001"), "jpg"),
        ("dataset_ObstacleTrack", ("validation_1", "validation_2"), "webp"),
    ):
        for seed, name in enumerate(names):
            bench.photo(f"smiyc/{track}/images/{name}.{suffix}", seed=10 + seed)
            mask = np.zeros((48, 80), np.uint8)
            mask[10:24, 8:26], mask[30:33, 60:64], mask[2:5, 50:53], mask[:2] = 1, 1, 1, 255
            mask[28:40, 10:40][draw.random((12, 30)) < 0.5] = 1
            folder = bench.root / "photos/smiyc" / track / "labels_masks"
            folder.mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / f"{name}_labels_semantic.png")
    bench.tree["models"] = bench.tree["models"][:2]
    bench.tree["datasets"] = [{"name": "odd", "type": "smiyc", "root": "photos/smiyc"}]
    bench.save()
    with plain_cpu():
        for command in ("dump", "ensemble"):
            assert bench.run(command).code == 0
        yield bench


def components(bench: Bench, track: str, least: Any) -> dict[str, Any]:
    """By the slow version, at the threshold of the best F1 of all pixels of the track."""
    maps = []
    for path in sorted((bench.predictions / "odd" / track / "images").glob("*_conf.png")):
        mask = bench.root / "photos/smiyc" / track / "labels_masks" / path.name.replace("_conf", "_labels_semantic")
        maps.append((65535 - np.array(Image.open(path)).astype(int), np.array(Image.open(mask))))
    score = np.concatenate([one[mask < 255] for one, mask in maps])
    truth = np.concatenate([mask[mask < 255] for _, mask in maps]) == 1
    tried = {t: 2 * truth[score >= t].sum() / ((score >= t).sum() + truth.sum()) for t in np.unique(score)}
    best = max(tried, key=lambda t: (tried[t], t))
    found = slow_figures([(one >= best, mask) for one, mask in maps], least)
    return {"best_f1": tried[best], "threshold": best / 65536, **found}


def test_components_are_those_of_the_slow_version_for_each_track(tracks: Bench, tmp_path: Path) -> None:
    target = tmp_path / "s.csv"
    result = tracks.run("evaluate", "--components", "auto", "--per-model", "--json", "-", "--csv", str(target))
    assert result.code == 0
    for figures, track, least in zip(
        result.figures, ("dataset_AnomalyTrack", "dataset_ObstacleTrack"), (ANOMALIES, OBSTACLES), strict=True
    ):
        found = figures["components"]
        assert (found["least_predicted"], found["least_truth"]) == (least.predicted, least.truth)
        assert list(found["scores"]) == ["ensemble", "ant", "bee"]
        wanted = components(tracks, track, least)
        for name, value in found["scores"]["ensemble"].items():
            assert (math.nan if value is None else value) == pytest.approx(wanted[name], abs=1e-9, nan_ok=True), name
        assert found["scores"]["ant"] != found["scores"]["bee"]
    rows = [row for row in csv.DictReader(target.open()) if row["subject"].endswith(", components")]
    assert [row["subject"] for row in rows[:3]] == ["ensemble, components", "ant, components", "bee, components"]
    # A member alone is scored as an ensemble of it is.
    alone = tracks.copy(tmp_path / "alone")
    assert alone.run("ensemble", "--models", "ant", "--overwrite").code == 0
    again = alone.run("evaluate", "--components", "auto", "--json", "-").figures
    assert [one["components"]["scores"]["ensemble"] for one in again] == [
        one["components"]["scores"]["ant"] for one in result.figures
    ]
    assert json.dumps(components(tracks, "dataset_ObstacleTrack", OBSTACLES)["f1"]) != "NaN"


def slow_best_f1(images: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of scores, and whether they are out of distribution: the F1 at every score."""
    score, truth = (np.concatenate(parts) for parts in zip(*images, strict=True))
    precision, recall, _ = sklearn.metrics.precision_recall_curve(truth, score)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


def test_components_have_intervals_over_images_at_the_threshold_of_all(tracks: Bench, tmp_path: Path) -> None:
    table = str(tmp_path / "s.csv")
    options = ("--components", "obstacle", "--bootstrap", "50", "--seed", "2")
    result = tracks.run("evaluate", *options, "--json", str(tmp_path / "s.json"), "--csv", table)
    figures = json.loads((tmp_path / "s.json").read_text())[1]["components"]
    maps, scores, level = [], [], round(figures["scores"]["ensemble"]["threshold"] * 65536)
    track = "dataset_ObstacleTrack"
    for path in sorted((tracks.predictions / "odd" / track / "images").glob("*_conf.png")):
        mask = tracks.root / "photos/smiyc" / track / "labels_masks" / path.name.replace("_conf", "_labels_semantic")
        truth, score = np.array(Image.open(mask)), 65535 - np.array(Image.open(path)).astype(int)
        maps.append((score >= level, truth))
        scores.append((score[truth < 255], truth[truth < 255] == 1))
    times = np.stack(list(draws(len(maps), Resampling(50, 2))), 1).tolist()
    slow = {
        tuple(one): slow_figures([m for m, n in zip(maps, one, strict=True) for _ in range(n)], OBSTACLES)
        for one in times
    }
    found = figures["intervals"]["ensemble"]
    for name in ("siou", "ppv", "f1"):
        wanted = np.nanquantile([slow[tuple(one)][name] for one in times], (0.025, 0.975))
        assert found[name] == pytest.approx(wanted, abs=1e-9), name
    assert found["siou"][0] < found["siou"][1]
    best = {one: slow_best_f1([s for s, n in zip(scores, one, strict=True) for _ in range(n)]) for one in slow}
    wanted = np.quantile([best[tuple(one)] for one in times], (0.025, 0.975))
    assert found["best_f1"] == pytest.approx(wanted, abs=2e-3), "levels are joined"
    assert found["best_f1"][0] < figures["scores"]["ensemble"]["best_f1"] < found["best_f1"][1]
    assert "threshold" not in found
    ends = [line.split() for line in result.out.splitlines() if line.split()[:2] == ["97.5", "%"]][-1]
    assert ends[2:] == [f"{found[name][1]:.4f}" for name in ("best_f1", "siou", "ppv", "f1")]
    rows = [row for row in csv.DictReader((tmp_path / "s.csv").open()) if row["subject"] == "ensemble, components"]
    assert float(rows[1]["siou low"]) == found["siou"][0]


def test_the_track_is_said_where_it_cannot_be_known(tracks: Bench, tmp_path: Path) -> None:
    bench = tracks.copy(tmp_path / "bench")
    named = bench.run("evaluate", "--components", "obstacle", "--json", "-").figures
    assert [one["components"]["least_predicted"] for one in named] == [50, 50]
    bench.tree["datasets"][0]["root"] = "photos/smiyc/dataset_AnomalyTrack"
    bench.save()
    predictions = bench.predictions / "odd"
    (predictions / "dataset_AnomalyTrack/images").rename(predictions / "images")
    said = bench.run("evaluate", "--components", "auto").refusal()
    assert said.startswith("--components auto: odd may be SMIYC's anomaly track or its obstacle track")
    (one,) = bench.run("evaluate", "--components", "anomaly", "--json", "-").figures
    assert one["components"]["scores"]["ensemble"] == named_by_auto(tracks)


def test_the_report_shows_the_components_that_evaluate_counts(tracks: Bench, tmp_path: Path) -> None:
    options = ("--components", "auto", "--per-model", "--bootstrap", "200", "--json", "-")
    evaluated = tracks.run("evaluate", *options).figures
    report = ("report", "--write", str(tmp_path / "r"), "--json", "-")
    said = tracks.run(*report).figures
    assert [one["components"] for one in said] == [one["components"] for one in evaluated]
    assert said[1]["components"]["scores"]["ant"]["f1"] is not None
    page = (tmp_path / "r" / "index.html").read_text()
    for name, value in said[1]["components"]["scores"]["ant"].items():
        assert f">{value:.4f}</td>" in page, name
    assert "Components have at least 10 labelled or 50 predicted pixels" in page
    named = tracks.run(*report, "--components", "obstacle").figures
    assert [one["components"]["least_truth"] for one in named] == [10, 10]
    alone = tracks.run("report", "--write", str(tmp_path / "r"), "--no-members", "--json", "-").figures
    assert [list(one["components"]["scores"]) for one in alone] == [["ensemble"], ["ensemble"]]
    refused = tracks.run("report", "--write", str(tmp_path / "r"), "--components", "anomalies").refusal()
    assert refused == "--components anomalies: is no track; did you mean 'anomaly'?"


def named_by_auto(bench: Bench) -> dict[str, Any]:
    return bench.run("evaluate", "--components", "auto", "--json", "-").figures[0]["components"]["scores"]["ensemble"]


def test_low_confidence_by_other_functions_finds_what_is_out_of_distribution(tracks: Bench) -> None:
    names = ("mean-softmax", "entropy", "max-logit")
    result = tracks.run("evaluate", "--confidences", ",".join(names), "--json", "-")
    assert result.code == 0
    for figures, track in zip(result.figures, ("dataset_AnomalyTrack", "dataset_ObstacleTrack"), strict=True):
        ensemble = figures["scores"]["ensemble"]
        assert figures["confidences"]["mean-softmax"] == {key: ensemble[key] for key in ("auroc", "auprc", "fpr95")}
        members = [stored(tracks.store("odd", name)) for name in MODELS[:2]]
        doubts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        truths = []
        for image in sorted(path for path in members[0] if path.startswith(track)):
            stem = Path(image).stem
            mask = tracks.root / "photos/smiyc" / track / "labels_masks" / f"{stem}_labels_semantic.png"
            truth = np.array(Image.open(mask))
            truths.append(truth[truth < 255] == 1)
            z = [member[image].astype(np.float64) for member in members]
            mean = np.mean([np.exp(one - one.max(0)) / np.exp(one - one.max(0)).sum(0) for one in z], 0)
            found = {"mean-softmax": -mean.max(0), "entropy": entropy(mean), "max-logit": -((z[0] + z[1]) / 2).max(0)}
            for name, doubt in found.items():
                doubts[name].append(doubt[truth < 255])
        for name in names:
            wanted = sklearn.metrics.roc_auc_score(np.concatenate(truths), np.concatenate(doubts[name]))
            assert figures["confidences"][name]["auroc"] == pytest.approx(wanted, abs=1e-3), name


def test_processes_count_the_same(city: Bench, tracks: Bench) -> None:
    for bench, options in (
        (city, ("--datasets", "extra", "--confidences", "entropy,disagreement")),
        (tracks, ("--components", "auto", "--confidences", "margin", "--per-model")),
    ):
        several, one = (bench.run("evaluate", *options, "--processes", count, "--json", "-") for count in "21")
        assert several.code == one.code == 0
        assert several.figures == one.figures


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--confidences", "Predictive_Entropy"),
            "--confidences Predictive_Entropy: is no confidence; did you mean 'entropy'?",
        ),
        (("--confidences", "entropie"), "--confidences entropie: is no confidence; did you mean 'entropy'?"),
        (("--confidences", "min-softmax"), "--confidences min-softmax: has no meaning for members of different"),
        (("--confidences", "entropy", "--predictions", "."), "--confidences: come from the manifest's stores"),
        (("--aggregate", "mean"), "--aggregate: changes nothing without --ood-datasets; leave it out"),
        (("--ood-datasets", "extra", "--aggregate", "max"), "--aggregate max: is none; known: mean, q1 to q99"),
        *(
            (("--ood-datasets", "extra", "--aggregate", f"mean,{name}"), f"--aggregate {name}: is none; {said}")
            for name, said in (
                ("patch10x10", "did you mean 'patch10'?"),
                ("patch 10x10", "did you mean 'patch10'?"),
                ("Patch-10", "did you mean 'patch10'?"),
                ("patch20x10", "patches are square: did you mean 'patch10'?"),
                ("q95%", "did you mean 'q95'?"),
                ("q100", "known: mean, q1 to q99"),
                ("patch0", "known: mean, q1 to q99 (a quantile), patch1 to patch9999 (the patch of"),
            )
        ),
        (("--ood-datasets", "extra", "--per-model"), "--per-model: does not go with --ood-datasets"),
        (("--ood-datasets", "extra", "--components", "auto"), "--components: does not go with --ood-datasets"),
        (("--ood-datasets", "extra", "--average", "labelled"), "--average: changes nothing beside --ood-datasets"),
        (("--ood-datasets", "extra", "--figures", "all"), "--figures: changes nothing beside --ood-datasets"),
        (("--ood-datasets", "extra", "--seed", "1"), "--seed: changes nothing beside --ood-datasets without --boot"),
        (("--ood-datasets", "extra", "--models", "ant"), "--models: changes nothing beside --ood-datasets without"),
        (("--ood-datasets", "extra,fine"), "--ood-datasets: names all datasets; images of another distribution"),
        (("--ood-datasets", "extras"), "no dataset 'extras' in the manifest; did you mean 'extra'?"),
        (("--components", "auto", "--datasets", "fine"), "--components: the labels of no dataset say what is out of"),
        (("--components", "rail"), "--components rail: is no track; known: auto, anomaly, obstacle"),
    ],
)
def test_what_does_not_go_together_is_refused(city: Bench, options: tuple[str, ...], said: str) -> None:
    assert city.run("evaluate", *options).refusal().startswith(said)
