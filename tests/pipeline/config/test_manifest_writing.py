"""A manifest that is written out says, wherever it is read again, what it said before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hmsa_pipeline.datasets.layout.find_images import LAYOUTS
from hmsa_pipeline.models.registry import ARCHITECTURES
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.config.manifest import Manifest
from hypothesis import given, settings
from hypothesis import strategies as st

MINIMAL = """\
version: 1
output: out
models: [{name: a, arch: hrnet_ocr, checkpoint: a.pth}]
datasets: [{name: d, type: folder, root: d}]
"""
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
PATHS = st.one_of(
    st.sampled_from(
        ["a/b.pth", "/abs/x", "~/y", "${SET}/z", "${NOWHERE}/z", "w/${NOWHERE}/z", "~", "..", "a/./b//c/"]
    ),
    st.text(st.characters(exclude_characters="\0$", exclude_categories=["Cs"]), min_size=1).filter(
        lambda text: text.strip() and not text.startswith("~")
    ),
)


def entries(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """One to four entries whose names differ when case does not count; optional fields come and go."""
    entry = st.fixed_dictionaries({"name": NAMES}, optional=fields)
    return st.lists(entry, min_size=1, max_size=4, unique_by=lambda entry: entry["name"].lower())


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Valid manifests, with every optional key there or not."""
    text = st.text(st.characters(exclude_categories=["Cs"]))
    models = draw(entries(source=text, temperature=POSITIVE, weight=POSITIVE))
    for member in models:
        member["arch"] = draw(st.sampled_from([*ARCHITECTURES, "external"]))
        if member["arch"] != "external":
            member["checkpoint"] = draw(PATHS)
            member["sha256"] = draw(st.none() | st.from_regex(r"[0-9a-fA-F]{64}", fullmatch=True))
    datasets = draw(entries(split=st.none() | text))
    for dataset in datasets:
        dataset |= {"type": draw(st.sampled_from(list(LAYOUTS))), "root": draw(PATHS)}
    scales = draw(st.lists(POSITIVE, max_size=3, unique=True).filter(lambda scales: 1.0 not in scales))
    inference = st.fixed_dictionaries(
        {},
        optional={
            "scales": st.permutations([*scales, 1.0]),
            "flip": st.booleans(),
            "precision": st.sampled_from(["fp16", "bf16", "fp32"]),
        },
    )
    ensemble = st.fixed_dictionaries(
        {},
        optional={
            "label": st.sampled_from(["mean-softmax", "mean-logit"]),
            "confidence": st.sampled_from(["mean-softmax", "mutual-information", "disagreement", "energy", "rba"]),
        },
    )
    tree = {"version": 1, "output": draw(PATHS.filter(lambda path: "NOWHERE" not in path))}
    sections = st.fixed_dictionaries({}, optional={"inference": inference, "ensemble": ensemble})
    return tree | draw(sections) | {"models": models, "datasets": datasets}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


def load_in(folder: Path, name: str, text: str, **environment: str) -> Manifest:
    """Load ``text`` as a file of its own, from a folder of its own, under some environment variables."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "m.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / name)
        for variable, value in environment.items():
            patch.setenv(variable, value)
        return load_manifest(folder / name / "m.yaml")


@settings(deadline=None, max_examples=60)
@given(tree=trees(), flow=st.booleans())
def test_a_manifest_written_out_loads_as_the_same(folder: Path, tree: dict[str, Any], flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow)
    first = load_in(folder, "one", text, SET="/set", HOME="/home/me")
    second = load_in(folder, "two", first.to_yaml(), SET="/other", HOME="/home/other")
    assert second == first
    assert second.to_yaml() == first.to_yaml()
    assert hash(second) == hash(first)
    assert yaml.safe_load(first.to_yaml()) == first.resolved() == json.loads(json.dumps(first.resolved()))

    # What was written is what is read.
    assert first.inference.scales == tuple(tree.get("inference", {}).get("scales", [0.5, 1.0, 2.0]))
    for given_, read in zip(tree["models"] + tree["datasets"], first.models + first.datasets, strict=True):
        kept = {key: value for key, value in given_.items() if key not in ("checkpoint", "root", "sha256")}
        assert read.model_dump(include=set(kept)) == kept
    assert first.output.is_absolute()


@pytest.mark.parametrize(
    "text", ["a\x85b", "\u2028", "\ufeffa", "a\nb\tc", " a ", "\x7f", "no", "1", "~", "2024-01-01"]
)
def test_text_that_yaml_is_delicate_about_survives(folder: Path, text: str) -> None:
    tree = yaml.safe_load(MINIMAL) | {"output": f"o/{text}"}
    tree["models"][0]["source"] = text
    first = load_in(folder, "one", json.dumps(tree))
    assert first.models[0].source == text
    assert load_in(folder, "two", first.to_yaml()) == first


def test_letters_of_any_language_stay_readable(folder: Path) -> None:
    manifest = load_in(folder, "one", MINIMAL.replace("a.pth", "gewichte/größe.pth"))
    assert "gewichte/größe.pth" in manifest.to_yaml()
