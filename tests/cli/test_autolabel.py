"""`autolabel`: stores into class maps for training, against NumPy in double precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from hmsa_pipeline.datasets.auto_labels import read_auto_labels
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.autolabel import block, run
from hmsa_pipeline.pipeline.fusion import ensemble_block
from PIL import Image

from .bench import TINY, Bench, Result, changed, ended, files, quiet
from .bench import run as run_command
from .conftest import plain_cpu
from .labelled_city import SIZE, Teacher, draw_city, ids
from .test_interruptions import killed_everywhere

PIXELS = SIZE[0] * SIZE[1]


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Logits of two datasets; tests must leave it as it is, or take a `copy`."""
    with plain_cpu():
        return draw_city(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="session")
def teacher(city: Bench) -> Callable[[str, str], Teacher]:
    """The answer to an image of a dataset, computed once."""
    known: dict[tuple[str, str], Teacher] = {}

    def answer(dataset: str, image: str) -> Teacher:
        if (dataset, image) not in known:
            known[dataset, image] = Teacher(city, dataset, image)
        return known[dataset, image]

    return answer


def images(city: Bench, dataset: str) -> list[str]:
    entry = next(one for one in city.tree["datasets"] if one["name"] == dataset)
    return [pair.image for pair in list_pairs(Path(entry["root"]), "cityscapes", entry["split"])]


def label(city: Bench, write: Path, *options: str) -> Result:
    """Label ``extra``; classes of which nothing is kept do not matter."""
    datasets = () if "--fit" in options else ("--datasets", "extra")
    result = city.run("autolabel", "--write", str(write), *datasets, "--allow-empty", *options)
    assert (result.code, result.err) == (0, ""), result
    return result


def record(write: Path) -> dict[str, Any]:
    return json.loads((write / "extra/labels.json").read_text())


@pytest.mark.parametrize(
    ("options", "threshold", "agree", "erode"),
    [
        ([], 0.9, 0, 0),
        (["--threshold", "0.5"], 0.5, 0, 0),
        (["--threshold", "0.997"], 0.997, 0, 0),
        (["--threshold", "0.5", "--agree", "3"], 0.5, 3, 0),
        (["--threshold", "0.4", "--erode", "2"], 0.4, 0, 2),
        (["--threshold", "0.3", "--agree", "2", "--erode", "1"], 0.3, 2, 1),
    ],
)
def test_pixels_are_kept_where_the_ensemble_is_sure(
    city: Bench,
    teacher: Callable[[str, str], Teacher],
    tmp_path: Path,
    options: list[str],
    threshold: float,
    agree: int,
    erode: int,
) -> None:
    out = label(city, tmp_path, *options).out
    labels = read_auto_labels(tmp_path)
    # A threshold is rounded up to what the stored 8 bits can tell, or above that to what 16 bits can.
    steps = 256 if threshold < 255 / 256 else 65536
    limit = np.ceil(threshold * steps) / steps
    assert set(labels.thresholds) == {limit}
    kept, predicted = np.zeros(19, int), np.zeros(19, int)
    for image in images(city, "extra"):
        said = teacher("extra", image)
        sure = (said.confidence >= limit) & (said.votes >= agree)
        if erode:
            sure &= said.inside(erode)
        expected = np.where(sure, said.label, 255)
        # In single precision a confidence may fall on the other side of a threshold that it nearly equals.
        clear = abs(said.confidence - limit) > 1e-5
        assert clear.mean() > 0.99
        found = labels.read(image)
        np.testing.assert_array_equal(found[clear], expected[clear])
        level = np.floor(256 * said.confidence)
        near = abs(256 * said.confidence - np.rint(256 * said.confidence)) < 0.01
        np.testing.assert_array_equal(labels.read_confidence(image)[~near], np.minimum(level, 255)[~near])
        predicted += np.bincount(said.label.ravel(), minlength=19)
        kept += np.bincount(found[found != 255], minlength=19)
    assert kept.sum() > (20 if threshold > 0.9 else 500)
    for name, one, many, of in zip(CLASS_NAMES, record(tmp_path)["classes"], kept, predicted, strict=True):
        assert (one["name"], one["kept"], one["pixels"]) == (name, many, of)
        assert one["share"] == (many / of if of else None)
        row = next(line for line in out.splitlines() if line.startswith(name + " "))
        assert f" {limit:.4f} " in row
    assert record(tmp_path)["share"] == kept.sum() / (4 * PIXELS)


def test_the_folder_holds_what_training_reads(city: Bench, tmp_path: Path) -> None:
    result = label(city, tmp_path, "--threshold", "0.5")
    names = [image.removesuffix(".png") for image in images(city, "extra")]
    expected = {f"{kind}/{name}.png" for name in names for kind in ("labels", "confidence")}
    assert files(tmp_path / "extra").keys() == expected | {"labels.json", "photographs.json", "contact_sheet.png"}
    labels = read_auto_labels(tmp_path)
    root = Path(city.tree["datasets"][1]["root"])
    labels.require_photographs({image: (root / image).stat().st_size for image in images(city, "extra")})
    labels.require_classes(CLASS_NAMES)
    facts = record(tmp_path)
    assert (facts["dataset"], facts["split"], facts["labelled"]) == ("extra", "train_extra", 4)
    assert [(one["name"], one["temperature"]) for one in facts["members"]] == [
        ("ant", 1.0),
        ("bee", 1.5),
        ("cat", 0.8),
    ]
    assert all(one["architecture"] == "external" and len(one["store"]) == 64 for one in facts["members"])
    with Image.open(tmp_path / "extra/contact_sheet.png") as sheet:
        assert min(sheet.size) > 500
    assert "4 images labelled, 0 done before, 0 failed" in result.out


def test_without_labels_the_expected_precision_is_the_mean_confidence(
    city: Bench, teacher: Callable[[str, str], Teacher], tmp_path: Path
) -> None:
    out = label(city, tmp_path, "--threshold", "0.5").out
    assert "expected precision: the mean confidence" in out
    said = [teacher("extra", image) for image in images(city, "extra")]
    for number, one in enumerate(record(tmp_path)["classes"]):
        sure = np.concatenate([s.confidence[(s.label == number) & (s.confidence >= 0.5)] for s in said])
        assert one["precision"] is None
        if sure.size:
            assert one["expected_precision"] == pytest.approx(sure.mean(), abs=1e-4)
        else:
            assert one["expected_precision"] is None


def test_a_confidence_that_is_no_probability_promises_nothing(city: Bench, tmp_path: Path) -> None:
    out = label(city, tmp_path, "--confidence", "energy", "--threshold", "0.5").out
    assert "expected precision: not known without --fit" in out
    assert {one["expected_precision"] for one in record(tmp_path)["classes"]} == {None}


@pytest.mark.parametrize("options", [[], ["--agree", "3"], ["--erode", "1"]])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_share_of_each_class_is_kept(
    city: Bench, teacher: Callable[[str, str], Teacher], tmp_path: Path, share: float, options: list[str]
) -> None:
    label(city, tmp_path, "--keep", str(share), *options)
    said = [teacher("extra", image) for image in images(city, "extra")]
    for number, one in enumerate(record(tmp_path)["classes"]):
        chosen = [
            (s.label == number)
            & ((s.votes >= 3) if "--agree" in options else True)
            & (s.inside(1) if "--erode" in options else True)
            for s in said
        ]
        levels = np.sort(np.concatenate([s.levels[these] for s, these in zip(said, chosen, strict=True)]))[::-1]
        if not levels.size:
            assert (one["threshold"], one["kept"]) == (None, 0)
            continue
        last = levels[int(np.ceil(share * levels.size)) - 1]
        assert one["threshold"] == last / 65536
        assert one["kept"] == (levels >= last).sum()


def brute_force(
    city: Bench, teacher: Callable[[str, str], Teacher], number: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Levels and rightness of the labelled pixels of ``fine`` that are said to be of a class, image by image."""
    root, lookup = Path(city.tree["datasets"][0]["root"]), dataset_spec("cityscapes").lookup("ids")
    found = []
    for pair in list_pairs(root, "cityscapes", "val"):
        truth, said = lookup[ids(root / pair.mask)], teacher("fine", pair.image)
        these = (said.label == number) & (truth != 255)
        found.append((said.levels[these].astype(int), said.label[these] == truth[these]))
    return found


def test_a_target_precision_is_the_lowest_threshold_that_reaches_it(
    city: Bench, teacher: Callable[[str, str], Teacher], tmp_path: Path
) -> None:
    out = label(city, tmp_path, "--precision", "0.9", "--fit", "fine").out
    assert "expected precision: on fine, 95 % interval" in out
    reached = 0
    for number, one in enumerate(record(tmp_path)["classes"]):
        each = brute_force(city, teacher, number)
        levels, right = (np.concatenate(part) for part in zip(*each, strict=True))
        # Every level below the lowest confidence keeps the same pixels: the lowest of them is 0.
        tried = [0, *(level + 1 for level in np.unique(levels))]
        good = [t for t in tried if (levels >= t).any() and right[levels >= t].mean() >= 0.9]
        if not good:
            assert (one["threshold"], one["precision"], one["kept"]) == (None, None, 0)
            continue
        reached += 1
        assert one["threshold"] == good[0] / 65536
        kept = [(levels >= good[0], right) for levels, right in each]
        n = np.array([these.sum() for these, _ in kept])
        k = np.array([right[these].sum() for these, right in kept])
        p, shown = k.sum() / n.sum(), int((n > 0).sum())
        measured = one["precision"]
        assert (measured["share"], measured["pixels"], measured["images"]) == (p, n.sum(), shown)
        assert one["expected_precision"] == p
        variance = shown / (shown - 1) * ((k - p * n) ** 2).sum() / n.sum() ** 2 if shown > 1 else 0.0
        number_of = p * (1 - p) / variance if variance > 0 and p < 1 else shown
        number_of = max(1.0, min(number_of, n.sum()))
        # Wilson's ends are where a test of the share is just not refused.
        for end in (measured["low"], measured["high"]):
            if 0 < end < 1:
                assert (end - p) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / number_of, rel=1e-4)
        assert measured["low"] <= p <= measured["high"]
    assert reached >= 8


def test_precision_is_measured_for_the_other_rules_too(city: Bench, tmp_path: Path) -> None:
    label(city, tmp_path / "a", "--precision", "0.9", "--fit", "fine")
    label(city, tmp_path / "b", "--threshold", "0.6", "--fit", "fine", "--agree", "2")
    assert {one["threshold"] for one in record(tmp_path / "b")["classes"]} == {154 / 256}
    shares = [one["precision"]["share"] for one in record(tmp_path / "b")["classes"] if one["precision"]]
    assert len(shares) > 8 and np.mean(shares) > 0.9


def test_a_threshold_that_is_applied_later_keeps_the_same_pixels(city: Bench, tmp_path: Path) -> None:
    label(city, tmp_path / "low", "--threshold", "0.3")
    low = read_auto_labels(tmp_path / "low")
    for threshold in (0.5, 0.7, 0.9):
        label(city, tmp_path / str(threshold), "--threshold", str(threshold))
        for image in images(city, "extra"):
            found = read_auto_labels(tmp_path / str(threshold)).read(image)
            np.testing.assert_array_equal(low.read(image, threshold), found)
            assert 0 < (found != 255).sum() < PIXELS


def test_the_format_of_cityscapes_holds_label_ids_under_its_names(city: Bench, tmp_path: Path) -> None:
    label(city, tmp_path / "a", "--threshold", "0.5")
    label(city, tmp_path / "b", "--threshold", "0.5", "--format", "cityscapes")
    one, other = read_auto_labels(tmp_path / "a"), read_auto_labels(tmp_path / "b")
    labels = dataset_spec("cityscapes").labels or {}
    for image in images(city, "extra"):
        name = image.replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        raw = ids(tmp_path / "b/extra/labels" / name)
        assert {labels[int(number)][1] for number in np.unique(raw)} <= {*CLASS_NAMES, "unlabeled"}
        assert (raw == 0).any()
        np.testing.assert_array_equal(np.vectorize(lambda number: labels[number][0])(raw), one.read(image))
        np.testing.assert_array_equal(other.read(image), one.read(image))


@pytest.mark.parametrize("rule", ["keep", "drop"])
def test_coarse_labels_are_respected(
    city: Bench, teacher: Callable[[str, str], Teacher], tmp_path: Path, rule: str
) -> None:
    label(city, tmp_path, "--threshold", "0.3", "--respect-coarse", rule)
    found, root = read_auto_labels(tmp_path), Path(city.tree["datasets"][1]["root"])
    own, contradicted = np.zeros(19, int), 0
    for pair in list_pairs(root, "cityscapes", "train_extra"):
        coarse = dataset_spec("cityscapes").lookup("ids")[ids(root / pair.mask)]
        said = teacher("extra", pair.image)
        sure = said.levels >= 77 * 256  # 0.3, rounded up
        expected = np.where(coarse != 255, coarse, np.where(sure, said.label, 255))
        contrary = (coarse != 255) & sure & (said.label != coarse)
        contradicted += contrary.sum()
        if rule == "drop":
            expected[contrary] = 255
        np.testing.assert_array_equal(found.read(pair.image), expected)
        taken = (coarse != 255) & (expected == coarse)
        # Whatever threshold comes later, what people said stays.
        np.testing.assert_array_equal(found.read(pair.image, 0.99)[taken], coarse[taken])
        own += np.bincount(coarse[taken], minlength=19)
    assert contradicted > 20
    assert [one["own_labels"] for one in record(tmp_path)["classes"]] == own.tolist()


def test_models_alone_and_other_functions_are_those_of_ensemble(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    options = ("--models", "ant,cat", "--label", "mean-logit", "--confidence", "entropy")
    label(bench, tmp_path / "labels", *options, "--threshold", "0.3")
    assert bench.run("ensemble", *options, "--datasets", "extra").code == 0
    found = read_auto_labels(tmp_path / "labels")
    for image in images(city, "extra"):
        stem = bench.predictions / "extra" / image.removesuffix(".png")
        confidence = ids(Path(f"{stem}_conf.png"))
        expected = np.where(confidence >= 77 * 256, ids(Path(f"{stem}_pred.png")), 255)
        np.testing.assert_array_equal(found.read(image), expected)
        np.testing.assert_array_equal(found.read_confidence(image), confidence >> 8)


@pytest.mark.parametrize("format", ["train-ids", "cityscapes"])
def test_training_learns_from_them(city: Bench, tmp_path: Path, format: str) -> None:
    label(city, tmp_path / "labels", "--threshold", "0.3", "--format", format)
    root = city.tree["datasets"][1]["root"]
    extra = {"train": "train_extra", "labels": f"autolabel {tmp_path / 'labels'}", "threshold": 0.7, "share": 0.5}
    recipe = {
        "version": 1,
        "output": str(tmp_path / "trained"),
        "arch": TINY,
        "data": [
            {"type": "cityscapes", "root": root, "share": 0.5},
            {"type": "cityscapes", "root": root, **extra},
        ],
        "augmentation": {"crop": [32, 64]},
        "sampling": {"class_uniform": 0.5, "tile": 32},
        "optimizer": {"lr": 0.001},
        **{"epochs": 1, "global_batch": 2, "batch_size": 2, "precision": "fp32", "batch_norm": "local", "workers": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ("train", "--manifest", str(tmp_path / "recipe.yaml"), "--init", "random", "--device", "cpu", "--dry-run")
    result = run_command(*words)
    assert result.code == 0, result
    assert f"auto-labels of {tmp_path / 'labels/extra'}" in result.out
    shutil.rmtree(tmp_path / "labels/extra/labels")
    assert run_command(*words).code == 2


# ------------------------------------------------------------------ again, and after an interruption

RULES = (
    ("--threshold", "0.5"),
    ("--keep", "0.5", "--agree", "2"),
    ("--precision", "0.8", "--fit", "fine"),
)


@pytest.mark.parametrize("options", RULES)
def test_again_it_does_nothing_and_says_so(city: Bench, tmp_path: Path, options: tuple[str, ...]) -> None:
    label(city, tmp_path, *options)

    def again() -> None:
        result = label(city, tmp_path, *options)
        assert result.out.endswith(f"nothing to do: all 4 images have labels; {tmp_path}\n")
        assert "expected precision" in result.out

    assert changed(tmp_path, again) == set()


def test_two_workers_make_what_one_process_makes(city: Bench, tmp_path: Path) -> None:
    options = ("--keep", "0.5", "--datasets", "extra", "--allow-empty")
    label(city, tmp_path / "one", "--keep", "0.5")
    result = ended(city.start("autolabel", "--write", str(tmp_path / "two"), "--workers", "2", *options))
    assert (result.code, quiet(result.err)) == (0, [])
    assert files(tmp_path / "two/extra") == files(tmp_path / "one/extra")


@pytest.mark.slow(every_change=True)
@pytest.mark.parametrize("options", RULES)
def test_wherever_it_is_killed_it_goes_on_to_the_same_bytes(
    city: Bench, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "logits").symlink_to(city.logits)
    datasets = () if "--fit" in options else ("--datasets", "extra")
    command = ("autolabel", "--manifest", str(city.manifest), *datasets, "--limit", "1", "--allow-empty", *options)
    outputs = killed_everywhere(tmp_path / "killed", tmp_path / "before", *command, "--write", "{}/labels")
    assert len(outputs) >= 7  # a record, a class map and its confidence, run.json, photographs, the sheet, the record
    whole = files(outputs[-1] / "labels/extra")
    assert len(whole) == 5
    begun = 0
    for output in outputs[:-1]:
        begun += (output / "labels/extra/labels.json").exists()
        again = city.run(*command[:1], *command[3:], "--write", str(output / "labels"), "--output", str(output))
        assert (again.code, again.err) == (0, "")
        assert files(output / "labels/extra") == whole
    assert begun >= 5


def test_after_an_interruption_it_goes_on_to_the_same_bytes(city: Bench, tmp_path: Path) -> None:
    options = ("--datasets", "extra", "--keep", "0.5", "--allow-empty")
    label(city, tmp_path / "whole", "--keep", "0.5")
    measured: list[int] = []
    whole = block.write_bytes

    def write(path: Path, *pieces: Any) -> None:
        if len(list(tmp_path.rglob("cut/**/labels/**/*.png"))) == 1:
            raise KeyboardInterrupt
        whole(path, *pieces)

    with mock.patch.object(ensemble_block, "THREADS", 1), mock.patch.object(block, "write_bytes", write):
        assert city.run("autolabel", "--write", str(tmp_path / "cut"), *options).code == 130
    assert record(tmp_path / "cut")["complete"] is False

    def spy(*arguments: Any) -> Any:
        measured.append(1)
        return run.measure_levels(*arguments)

    with mock.patch.object(run, "measure_levels", spy):
        result = label(city, tmp_path / "cut", "--keep", "0.5")
    assert "3 images labelled, 1 done before" in result.out
    assert measured == []  # thresholds are those that were begun with
    assert files(tmp_path / "cut/extra") == files(tmp_path / "whole/extra")


def test_more_images_are_added_to_those_that_are_there(city: Bench, tmp_path: Path) -> None:
    label(city, tmp_path / "whole", "--threshold", "0.5")
    label(city, tmp_path / "parts", "--threshold", "0.5", "--limit", "1")
    assert record(tmp_path / "parts")["labelled"] == 1
    result = label(city, tmp_path / "parts", "--threshold", "0.5")
    assert "3 images labelled, 1 done before" in result.out
    assert files(tmp_path / "parts/extra") == files(tmp_path / "whole/extra")
    # A limit that comes later takes nothing away.
    label(city, tmp_path / "parts", "--threshold", "0.5", "--limit", "1")
    assert files(tmp_path / "parts/extra") == files(tmp_path / "whole/extra")


def test_labels_of_other_settings_are_made_again_if_asked(city: Bench, tmp_path: Path) -> None:
    label(city, tmp_path, "--threshold", "0.5")
    before = files(tmp_path)
    options = ("--write", str(tmp_path), "--datasets", "extra", "--allow-empty")
    message = city.run("autolabel", *options, "--threshold", "0.7").refusal()
    assert message.startswith(f"{tmp_path / 'extra'}: holds labels made in another way (value 0.5 there, 0.7 now)")
    message = city.run("autolabel", *options, "--keep", "0.5").refusal()
    assert "rule threshold there, keep now" in message
    message = city.run("autolabel", *options, "--threshold", "0.5", "--models", "ant").refusal()
    assert "other members" in message
    assert files(tmp_path) == before
    label(city, tmp_path, "--threshold", "0.7", "--overwrite", "--format", "cityscapes")
    assert read_auto_labels(tmp_path).thresholds == (180 / 256,) * 19
    assert not (tmp_path / "extra/labels/leftImg8bit").exists()


def test_labels_are_not_kept_when_the_stores_that_set_their_thresholds_change(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    rule = ("--precision", "0.9", "--fit", "fine")
    label(bench, tmp_path / "labels", *rule)
    assert "nothing to do: all 4 images have labels" in label(bench, tmp_path / "labels", *rule).out
    described = bench.store("fine", "bee") / "zarr.json"
    tree = json.loads(described.read_text())
    tree["attributes"]["sha256"] = "0" * 64
    described.write_text(json.dumps(tree))
    options = ("--write", str(tmp_path / "labels"), "--allow-empty", *rule)
    message = bench.run("autolabel", *options).refusal()
    assert "holds labels made in another way (other fit); choose another --write" in message
    label(bench, tmp_path / "labels", *rule, "--overwrite")


def test_an_image_whose_shard_is_damaged_is_listed_and_the_rest_is_labelled(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    first = images(city, "extra")[0]
    shard = bench.shard("extra", "bee", first)
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    words = ("--datasets", "extra", "--allow-empty", "--threshold", "0.5", "--write", str(tmp_path / "labels"))
    result = bench.run("autolabel", *words)
    assert result.code == 1
    assert result.err.startswith(f"failed: extra: {first}: {shard}: ")
    assert "3 images labelled, 0 done before, 1 failed" in result.out
    # Training is not to take a part for the whole.
    assert record(tmp_path / "labels")["complete"] is False
    shard.write_bytes(content)
    assert "1 image labelled, 3 done before, 0 failed" in bench.run("autolabel", *words).out
    label(city, tmp_path / "whole", "--threshold", "0.5")
    assert files(tmp_path / "labels/extra") == files(tmp_path / "whole/extra")


def test_logits_that_were_made_again_are_labelled_again(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    label(bench, tmp_path / "labels", "--threshold", "0.5")
    shard = bench.shard("extra", "cat", images(city, "extra")[1])
    again = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(again)
    assert "1 image labelled, 3 done before" in label(bench, tmp_path / "labels", "--threshold", "0.5").out


def test_a_dry_run_writes_nothing_and_says_what_there_is_to_do(city: Bench, tmp_path: Path) -> None:
    words = ("--write", str(tmp_path / "labels"), "--precision", "0.9", "--fit", "fine", "--dry-run", "--json", "-")
    result = city.run("autolabel", *words)
    assert (result.code, result.figures) == (0, [{"dataset": "extra", "todo": 4, "skipped": 0}])
    assert result.err.splitlines() == [
        f"extra: 4 to label, 0 done before; {tmp_path / 'labels/extra'}",
        "precision: 3 labelled images of fine",
    ]
    assert not (tmp_path / "labels").exists()


def test_figures_are_those_of_the_record(city: Bench, tmp_path: Path) -> None:
    words = ("--write", str(tmp_path), "--datasets", "extra", "--allow-empty", "--json", "-")
    (found,) = city.run("autolabel", *words).figures
    made = record(tmp_path)
    assert {name: found[name] for name in ("classes", "pixels", "kept", "share", "labelled")} == {
        name: made[name] for name in ("classes", "pixels", "kept", "share", "labelled")
    }
    assert (found["dataset"], found["done"], found["failed"]) == ("extra", 4, {})


def test_threads_are_as_they_were(city: Bench, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    label(city, tmp_path, "--keep", "0.5")
    assert torch.get_num_threads() == before


def test_labels_of_a_copy_of_the_photographs_are_the_same(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    data = shutil.copytree(city.tree["datasets"][1]["root"], tmp_path / "elsewhere")
    bench.tree["datasets"][1]["root"] = str(data)
    label(bench.save(), tmp_path / "a", "--threshold", "0.5")
    label(city, tmp_path / "b", "--threshold", "0.5")
    assert files(tmp_path / "a/extra") == files(tmp_path / "b/extra")
