"""Wrong recipes and settings: each is refused in one line that names the file, the line, the field and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from hmsa_pipeline.datasets.dataset_specs import NAMES
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.pipeline.config.load_recipe import load_recipe, parse_size, recipe_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .recipes import GOOD, refusal, write


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HMSA_ASSETS", "HMSA_DATA_ROOT", "NOWHERE"):
        monkeypatch.delenv(name, raising=False)


# What stands in GOOD, what instead, the field that the message names, and what else it says.
WRONG = {
    "version": ("version: 1", "version: 2", "version", "this release reads version 1"),
    "arch": ("arch: hrnet_ocr", "arch: hrnet", "arch", "did you mean 'hrnet_ocr'?"),
    "type": ("type: shift", "type: shfit", "data.type", "did you mean 'shift'?"),
    "type of the manifest": ("type: shift", "type: bravo", "data.type", f"known: {', '.join(NAMES)}"),
    "root": ("  root: streets\n", "", "data.root", "is missing"),
    "limit": ("limit: 5", "limit: 0", "data.limit", "must be 1 or more"),
    "split": ("train: train", "train: 3", "data.train", "put it in quotes"),
    "no epochs": ("epochs: 3", "epochs: 0", "epochs", "must be 1 or more, not 0"),
    "half an epoch": ("epochs: 3", "epochs: 0.5", "epochs", "a whole number is needed, not the number 0.5"),
    "global batch": (
        "global_batch: 8",
        "global_batch: 7",
        "batch_size",
        "7 images per step cannot be had 2 at a time",
    ),
    "huge batch": ("global_batch: 8", "global_batch: 1000000", "global_batch", "65536 at most, not 1000000"),
    "seed": ("seed: 7", "seed: -1", "seed", "must be 0 or more"),
    "precision": ("precision: bf16", "precision: fp61", "precision", "did you mean 'fp16'?"),
    "batch norm": ("batch_norm: frozen", "batch_norm: foo", "batch_norm", "known: sync, local, frozen"),
    "dropout": ("dropout: 0.1", "dropout: 1.1", "dropout", "must lie between 0 and 1, not 1.1"),
    "yes": ("compile: true", "compile: 1", "compile", "true or false is needed, not the number 1"),
    "workers": ("workers: 0", "workers: -1", "workers", "must be 0 or more"),
    "crop": ("crop: [32, 64]", "crop: 64", "augmentation.crop", "a list is needed, not the number 64"),
    "small crop": ("crop: [32, 64]", "crop: [7, 64]", "augmentation.crop", "8 pixels at least on each side"),
    "scale order": ("scale: [0.5, 1.5]", "scale: [2, 1]", "augmentation.scale", "the smaller one comes first"),
    "scale zero": ("scale: [0.5, 1.5]", "scale: [0, 1]", "augmentation.scale[0]", "must be above 0, not 0"),
    "scale far": ("scale: [0.5, 1.5]", "scale: [0.001, 1]", "augmentation.scale", "within 0.01 to 100, not 0.001"),
    "scale wide": ("scale: [0.5, 1.5]", "scale: [1, 101]", "augmentation.scale", "within 0.01 to 100, not 1 and 101"),
    "jitter": ("color_jitter: 0.5", "color_jitter: 0.6", "augmentation.color_jitter", "0.5 at most, not 0.6"),
    "magnitude": ("magnitude: 30", "magnitude: 31", "augmentation.rand_augment.magnitude", "30 at most, not 31"),
    "operations": ("operations: 3", "operations: 0", "augmentation.rand_augment.operations", "must be 1 or more"),
    "class uniform": ("class_uniform: 0.75", "class_uniform: 2", "sampling.class_uniform", "between 0 and 1"),
    "tile": ("tile: 128", "tile: 0", "sampling.tile", "must be 1 or more"),
    "criterion": ("criterion: image_weighted", "criterion: dice", "loss.criterion", "known: rmi, cross_entropy"),
    "weight": ("auxiliary: 0", "auxiliary: -1", "loss.auxiliary", "must be 0 or more, not -1"),
    "relaxation": ("border_relaxation: 3", "border_relaxation: 17", "loss.border_relaxation", "16 at most"),
    "relaxed rmi": (
        "criterion: image_weighted",
        "criterion: rmi",
        "loss.border_relaxation",
        "cross_entropy or image",
    ),
    "temperature": ("temperature: 2.5", "temperature: 0", "loss.distillation.temperature", "must be above 0, not 0"),
    "hot": ("temperature: 2.5", "temperature: 1001", "loss.distillation.temperature", "1000 at most, not 1001"),
    "no teacher": ("weight: 0.75", "weight: 0", "loss.distillation.weight", "must be above 0, not 0"),
    "teacher twice": ("[ant, bee]", "[ant, ant]", "loss.distillation.models[1]", "ant stands twice; remove one"),
    "optimiser": ("name: adamw", "name: adam", "optimizer.name", "did you mean 'adamw'?"),
    "lr": ("lr: 0.125", "lr: -1", "optimizer.lr", "must be above 0, not -1"),
    "lr nan": ("lr: 0.125", "lr: .nan", "optimizer.lr", "a finite number is needed"),
    "momentum": ("momentum: 0.5", "momentum: 1", "optimizer.momentum", "must be below 1"),
    "schedule": ("name: poly2", "name: cosine", "schedule.name", "known: poly, poly2"),
    "exponent": ("exponent: 1.5", "exponent: 0", "schedule.exponent", "must be above 0"),
    "every": ("every: 2", "every: 0", "validation.every", "must be 1 or more"),
    "no scale 1": ("scales: [1.0, 2.0]", "scales: [2.0]", "validation.scales", "must contain 1.0"),
    "minutes": ("minutes: 0.5", "minutes: 0", "checkpoints.minutes", "must be above 0"),
    "unknown": ("seed: 7", "sead: 7", "sead", "unknown key; did you mean 'seed'?"),
    "twice": ("seed: 7", "seed: 7\nseed: 8", "seed", "given twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_refused_with_its_number_and_field(case: str) -> None:
    old, new, field, hint = WRONG[case]
    assert GOOD.count(old) == 1
    # The least crop is that of one loss.
    text = GOOD.replace("image_weighted", "rmi").replace("relaxation: 3", "relaxation: 0")
    text = text.replace("confidence: true", "confidence: false")
    text = text if case == "small crop" else GOOD
    message = refusal(write(text.replace(old, new)))
    # What is missing stands where its section begins, and two batch sizes do not agree on the line of the second.
    line = (
        text[: text.index(old)].count("\n")
        + 1
        + {"root": -2, "global batch": 1, "twice": 1, "relaxed rmi": 3}.get(case, 0)
    )
    assert message.startswith(f"r.yaml:{line}: {field}: ")
    assert hint in message


def test_a_missing_recipe_is_refused_with_the_shipped_ones() -> None:
    message = refusal("gta6")
    assert (
        message
        == f"gta6: no such manifest; the package ships {', '.join(sorted([*NAMES, 'cityscapes-autolabel', 'demo']))}"
    )


def test_a_manifest_is_no_recipe() -> None:
    path = write("version: 1\noutput: o\nmodels: []\ndatasets: []\n", "m.yaml")
    message = refusal(path)
    assert "m.yaml:1: data: is missing" in message
    assert message.endswith("more problems")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gta", "did you mean 'gta5'? known: cityscapes, "),
        ("kitti", "--dataset kitti: is not known; known: cityscapes, bdd100k, idd, mapillary, wilddash, gta5, shift"),
        ("demo", "known: cityscapes"),
        ("../gta5", "known: cityscapes"),
        ("", "known: cityscapes"),
        ("a\nb", "--dataset a\\nb"),
    ],
)
def test_an_unknown_dataset_is_refused_with_the_known(name: str, hint: str) -> None:
    with pytest.raises(ManifestError) as caught:
        recipe_of(name)
    message = str(caught.value)
    assert hint in message
    assert message.count("cityscapes, ") == 1
    assert message.isprintable()


@pytest.mark.parametrize(
    "text", ["", "32", "32x", "x32", "32*64", "32x64x3", "-1x3", "1.5x2", "1234567x1", "a\nb", "²x3"]
)
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match=r"--crop-size .*: write HEIGHTxWIDTH, such as 1052x1914") as caught:
        parse_size(text, "--crop-size", "1052x1914")
    assert str(caught.value).isprintable()


SETTINGS = {
    "flip": "--set flip: write KEY=VALUE, such as augmentation.flip=0.0",
    "=1": "--set =1: write KEY=VALUE",
    "a..b=1": "write KEY=VALUE",
    "flp=1": "r.yaml: flp: unknown key; known: version, output, ",
    "augmentation.flp=1": "r.yaml: augmentation.flp: unknown key; did you mean 'flip'? (given on the command line)",
    "augmentation.flip=yes": "augmentation.flip: a number is needed, not true (given on the command line)",
    "augmentation.flip=often": "augmentation.flip: a number is needed, not the text 'often'",
    "optimizer.lr=1e-3": "optimizer.lr: a number is needed, not the text '1e-3'; write 0.001",
    "optimizer.lr=": "optimizer.lr: a number is needed, not nothing",
    "optimizer=null": "optimizer: is empty; fill it in or leave it out",
    "optimizer=3": "optimizer: a mapping (key: value) is needed, not the number 3",
    "epochs.more=3": "--set epochs.more=3: epochs is the number 3, no section; write epochs=VALUE",
    "epochs.a.b=3": "epochs is the number 3, no section",
    "augmentation.crop=[8]": "augmentation.crop: a list of two is needed, not of 1",
    "augmentation.crop=[8, 8, 8]": "augmentation.crop: a list of two is needed, not of 3",
    "augmentation.crop=8": "augmentation.crop: a list is needed, not the number 8",
    "augmentation.crop=[8, 0]": "augmentation.crop[1]: must be 1 or more, not 0",
    "augmentation.rand_augment={magnitude: 3}": "one value is needed, not a mapping; set its keys one by one",
    "augmentation.flip=[": "--set augmentation.flip=[: the text '[' is no value in YAML; put text in quotes",
    "data.train=2024-01-99": "no value in YAML; put text in quotes",
    "data.train=2024-01-01": "a number, a text, a list, true, false or null is needed; put text in quotes",
    "data.train=!!binary aGk=": "a number, a text, a list, true, false or null is needed",
    "data.train=!!python/object:os.system x": "no value in YAML",
    "validation.scales=!!set {1.0}": "a number, a text, a list, true, false or null is needed",
    "validation.scales=&a [1.0, *a]": "validation.scales[1]: a number is needed, not a list",
    f"seed={'[' * 3000}": "is no value in YAML",
    "output=x": "--set output=x: use --output, whose paths start where you are",
    "data.root=x": "use --root",
    "data.cache=x": "use --cache",
    "init.checkpoint=x": "use --init",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_wrong_setting_is_refused(setting: str) -> None:
    message = refusal(write(GOOD), settings=[setting])
    assert SETTINGS[setting] in message
    assert len(message) < 500


def test_a_setting_does_not_hide_what_the_file_has_wrong() -> None:
    path = write(GOOD.replace("flip: 0.25", "flip: 3").replace("epochs: 3", "epochs: 0"))
    message = refusal(path, settings=["augmentation.color_jitter=0"])
    assert "r.yaml:25: epochs: must be 1 or more, not 0" in message
    assert "line 39: augmentation.flip: must lie between 0 and 1, not 3" in message


@settings(deadline=None)
@given(text=st.text(max_size=40) | st.from_regex(r"[a-z_]{0,9}(\.[a-z_]{0,9})?=[\[\]{}&*!,:0-9a-z. \"'-]{0,12}"))
@example("epochs=0x")
@example("epochs=1:1")
@example("seed=" + "9" * 5000)
def test_whatever_set_is_given_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(GOOD)
    try:
        load_recipe(path, settings=[text])
    except ManifestError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_checkpoint_is_refused(name: str) -> None:
    assert refusal(write(GOOD), init=name) == "--init: an empty name is no file; name one, or random"
