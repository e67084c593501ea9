"""What every command says of a manifest that cannot be: one line, exit code 2, and nothing is touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from .bench import Bench, changed, run

Tree = dict[str, Any]

COMMANDS: dict[str, list[str]] = {
    "dump": ["dump"],
    "ensemble": ["ensemble"],
    "status": ["status"],
    "verify": ["verify"],
    "verify --repair": ["verify", "--repair"],
    "import-logits": ["import-logits", "--model", "ant", "--dataset", "street", "."],
    "manifest show": ["manifest", "show"],
    "manifest check": ["manifest", "check"],
}

every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def refused(bench: Bench, command: list[str], *options: str) -> str:
    """What a command says of the manifest, having changed nothing."""
    said: list[str] = []

    def attempt() -> None:
        said.append(run(*command, "--manifest", str(bench.manifest), *options).refusal())

    assert changed(bench.root, attempt) == set()
    return said[0]


TEXTS = {
    "bad YAML": (b"version: 1\nmodels: [\n", r":3: not valid YAML: "),
    "a tab": (b"version: 1\nmodels:\n\t- name: a\n", r":3: not valid YAML: .*indent with spaces, not tabs"),
    "empty": (b"", ": the file is empty"),
    "a list": (b"- version: 1\n", ":1: a mapping .* is needed, not a list"),
    "not UTF-8": (b"version: 1\noutput: \xff\n", ":2: is not UTF-8"),
    "binary": (b"\x89PNG\0\0", ": is a binary file"),
}


@every_command
def test_a_manifest_that_is_not_there(empty: Bench, command: list[str]) -> None:
    empty.manifest.unlink()
    assert refused(empty, command).startswith(f"{empty.manifest}: no such manifest; the package ships bravo, ")


@every_command
@pytest.mark.parametrize("text", TEXTS)
def test_a_file_that_is_no_manifest(empty: Bench, command: list[str], text: str) -> None:
    content, said = TEXTS[text]
    empty.manifest.write_bytes(content)
    assert re.match(re.escape(str(empty.manifest)) + said, refused(empty, command))


def model(**settings: Any) -> Callable[[Tree], None]:
    return lambda tree: tree["models"][1].update(settings)


def dataset(**settings: Any) -> Callable[[Tree], None]:
    return lambda tree: tree["datasets"][1].update(settings)


def inference(**settings: Any) -> Callable[[Tree], None]:
    return lambda tree: tree["inference"].update(settings)


def ensemble(label: str, weight: float) -> Callable[[Tree], None]:
    return lambda tree: (tree.update(ensemble={"label": label}), tree["models"][0].update(weight=weight))[0]


SETTINGS: dict[str, tuple[Callable[[Tree], None], str]] = {
    "an unknown key": (lambda tree: tree.update(modles=1), "modles: unknown key; did you mean 'models'?"),
    "an unknown key within": (
        model(temprature=2.0),
        "models[1].temprature: unknown key; did you mean 'temperature'?",
    ),
    "another version": (
        lambda tree: tree.update(version=2),
        "version: this release reads version 1, not the number 2",
    ),
    "no models": (lambda tree: tree.pop("models"), "models: is missing"),
    "an unknown architecture": (model(arch="hrnet_ocr_mscal"), "did you mean 'hrnet_ocr_mscale'?"),
    "an unknown type": (dataset(type="bravos"), "datasets[1].type: the text 'bravos' is not known; did you mean"),
    "two models of one name": (model(name="ANT"), "'ANT' is also the name of models[0]"),
    "two datasets of one name": (dataset(name="street"), "'street' is also the name of datasets[0]"),
    "a model's name that climbs": (model(name="../bee"), "models[1].name: the text '../bee' cannot name files"),
    "a model named like its folder": (model(name=".."), "models[1].name: the text '..' cannot name files"),
    "a model's name with a folder": (model(name="a/bee"), "models[1].name: the text 'a/bee' cannot name files"),
    "an absolute model": (model(name="/tmp/bee"), "models[1].name: the text '/tmp/bee' cannot name files"),
    "a dataset's name that climbs": (dataset(name="../../x"), "datasets[1].name: the text '../../x' cannot name"),
    "a hidden dataset": (dataset(name=".garden"), "datasets[1].name: the text '.garden' cannot name files"),
    "an endless name": (dataset(name="g" * 300), "datasets[1].name: names files, so 100 characters at most"),
    "scales without 1.0": (inference(scales=[0.5, 2.0]), "inference.scales: must contain 1.0"),
    "no scales": (inference(scales=[]), "inference.scales: must contain 1.0"),
    "a scale of zero": (inference(scales=[1.0, 0.0]), "inference.scales[1]: must be above 0, not 0"),
    "a negative scale": (inference(scales=[-0.5, 1.0]), "inference.scales[0]: must be above 0, not -0.5"),
    "an infinite scale": (inference(scales=[1.0, float("inf")]), "inference.scales[1]: a finite number is needed"),
    "a scale twice": (inference(scales=[1.0, 0.5, 1]), "inference.scales[2]: 1 stands twice"),
    "an unknown precision": (inference(precision="fp8"), "inference.precision: "),
    "a negative weight": (model(weight=-1.0), "models[1].weight: must be 0 or more, not -1"),
    "a temperature of zero": (model(temperature=0), "models[1].temperature: must be above 0, not 0"),
    "weights for a maximum": (
        ensemble("max-softmax", 2.0),
        "models[0].weight: 2 means nothing to ensemble.label max",
    ),
    "a checkpoint for nothing": (model(arch="external"), "models[1].checkpoint: an external model has none"),
    "a sha256 of words": (model(sha256="abc"), "models[1].sha256: 64 hexadecimal digits are needed"),
}


@every_command
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_cannot_be(empty: Bench, command: list[str], setting: str) -> None:
    change, said = SETTINGS[setting]
    change(empty.tree)
    message = refused(empty.save(), command)
    assert re.match(re.escape(str(empty.manifest)) + r":\d+: ", message)
    assert said in message


@every_command
def test_an_output_whose_variable_is_not_set(empty: Bench, command: list[str]) -> None:
    empty.manifest.write_text(empty.manifest.read_text().replace(str(empty.output), "${NOWHERE}/run"))
    assert "the environment variable NOWHERE is not set" in refused(empty, command)


@every_command
def test_every_problem_is_said_at_once(empty: Bench, command: list[str]) -> None:
    empty.tree["inference"] |= {"scales": [2.0], "flop": True}
    empty.tree["datasets"][0]["split"] = 3
    message = refused(empty.save(), command)
    for place in ("inference.scales", "inference.flop", "datasets[0].split"):
        assert place in message


CHOICES = {
    ("--models", "ant,bea"): "no model 'bea' in the manifest; did you mean 'bee'?",
    ("--datasets", "../street"): "no dataset '../street' in the manifest; did you mean 'street'?",
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("command", ["dump", "ensemble", "status", "verify"])
def test_a_choice_that_is_not_in_the_manifest(empty: Bench, command: str, choice: tuple[str, str]) -> None:
    assert refused(empty, [command], *choice) == CHOICES[choice]


FLAGS = {
    ("dump", "--precision", "fp8"): "inference.precision",
    ("ensemble", "--label", "mean"): "ensemble.label",
    ("ensemble", "--confidence", "maximum"): "ensemble.confidence",
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_cannot_be_is_said_like_a_setting(empty: Bench, flag: tuple[str, str, str]) -> None:
    message = refused(empty, list(flag))
    assert message.startswith(f"{empty.manifest}: {FLAGS[flag]}: ")
    assert message.endswith("(given on the command line)")
