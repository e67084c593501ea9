"""`search --ground-truth`: BRAVO's index of every combination and of every choice, held against `evaluate`."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.synthetic.write_bravo import write_bravo
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.fusion.fuse import CONFIDENCES, fuse, quantise
from hmsa_pipeline.pipeline.scoring.bravo_protocol import MEANS, SUBSETS, subset_of
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.submission.bravo_archives import base_of, prediction_files, truth_endings, write_samples
from hmsa_pipeline.pipeline.submission.bravo_codec import encode_samples
from PIL import Image

from .bench import Bench, Result, run, stored
from .conftest import plain_cpu
from .labelled_city import MODELS, TEMPERATURES, WEIGHTS
from .test_bravo import archive, members

COMBINATIONS = [one for size in (1, 2, 3) for one in itertools.combinations(range(3), size)]
FOLDS = 3
MANY = ",".join(name for name in CONFIDENCES if name not in ("min-softmax", "standardised-max-logit"))


@pytest.fixture(scope="module")
def bravo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Two images or four of each subset, with logits of three members; tests must leave it as it is."""
    with plain_cpu():
        yield draw(tmp_path_factory.mktemp("bravo"))


@pytest.fixture
def bench(bravo: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = bravo.copy(tmp_path / "bench")
    monkeypatch.chdir(found.root)
    return found


def draw(root: Path) -> Bench:
    photos = write_bravo(root / "data", size=(64, 96), each=2, truth=root / "gt.tar")
    write_samples(root / "gt.tar", root / "samples.tar", most=3000)
    folders = sorted(path.name for path in (root / "data").iterdir())
    tree: dict[str, Any] = {
        "version": 1,
        "models": [
            {"name": name, "arch": "external", "temperature": heat, "weight": weight}
            for name, heat, weight in zip(MODELS, TEMPERATURES, WEIGHTS, strict=True)
        ],
        "datasets": [{"name": name, "type": "bravo", "root": str(root / "data" / name)} for name in folders],
    }
    bench = Bench(root, tree).save()
    truth = members(root / "gt.tar")
    for number, (model, folder) in enumerate(itertools.product(MODELS, folders)):
        paths = [path for path in photos if path.relative_to(root / "data").parts[0] == folder]
        fill(bench, model, folder, paths, truth, number)
    return bench


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def fill(bench: Bench, model: str, folder: str, photos: list[Path], truth: dict[str, bytes], seed: int) -> None:
    """Write logits that mostly say what the labels say, and are weak where a pixel is invalid."""
    root = bench.root / "data" / folder
    named = {path.relative_to(root).as_posix(): path for path in photos}
    made = LogitStore.create(
        bench.store(folder, model), StoreIdentity(model=model, architecture="external", classes=CLASS_NAMES), {}
    )
    sizes = {name: Image.open(path).size[::-1] for name, path in named.items()}
    made.register([Photograph(name, path.stat().st_size, sizes[name]) for name, path in sorted(named.items())])
    ids_ending, mask_ending = truth_endings(folder.removeprefix("bravo_"))
    for index, entry in enumerate(made.images):
        base = base_of(folder, entry.path)
        ids, invalid = (pixels(truth[f"{base}{ending}"]) for ending in (ids_ending, mask_ending))
        random = np.random.default_rng([seed, index])
        wrong = random.random(ids.shape) < 0.25
        said = np.where(wrong | (ids == 255), random.integers(0, 19, ids.shape), ids).astype(np.int64)
        logits = random.normal(0, 1.0 + 0.3 * seed % 2, (19, *ids.shape))
        strength = random.uniform(1.0, 14.0, ids.shape) * np.where(wrong, 0.6, 1.0) * np.where(invalid > 0, 0.4, 1.0)
        np.put_along_axis(logits, said[None], np.take_along_axis(logits, said[None], 0) + strength, 0)
        made.write(index, logits.astype(np.float16))


def tars(bench: Bench, ground_truth: Path | str | None = None) -> tuple[str, ...]:
    return "--ground-truth", str(ground_truth or bench.root / "gt.tar"), "--samples", str(bench.root / "samples.tar")


def searched(bench: Bench, *options: str, by: str = "bravo_index") -> Result:
    return bench.run(
        "search", "--by", by, "--folds", str(FOLDS), "--bootstrap", "100", "--json", "-", *tars(bench), *options
    )


def predict(bench: Bench, folder: Path, chosen: Callable[[str, str], tuple[int, ...]]) -> Path:
    """Write class maps and confidences of every image, of the members that ``chosen`` says for dataset and image."""
    for dataset in (one["name"] for one in bench.tree["datasets"]):
        logits = [stored(bench.store(dataset, model)) for model in MODELS]
        for image in logits[0]:
            numbers = chosen(dataset, image)
            fused = fuse(
                [torch.from_numpy(logits[i][image]) for i in numbers],
                [WEIGHTS[i] for i in numbers],
                [TEMPERATURES[i] for i in numbers],
            )
            for name, plane in zip(
                prediction_files(base_of(dataset, image)), (fused.label, quantise(fused.confidence)), strict=True
            ):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(plane.numpy()).save(folder / name)
    return folder


def evaluated(bench: Bench, folder: Path, ground_truth: Path | str | None = None) -> dict[str, Any]:
    result = run("evaluate", "--predictions", str(folder), *tars(bench, ground_truth), "--json", "-")
    assert result.code == 0, result
    return result.figures


@pytest.fixture(scope="module")
def alone(bravo: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Path]:
    """Combination -> the folder of its predictions."""
    root = tmp_path_factory.mktemp("alone")
    return {one: predict(bravo, root / str(n), lambda *_, one=one: one) for n, one in enumerate(COMBINATIONS)}  # type: ignore[misc]


def brier(bench: Bench, subset: str) -> float:
    """The Brier score of the first member at the valid pixels of a subset, in double precision."""
    truth, losses = members(bench.root / "gt.tar"), []
    for dataset in (one["name"] for one in bench.tree["datasets"]):
        for image, logits in stored(bench.store(dataset, MODELS[0])).items():
            base = base_of(dataset, image)
            if subset_of(base) != subset:
                continue
            endings = truth_endings(dataset.removeprefix("bravo_"))
            ids, invalid = (pixels(truth[f"{base}{ending}"]) for ending in endings)
            kept = (ids != 255) & (invalid == 0)
            p = torch.from_numpy(logits).double().div(TEMPERATURES[0]).softmax(0).numpy()[:, kept]
            losses.append(((p - np.eye(19)[ids[kept]].T) ** 2).sum(0))
    return float(np.concatenate(losses).mean())


def numbers(chosen: dict[str, Any]) -> tuple[int, ...]:
    return tuple(MODELS.index(name) for name in chosen["members"])


def test_every_combination_has_the_figures_of_evaluate(bravo: Bench, alone: dict[tuple[int, ...], Path]) -> None:
    words = ("--ground-truth", str(bravo.root / "gt.tar"), "--samples", str(bravo.root / "samples.tar"))
    result = bravo.run("search", "--by", "bravo_index", "--bootstrap", "100", "--json", "-", *words)
    assert result.code == 0
    figures = result.figures
    wanted = {one: evaluated(bravo, folder) for one, folder in alone.items()}
    rows = {tuple(MODELS.index(name) for name in row["members"].split()): row for row in figures["chosen_by"]}
    assert list(rows) == COMBINATIONS
    assert figures["sets"] == {name: 4 if name in ("SMIYC", "synobjs", "synrain") else 2 for name in SUBSETS}, (
        "every image of every subset is counted"
    )
    for one, row in rows.items():
        for name in MEANS:
            assert 0.05 < wanted[one][name] < 0.98
            assert row[name] == pytest.approx(wanted[one][name], abs=1e-3), (one, name)
    for name in MEANS:
        everybody = rows[COMBINATIONS[-1]][name]
        assert abs(everybody - wanted[COMBINATIONS[-1]][name]) <= figures["error"][name] < 0.02
        assert max(row[name] for row in rows.values()) - min(row[name] for row in rows.values()) > 0.01


def test_choices_are_those_of_evaluate_and_judged_by_images_that_they_did_not_see(
    bravo: Bench, alone: dict[tuple[int, ...], Path], tmp_path: Path
) -> None:
    figures = searched(bravo).figures
    truth = members(bravo.root / "gt.tar")
    fold_of = {}
    for dataset in (one["name"] for one in bravo.tree["datasets"]):
        for image in stored(bravo.store(dataset, MODELS[0])):
            base = base_of(dataset, image)
            fold_of[base] = figures["fold_of_image"][subset_of(base)][image]
    assert len(fold_of) == sum(figures["sets"].values())
    for subset in SUBSETS:
        dealt = [fold for base, fold in fold_of.items() if subset_of(base) == subset]
        assert len(set(dealt)) == min(len(dealt), FOLDS), "as many folds as there can be"
    chosen = [numbers(one) for one in figures["chosen_without_fold"]]
    assert len(chosen) == FOLDS
    for fold in range(FOLDS):
        left = {
            name: one
            for name, one in truth.items()
            if not any(name.startswith(f"{base}_") and number == fold for base, number in fold_of.items())
        }
        assert 0 < len(left) < len(truth)
        tar = archive(tmp_path / f"{fold}.tar", left)
        scores = {one: evaluated(bravo, folder, tar)["bravo_index"] for one, folder in alone.items()}
        assert scores[chosen[fold]] == max(scores.values())
    unseen = predict(bravo, tmp_path / "unseen", lambda name, image: chosen[fold_of[base_of(name, image)]])
    wanted = evaluated(bravo, unseen)
    row = next(row for row in figures["held_out"] if row["name"] == "search")
    for name in MEANS:
        shown = row["figures"][name]
        assert shown["value"] == pytest.approx(wanted[name], abs=1e-3)
        assert shown["low"] <= shown["value"] <= shown["high"]
        assert shown["low"] < shown["high"]


def test_sampled_pixels_without_a_label_are_wrong_and_invalid_ones_are_odd(
    bench: Bench, alone: dict[tuple[int, ...], Path]
) -> None:
    """The challenge samples labelled pixels only; its toolkit, and `evaluate`, count others all the same."""
    truth, samples = members(bench.root / "gt.tar"), {}
    for name, one in truth.items():
        if name.endswith(("_gt_labelTrainIds.png", "_gt.png", "_fake.png")):
            ids = pixels(one).copy()
            ids[::7] = 255
            base = name.removesuffix(truth_endings(name.split("/")[0].removeprefix("bravo_"))[0])
            samples[f"{base}_samples.bin"] = encode_samples(np.arange(5, ids.size, 2))
            file = io.BytesIO()
            Image.fromarray(ids).save(file, "PNG")
            truth[name] = file.getvalue()
    archive(bench.root / "gt.tar", truth)
    archive(bench.root / "samples.tar", samples)
    figures = searched(bench, "--most", "1", by="bravo_index,miou,auroc,ood_auroc").figures
    wanted = evaluated(bench, alone[0,])
    row = figures["chosen_by"][0]
    classes = [name for name in SUBSETS if name != "SMIYC"]
    assert row["bravo_index"] == pytest.approx(wanted["bravo_index"], abs=2e-3)
    assert row["miou"] == pytest.approx(np.mean([wanted[f"{name}_miou_valid"] for name in classes]), abs=1e-12)
    assert row["auroc"] == pytest.approx(np.mean([wanted[f"{name}_auroc_valid"] for name in classes]), abs=1e-4)
    odd = [wanted[f"{name}_auroc_ood"] for name in ("SMIYC", "synobjs")]
    assert row["ood_auroc"] == pytest.approx(np.mean(odd), abs=1e-4)


@pytest.mark.parametrize("functions", [("--confidences", "entropy"), ("--labels", "mean-logit")])
def test_functions_that_fuse_each_combination_by_itself(
    bench: Bench, functions: tuple[str, str], tmp_path: Path
) -> None:
    figures = searched(bench, *functions, "--write", "c.yaml").figures
    assert run("ensemble", "--manifest", "c.yaml", "--workers", "0").code == 0
    wanted = run("evaluate", "--manifest", "c.yaml", *tars(bench), "--json", "-").figures
    row = next(row for row in figures["chosen_by"] if row["members"] == " ".join(figures["chosen"]["members"]))
    for name in MEANS:
        assert row[name] == pytest.approx(wanted[name], abs=2e-3)
    assert row["label" if functions[0] == "--labels" else "confidence"] == functions[1]


def test_weighted_lists_and_figures_of_all_subsets(bravo: Bench, alone: dict[tuple[int, ...], Path]) -> None:
    figures = searched(bravo, by="bravo_index:1,ece:-0.5,ood_fpr95,miou").figures
    assert figures["metrics"] == {"bravo_index": 1.0, "ece": -0.5, "ood_fpr95": -1.0, "miou": 1.0}
    row = figures["chosen_by"][-1]
    wanted = evaluated(bravo, alone[COMBINATIONS[-1]])
    classes = [name for name in SUBSETS if name != "SMIYC"]
    for name, subsets, key in (
        ("ece", classes, "ece_valid"),
        ("miou", classes, "miou_valid"),
        ("ood_fpr95", ("SMIYC", "synobjs"), "fpr95_ood"),
    ):
        mean = np.mean([wanted[f"{subset}_{key}"] for subset in subsets])
        assert row[name] == pytest.approx(mean, abs=1e-12 if name == "miou" else 2e-3), name
    assert searched(bravo, "--most", "1", by="brier").figures["chosen_by"][0]["brier"] == pytest.approx(
        np.mean([brier(bravo, subset) for subset in classes]), rel=1e-4
    )
    best = max(figures["chosen_by"], key=lambda r: r["bravo_index"] - 0.5 * r["ece"] - r["ood_fpr95"] + r["miou"])
    assert figures["chosen"]["members"].keys() == set(best["members"].split())


def test_the_table_the_plot_and_the_report(bench: Bench) -> None:
    assert bench.run("ensemble").code == 0
    figures = searched(bench, "--plot", "p.svg", "--csv", "c.csv")
    assert "note: " not in figures.err
    lines = figures.err.splitlines()
    assert lines[0] == f"7 combinations of 3 members by bravo_index, 24 images of {', '.join(SUBSETS)} in 3 folds"
    assert lines[2].split()[:3] == list(MEANS)
    assert Path("p.svg").stat().st_size > 5000
    assert json.loads((bench.output / "search.json").read_text()) == figures.figures
    assert bench.run("report", "--write", "page", "--limit", "1", "--no-members").code == 0
    section = Path("page/index.html").read_text().partition('<section id="combinations">')[2]
    assert "bravo_index" in section


def test_weights_and_forward_selection(bravo: Bench) -> None:
    fitted = searched(bravo, "--weights").figures
    assert [row["name"] for row in fitted["held_out"]][-2:] == ["weights", "all 3"]
    grown = searched(bravo, "--greedy", by="ood_hmean").figures
    assert grown["method"] == "greedy"
    assert grown["held_out"][0]["name"] == "after 1"


def test_processes_make_the_same(bravo: Bench) -> None:
    assert searched(bravo, "--processes", "2").out == searched(bravo, "--processes", "1").out


def test_a_subset_with_one_image_or_none_is_named(bench: Bench) -> None:
    truth = members(bench.root / "gt.tar")

    def without(part: str) -> str:
        return archive(Path("less.tar"), {name: one for name, one in truth.items() if part not in name})

    less = without("drawn_frame_000001_gt")
    said = bench.run("search", "--by", "bravo_index", *tars(bench, less)).refusal()
    assert said == (
        "--by bravo_index: bravo_index is a mean over subsets that need two images each, one to choose by and one to "
        "judge by, and less.tar has fewer of some (ACDCfog 1); name a file with more, or search by miou"
    )
    without("bravo_synrain")
    said = bench.run("search", "--by", "auroc,semantic_hmean", *tars(bench, less)).refusal()
    assert "semantic_hmean is a mean over subsets" in said
    assert "(synrain 0)" in said
    result = bench.run("search", "--by", "ood_hmean", "--folds", "2", "--bootstrap", "100", *tars(bench, less))
    assert result.code == 0, "no figure of synrain is in it"
    assert result.out.splitlines()[2].split()[:2] == ["ood_hmean", "minus"]


def test_other_labels_do_not_count_and_a_figure_without_pixels_is_said(bench: Bench) -> None:
    bench.tree["datasets"].append({"name": "street", "type": "cityscapes", "root": "nowhere"})
    bench.save()
    truth = members(bench.root / "gt.tar")
    for name in truth:
        if "bravo_synobjs/" in name and name.endswith("_mask.png"):
            file = io.BytesIO()
            Image.fromarray(np.zeros_like(pixels(truth[name]))).save(file, "PNG")
            truth[name] = file.getvalue()
    tar = archive(Path("valid.tar"), truth)
    result = bench.run("search", "--by", "bravo_index", "--folds", "2", "--bootstrap", "100", *tars(bench, tar))
    assert result.code == 0
    note = "note: --ground-truth: only BRAVO's images count, and not the labels of street"
    assert note in result.err.splitlines()
    assert (
        "bravo_index is not defined without fold 0, without fold 1, on all images: the cheapest combination is taken "
        "there"
    ) in result.out.splitlines()


def test_what_does_not_go_with_it_is_refused_before_anything_is_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmsa_pipeline.pipeline.search.count_images.map_files", None)
    gt, samples = tars(bench)[1::2]
    for options, said in (
        (
            (),
            "--by bravo_index: bravo_index is of BRAVO's images; name its tar files by --ground-truth and --samples",
        ),
        (("--ground-truth", gt), "--ground-truth and --samples: BRAVO's figures need both tar files; name them"),
        (("--samples", samples), "--samples: belongs to --ground-truth; name both, or leave it out"),
        ((*tars(bench), "--limit", "2"), "--limit: does not go with BRAVO's tar files; leave it out"),
        ((*tars(bench), "--allow-unlabelled"), "--allow-unlabelled: does not go with BRAVO's tar files"),
        ((*tars(bench), "--average", "labelled"), "--average labelled: BRAVO's figures have the challenge's own"),
        (
            (*tars(bench), "--datasets", "bravo_ACDC"),
            "--datasets: changes nothing beside --ground-truth, which names the datasets; leave it out",
        ),
        (("--ground-truth", "no.tar", "--samples", samples), "no.tar: cannot be read as ground truth (No such file"),
        (("--ground-truth", gt, "--samples", "manifest.yaml"), "manifest.yaml: cannot be read as a sampling file"),
        (("--ground-truth", samples, "--samples", samples), f"{samples}: holds no ground truth of a BRAVO split"),
        ((*tars(bench), "--folds", "25"), "--folds 25: there are 24 labelled images"),
        (
            (*tars(bench), "--folds", "12", "--labels", "mean-softmax,mean-logit", "--confidences", MANY),
            "22 pairs of functions for up to 7 combinations over 9 sets of images: the counts would not fit",
        ),
        ((*tars(bench), "--labels", "max-softmax"), "max-softmax: has no weights, and the manifest's weights differ"),
    ):
        assert bench.run("search", "--by", "bravo_index", *options).refusal().startswith(said), options
    less = archive(Path("less.tar"), {n: c for n, c in members(Path(samples)).items() if "000001" not in n})
    said = bench.run("search", "--by", "bravo_index", "--ground-truth", gt, "--samples", str(less)).refusal()
    assert said.startswith("less.tar: has no samples of ")
    shutil.rmtree(bench.store("bravo_synflare", "cat"))
    said = bench.run("search", "--by", "bravo_index", *tars(bench)).refusal()
    assert said.startswith(f"{bench.store('bravo_synflare', 'cat')}: ")
    bench.tree["datasets"] = bench.tree["datasets"][1:]
    bench.save()
    said = bench.run("search", "--by", "bravo_index", *tars(bench)).refusal()
    assert said.startswith("the manifest has no dataset of the name bravo_ACDC, which the ground truth has images of")


def test_damaged_ground_truth_is_named(bench: Bench) -> None:
    truth = members(bench.root / "gt.tar")
    name = next(name for name in truth if "/fog/" in name and name.endswith("_gt_labelTrainIds.png"))
    file = io.BytesIO()
    Image.fromarray(np.full(pixels(truth[name]).shape, 26, np.uint8)).save(file, "PNG")
    wrong = archive(Path("wrong.tar"), truth | {name: file.getvalue()})
    result = bench.run("search", "--by", "bravo_index", *tars(bench, wrong))
    assert result.code == 2
    assert "holds ids that are neither train ids nor 255: label ids?" in result.err
    assert result.out == ""
