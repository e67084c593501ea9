"""Training on several sources: what an epoch takes of each, and which labels count for how much."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.datasets.segmentation_dataset import SegmentationDataset
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source

from .bench import TINY, changed, ended, run, start_forked
from .sources import own_labels, recipe, source, trained, words, write_auto_labels
from .test_train_interruptions import EVERY_STEP, equal_runs, interrupted
from .training import history, same_bits, weights


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn GTA5 of ten frames. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("labelled")
    write_source(root, "gta5", train=10, val=2, size=(48, 80), seed=1)
    return root / "GTA5"


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of another world. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("extra")
    write_source(root, "gta5", train=4, val=1, size=(40, 72), seed=2)
    return root / "GTA5"


@pytest.fixture(scope="module")
def labels(extra: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Auto-labels of `extra`: its own masks, in a folder of their own. Tests leave it as it is."""
    return write_auto_labels(tmp_path_factory.mktemp("auto") / "extra", extra, own_labels(extra))


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs make of masks, shared by them."""
    return tmp_path_factory.mktemp("cache")


def seen_by_epoch(monkeypatch: pytest.MonkeyPatch, manifest: Path, output: Path, epochs: int) -> list[Counter[str]]:
    """Train, and count the samples of each folder in each epoch."""
    seen: list[str] = []
    whole = SegmentationDataset.__getitem__

    def watched(dataset: SegmentationDataset, request: Any) -> Any:
        if not isinstance(request, int):  # those are scored
            seen.append(dataset.root.parent.name.rstrip("0123456789"))
        return whole(dataset, request)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationDataset, "__getitem__", watched)
        trained(manifest, output, "--epochs", str(epochs))
    size = len(seen) // epochs
    return [Counter(seen[i * size : (i + 1) * size]) for i in range(epochs)]


def test_a_list_of_one_gives_the_bytes_of_the_single_form(labelled: Path, tmp_path: Path) -> None:
    one = trained(recipe(tmp_path / "one.yaml", source(labelled)), tmp_path / "one")
    listed = trained(recipe(tmp_path / "list.yaml", [source(labelled)]), tmp_path / "list")
    assert (one / "best_weights.pth").read_bytes() == (listed / "best_weights.pth").read_bytes()
    again = trained(listed / "recipe.yaml", tmp_path / "again")
    assert (one / "best_weights.pth").read_bytes() == (again / "best_weights.pth").read_bytes()


def test_auto_labels_that_say_what_the_masks_say_give_the_same_network(
    labelled: Path, extra: Path, labels: Path, tmp_path: Path
) -> None:
    own, auto = (
        trained(recipe(tmp_path / f"{i}.yaml", [source(labelled), source(extra, **more)]), tmp_path / str(i))
        for i, more in enumerate([{}, {"labels": f"autolabel {labels}"}])
    )
    assert same_bits(weights(own), weights(auto))
    alone = trained(recipe(tmp_path / "alone.yaml", source(labelled)), tmp_path / "alone")
    assert not same_bits(weights(alone), weights(own))


def test_shares_and_ends_decide_what_an_epoch_sees(
    labelled: Path, extra: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [source(labelled, share=0.7), source(extra, labels=f"autolabel {labels}", share=0.3, until_epoch=2)]
    manifest = recipe(tmp_path / "r.yaml", data, sampling={"class_uniform": 0.0, "tile": 32})
    found = seen_by_epoch(monkeypatch, manifest, tmp_path / "run", 3)
    assert found == [Counter(labelled=7, extra=3), Counter(labelled=7, extra=3), Counter(labelled=10)]


def test_without_shares_sources_are_drawn_by_their_images_and_classes_from_all(
    labelled: Path, extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [source(labelled), source(extra)]
    by_chance = recipe(tmp_path / "r.yaml", data, sampling={"class_uniform": 0.0, "tile": 32})
    assert seen_by_epoch(monkeypatch, by_chance, tmp_path / "chance", 1) == [Counter(labelled=7, extra=3)]
    # Ten images are too few for nineteen classes: one each of 40.
    more = [source(labelled, limit=2), source(extra, share=0.0, boost={"classes": ["road"]})]
    more[0]["share"] = 1.0
    uniform = recipe(tmp_path / "u.yaml", more, sampling={"class_uniform": 1.0, "tile": 32})
    assert seen_by_epoch(monkeypatch, uniform, tmp_path / "uniform", 1) == [Counter(labelled=2)]


def test_unsure_pixels_are_ignored(labelled: Path, extra: Path, tmp_path: Path) -> None:
    def spoilt(found: np.ndarray) -> np.ndarray:
        return np.where(np.arange(found.shape[1]) < 30, 18, found).astype(np.uint8)

    masks = own_labels(extra)
    unsure = write_auto_labels(
        tmp_path / "unsure",
        extra,
        {path: spoilt(found) for path, found in masks.items()},
        lambda found: np.where(np.arange(found.shape[1])[None] < 30, 100, 200).repeat(len(found), 0).astype(np.uint8),
    )
    ignored = write_auto_labels(
        tmp_path / "ignored",
        extra,
        {path: np.where(np.arange(m.shape[1]) < 30, 255, m).astype(np.uint8) for path, m in masks.items()},
    )

    def runs(name: str, folder: Path, *more: str) -> dict[str, Any]:
        data = [source(labelled), source(extra, labels=f"autolabel {folder}")]
        return weights(trained(recipe(tmp_path / f"{name}.yaml", data), tmp_path / name, *more))

    half = ("--set", "data.1.threshold=0.5")
    assert same_bits(runs("a", unsure, *half), runs("b", ignored))
    assert not same_bits(runs("c", unsure), runs("d", ignored, *half))


def test_confidence_weighs_the_loss(labelled: Path, extra: Path, labels: Path, tmp_path: Path) -> None:
    masks = own_labels(extra)
    half = write_auto_labels(tmp_path / "half", extra, masks, lambda found: np.full_like(found, 51))

    def runs(name: str, folder: Path, weigh: bool) -> Path:
        data = [source(labelled), source(extra, labels=f"autolabel {folder}", weight_by_confidence=weigh)]
        sampling = {"class_uniform": 0.0, "tile": 32}
        return trained(recipe(tmp_path / f"{name}.yaml", data, sampling=sampling), tmp_path / name, "--lr", "1e-30")

    certain, plain, weighed, ignored = (
        runs(name, folder, weigh)
        for name, folder, weigh in (("a", labels, True), ("b", labels, False), ("c", half, True), ("d", half, False))
    )
    assert history(certain)[0]["loss"] == history(plain)[0]["loss"] == history(ignored)[0]["loss"]
    # A fifth of the loss is left of 3 images among 10.
    assert 0.6 < history(weighed)[0]["loss"]["main"] / history(plain)[0]["loss"]["main"] < 0.9


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_run_on_sources_goes_on_to_the_same_bits(
    labelled: Path, extra: Path, labels: Path, tmp_path: Path, number: signal.Signals
) -> None:
    data = [
        source(labelled, share=0.6),
        source(extra, labels=f"autolabel {labels}", share=0.4, until_epoch=2, weight_by_confidence=True),
    ]
    manifest = recipe(tmp_path / "r.yaml", data, batch_norm="local", epochs=3)
    whole, output = tmp_path / "whole", tmp_path / "run"
    result = ended(start_forked(*words(manifest, whole)))
    assert result.code == 0, result
    interrupted(words(manifest, output, *EVERY_STEP), output, tmp_path / "hold", number)
    result = ended(start_forked(*words(manifest, output, *EVERY_STEP, "--resume")))
    assert result.code == 0, result
    assert "from epoch 2, step " in result.out
    assert equal_runs(output, whole)


def test_changed_sources_and_labels_cannot_be_gone_on_with(labelled: Path, extra: Path, tmp_path: Path) -> None:
    folder = write_auto_labels(tmp_path / "auto", extra, own_labels(extra))
    data = [source(labelled), source(extra, labels=f"autolabel {folder}")]
    manifest = recipe(tmp_path / "r.yaml", data)
    output = trained(manifest, tmp_path / "run")
    more = words(manifest, output, "--resume")
    assert run(*more, "--set", "data.1.threshold=0.5").refusal().count("data[1].threshold was None and is 0.5") == 1
    moved = folder.rename(tmp_path / "moved")
    recipe(tmp_path / "r.yaml", [data[0], source(extra, labels=f"autolabel {moved}")])
    assert run(*more).out.startswith("nothing to do")
    record = moved / "labels.json"
    record.write_text(record.read_text().replace('"extra"', '"other"'))
    message = run(*more).refusal()
    assert f"the 4 of {extra}, or their auto-labels changed; put back" in message


def test_a_dry_run_prints_the_plan(labelled: Path, extra: Path, labels: Path, tmp_path: Path) -> None:
    boost = {"classes": ["rider", "bicycle"], "factor": 3}
    auto = source(extra, labels=f"autolabel {labels}", share=0.25, threshold=0.9, boost=boost, until_epoch=150)
    manifest = recipe(tmp_path / "r.yaml", [source(labelled, share=0.75), auto], epochs=175)
    found: list[str] = []
    said = words(manifest, tmp_path / "run", "--dry-run")
    assert changed(tmp_path, lambda: found.extend(run(*said).out.splitlines())) == set()
    assert found[:4] == [
        f"data[0]: gta5, 10 images to learn from, 2 to score on; {labelled}; own labels",
        f"data[1]: gta5, 4 images to learn from; {extra}; auto-labels of {labels} from confidence 0.9, looked "
        "through for rider, bicycle (x3)",
        "plan:    epochs 1 to 150: 10 images each, at random 37.5 % of [0], 12.5 % of [1]; 50 % class-uniform over "
        "[0], [1]",
        "         epochs 151 to 175: 10 images each, at random 50 % of [0]; 50 % class-uniform over [0]",
    ]
    shorter = run(*said, "--epochs", "10").out.splitlines()
    assert [line for line in shorter if "epochs 1 to 10: 10 images" in line]
    assert not any("151" in line for line in shorter)


def test_flags_for_data_are_for_every_source(labelled: Path, extra: Path, tmp_path: Path) -> None:
    manifest = recipe(tmp_path / "r.yaml", [source(labelled), source(extra)])
    said = words(manifest, tmp_path / "run", "--dry-run")
    lines = run(*said, "--limit", "3", "--cache", str(tmp_path / "cache")).out.splitlines()
    assert lines[0].startswith("data[0]: gta5, 3 images to learn from, 2 to score on; ")
    assert lines[1].startswith("data[1]: gta5, 3 images to learn from; ")
    assert "--root: " in run(*said, "--root", str(labelled)).refusal()
    assert "is a list of 2; name an entry by its number, data.0 to data.1" in (
        run(*said, "--set", "data.2.limit=1").refusal()
    )


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "twice": ({}, {"root": "LABELLED"}, "data[1]: split 'train' of LABELLED stands in data[0], too; remove one"),
    "shares": ({"share": 0.5}, {"share": 0.4}, "data: the shares add up to 0.9 (0.5 + 0.4), not to 1"),
    "one share": ({}, {"share": 0.4}, "data[1].share: give every source a share, or none"),
    "large share": ({"share": 1.5}, {"share": 0.4}, "data[0].share: must lie between 0 and 1, not 1.5"),
    "labels": ({}, {"labels": "hand"}, "data[1].labels: write own, none, or autolabel and the folder that"),
    "no folder": ({}, {"labels": "autolabel"}, "data[1].labels: write own, none, or autolabel"),
    "own threshold": ({"threshold": 0.5}, {}, "data[0].threshold: is of auto-labels, and labels is 'own'; remove"),
    "threshold": ({}, {"labels": "AUTO", "threshold": 1.0}, "data[1].threshold: must be below 1, not 1"),
    "no threshold": ({}, {"labels": "AUTO", "threshold": 0}, "data[1].threshold: must be above 0, not 0"),
    "fine threshold": ({}, {"labels": "AUTO", "threshold": 0.999}, "a threshold of 0.999 cannot be applied"),
    "low threshold": ({}, {"labels": "AUTO", "threshold": 0.05}, "a threshold of 0.05 brings nothing back"),
    "boost": ({}, {"boost": {"classes": ["roads"]}}, "data: boost.classes names 'roads'; did you mean 'road'?"),
    "boost twice": (
        {},
        {"boost": {"classes": ["road", "road"]}},
        "data[1].boost.classes[1]: road stands twice; remove one",
    ),
    "all end": ({"until_epoch": 1}, {"until_epoch": 2}, "data: one source at least needs a share and no until_epoch"),
    "no auto-labels": ({}, {"labels": "autolabel nowhere"}, "nowhere: holds no auto-labels"),
    "unknown key": ({}, {"treshold": 0.5}, "data[1].treshold: unknown key; did you mean 'threshold'?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_of_sources_is_refused_in_one_line(
    labelled: Path, extra: Path, labels: Path, tmp_path: Path, case: str
) -> None:
    first, second, expected = WRONG[case]
    names = {"LABELLED": str(labelled), "AUTO": f"autolabel {labels}"}
    second = {key: names.get(value, value) if isinstance(value, str) else value for key, value in second.items()}
    manifest = recipe(tmp_path / "r.yaml", [source(labelled, **first), {**source(extra), **second}])
    assert expected.replace("LABELLED", str(labelled)) in run(*words(manifest, tmp_path / "run")).refusal()
    assert not (tmp_path / "run").exists()


def test_other_wrong_data_is_refused(labelled: Path, extra: Path, labels: Path, tmp_path: Path) -> None:
    def refusal(data: Any, **changes: Any) -> str:
        return run(*words(recipe(tmp_path / "r.yaml", data, **changes), tmp_path / "run")).refusal()

    assert "data: at least one source is needed" in refusal([])
    (tmp_path / "link").symlink_to(labelled)
    same = f"data[1]: split 'train' of {tmp_path / 'link'} stands in data[0], too; remove one"
    assert same in refusal([source(labelled), source(tmp_path / "link")])
    assert "data: a mapping (key: value) is needed, not" in refusal("gta5")
    assert "data[1]: a mapping (key: value) is needed, not" in refusal([source(labelled), "gta5"])
    chance = {"class_uniform": 0.0}
    unseen = [source(labelled, share=1), source(extra, share=0)]
    assert "data[1].share: no image is ever drawn from here" in refusal(unseen, sampling=chance)
    boosted = [source(labelled), source(extra, boost={"classes": ["road"]})]
    assert "data[1].boost: is of class-uniform sampling, and" in refusal(boosted, sampling=chance)
    weighed = [source(labelled), source(extra, labels=f"autolabel {labels}", weight_by_confidence=True)]
    assert "data[1].weight_by_confidence: weighs the loss of single pixels" in refusal(weighed, loss={})


def test_auto_labels_that_do_not_fit_are_refused(labelled: Path, extra: Path, tmp_path: Path) -> None:
    masks = own_labels(extra)
    first = next(iter(masks))

    def refusal(folder: Path) -> str:
        data = [source(labelled), source(extra, labels=f"autolabel {folder}")]
        return run(*words(recipe(tmp_path / "r.yaml", data), tmp_path / "run")).refusal()

    fewer = write_auto_labels(tmp_path / "a", extra, {path: masks[path] for path in masks if path != first})
    assert f"a: has no labels of 1 of 4 photographs ({first})" in refusal(fewer)
    others = write_auto_labels(tmp_path / "b", extra, masks, classes=("road", "sky"))
    assert "has labels of 2 classes (road, sky), not of the 19" in refusal(others)
    lacking = write_auto_labels(tmp_path / "c", extra, masks)
    (lacking / "labels" / first).unlink()
    assert "c: lacks the labels of 1 of 4 photographs" in refusal(lacking)
    changed_since = write_auto_labels(tmp_path / "d", extra, masks)
    listed = changed_since / "photographs.json"
    size = (extra / first).stat().st_size
    listed.write_text(listed.read_text().replace(f"[{size},", f"[{size + 1},"))
    assert "photographs have another size in bytes than when they were labelled" in refusal(changed_since)


def test_auto_labels_without_a_class_are_refused(labelled: Path, extra: Path, tmp_path: Path) -> None:
    nothing = {path: np.full_like(found, 255) for path, found in own_labels(extra).items()}
    folder = write_auto_labels(tmp_path / "auto", extra, nothing)
    data = [source(labelled), source(extra, labels=f"autolabel {folder}")]
    result = run(*words(recipe(tmp_path / "r.yaml", data), tmp_path / "run"))
    assert result.code == 2
    assert "labels anything" in result.err
    assert "make others with 'hmsa-pipeline autolabel', or lower the threshold" in result.err


def test_the_published_recipe_with_auto_labels_is_planned_and_followed(tmp_path: Path) -> None:
    write_source(tmp_path, "cityscapes", train=3, val=1, size=(48, 96), seed=3)
    root = tmp_path / "Cityscapes-nvidia"
    photographs = sorted(root.rglob("train/*/*_leftImg8bit.png"))
    assert len(photographs) == 3
    coarse = root / "leftImg8bit_trainextra/leftImg8bit/train_extra/troisdorf"
    coarse.mkdir(parents=True)
    masks = {}
    for number, photograph in enumerate(photographs):
        target = coarse / f"troisdorf_00000{number}_000019_leftImg8bit.png"
        target.write_bytes(photograph.read_bytes())
        masks[target.relative_to(root).as_posix()] = np.full((48, 96), 13, np.uint8)
    write_auto_labels(tmp_path / "autolabels/cityscapes_coarse", root, masks)
    said = ["train", "--manifest", "cityscapes-autolabel", "--data-root", str(tmp_path), "--arch", TINY]
    said += ["--output", str(tmp_path / "run"), "--device", "cpu"]
    lines = run(*said, "--dry-run").out.splitlines()
    assert lines[2:4] == [
        "plan:    epochs 1 to 150: 3 images each, at random 50 % of [0], 0 % of [1]; 50 % class-uniform over "
        "[0], [1]",
        "         epochs 151 to 175: 3 images each, at random 50 % of [0]; 50 % class-uniform over [0]",
    ]
    assert "175 epochs, 16 images a step = 1 x 1 x 16 (processes x batch x accumulation), crop 1024x2048" in lines[5]
    small = ("--crop-size", "32x64", "--global-batch", "1", "--workers", "0", "--batch-norm", "frozen")
    result = run(*said, *small, "--epochs", "1", "--set", "sampling.tile=32")
    assert result.code == 0, result
