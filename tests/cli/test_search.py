"""`search`: every combination of members, held against fusing each of them, and choices judged by unseen images."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import yaml
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.fusion.fuse import fuse, quantise
from hmsa_pipeline.pipeline.search import count_images

from .bench import Bench, run, stored
from .conftest import plain_cpu
from .labelled_city import MODELS, TEMPERATURES, WEIGHTS, draw_city, truth_of

Counted = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What is said, confidences and labels of an image's labelled pixels."""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Seven labelled images in two datasets, with logits of three members; tests must leave it as it is."""
    with plain_cpu():
        yield draw_city(tmp_path_factory.mktemp("city"))


@pytest.fixture
def bench(city: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = city.copy(tmp_path / "bench")
    (found.output / "search.json").unlink(missing_ok=True)
    monkeypatch.chdir(found.root)
    return found


def searched(bench: Bench, *options: str) -> Any:
    result = bench.run("search", "--json", "-", "--bootstrap", "100", "--folds", "3", *options)
    assert result.code == 0, result
    return result.figures


# ------------------------------------------------------------------ the same, slowly


def counted(
    bench: Bench, dataset: str, chosen: tuple[int, ...], weights: tuple[float, ...] = WEIGHTS
) -> dict[str, Counted]:
    """What an ensemble of some members says of each labelled image."""
    found = {}
    logits = [stored(bench.store(dataset, MODELS[i])) for i in chosen]
    for image, labels in truth_of(bench, dataset).items():
        fused = fuse(
            [torch.from_numpy(one[image]) for one in logits],
            [weights[i] for i in chosen],
            [TEMPERATURES[i] for i in chosen],
        )
        known = labels != 255
        found[image] = (fused.label.numpy()[known], quantise(fused.confidence).numpy()[known], labels[known])
    return found


def miou(images: list[Counted]) -> float:
    """Mean IoU, by scikit-learn."""
    said, _, labels = (np.concatenate(parts) for parts in zip(*images, strict=True))
    present = sorted(set(said) | set(labels))
    return float(sklearn.metrics.jaccard_score(labels, said, labels=present, average="macro"))


def auroc(images: list[Counted]) -> float:
    said, sure, labels = (np.concatenate(parts) for parts in zip(*images, strict=True))
    return float(sklearn.metrics.roc_auc_score(said == labels, sure))


def ece(images: list[Counted]) -> float:
    said, sure, labels = (np.concatenate(parts) for parts in zip(*images, strict=True))
    bins = np.digitize(sure, np.round(np.linspace(0, 65536, 16))[1:-1])
    gaps = [
        abs(((sure[bins == b] + 0.5) / 65536).mean() - (said == labels)[bins == b].mean()) * (bins == b).mean()
        for b in set(bins)
    ]
    return float(sum(gaps))


SUBSETS = [one for size in (1, 2, 3) for one in itertools.combinations(range(3), size)]
Everything = dict[tuple[int, ...], dict[str, dict[str, Counted]]]


@pytest.fixture(scope="module")
def everything(city: Bench) -> Everything:
    """Subset -> dataset -> image -> what it says."""
    return {one: {name: counted(city, name, one) for name in ("fine", "extra")} for one in SUBSETS}


def mean_over_sets(
    everything: Everything,
    chosen: Callable[[str, str], tuple[int, ...] | None],
    figure: Callable[[list[Counted]], float],
) -> float:
    """The mean over the datasets of a figure, each image by the subset ``chosen`` for it, None to leave it out."""
    values = []
    for name in ("fine", "extra"):
        images = []
        for image in everything[0,][name]:
            subset = chosen(name, image)
            if subset is not None:
                images.append(everything[subset][name][image])
        if images:
            values.append(figure(images))
    return float(np.mean(values))


def best_without(everything: Everything, fold_of: Any, fold: int | None, size: int | None = None) -> tuple[int, ...]:
    """The subset of the highest mean IoU on all folds but one, the first of the smallest."""
    sizes = [one for one in SUBSETS if size in (None, len(one))]

    def score(one: tuple[int, ...]) -> float:
        return mean_over_sets(everything, lambda name, image: one if fold_of[name][image] != fold else None, miou)

    return max(sizes, key=score)


def test_every_combination_has_the_figures_of_fusing_it(city: Bench, everything: Everything) -> None:
    figures = searched(city)
    assert [row["members"].split() for row in figures["chosen_by"]] == [[MODELS[i] for i in one] for one in SUBSETS]
    for row, one in zip(figures["chosen_by"], SUBSETS, strict=True):

        def everywhere(name: str, image: str, one: tuple[int, ...] = one) -> tuple[int, ...]:
            return one

        assert row["miou"] == pytest.approx(mean_over_sets(everything, everywhere, miou), abs=1e-12)
        assert row["auroc"] == pytest.approx(
            mean_over_sets(everything, everywhere, auroc), abs=max(1e-4, 2 * figures["error"]["auroc"])
        )
        assert row["ece"] == pytest.approx(mean_over_sets(everything, everywhere, ece), abs=figures["error"]["ece"])
        assert row["cost"] == row["size"] == len(one)


def test_choices_are_judged_by_images_that_they_did_not_see(city: Bench, everything: Everything) -> None:
    figures = searched(city)
    fold_of = figures["fold_of_image"]
    assert figures["sets"] == {"fine": 3, "extra": 4}
    assert {fold for folds in fold_of.values() for fold in folds.values()} == {0, 1, 2}
    rows = {row["name"]: row for row in figures["held_out"]}
    assert list(rows) == ["best 1", "best 2", "best 3", "search", "all 3"]
    for name, size in (("best 1", 1), ("best 2", 2), ("best 3", 3), ("search", None)):
        chosen = [best_without(everything, fold_of, fold, size) for fold in range(3)]
        wanted = mean_over_sets(everything, lambda name, image, c=chosen: c[fold_of[name][image]], miou)
        assert rows[name]["figures"]["miou"]["value"] == pytest.approx(wanted, abs=1e-12), name
        final = best_without(everything, fold_of, None, size)
        assert list(rows[name]["chosen"]["members"]) == [MODELS[i] for i in final]
        assert rows[name]["same_choice"] == chosen.count(final)
    whole = mean_over_sets(everything, lambda name, image: (0, 1, 2), miou)
    assert rows["all 3"]["figures"]["miou"]["value"] == pytest.approx(whole, abs=1e-12)
    assert rows["search"]["difference"]["value"] == pytest.approx(
        rows["search"]["figures"]["miou"]["value"] - whole, abs=1e-12
    )
    assert rows["best 3"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for row in rows.values():
        assert row["figures"]["auroc"]["low"] <= row["figures"]["auroc"]["value"] <= row["figures"]["auroc"]["high"]


def test_the_written_manifest_scores_as_its_combination_did(bench: Bench) -> None:
    figures = searched(bench, "--most", "2", "--write", "c.yaml", "--plot", "p.svg", "--csv", "c.csv")
    tree = yaml.safe_load(Path("c.yaml").read_text())
    assert {one["name"]: one.get("weight", 1.0) for one in tree["models"]} == figures["chosen"]["members"]
    assert len(tree["models"]) == 2
    assert [one["name"] for one in tree["datasets"]] == ["fine", "extra"]
    load_manifest("c.yaml")
    assert run("ensemble", "--manifest", "c.yaml", "--workers", "0").code == 0
    scored = run("evaluate", "--manifest", "c.yaml", "--json", "-").figures
    row = next(row for row in figures["chosen_by"] if row["members"] == " ".join(figures["chosen"]["members"]))
    for name, error in (("miou", 1e-12), ("auroc", 1e-3), ("ece", figures["error"]["ece"])):
        wanted = np.mean([one["scores"]["ensemble"][name] for one in scored])
        assert row[name] == pytest.approx(wanted, abs=error)
    assert Path("p.svg").stat().st_size > 5000
    with Path("c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert float(rows[0]["miou"]) == figures["chosen_by"][0]["miou"]
    assert json.loads((bench.output / "search.json").read_text()) == figures


MORE = (
    *("mean_precision", "mean_recall", "adaptive_ece", "smooth_ece", "mce", "aurc", "eaurc", "augrc"),
    *("risk_at_80_coverage", "coverage_at_5_risk"),
)


@pytest.mark.parametrize("confidence", ["mean-softmax", "entropy"])
def test_what_is_searched_by_is_the_figure_of_the_same_name_of_evaluate(bench: Bench, confidence: str) -> None:
    bench.tree["ensemble"] = {"label": "mean-softmax", "confidence": confidence}
    bench.save()
    figures = searched(bench, "--by", ",".join((*MORE, "accuracy", "fpr95")), "--most", "2", "--write", "c.yaml")
    assert run("ensemble", "--manifest", "c.yaml", "--workers", "0").code == 0
    scored = run("evaluate", "--manifest", "c.yaml", "--json", "-", "--figures", "all").figures
    row = next(row for row in figures["chosen_by"] if row["members"] == " ".join(figures["chosen"]["members"]))
    exact = ("mean_precision", "mean_recall", "accuracy")
    for name in (*MORE, "accuracy", "fpr95"):
        values = [one["scores"]["ensemble"][name] for one in scored]
        assert all(value is not None for value in values), name
        binned = "ece" in name or name == "mce"
        # Beside the threshold lie few of these few pixels.
        error = figures["error"]["ece"] if binned else 3e-3 if "risk" in name or name == "fpr95" else 5e-4
        error = 1e-12 if name in exact else error
        assert row[name] == pytest.approx(np.mean(values), abs=error), name
        others = [other[name] for other in figures["chosen_by"]]
        assert max(others) - min(others) > 2 * error, name
        assert figures["metrics"][name] == (1.0 if name in ("coverage_at_5_risk", *exact) else -1.0)


def test_a_file_is_replaced_only_if_that_is_asked_for(bench: Bench) -> None:
    Path("c.yaml").write_text("mine")
    options = ("--folds", "3", "--bootstrap", "100", "--write", "c.yaml")
    assert "is there already" in bench.run("search", *options).refusal()
    assert bench.run("search", *options, "--overwrite").code == 0
    assert load_manifest("c.yaml").models


def test_images_without_masks_are_left_out_where_that_is_said(bench: Bench) -> None:
    city = bench.root / "city"
    shutil.copytree(bench.tree["datasets"][0]["root"], city)
    for one in bench.tree["datasets"]:
        one["root"] = str(city)
    bench.save()
    (city / list_pairs(city, "cityscapes", "val")[0].mask).unlink()
    assert "have no mask" in bench.run("search", "--folds", "3").refusal()
    result = bench.run("search", "--folds", "3", "--bootstrap", "100", "--allow-unlabelled")
    assert result.code == 0
    assert result.out.startswith("7 combinations of 3 members by miou, 6 images of")
    assert result.err.startswith("note: fine: 1 image has no mask")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    counter = count_images.PixelCounter.add

    def interrupted(*given: Any) -> None:
        os.kill(os.getpid(), number)
        counter(*given)

    monkeypatch.setattr(count_images.PixelCounter, "add", interrupted)
    before = {path for path in bench.root.rglob("*") if path.is_file()}
    result = bench.run("search", "--folds", "3", "--write", "c.yaml", "--json", "c.json", "--plot", "c.png")
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines()[-1] == "interrupted: run the same command again"
    assert {path for path in bench.root.rglob("*") if path.is_file()} == before


def test_where_lower_is_better_the_difference_is_of_the_figures_and_the_words_say_which_is_better(
    city: Bench,
) -> None:
    for by, metric, name, better in (
        ("ece", "ece", "ece", "lower"),
        ("nll", "nll", "nll", "lower"),
        ("ece:-3", "ece", "ece", "lower"),
        ("ece:2", "ece", "ece", "higher"),
        ("miou:2", "miou", "miou", "higher"),
        ("ece,nll:-0.5", "score", "ece,nll:-0.5 score", "higher"),
    ):
        figures = searched(city, "--by", by)
        table = city.run("search", "--bootstrap", "100", "--folds", "3", "--by", by).out.splitlines()
        *ways, everybody = figures["held_out"]
        verdict = next(line for line in table if line.startswith("choosing is "))
        assert figures["better"] == better
        sign = 1 if better == "higher" else -1
        found = [(row["chosen"]["cost"], sign * row["figures"][metric]["value"]) for row in figures["held_out"]]
        for row, (cost, value) in zip(figures["held_out"], found, strict=True):
            assert row["efficient"] == (value >= max(other for price, other in found if price <= cost))
        for row in ways:
            difference = row["difference"]
            own, theirs = (one["figures"][metric]["value"] for one in (row, everybody))
            assert difference["value"] == pytest.approx(own - theirs, abs=1e-12)
            assert difference["low"] <= difference["value"] <= difference["high"]
            shown = next(line for line in table if line.startswith(f"{row['name']} "))
            assert f"{own - theirs:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})" in shown
            if row["name"] == "search":
                ahead = difference["low"] > 0 if better == "higher" else difference["high"] < 0
                behind = difference["high"] < 0 if better == "higher" else difference["low"] > 0
                word = "better than" if ahead else "worse than" if behind else "not told apart from"
                assert verdict == (
                    f"choosing is {word} all 3 with label mean-softmax, confidence mean-softmax: "
                    f"{name} {own - theirs:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f}), "
                    f"{better} is better"
                )


@pytest.mark.parametrize(
    ("low", "high", "better", "words"), [(0.1, 0.2, "lower", "worse than"), (0.1, 0.2, "higher", "better than")]
)
def test_the_report_says_which_is_better(
    bench: Bench, low: float | None, high: float | None, better: str, words: str
) -> None:
    assert bench.run("ensemble", "--datasets", "fine").code == 0
    figures = searched(bench, "--by", "ece")
    figures["better"] = better
    row = next(row for row in figures["held_out"] if row["name"] == "search")
    row["difference"] = {"value": low, "low": low, "high": high}
    (bench.output / "search.json").write_text(json.dumps(figures))
    done = bench.run("report", "--write", "page", "--datasets", "fine", "--limit", "1", "--no-members")
    assert done.code == 0
    section = " ".join(Path("page/index.html").read_text().partition('<section id="combinations">')[2].split())
    said = f"choosing is {words} all 3 with label mean-softmax, confidence mean-softmax."
    assert said in section
    assert f"Of ece, {better} is better" in section


def test_all_members_are_compared_by_functions_that_are_named(city: Bench) -> None:
    for first, second in itertools.permutations(("mutual-information", "mean-softmax")):
        options = ("--confidences", f"{first},{second}", "--by", "auroc")
        figures = searched(city, *options)
        everybody = figures["held_out"][-1]["chosen"]
        assert everybody["confidence"] == first
        table = city.run("search", "--bootstrap", "100", "--folds", "3", *options).out.splitlines()
        last = next(line for line in table if line.startswith("all 3 "))
        assert last.endswith(f"every member; label mean-softmax, confidence {first}")
        assert f" all 3 with label mean-softmax, confidence {first}: auroc " in "\n".join(table)
        for row in figures["held_out"][:-1]:
            members = ", ".join(row["chosen"]["members"])
            shown = next(line for line in table if line.startswith(f"{row['name']} "))
            assert f"{members}; label mean-softmax, confidence {row['chosen']['confidence']}" in shown
        # Of these members, all three by their mutual information are best.
        chosen = figures["held_out"][-2]["chosen"]
        assert (list(chosen["members"]), chosen["confidence"]) == (list(MODELS), "mutual-information")
        said = "the chosen members are all 3, too: only the functions differ" in table
        assert said == (first == "mean-softmax")
    only = city.run("search", "--bootstrap", "100", "--folds", "3").out
    assert "only the functions differ" not in only
    assert only.count("label mean-softmax, confidence mean-softmax") == 3


def test_the_table(city: Bench) -> None:
    result = city.run("search", "--folds", "3", "--bootstrap", "100")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "7 combinations of 3 members by miou, 7 images of fine, extra in 3 folds"
    assert lines[1].startswith("figures of images that the choice did not see")
    assert [line.split("  ")[0].strip() for line in lines[3:8]] == ["best 1", "best 2", "best 3", "search", "all 3"]
    assert any(line.startswith("chosen: ") for line in lines)
    assert any(line.startswith("choosing is ") for line in lines)


def test_processes_and_seeds(city: Bench) -> None:
    first = searched(city, "--processes", "1")
    assert searched(city, "--processes", "2") == first
    assert searched(city, "--seed", "1")["fold_of_image"] != first["fold_of_image"]


def test_other_functions_and_a_sum_of_metrics(city: Bench, bench: Bench) -> None:
    figures = searched(
        city,
        "--labels",
        "mean-softmax,mean-logit",
        "--confidences",
        "mean-softmax,entropy",
        "--by",
        "miou:1,ece:-0.5,nll",
    )
    assert len(figures["chosen_by"]) == 4 * 7
    by = figures["metrics"]
    assert by == {"miou": 1.0, "ece": -0.5, "nll": -1.0}
    for row in figures["held_out"]:
        values = {name: one["value"] for name, one in row["figures"].items()}
        assert values["score"] == pytest.approx(sum(weight * values[name] for name, weight in by.items()))
    labels = {(row["label"], row["confidence"]) for row in figures["chosen_by"]}
    assert labels == set(itertools.product(("mean-softmax", "mean-logit"), ("mean-softmax", "entropy")))
    # A confidence moves no class map.
    same = [row["miou"] for row in figures["chosen_by"] if row["label"] == "mean-softmax"]
    assert same[:7] == same[7:]
    bench.tree["ensemble"] = {"label": "mean-logit", "confidence": "entropy"}
    bench.save()
    alone = searched(bench)["chosen_by"]
    wanted = [row for row in figures["chosen_by"] if (row["label"], row["confidence"]) == ("mean-logit", "entropy")]
    assert [row["miou"] for row in alone] == [row["miou"] for row in wanted]
    assert [row["auroc"] for row in alone] == [row["auroc"] for row in wanted]


def test_weights_are_climbed_and_kept_if_they_help_on_unseen_images(bench: Bench, everything: Everything) -> None:
    figures = searched(bench, "--weights", "--write", "c.yaml")
    rows = {row["name"]: row for row in figures["held_out"]}
    assert list(rows)[-3:] == ["search", "weights", "all 3"]
    better = rows["weights"]["figures"]["miou"]["value"] > rows["search"]["figures"]["miou"]["value"]
    assert figures["weights_kept"] == better
    kept = rows["weights" if better else "search"]
    assert figures["chosen"] == kept["chosen"]
    fitted = rows["weights"]["chosen"]["members"]
    assert fitted.keys() == rows["search"]["chosen"]["members"].keys()
    # What was climbed to is higher on the images that it was climbed on.
    chosen = tuple(MODELS.index(name) for name in fitted)
    weights = tuple(fitted.get(name, 0.0) for name in MODELS)

    def score(weights: tuple[float, ...]) -> float:
        return float(
            np.mean([miou(list(counted(bench, name, chosen, weights).values())) for name in ("fine", "extra")])
        )

    assert score(weights) >= score(WEIGHTS)
    assert {one["name"]: one.get("weight", 1.0) for one in yaml.safe_load(Path("c.yaml").read_text())["models"]} == (
        figures["chosen"]["members"]
    )


def test_forward_selection_adds_members_and_gives_weights(bench: Bench, everything: Everything) -> None:
    figures = searched(bench, "--greedy")
    assert figures["method"] == "greedy"
    rows = {row["name"]: row for row in figures["held_out"]}
    assert list(rows)[:2] == ["after 1", "after 2"]
    fold_of = figures["fold_of_image"]
    alone = best_without(everything, fold_of, None, 1)
    assert list(rows["after 1"]["chosen"]["members"]) == [MODELS[i] for i in alone]
    grown = rows["after 2"]["chosen"]["members"]
    assert MODELS[alone[0]] in grown
    given = dict(zip(MODELS, WEIGHTS, strict=True))
    assert sum(grown[name] / given[name] for name in grown) == pytest.approx(2.0)
    assert len(figures["chosen_by"]) == 3
    few = searched(bench, "--greedy", "--most", "1")
    assert all(len(row["chosen"]["members"]) == 1 for row in few["held_out"][:-1])


def test_more_than_ten_members_are_selected_forward(bench: Bench) -> None:
    first = bench.tree["models"][0]
    bench.tree["datasets"] = bench.tree["datasets"][:1]
    for number in range(9):
        bench.tree["models"].append({**first, "name": f"ant{number}"})
        shutil.copytree(bench.store("fine", "ant"), bench.store("fine", f"ant{number}"))
    bench.save()
    figures = searched(bench)
    assert (figures["method"], len(figures["chosen_by"])) == ("greedy", 12)
    assert len(figures["members"]) == 12


def test_costs_in_seconds_come_from_the_run_record(bench: Bench) -> None:
    bench.output.mkdir(exist_ok=True)
    runs = {f"fine/{name}": {"done": 2, "seconds": 1.0 + number} for number, name in enumerate(MODELS)}
    (bench.output / "run.json").write_text(json.dumps({"dump": runs}))
    figures = searched(bench, "--cost", "seconds")
    assert [row["cost"] for row in figures["chosen_by"]] == [0.5, 1.0, 1.5, 1.5, 2.0, 2.5, 3.0]
    by_cost = sorted(figures["held_out"], key=lambda row: row["chosen"]["cost"])
    best = -math.inf
    for _, rows in itertools.groupby(by_cost, key=lambda row: row["chosen"]["cost"]):
        values = [(row["figures"]["miou"]["value"], row["efficient"]) for row in rows]
        highest = max(value for value, _ in values)
        assert all(efficient == (value == highest and value >= best) for value, efficient in values)
        best = max(best, highest)


# ------------------------------------------------------------------ what is refused, before anything is read


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--by", "miuo"), "--by miuo: miuo is no metric"),
        (("--by", "bravo_index"), "--by bravo_index: bravo_index is of BRAVO's images; name its tar files by"),
        (("--by", "miou:1,,ece"), "--by miou:1,,ece: metric 2 has no name"),
        (("--by", "miiou"), "--by miiou: miiou is counted at pixels and objects of the class map"),
        (("--by", "ood_auroc"), "--by ood_auroc: ood_auroc needs labels of what is out of distribution"),
        (("--labels", "mean"), "--labels mean: is no function"),
        (("--confidences", "entropie"), "--confidences entropie: is no function"),
        (("--labels", "max-softmax"), "max-softmax: has no weights, and the manifest's weights differ"),
        (("--folds", "8"), "--folds 8: there are 7 labelled images"),
        (("--limit", "1", "--folds", "3"), "--folds 3: there are 2 labelled images"),
        (
            ("--limit", "1", "--datasets", "fine"),
            "fine: 1 labelled image, and two are needed: one to choose by, and one to judge by; raise --limit, or",
        ),
        (
            ("--confidences", "predictive-entropy"),
            "--confidences predictive-entropy: is no function; did you mean 'ent",
        ),
        (("--labels", "msp"), "--labels msp: is no function; did you mean 'mean-softmax'?"),
        (("--models", "ant"), "search: ant is the only member"),
        (("--cost", "hours"), "--cost hours: is no cost"),
        (("--cost", "seconds"), "--cost seconds: "),
        (("--average", "mine"), "--average mine: is no average"),
        (("--overwrite",), "--overwrite: changes nothing without --write"),
        (("--plot", "p.txt"), "--plot p.txt: is no kind of picture"),
        (("--write", "manifest.yaml"), "--write manifest.yaml: is the manifest that is read"),
        (("--write", "there.yaml"), "--write there.yaml: is there already"),
        (("--write", "."), "--write .: cannot be written"),
        (("--plot", "there.yaml/p.png"), "--plot there.yaml/p.png: cannot be written"),
    ],
)
def test_wrong_options_are_refused(bench: Bench, options: tuple[str, ...], said: str) -> None:
    Path("there.yaml").write_text("mine")
    line = run("search", "--manifest", "manifest.yaml", *options).refusal()
    assert line.startswith(said)
    assert Path("there.yaml").read_text() == "mine"


def test_missing_stores_images_and_labels_are_refused(bench: Bench, fresh: Bench) -> None:
    assert "no dataset of the manifest has labels" in fresh.run("search").refusal()
    image = next(iter(truth_of(bench, "fine")))
    bench.shard("fine", "bee", image).unlink()
    assert f"lacks 1 of 3 images ({image})" in bench.run("search").refusal()
    shutil.rmtree(bench.store("fine", "bee"))
    assert "bee.zarr: there is no store" in bench.run("search").refusal()


@pytest.mark.parametrize("label", ["mean-softmax", "mean-logit"])
def test_figures_of_all_classes_probabilities_are_those_of_evaluate(bench: Bench, label: str) -> None:
    bench.tree["ensemble"] = {"label": label, "confidence": "mean-softmax"}
    bench.save()
    names = ("brier", "classwise_ece", "nll")
    figures = searched(bench, "--by", ",".join(names))
    assert figures["metrics"] == dict.fromkeys(names, -1.0)
    assert bench.run("ensemble", "--workers", "0").code == 0
    scored = bench.run("evaluate", "--per-model", "--leave-one-out", "--json", "-", "--figures", "all").figures
    of_name = {"ensemble": MODELS} | {name: (name,) for name in MODELS}
    of_name |= {f"without {name}": tuple(other for other in MODELS if other != name) for name in MODELS}
    rows = {tuple(row["members"].split()): row for row in figures["chosen_by"]}
    assert {*rows} == {*of_name.values()}
    for subject, members in of_name.items():
        for name in names:
            wanted = np.mean([one["scores"][subject][name] for one in scored])
            assert rows[members][name] == pytest.approx(wanted, rel=1e-5), (subject, name)
    for name in names[:2]:
        assert max(row[name] for row in rows.values()) > 1.1 * min(row[name] for row in rows.values())
    everybody = figures["held_out"][-1]["figures"]
    for name in names:
        assert everybody[name]["value"] == pytest.approx(rows[MODELS][name], rel=1e-9)
        assert everybody[name]["low"] < everybody[name]["value"] < everybody[name]["high"]


def test_a_probability_is_needed_for_the_likelihood(bench: Bench) -> None:
    for one in bench.tree["models"]:
        one["weight"] = 1.0
    bench.save()
    said = bench.run("search", "--by", "nll", "--labels", "mean-softmax,min-softmax").refusal()
    assert said.startswith("--by nll: min-softmax gives no probabilities")
    said = bench.run("search", "--by", "miou,brier", "--labels", "min-softmax").refusal()
    assert said.startswith("--by miou,brier: min-softmax gives no probabilities")
    for option, why in (("--weights", "--weights fits weights"), ("--greedy", "forward selection")):
        assert why in bench.run("search", option, "--labels", "min-softmax").refusal()
    assert searched(bench, "--labels", "min-softmax", "--datasets", "fine")["chosen"]["label"] == "min-softmax"


def test_a_damaged_shard_ends_it_in_one_line(bench: Bench) -> None:
    image = next(iter(truth_of(bench, "fine")))
    shard = bench.shard("fine", "bee", image)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    result = bench.run("search", "--folds", "3", "--write", "c.yaml")
    assert image in result.refusal()
    assert not Path("c.yaml").exists()
    assert not (bench.output / "search.json").exists()


def test_an_output_that_cannot_be_written_is_searched_all_the_same(
    bench: Bench,
) -> None:
    (bench.output / "search.json").mkdir(parents=True)
    result = bench.run("search", "--folds", "3", "--bootstrap", "100", "--write", "c.yaml")
    assert result.code == 0
    assert "not kept for the report" in result.err
    assert Path("c.yaml").exists()


# ------------------------------------------------------------------ the report


def test_a_report_shows_the_last_search_of_its_output(bench: Bench) -> None:
    assert bench.run("ensemble", "--datasets", "fine").code == 0
    options = ("--datasets", "fine", "--limit", "1", "--no-members")
    assert bench.run("report", "--write", "before", *options).code == 0
    assert 'id="combinations"' not in Path("before/index.html").read_text()
    figures = searched(bench, "--by", "miou:1,ece:-1")
    assert bench.run("report", "--write", "after", *options).code == 0
    page = Path("after/index.html").read_text()
    section = page.partition('<section id="combinations">')[2].partition("</section>")[0]
    for row in figures["held_out"]:
        assert f"{row['figures']['score']['value']:.4f}" in section
        assert ", ".join(row["chosen"]["members"]) in section
    assert f"<small>{figures['held_out'][0]['difference']['low']:+.4f} to" in section
    assert "chosen among all" in section and "by miou:1,ece:-1" in section
    assert len(Path("after/plots/search.svg").read_bytes()) > 5000
    assert json.loads(Path("after/report.json").read_text())["search"] == figures
    file = bench.output / "search.json"
    for text, said in (
        (
            json.dumps({name: value for name, value in figures.items() if name != "better"}),
            "an older release wrote it",
        ),
        ("{", "it cannot be read"),
    ):
        file.write_text(text)
        result = bench.run("report", "--write", "again", *options)
        assert result.code == 0
        (note,) = [line for line in result.err.splitlines() if "search.json" in line]
        assert note == f"note: no search in the report, of {file}: {said}; run 'hmsa-pipeline search' again"
        assert 'id="combinations"' not in Path("again/index.html").read_text()
    file.unlink()
    assert "search.json" not in bench.run("report", "--write", "again", *options).err
