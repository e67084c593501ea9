"""`calibrate --max-logits` and the confidence that it is for, through every command, held against NumPy."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import yaml
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.fusion import member_stores
from hmsa_pipeline.pipeline.pictures.colours import heat_map
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

from .bench import Bench, Result, changed, files, run, stored
from .conftest import plain_cpu
from .labelled_city import MODELS, TEMPERATURES, WEIGHTS, draw_city, truth_of

NAME = "standardised-max-logit"
SHARES = np.array(WEIGHTS) / sum(WEIGHTS)
TRAM = CLASS_NAMES.index("train")

Numbers = dict[str, Any]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Three members over two splits of a drawn Cityscapes, fused, with statistics of one; to be left as it is."""
    bench = draw_city(tmp_path_factory.mktemp("city"))
    for name in MODELS:
        # Of a class that is said of a few pixels alone, and one that is never said.
        store = LogitStore.open(bench.store("extra", name), writable=True)
        for index, entry in enumerate(store.images):
            logits = stored(bench.store("extra", name))[entry.path].copy()
            logits[[TRAM, 0]] = -9
            logits[TRAM, 0, :20] = np.linspace(30, 60, 20)
            store.write(index, logits)
    with plain_cpu():
        assert bench.run("ensemble").code == 0
        assert fit(bench).code == 0
        yield bench


@pytest.fixture
def bench(city: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = city.copy(tmp_path / "bench")
    monkeypatch.chdir(tmp_path)
    return made


def fit(bench: Bench, *options: str, datasets: str = "extra", target: str = "s.yaml") -> Result:
    """Fitted, and written beside the bench's manifest."""
    return bench.run(
        "calibrate", "--max-logits", "--write", str(bench.root / target), "--datasets", datasets, *options
    )


def numbers(bench: Bench, target: str = "s.yaml") -> dict[str, Numbers]:
    tree = yaml.safe_load((bench.root / target).read_text())
    return {member["name"]: member["max_logits"] for member in tree["models"]}


def standardised(bench: Bench, command: str, *options: str) -> Result:
    """A command on the manifest that was fitted."""
    output = ("--output", str(bench.output))
    return run(command, "--manifest", str(bench.root / "s.yaml"), *output, *options)


@functools.cache
def all_logits(store: Path) -> dict[str, np.ndarray]:
    """Image -> logits, in double precision, as plain zarr-python gives them."""
    return {image: z.astype(np.float64) for image, z in sorted(stored(store).items())}


def slow_fit(bench: Bench, name: str, datasets: Sequence[str], images: int | None = None) -> Numbers:
    """In double precision, from all pixels at once."""
    logits = [
        z.reshape(19, -1)
        for dataset in datasets
        for z in list(all_logits(bench.store(dataset, name)).values())[:images]
    ]
    z = np.concatenate(logits, 1)
    highest, said = z.max(0), z.argmax(0)
    found: Numbers = {"mean": [], "deviation": [], "pixels": [], "pooled": []}
    for number, label in enumerate(CLASS_NAMES):
        own = highest[said == number]
        found["pixels"].append(own.size)
        if own.size < 100:
            found["pooled"].append(label)
            own = highest
        found["mean"].append(own.mean())
        found["deviation"].append(np.sqrt(((own - own.mean()) ** 2).mean()))
    return found


def slow_score(
    bench: Bench, dataset: str, image: str, fitted: dict[str, Numbers], which: Sequence[int] = (0, 1, 2)
) -> tuple[np.ndarray, np.ndarray]:
    """The class map, and the mean over the members of their standardised logits of it, in double precision."""
    shares = SHARES[[*which]] / SHARES[[*which]].sum()
    mean, standard = np.zeros(1), np.zeros(1)
    for number, share in zip(which, shares, strict=True):
        u = all_logits(bench.store(dataset, MODELS[number]))[image]
        z = u / TEMPERATURES[number]
        p = np.exp(z - z.max(0))
        mean = mean + share * p / p.sum(0)
        own = fitted[MODELS[number]]
        parts = [np.array(own[key])[:, None, None] for key in ("mean", "deviation")]
        standard = standard + share * (u - parts[0]) / parts[1]
    label = mean.argmax(0)
    return label, np.take_along_axis(standard, label[None], 0)[0]


def level(score: np.ndarray) -> np.ndarray:
    return np.floor(65536 * (0.5 + 0.5 * score / (1 + abs(score))))


def written(bench: Bench, dataset: str, image: str) -> tuple[np.ndarray, np.ndarray]:
    stem = bench.predictions / dataset / image.rpartition(".")[0]
    with Image.open(f"{stem}_pred.png") as label, Image.open(f"{stem}_conf.png") as confidence:
        return np.asarray(label), np.asarray(confidence).astype(np.int64)


# ------------------------------------------------------------------ the fit


def test_mean_and_deviation_are_those_of_all_pixels_that_a_member_says_to_be_of_a_class(
    city: Bench, tmp_path: Path
) -> None:
    result = fit(city, "--json", "-", target=str(tmp_path / "t.yaml"))
    assert result.code == 0, result
    assert result.figures["images"] == {"extra": 4}
    assert [one["name"] for one in result.figures["members"]] == list(MODELS)
    for found in result.figures["members"]:
        wanted = slow_fit(city, found["name"], ["extra"])
        assert found["pixels"] == wanted["pixels"]
        assert found["pooled"] == wanted["pooled"]
        assert {"road", "train"} <= {*found["pooled"]} != {*CLASS_NAMES}
        assert found["pixels"][0] == 0 < found["pixels"][TRAM] < 100
        for key in ("mean", "deviation"):
            assert found[key] == pytest.approx(wanted[key], abs=6e-7), key
            assert numbers(city, str(tmp_path / "t.yaml"))[found["name"]][key] == found[key]
            assert found[key][0] == found[key][TRAM] == pytest.approx(found["all"][key])
    assert len({tuple(one["mean"]) for one in result.figures["members"]}) == 3


def test_several_datasets_are_taken_together_and_all_are_kept_in_the_manifest(bench: Bench) -> None:
    result = fit(bench, "--json", "-", "--limit", "2", datasets="extra,fine")
    assert result.figures["images"] == {"fine": 2, "extra": 2}
    for found in result.figures["members"]:
        wanted = slow_fit(bench, found["name"], ["fine", "extra"], 2)
        assert found["mean"] == pytest.approx(wanted["mean"], abs=6e-7)
        assert found["deviation"] == pytest.approx(wanted["deviation"], abs=6e-7)
    tree = yaml.safe_load((bench.root / "s.yaml").read_text())
    assert [entry["name"] for entry in tree["datasets"]] == ["fine", "extra"]
    assert [(m["temperature"], m["weight"]) for m in tree["models"]] == list(zip(TEMPERATURES, WEIGHTS, strict=True))


def test_neither_strips_nor_temperatures_nor_weights_nor_labels_nor_photographs_change_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_stores, "CACHED_PIXELS", 300)
    assert fit(bench, target="t.yaml").code == 0
    assert numbers(bench, "t.yaml") == numbers(bench)
    for member in bench.tree["models"]:
        member |= {"temperature": 5.0, "weight": 0.25}
    bench.tree["datasets"][1] = {"name": "extra", "type": "folder", "root": str(bench.root / "nowhere")}
    bench.save()
    assert fit(bench, target="t.yaml").code == 0
    assert numbers(bench, "t.yaml") == numbers(bench)


def test_the_table(city: Bench, tmp_path: Path) -> None:
    lines = fit(city, target=str(tmp_path / "t.yaml")).out.splitlines()
    assert lines[0] == "fitted to all pixels of 4 images of extra"
    assert lines[1].split() == ["mean", "deviation", "of", "all", "pixels"]
    assert [line.split()[0] for line in lines[2:5]] == list(MODELS)
    wanted = slow_fit(city, MODELS[0], ["extra"])
    assert float(lines[2].split()[1]) == pytest.approx(wanted["mean"][0], abs=1e-3)
    few = f"{MODELS[0]} says fewer than 100 pixels, or all with the same logit, of road"
    assert lines[5].startswith(few)
    assert lines[5].endswith("mean and deviation of all pixels stand in")
    assert lines[-1] == f"written: {tmp_path}/t.yaml; use it with --confidence {NAME}"


def test_a_member_of_weight_0_is_left_alone_and_needs_no_store(bench: Bench, tmp_path: Path) -> None:
    bench.tree["models"][1]["weight"] = 0.0
    bench.save().store("extra", MODELS[1]).rename(tmp_path / "away")
    assert fit(bench).code == 0
    tree = yaml.safe_load((bench.root / "s.yaml").read_text())
    assert ["max_logits" in member for member in tree["models"]] == [True, False, True]
    assert standardised(bench, "ensemble", "--confidence", NAME, "--overwrite", "--datasets", "fine").code == 0


def test_a_manifest_that_already_names_the_confidence_can_be_fitted(bench: Bench) -> None:
    bench.tree["ensemble"] = {"confidence": NAME}
    bench.save()
    assert "no max_logits" in bench.run("ensemble", "--overwrite").refusal()
    assert fit(bench).code == 0
    assert standardised(bench, "ensemble", "--overwrite").code == 0


# ------------------------------------------------------------------ every command that takes a confidence


def test_ensemble_writes_what_the_slow_version_says(bench: Bench) -> None:
    result = standardised(bench, "ensemble", "--confidence", NAME, "--overwrite")
    assert (result.code, result.err) == (0, "")
    for dataset in ("fine", "extra"):
        for image in truth_of(bench, dataset):
            label, score = slow_score(bench, dataset, image, numbers(bench))
            found, confidence = written(bench, dataset, image)
            np.testing.assert_array_equal(found, label)
            assert abs(confidence - level(score)).max() <= 1
            assert len(np.unique(confidence)) > 1000


def test_other_statistics_are_another_work_and_the_same_are_not(bench: Bench) -> None:
    options = ("ensemble", "--confidence", NAME)
    assert standardised(bench, *options, "--overwrite").code == 0
    record = json.loads((bench.predictions / "fine" / "ensemble.json").read_text())
    assert {one["name"]: one["max_logits"] for one in record["members"]} == numbers(bench)
    assert changed(bench.predictions, lambda: standardised(bench, *options)) == set()
    assert fit(bench, datasets="fine").code == 0
    said = standardised(bench, *options).refusal()
    assert f"(other max_logits of {MODELS[0]}, other max_logits of {MODELS[1]}, " in said
    assert "--overwrite" in said
    before = files(bench.predictions)
    assert standardised(bench, *options, "--overwrite").code == 0
    assert files(bench.predictions) != before
    # Predictions by other functions do not depend on them.
    assert standardised(bench, "ensemble", "--overwrite").code == 0
    record = json.loads((bench.predictions / "fine" / "ensemble.json").read_text())
    assert not any("max_logits" in one for one in record["members"])
    assert fit(bench).code == 0
    assert changed(bench.predictions, lambda: standardised(bench, "ensemble")) == set()


def test_predict_writes_what_dump_and_ensemble_write(full: Bench) -> None:
    assert fit(full, datasets="street,garden").code == 0
    assert standardised(full, "ensemble", "--confidence", NAME, "--overwrite").code == 0
    wanted = files(full.predictions)
    manifest, output = str(full.root / "s.yaml"), str(full.root / "other")
    result = run("predict", "--manifest", manifest, "--output", output, "--confidence", NAME)
    assert result.code == 0, result
    assert files(Path(output) / "predictions") == wanted
    stem = "street/day/a_conf.png"
    full.run("ensemble", "--overwrite")
    assert files(full.predictions)[stem] != wanted[stem]


def test_evaluate_scores_it_for_the_ensemble_and_for_every_member(bench: Bench) -> None:
    result = standardised(bench, "evaluate", "--datasets", "fine", "--confidences", f"{NAME},margin", "--json", "-")
    assert result.code == 0, result
    truths = truth_of(bench, "fine")

    def wanted(which: Sequence[int]) -> float:
        right, sure = [], []
        for image, labels in truths.items():
            label, score = slow_score(bench, "fine", image, numbers(bench), which)
            right.append((label == labels)[labels != 255])
            sure.append(level(score)[labels != 255])
        return float(sklearn.metrics.roc_auc_score(np.concatenate(right), np.concatenate(sure)))

    (figures,) = result.figures
    assert figures["confidences"][NAME]["auroc"] == pytest.approx(wanted((0, 1, 2)), abs=1e-4)
    assert standardised(bench, "ensemble", "--confidence", NAME, "--overwrite").code == 0
    tree = yaml.safe_load((bench.root / "s.yaml").read_text())
    tree["ensemble"]["confidence"] = NAME
    (bench.root / "s.yaml").write_text(yaml.safe_dump(tree))
    options = ("--datasets", "fine", "--per-model", "--leave-one-out", "--json", "-")
    one, several = (standardised(bench, "evaluate", *options, "--processes", count).figures for count in "12")
    assert one == several
    scores = one[0]["scores"]
    assert scores["ensemble"]["auroc"] == figures["confidences"][NAME]["auroc"]
    for number, name in enumerate(MODELS):
        others = [other for other in range(3) if other != number]
        assert scores[name]["auroc"] == pytest.approx(wanted([number]), abs=1e-4)
        # Two members that are sure of two classes tie in single precision.
        assert scores[f"without {name}"]["auroc"] == pytest.approx(wanted(others), abs=5e-4)


def test_whole_images_are_told_apart_by_its_negative(bench: Bench) -> None:
    options = ("--ood-datasets", "extra", "--confidences", NAME, "--aggregate", "mean,q95", "--json", "-")
    rows = standardised(bench, "evaluate", *options).figures["figures"]
    doubts = {
        dataset: [-slow_score(bench, dataset, image, numbers(bench))[1] for image in truth_of(bench, dataset)]
        for dataset in ("fine", "extra")
    }
    for row, aggregate in zip(rows, (np.mean, lambda one: np.quantile(one, 0.95)), strict=True):
        scores = [float(aggregate(one)) for dataset in ("fine", "extra") for one in doubts[dataset]]
        assert row["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score([0] * 3 + [1] * 4, scores))


def test_search_tries_it_with_every_subset(bench: Bench) -> None:
    rows = bench.root / "rows.csv"
    options = ("--datasets", "fine", "--folds", "2", "--bootstrap", "100", "--by", "auroc", "--confidences")
    result = standardised(bench, "search", *options, f"mean-softmax,{NAME}", "--csv", str(rows), "--write", "c.yaml")
    assert result.code == 0, result
    options = ("--datasets", "fine", "--per-model", "--json", "-")
    tree = yaml.safe_load((bench.root / "s.yaml").read_text())
    tree["ensemble"]["confidence"] = NAME
    (bench.root / "s.yaml").write_text(yaml.safe_dump(tree))
    scores = standardised(bench, "evaluate", *options).figures[0]["scores"]
    lines = [line.split(",") for line in rows.read_text().splitlines()]
    column = lines[0].index("auroc")
    found = {line[0]: float(line[column]) for line in lines[1:] if line[2] == NAME}
    assert len(found) == 7
    for name in MODELS:
        assert found[name] == pytest.approx(scores[name]["auroc"], abs=2e-3), "of 1,024 levels"
    chosen = yaml.safe_load(Path("c.yaml").read_text())
    assert all(member["max_logits"] == numbers(bench)[member["name"]] for member in chosen["models"])


def test_render_draws_it_and_the_report_lays_it_over_the_photographs(bench: Bench, tmp_path: Path) -> None:
    options = ("--datasets", "fine", "--kinds", NAME, "--limit", "1")
    assert standardised(bench, "render", "--write", "pictures", *options).code == 0
    image = min(truth_of(bench, "fine"))
    _, score = slow_score(bench, "fine", image, numbers(bench))
    with Image.open(f"pictures/fine/{image.rpartition('.')[0]}_{NAME}.png") as picture:
        found = np.asarray(picture).astype(int)
    assert abs(found - heat_map(0.5 - 0.5 * score / (1 + abs(score))).astype(int)).max() <= 2

    report = ("report", "--write", "page", "--datasets", "fine", "--limit", "1")

    def keys(*options: str) -> set[str]:
        assert standardised(bench, *report, *options).code == 0
        return {path.parent.name for path in Path("page/pictures").glob(f"*/uncertainty-{NAME}.jpg")}

    (first,) = keys("--confidences", NAME)
    assert keys("--confidences", NAME) == {first}
    assert fit(bench, datasets="fine").code == 0
    (second,) = keys("--confidences", NAME) - {first}
    assert files(Path("page/pictures"))[f"{second}/uncertainty-{NAME}.jpg"]


def test_autolabel_keeps_the_pixels_of_a_high_one(bench: Bench) -> None:
    options = ("--datasets", "extra", "--keep", "0.5", "--confidence", NAME, "--write", "labels", "--allow-empty")
    assert standardised(bench, "autolabel", *options).code == 0
    record = json.loads(Path("labels/extra/labels.json").read_text())
    assert (record["confidence"], record["members"][0]["max_logits"]) == (NAME, numbers(bench)[MODELS[0]])
    assert fit(bench, datasets="fine").code == 0
    assert "other members" in standardised(bench, "autolabel", *options).refusal()


# ------------------------------------------------------------------ what is refused

LACKING = f"models {', '.join(MODELS)} have no max_logits; fit them with 'hmsa-pipeline calibrate --max-logits'"


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (f"ensemble --confidence {NAME} --overwrite", "ensemble.confidence"),
        (f"ensemble --confidence {NAME} --dry-run", "ensemble.confidence"),
        (f"autolabel --confidence {NAME} --write new --threshold 0.5", "ensemble.confidence"),
        (f"evaluate --confidences margin,{NAME}", "--confidences"),
        (f"evaluate --confidences {NAME} --ood-datasets extra", "--confidences"),
        (f"search --confidences {NAME} --folds 2", "--confidences"),
        (f"render --kinds colour,{NAME} --write new", "--kinds"),
        (f"report --confidences {NAME} --write new", "--confidences"),
    ],
)
def test_without_statistics_nothing_begins(bench: Bench, command: str, where: str) -> None:
    name, *options = command.split()
    assert changed(bench.root, lambda: None) == set()
    before = files(bench.root)
    assert bench.run(name, *options).refusal() == f"{where} {NAME}: {LACKING}"
    assert files(bench.root) == before
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "command", ["evaluate --per-model", "report --write new", "calibrate --write new.yaml", "search --folds 2"]
)
def test_a_manifest_that_asks_for_it_without_statistics_is_refused(bench: Bench, command: str) -> None:
    bench.tree["ensemble"] = {"confidence": NAME}
    name, *options = command.split()
    assert bench.save().run(name, *options).refusal() == f"ensemble.confidence {NAME}: {LACKING}"
    assert not Path("new").exists()
    assert not Path("new.yaml").exists()


def test_predict_without_statistics_is_refused_and_one_member_that_lacks_them_is_named(full: Bench) -> None:
    assert fit(full, datasets="garden").code == 0
    for model, name in zip(full.tree["models"], ("ant", "bee", "cat"), strict=True):
        if name != "bee":
            model["max_logits"] = numbers(full)[name]
    full.save()
    said = "ensemble.confidence standardised-max-logit: model bee has no max_logits; fit them with"
    assert full.run("predict", "--confidence", NAME, "--overwrite").refusal().startswith(said)
    full.tree["models"][1]["weight"] = 0.0
    assert full.save().run("ensemble", "--confidence", NAME, "--overwrite", "--datasets", "garden").code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": [1.0] * 18}, "max_logits.mean: is of 18 classes, but the manifest has 19; fit again"),
        ({"deviation": [1.0] * 20}, "max_logits.deviation: is of 20 classes, but the manifest has 19; fit again"),
        ({"deviation": [1.0] * 18 + [0.0]}, "max_logits.deviation[18]: must be above 0, not 0"),
        ({"deviation": [1e-7] * 19}, "max_logits.deviation[0]: 1e-07 is not from 1e-06 to 1e+06"),
        ({"mean": [1e9] * 19}, "max_logits.mean[0]: 1e+09 is the mean of no logits; fit again"),
        ({"deviation": None}, "max_logits.deviation"),
        ({"means": [1.0]}, "did you mean 'mean'?"),
    ],
)
def test_statistics_that_cannot_be_are_refused(bench: Bench, change: dict[str, Any], said: str) -> None:
    own: Numbers = {"mean": [1.0] * 19, "deviation": [1.0] * 19} | change
    bench.tree["models"][2]["max_logits"] = {key: value for key, value in own.items() if value is not None}
    assert said in bench.save().run("ensemble").refusal()


@pytest.mark.parametrize(
    "options",
    [
        ("--weights",),
        ("--pixels", "9"),
        ("--seed", "1"),
        ("--average", "labelled"),
        ("--method", "vector"),
        ("--sets", "0.9"),
        ("--common-threshold",),
        ("--per-dataset",),
    ],
)
def test_what_changes_nothing_beside_it_is_refused(bench: Bench, options: tuple[str, ...]) -> None:
    said = fit(bench, *options, target="t.yaml").refusal()
    assert said.startswith(
        f"{options[0]}: changes nothing with --max-logits, which looks at all pixels and no labels"
    )
    assert not (bench.root / "t.yaml").exists()


def test_what_cannot_be_fitted_is_refused(bench: Bench, fresh: Bench, tmp_path: Path) -> None:
    target = bench.root / "t.yaml"
    assert "there is no store" in fresh.run("calibrate", "--max-logits", "--write", str(target)).refusal()
    first = min(truth_of(bench, "extra"))
    bench.shard("extra", MODELS[1], first).unlink()
    said = fit(bench, target="t.yaml").refusal()
    assert said.startswith(f"extra: of 4 images {MODELS[1]} lacks 1; finish 'hmsa-pipeline dump'")
    assert "--allow-missing" not in said
    store = LogitStore.open(bench.store("fine", MODELS[2]), writable=True)
    for index, entry in enumerate(store.images):
        store.write(index, np.full((19, entry.height or 0, entry.width or 0), 3, np.float16))
    said = fit(bench, datasets="fine", target="t.yaml").refusal()
    assert said.startswith(f"{MODELS[2]}: the highest logits of all pixels are the same")
    for model in bench.tree["models"]:
        model["weight"] = 0
    bench.tree["models"][0]["weight"] = 1
    bench.save()
    assert "all selected models have weight 0" in fit(bench, "--models", MODELS[1], target="t.yaml").refusal()
    assert not target.exists()
