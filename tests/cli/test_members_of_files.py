"""Members whose manifest says what their files do not, through the command line: timm with a linear head."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.adapters.load import load_member
from hmsa_pipeline.models.adapters.settings import AdapterSettings
from hmsa_pipeline.pipeline.store.logit_store import LogitStore

from .bench import Bench, attributes, run

os.environ["HF_HUB_OFFLINE"] = "1"

import timm

from ..models.adapters.graph_nets import Small
from ..models.adapters.test_onnx import export
from ..models.adapters.test_traced import export as export_program
from ..models.adapters.test_traced import trace

NAMES = list(CLASS_NAMES)
NUMBERS: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
TIMM = {"arch": "timm_linear", "checkpoint": "vit.pth", "backbone": "test_vit.r160_in1k", "classes": NAMES}

ONNX = {"arch": "onnx", "checkpoint": "a.onnx", "backbone": "", "classes": NAMES, **NUMBERS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A file of each kind, and two photographs of odd sizes; tests take a copy."""
    bench = Bench(
        tmp_path_factory.mktemp("members"),
        {
            "version": 1,
            "inference": {"scales": [1.0], "precision": "fp32"},
            "models": [{"name": "vit", **TIMM}],
            "datasets": [{"name": "garden", "type": "folder", "root": "photos/garden"}],
        },
    )
    torch.manual_seed(0)
    state = {
        f"backbone.{key}": value for key, value in timm.create_model("test_vit", num_classes=0).state_dict().items()
    }
    torch.save(state | {"head.weight": torch.randn(19, 64), "head.bias": torch.randn(19)}, bench.root / "vit.pth")
    export(bench.root / "a.onnx", Small())
    trace(bench.root / "a.pt", Small().eval())
    export_program(bench.root / "a.pt2", Small().eval())
    bench.photo("garden/a.png", 64, 96, seed=1)
    bench.photo("garden/b.png", 61, 83, seed=2)
    return bench.save()


@pytest.fixture
def bench(saved: Bench, tmp_path: Path) -> Bench:
    return saved.copy(tmp_path / "bench")


def changed(bench: Bench, **values: Any) -> Bench:
    """The manifest with its one member changed."""
    bench.tree["models"] = [{key: value for key, value in (bench.tree["models"][0] | values).items() if value != ""}]
    return bench.save()


def assert_dumped(bench: Bench, settings: AdapterSettings) -> dict[str, Any]:
    """Dump, compare each image with the network run in this process; return what the store says of it."""
    result = bench.run("dump", *(["--trust"] if settings.trusted else []))
    assert result.code == 0, result
    network = load_member(settings)
    store = LogitStore.open(bench.store("garden", "vit"))
    for entry in store.images:
        pixels = normalise(decode_image(bench.root / "photos/garden" / entry.path)[None])
        wanted = network.predict(pixels, [1.0])[0]
        found = torch.from_numpy(store.read(store.index[entry.path])).float()
        torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-3)
    return attributes(bench.store("garden", "vit"))["preprocessing"]


def test_a_backbone_of_timm_is_dumped(bench: Bench) -> None:
    settings = AdapterSettings(
        "timm_linear", bench.root / "vit.pth", CLASS_NAMES, classes=CLASS_NAMES, backbone="test_vit.r160_in1k"
    )
    said = assert_dumped(bench, settings)
    assert (said["network"], said["layers"], said["norm"]) == ("test_vit.r160_in1k with a linear head", [5], True)
    assert said["mean"] == [0.5] * 3
    refused = changed(bench, norm=False).run("dump").refusal()
    assert "preprocessing" in refused
    checked = run("manifest", "check", "--manifest", str(changed(bench, layers=[5]).manifest))
    assert checked.code == 0, checked


def test_an_onnx_file_is_dumped(bench: Bench) -> None:
    path, numbers = bench.root / "a.onnx", {key: tuple(value) for key, value in NUMBERS.items()}
    said = assert_dumped(
        changed(bench, **ONNX), AdapterSettings("onnx", path, CLASS_NAMES, classes=CLASS_NAMES, **numbers)
    )
    assert (said["network"], said["kind"], said["mean"], said["multiple"]) == ("ONNX", "logits", NUMBERS["mean"], 32)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    checked = run("manifest", "check", "--manifest", str(changed(bench, sha256=digest).manifest))
    assert "its sha256 is that of the manifest" in checked.out, checked
    assert bench.run("predict").code == 0


@pytest.mark.parametrize(("arch", "file"), [("torchscript", "a.pt"), ("exported", "a.pt2")])
def test_code_is_loaded_with_trust_alone(arch: str, file: str, bench: Bench) -> None:
    changed(bench, **ONNX | {"arch": arch, "checkpoint": file})
    for command in ("dump", "predict"):
        refused = bench.run(command).refusal()
        assert f"arch: {arch} is code" in refused and "add --trust" in refused
    checked = run("manifest", "check", "--manifest", str(bench.manifest))
    assert (checked.code, "add --trust" in checked.out) == (2, True), checked
    assert not bench.output.exists()
    assert run("manifest", "check", "--manifest", str(bench.manifest), "--trust").code == 0
    numbers = {key: tuple(value) for key, value in NUMBERS.items()}
    path = bench.root / file
    said = assert_dumped(
        bench, AdapterSettings(arch, path, CLASS_NAMES, classes=CLASS_NAMES, trusted=True, **numbers)
    )
    assert (said["kind"], said["multiple"]) == ("logits", 32)
    predicted = bench.run("predict", "--trust", "--workers", "1", "--output", str(bench.root / "other"))
    assert predicted.code == 0, predicted


def test_trust_is_refused_where_no_model_is_code(bench: Bench) -> None:
    assert (
        "--trust: changes nothing, no model is of arch torchscript or exported"
        in bench.run("dump", "--trust").refusal()
    )
    assert "_trusted" in changed(bench, _trusted=True).run("dump").refusal()


WRONG = {
    "no backbone": ({"backbone": ""}, "backbone: is missing; give the backbone's name in timm"),
    "unknown backbone": ({"backbone": "test_vit9"}, "knows no 'test_vit9'; did you mean 'test_vit"),
    "hub backbone": ({"backbone": "hf-hub:owner/vit"}, "names on a hub are not fetched"),
    "no file": ({"checkpoint": "owner/vit"}, "names on a hub are not fetched"),
    "layers": ({"layers": [2, 2]}, "layers[1]: 2 follows 2; name each layer once, ascending"),
    "layer": ({"layers": [17]}, "layers: there is no 17, the backbone has 0 to 5"),
    "no names": ({"classes": ""}, "its 19 classes have no names; name them in their order"),
    "too few": ({"classes": NAMES[:7]}, "'classes' names 7 classes, the network has 19"),
    "no numbers": (ONNX | {"mean": "", "std": ""}, "mean: is missing; give 'mean' and 'std'"),
    "kind": (ONNX | {"kind": "scores"}, "kind: scores, but its output goes down to"),
    "unknown kind": (ONNX | {"kind": "score"}, "kind: "),
    "kind of timm": ({"kind": "logits"}, "means nothing to 'timm_linear', only to onnx"),
    "no onnx": (ONNX | {"checkpoint": "vit.pth"}, "is truncated, damaged or no ONNX file"),
    "layers of smp": ({"arch": "smp", "backbone": "", "layers": [1]}, "means nothing to 'smp', only to timm_linear"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_in_one_line_before_any_work(name: str, bench: Bench) -> None:
    values, message = WRONG[name]
    assert message in changed(bench, **values).run("dump").refusal()
    assert not bench.output.exists()


@pytest.mark.parametrize(("library", "values"), [("timm", {}), ("onnx", ONNX), ("onnxruntime", ONNX)])
def test_without_the_library_its_extra_is_named(
    library: str, values: dict[str, Any], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert "pip install 'hmsa-pipeline[members]'" in changed(bench, **values).run("dump").refusal()
