"""Networks, logits and predictions of other classes than the manifest's: mapped by a table, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hmsa_pipeline.datasets.class_set import SHIPPED, shipped_set
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.checkpoint import load_weights, save_checkpoint
from hmsa_pipeline.models.registry import build
from PIL import Image

from .bench import TINY, Bench, attributes, run, stored

VISTAS = shipped_set("mapillary65").names
ROWS = yaml.safe_load(
    (Path(__file__).parents[2] / "models/adapters/class_tables/mapillary65.yaml").read_text(encoding="utf-8")
)["classes"]
FLOOR = 1e-7


def weights(path: Path, count: int, seed: int = 0, **more: Any) -> None:
    torch.manual_seed(seed)
    save_checkpoint(path, build(TINY, count), arch=TINY, num_classes=count, **more)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A network of 65 classes and one of 19 over two photographs."""
    made = Bench(
        tmp_path / "bench",
        {
            "version": 1,
            "inference": {"scales": [0.5, 1.0], "precision": "fp32"},
            "models": [
                {"name": "vistas", "arch": TINY, "checkpoint": "vistas.pth", "classes": "mapillary65"},
                {"name": "city", "arch": TINY, "checkpoint": "city.pth"},
            ],
            "datasets": [{"name": "garden", "type": "folder", "root": "photos/garden"}],
        },
    )
    made.photo("garden/a.png", 40, 64, seed=1)
    made.photo("garden/b.png", 33, 57, seed=2)
    weights(made.root / "vistas.pth", 65)
    weights(made.root / "city.pth", 19, seed=1)
    return made.save()


def belief(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits.astype(np.float64) - logits.max(0))
    return odds / odds.sum(0)


def changed(bench: Bench, number: int = 0, **values: Any) -> Bench:
    member = {**bench.tree["models"][number], **values}
    bench.tree["models"][number] = {key: value for key, value in member.items() if value is not None}
    return bench.save()


def added_up(everything: np.ndarray, names: list[str]) -> np.ndarray:
    """Probabilities (19, H, W) of 65, added up by ``names`` and divided by what became a class."""
    sums = np.stack(
        [sum((everything[c] for c, n in enumerate(names) if n == ours), np.zeros(1)) for ours in CLASS_NAMES]
    )
    sums /= sums.sum(0)
    return np.maximum(sums, FLOOR)


def test_a_network_of_mapillarys_65_classes_is_a_member(bench: Bench) -> None:
    checked = run("manifest", "check", "--manifest", str(bench.manifest))
    assert checked.code == 0, checked
    assert "of its 65 classes are none of ours" in checked.out
    for command in ("dump", "ensemble"):
        result = bench.run(command)
        assert result.code == 0, result
    network = build(TINY, 65)
    load_weights(network, bench.root / "vistas.pth", TINY)
    names = [row[0] for row in ROWS]
    for image, found in stored(bench.store("garden", "vistas")).items():
        pixels = normalise(decode_image(bench.root / "photos/garden" / image)[None])
        everything = belief(network.predict(pixels, [0.5, 1.0])[0].numpy())
        np.testing.assert_allclose(belief(found), added_up(everything, names), atol=2e-3)
    said = attributes(bench.store("garden", "vistas"))
    assert said["classes"] == list(CLASS_NAMES)
    assert said["preprocessing"]["classes"]["rider"] == ["Bicyclist", "Motorcyclist", "Other Rider"]
    assert "Bird" in said["preprocessing"]["other"]
    assert "classes" not in attributes(bench.store("garden", "city"))["preprocessing"]
    predicted = bench.root / "predicted"
    assert run("predict", "--manifest", str(bench.manifest), "--output", str(predicted)).code == 0
    for name in ("a_pred.png", "b_pred.png"):
        ours, theirs = (
            np.array(Image.open(f / "garden" / name)) for f in (bench.predictions, predicted / "predictions")
        )
        assert (ours == theirs).mean() > 0.999


def test_a_list_and_a_table_of_channels_map_as_well(bench: Bench) -> None:
    assert bench.run("dump", "--models", "vistas").code == 0
    wanted = stored(bench.store("garden", "vistas"))
    names = [row[0] for row in ROWS]
    for classes in (names, {str(channel): name for channel, name in enumerate(names) if name != "other"}):
        changed(bench, classes=classes)
        assert "made with other settings" in bench.run("dump", "--models", "vistas").refusal() or classes == names
        assert bench.run("dump", "--models", "vistas", "--overwrite").code == 0
        for image, found in stored(bench.store("garden", "vistas")).items():
            np.testing.assert_array_equal(found, wanted[image])


def test_a_checkpoint_that_remembers_its_classes_is_mapped_by_their_names(bench: Bench) -> None:
    weights(bench.root / "vistas.pth", 65, class_names=VISTAS)
    said = changed(bench, classes=None).run("dump").refusal()
    assert "vistas.pth: scores 65 classes, 19 are wanted; say which of its classes are which with 'classes'" in said
    table = {row[1]: row[0] for row in ROWS if row[0] != "other"}
    assert changed(bench, classes=table).run("dump").code == 0
    assert attributes(bench.store("garden", "vistas"))["preprocessing"]["classes"]["sky"] == ["Sky"]
    assert changed(bench, classes="auto").run("dump", "--overwrite").code == 0
    named = attributes(bench.store("garden", "vistas"))["preprocessing"]["classes"]
    assert (named["road"], named["terrain"], named["rider"]) == (["Road"], ["Terrain"], [])


def test_members_of_19_classes_are_mapped_into_a_larger_set(bench: Bench) -> None:
    names = {"road": "Road", "person": "Person", "sky": "Sky"}
    changed(bench, classes=None)
    bench.tree["classes"] = "mapillary65"
    changed(bench, 1, classes=[names.get(name, "other") for name in CLASS_NAMES])
    for command in ("dump", "ensemble"):
        result = bench.run(command)
        assert result.code == 0, result
    for name in ("vistas", "city"):
        assert attributes(bench.store("garden", name))["classes"] == list(VISTAS)
    logits = stored(bench.store("garden", "city"))["a.png"]
    assert set(np.unique(logits.argmax(0))) <= {VISTAS.index(name) for name in names.values()}


def test_imported_logits_are_mapped_by_the_models_table(bench: Bench, tmp_path: Path) -> None:
    names = [row[0] for row in ROWS]
    bench.tree["models"] = [{"name": "foreign", "arch": "external", "classes": "mapillary65"}]
    bench.save()
    draw, given = np.random.default_rng(0), {}
    for image, size in (("a", (40, 64)), ("b", (33, 57))):
        given[f"{image}.png"] = draw.normal(0, 3, (65, *size)).astype(np.float32)
        np.savez(tmp_path / f"{image}_logits.npz", logits=given[f"{image}.png"])
    words = ("--model", "foreign", "--dataset", "garden", str(tmp_path))
    assert bench.run("import-logits", *words).code == 0
    for image, found in stored(bench.store("garden", "foreign")).items():
        np.testing.assert_allclose(belief(found), added_up(belief(given[image]), names), atol=2e-3)
    assert attributes(bench.store("garden", "foreign"))["source"]["classes"]["pole"] == ["Pole", "Utility Pole"]
    said = bench.run("import-logits", *words, "--channels", "0-18").refusal()
    assert said.endswith("selects 19 channels, 65 different ones are needed")


def test_stores_of_unlike_classes_are_not_fused(bench: Bench) -> None:
    changed(bench, classes=None)
    bench.tree["classes"] = "mapillary65"
    assert bench.save().run("dump", "--models", "vistas").code == 0
    assert bench.run("ensemble", "--models", "vistas").code == 0
    del bench.tree["classes"]
    assert bench.save().run("dump", "--models", "city").code == 0
    said = bench.run("ensemble").refusal()
    assert (
        f"{bench.store('garden', 'vistas')}: holds logits of other classes (mapillary65) than the manifest's" in said
    )
    assert "give its model a table with 'classes' and make it again" in said
    said = changed(bench, classes="mapillary65").run("dump", "--models", "vistas").refusal()
    assert "was made with other settings" in said
    # Predictions of 65 classes lie there still; nothing takes their ids for other classes.
    for command, words in (
        ("render", ("--write", str(bench.root / "p"))),
        ("report", ("--write", str(bench.root / "r"), "--no-members")),
    ):
        said = bench.run(command, *words).refusal()
        assert "garden: holds predictions of other classes (mapillary65) than the manifest's (cityscapes19)" in said
    assert bench.run("dump", "--models", "vistas", "--overwrite").code == 0
    assert "holds predictions made in another way" in bench.run("ensemble").refusal()
    assert bench.run("ensemble", "--overwrite").code == 0


WRONG_MEMBERS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no table": ({"classes": None}, None, "scores 65 classes, 19 are wanted"),
    "short list": ({"classes": ["road", "sky"]}, None, "vistas.pth: scores 65 classes, 2 are wanted"),
    "unknown class": ({"classes": ["raod"] * 65}, None, "classes[0]: 'raod' is none of our classes; did you mean"),
    "unknown channel": ({"classes": {"65": "road"}}, None, "'classes' names '65', which the network does not know"),
    "unknown word": ({"classes": "mapilary65"}, None, "did you mean 'mapillary65'?"),
    "no such table": ({"classes": "idd26"}, None, "no table from idd26 to the manifest's classes, cityscapes19"),
    "another table": ({"classes": "ade20k150"}, "mapillary65", "the table ade20k150 leads to cityscapes19, but"),
    "no names": ({"classes": "auto"}, None, "its 65 classes have no names"),
    "too few": ({"classes": None, "checkpoint": "city.pth"}, "mapillary65", "scores 19 classes, 65 are wanted"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_MEMBERS)
def test_a_member_that_does_not_fit_is_refused_before_any_work(bench: Bench, case: str) -> None:
    values, classes, said = WRONG_MEMBERS[case]
    changed(bench, **values)
    if classes is not None:
        bench.tree["classes"] = classes
    bench.tree["models"] = bench.tree["models"][:1]
    assert said in bench.save().run("dump").refusal()
    assert not bench.logits.exists()


ENTRY = {"name": "a", "color": [1, 2, 3]}
WRONG_SETS: dict[str, tuple[Any, str]] = {
    "unknown set": ("mapillary66", "there is no class set 'mapillary66'; did you mean 'mapillary65'?"),
    "far set": ("xyz", f"known: {', '.join(SHIPPED)}"),
    "no file": ("no/such.yaml", "no/such.yaml: cannot be read"),
    "one class": ([ENTRY], "holds 1 classes; give 2 to 255"),
    "too many": ([{"name": f"c{i}", "color": [0, 0, 0]} for i in range(256)], "holds 256 classes; give 2 to 255"),
    "double": ([ENTRY, {"name": "A", "color": [0, 0, 0]}], "[1].name: 'A' is the name of class 0, too"),
    "colour": (
        [ENTRY, {"name": "b", "color": [0, 256, 0]}],
        "[1].color: red, green and blue from 0 to 255 are needed",
    ),
    "two levels": ([ENTRY, {"name": "b", "color": [0, 6]}], "[1].color: red, green and blue from 0 to 255"),
    "no colour": ([ENTRY, {"name": "b"}], "[1].color: is missing"),
    "unknown key": ([ENTRY, {**ENTRY, "colour": 1}], "[1].colour: unknown key; did you mean 'color'?"),
    "no name": ([ENTRY, {"name": 3, "color": [0, 0, 0]}], "[1].name: the name of a class is needed"),
    "other": ([ENTRY, {"name": "other", "color": [0, 0, 0]}], "'other' is what is none of the classes; rename it"),
    "no list": ({"a": 1}, "a list of {name, color} is needed"),
    "texts": (["a", "b"], "[0]: {name, color} is needed, not the text 'a'"),
}


@pytest.mark.parametrize("case", WRONG_SETS)
def test_a_wrong_class_set_is_refused_in_one_line(bench: Bench, case: str) -> None:
    bench.tree["classes"], said = WRONG_SETS[case]
    found = bench.save().run("dump").refusal()
    assert "classes" in found
    assert said in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: a, color: [1, 2, 3]}\n- {name: b, color: [1, 2]}\n", "own.yaml:2: red, green and blue"),
        ("- {name: a, color: [1, 2, 3]}\n- {name: a, color: [1, 2, 3]}\n", "own.yaml:2: 'a' is the name of class 0"),
        ("classes:\n  - {name: a, color: [1, 2, 3]}\n  - {name: b}\n", "own.yaml:3: is missing"),
        ("a: 1\n", "own.yaml: a list of {name, color} is needed"),
        ("", "own.yaml: the file is empty"),
        ("- [", "own.yaml:1: not valid YAML"),
    ],
)
def test_a_wrong_file_of_classes_is_refused_with_its_line(bench: Bench, text: str, said: str) -> None:
    (bench.root / "own.yaml").write_text(text)
    bench.tree["classes"] = "own.yaml"
    assert said in bench.save().run("dump").refusal()


def test_a_file_of_classes_is_written_out_where_the_manifest_is_shown(bench: Bench) -> None:
    (bench.root / "own.yaml").write_text("classes: [{name: x, color: [1, 2, 3]}, {name: y, color: [4, 5, 6]}]\n")
    bench.tree |= {"classes": "own.yaml", "models": [{"name": "ant", "arch": "external"}]}
    bench.save()
    shown = yaml.safe_load(run("manifest", "show", "--manifest", str(bench.manifest)).out)
    assert shown["classes"] == [{"name": "x", "color": [1, 2, 3]}, {"name": "y", "color": [4, 5, 6]}]
    (bench.root / "shown.yaml").write_text(yaml.safe_dump(shown))
    again = yaml.safe_load(run("manifest", "show", "--manifest", str(bench.root / "shown.yaml")).out)
    assert again == shown
    del bench.tree["classes"]
    assert "classes" not in yaml.safe_load(run("manifest", "show", "--manifest", str(bench.save().manifest)).out)


def test_datasets_without_labels_of_the_set_are_refused(bench: Bench) -> None:
    bench.tree["classes"] = "idd26"
    bench.tree["models"] = [{"name": "ant", "arch": "external"}]
    bench.tree["datasets"] = [{"name": "city", "type": "cityscapes", "root": "photos"}]
    said = bench.save().run("evaluate").refusal()
    assert (
        "dataset 'city': type 'cityscapes' has no labels of the classes idd26; types that have: idd; or give" in said
    )
    assert "has no labels" in bench.run("calibrate", "--write", str(bench.root / "c.yaml")).refusal()
    bench.tree["datasets"] = [{"name": "m", "type": "mapillary", "root": "photos", "mapping": "robustnet"}]
    assert "datasets[0].mapping: leads to the classes of cityscapes19" in bench.save().run("evaluate").refusal()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"type": "cityscapes", "masks": "m"}, "masks: means nothing to type 'cityscapes'"),
        (
            {"type": "folder", "masks": "photos/garden/m"},
            "masks: lies in 'root', where masks would be taken for images",
        ),
        ({"type": "folder", "masks": "m", "orientation": "exif"}, "orientation: masks fit the stored pixels"),
    ],
)
def test_a_folder_of_masks_that_means_nothing_is_refused(bench: Bench, entry: dict[str, Any], said: str) -> None:
    bench.tree["datasets"][0] |= entry
    assert f"datasets[0].{said}" in bench.save().run("evaluate").refusal()


def test_masks_that_are_missing_or_hold_no_class_are_named(bench: Bench) -> None:
    bench.tree["models"] = bench.tree["models"][1:]
    bench.tree["datasets"][0]["masks"] = "masks"
    bench.save()
    for command in ("dump", "ensemble"):
        assert bench.run(command).code == 0
    (bench.root / "masks").mkdir()
    Image.fromarray(np.zeros((40, 64), np.uint8)).save(bench.root / "masks/a.png")
    said = bench.run("evaluate").refusal()
    assert f"1 of the 2 images have no mask (b.png); for the first that would be {bench.root}/masks/b.png" in said
    assert "put masks there, or correct 'masks'; allow_unlabelled: true" in said
    (figures,) = bench.run("evaluate", "--allow-unlabelled", "--json", "-").figures
    assert figures["scores"]["ensemble"]["images"] == 1
    Image.fromarray(np.full((33, 57), 19, np.uint8)).save(bench.root / "masks/b.png")
    result = bench.run("evaluate")
    assert (result.code, "masks/b.png: holds the ids 19, which are no train ids" in result.err) == (1, True)


def test_benchmarks_take_the_19_classes_only(bench: Bench, tmp_path: Path) -> None:
    bench.tree["classes"] = "mapillary65"
    changed(bench, classes=None)
    bench.tree["models"] = bench.tree["models"][:1]
    bench.save()
    (tmp_path / "s.tar").write_bytes(b"")
    words = {
        "cityscapes": ("--format", "cityscapes", "--output", str(tmp_path / "o.zip")),
        "acdc": ("--format", "acdc", "--output", str(tmp_path / "o.zip")),
        "bravo": ("--samples", str(tmp_path / "s.tar"), "--output", str(tmp_path / "o.tar")),
    }
    for name, options in words.items():
        said = bench.run("submit", *options).refusal()
        assert said.startswith(
            f"--format {name}: takes the 19 classes of cityscapes19, but the manifest's classes are"
        )
        assert "mapillary65; map each model to cityscapes19 with its 'classes'" in said
    tars = ("--ground-truth", str(tmp_path / "s.tar"), "--samples", str(tmp_path / "s.tar"))
    assert bench.run("evaluate", *tars, "--per-model").refusal().startswith("--ground-truth: takes the 19 classes")


def test_a_prediction_beyond_the_classes_is_named(bench: Bench) -> None:
    bench.tree["classes"] = [{"name": "x", "color": [1, 2, 3]}, {"name": "y", "color": [4, 5, 6]}]
    bench.tree["models"] = [{"name": "ant", "arch": TINY, "checkpoint": "two.pth"}]
    weights(bench.root / "two.pth", 2)
    for command in ("dump", "ensemble"):
        assert bench.save().run(command).code == 0
    Image.fromarray(np.full((40, 64), 2, np.uint8)).save(bench.predictions / "garden/a_pred.png")
    result = bench.run("render", "--write", str(bench.root / "p"))
    assert result.code == 1
    assert "holds class 2, but the manifest's classes (2 of your own) end at 1" in result.err
