"""``export``: a network as one graph, which other programs and ``arch: onnx`` run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino  # pyright: ignore[reportMissingImports]
import pytest
import torch
import yaml
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.checkpoint import load_weights
from hmsa_pipeline.models.export import write_graph
from hmsa_pipeline.models.registry import build
from torch import Tensor

from .bench import TINY, Bench, files, run, stored

SIZES = ((48, 80), (33, 57), (20, 21), (130, 67))
# Exporting takes time for every pass through the network.
SCALES = {"scales": [0.75, 1.0]}
MIRRORED = {"scales": [1.0], "flip": True}


@pytest.fixture(scope="module")
def exported(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """`fresh` with two files: ``ant.onnx``, logits of two scales, and ``bee.pt2``, predictions with flip."""
    bench = fresh.copy(tmp_path_factory.mktemp("exported") / "bench")
    bench.tree["models"][0] |= {"inference": SCALES}
    bench.tree["models"][1] |= {"inference": MIRRORED, "temperature": 2.0}
    bench.tree["models"][2] |= {"inference": {"scales": [1.0]}}
    bench.save()
    result = bench.run("export", "--models", "ant", "--write", str(bench.root / "ant.onnx"))
    assert (result.code, result.err) == (0, ""), result
    # Of random weights, some pixels have two highest logits that rounding puts in another order.
    assert re.search("the same class as the network's on (100.00|99.9.) % of the pixels", result.out)
    (bench.root / "said.txt").write_text(result.out)
    result = bench.run("export", "--models", "bee", "--result", "prediction", "--write", str(bench.root / "bee.pt2"))
    assert (result.code, result.err) == (0, ""), result
    return bench


def logits_of(bench: Bench, name: str, image: Tensor, scales: Any, flip: Any = False) -> Tensor:
    """Logits of the network itself, nothing folded."""
    network = build(TINY)
    load_weights(network, bench.root / f"weights/{name}.pth", TINY)
    return network.predict(normalise(image), scales, flip)


def noise(size: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(256, (1, 3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_the_figures_are_those_of_the_file(exported: Bench, tmp_path: Path) -> None:
    path = tmp_path / "cat.pt2"
    words = ("--models", "cat", "--result", "prediction", "--write", str(path), "--json", "-")
    result = run("export", "--manifest", str(exported.manifest), *words)
    assert (result.code, len(result.err.splitlines())) == (0, 1), result
    assert (result.figures["file"], result.figures["bytes"]) == (str(path), path.stat().st_size)
    assert 0.999 < result.figures["same"] <= 1
    assert 0 <= result.figures["difference"] < 1e-4


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_onnx_runtime_gives_the_logits_of_the_network_at_any_size(exported: Bench, size: tuple[int, int]) -> None:
    session = onnxruntime.InferenceSession(exported.root / "ant.onnx")
    image = noise(size, 1)
    (found,) = session.run(["logits"], {"image": image.numpy()})
    expected = logits_of(exported, "ant", image, SCALES["scales"])
    torch.testing.assert_close(torch.from_numpy(np.asarray(found)), expected, rtol=1e-4, atol=1e-4)


def test_the_file_is_valid_and_says_what_it_takes(exported: Bench) -> None:
    onnx.checker.check_model(exported.root / "ant.onnx", full_check=True)
    model = onnx.load(exported.root / "ant.onnx")
    (image,), (logits,) = model.graph.input, model.graph.output
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sides = [(one.dim_value, one.dim_param != "") for one in image.type.tensor_type.shape.dim]
    assert sides == [(1, False), (3, False), (0, True), (0, True)]
    assert [one.dim_value for one in logits.type.tensor_type.shape.dim][:2] == [1, 19]
    own = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(own["hmsa_pipeline.classes"]) == list(CLASS_NAMES)
    assert not list(exported.root.glob("*.data"))


def test_the_onnx_file_holds_no_sequences(exported: Bench) -> None:
    """OpenVINO does not read them; they come of tensors that are split into as many parts as their size asks for."""
    model = onnx.load(exported.root / "ant.onnx")
    inside = {node.op_type for graph in (model.graph, *model.functions) for node in graph.node}
    assert "Conv" in inside
    assert not [name for name in inside if "Sequence" in name]


@pytest.mark.parametrize("size", [(96, 160), (75, 123)], ids=str)
def test_a_prediction_is_class_and_probability_at_the_models_temperature(
    exported: Bench, size: tuple[int, int]
) -> None:
    program = torch.export.load(exported.root / "bee.pt2")
    image = noise(size, 2)
    classes, confidence = program.module()(image)
    probabilities = (logits_of(exported, "bee", image, **MIRRORED) / 2.0).softmax(1)
    assert (classes.dtype, classes.shape) == (torch.uint8, (1, *size))
    assert (classes == probabilities.argmax(1)).float().mean() > 0.999
    torch.testing.assert_close(confidence, probabilities.amax(1), rtol=1e-5, atol=1e-5)


def test_the_model_that_is_printed_runs_the_file(exported: Bench, tmp_path: Path) -> None:
    """Its logits are those of the network in float32, at odd sizes too, as float16 holds them."""
    bench = exported.copy(tmp_path / "bench")
    lines = (bench.root / "said.txt").read_text().partition("runs it:\n")[2].splitlines()
    assert lines[:3] == ["- name: ant", "  arch: onnx", f"  checkpoint: {exported.root / 'ant.onnx'}"]
    bench.tree["models"] = yaml.safe_load("\n".join(lines))
    result = bench.save().run("dump")
    assert result.code == 0, result
    logits = stored(bench.store("street", "ant"))
    assert sorted(logits) == ["day/a.png", "day/b.jpg", "night/c.png", "night/d.png"]
    for path, found in logits.items():
        image = decode_image(bench.root / "photos/street" / path)[None]
        expected = logits_of(bench, "ant", image, SCALES["scales"])[0].numpy()
        assert np.abs(found.astype(np.float32) - expected).max() <= 2e-3 * np.abs(expected).max() + 1e-3


@pytest.fixture(scope="module")
def openvino_file(exported: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``cat.xml``, a prediction, with its weights in ``cat.bin``."""
    path = tmp_path_factory.mktemp("openvino") / "cat.xml"
    words = ("--models", "cat", "--result", "prediction", "--write", str(path), "--json", "-")
    result = run("export", "--manifest", str(exported.manifest), *words)
    assert result.code == 0, result
    assert sorted(file.name for file in path.parent.iterdir()) == ["cat.bin", "cat.xml"]
    assert result.figures["bytes"] == sum(file.stat().st_size for file in path.parent.iterdir())
    assert result.figures["same"] > 0.999
    return path


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_openvino_gives_the_class_and_probability_of_the_network_at_any_size(
    exported: Bench, openvino_file: Path, size: tuple[int, int]
) -> None:
    model = openvino.Core().compile_model(openvino_file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = noise(size, 3)
    found = model({"image": image.numpy()})
    probabilities = logits_of(exported, "cat", image, [1.0]).softmax(1)
    assert (found["classes"].dtype, found["classes"].shape) == (np.uint8, (1, *size))
    assert (found["classes"] == probabilities.argmax(1).numpy()).mean() > 0.999
    np.testing.assert_allclose(found["confidence"], probabilities.amax(1).numpy(), rtol=1e-4, atol=1e-5)


def test_openvinos_files_name_the_classes_and_hold_the_weights_in_full(openvino_file: Path) -> None:
    model = openvino.Core().read_model(openvino_file)
    assert json.loads(model.get_rt_info(["hmsa_pipeline", "classes"]).value) == list(CLASS_NAMES)
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert {"f16", "bf16"}.isdisjoint(node.get_element_type().get_type_name() for node in constants)


def test_openvinos_weights_are_not_written_over_unasked(exported: Bench, tmp_path: Path) -> None:
    (tmp_path / "cat.bin").write_bytes(b"before")
    words = ("export", "--models", "cat", "--write", str(tmp_path / "cat.xml"))
    said = (
        f"--write {tmp_path / 'cat.xml'}: its weights, {tmp_path / 'cat.bin'}, are there already; name another file"
    )
    assert said in exported.run(*words).refusal()
    assert files(tmp_path) == {"cat.bin": b"before"}
    result = exported.run(*words, "--overwrite")
    assert (result.code, "A model of a manifest" in result.out) == (0, False), result
    assert len((tmp_path / "cat.bin").read_bytes()) > 1000


def test_bytes_with_other_numbers_are_refused(exported: Bench, tmp_path: Path) -> None:
    bench = exported.copy(tmp_path / "bench")
    numbers = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    bench.tree["models"] = [{"name": "ant", "arch": "onnx", "checkpoint": "ant.onnx", **numbers}]
    message = bench.save().run("dump").refusal()
    assert "ant.onnx: takes bytes, which it scales itself; give 'mean: [0, 0, 0]' and 'std: [1, 1, 1]'" in message


def test_a_graph_that_gives_something_else_is_not_kept(
    exported: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was at the path before stays."""
    path = tmp_path / "bee.pt2"
    path.write_bytes(b"before")

    def wrong(graph: Any, written: Any, kind: str, classes: Any) -> None:
        graph.flip = False
        right(graph, written, kind, classes)

    right = write_graph.write_graph
    monkeypatch.setattr("hmsa_pipeline.pipeline.exporting.export.write_graph", wrong)
    result = exported.run("export", "--models", "bee", "--write", str(path), "--overwrite")
    message = result.refusal()
    assert f"{path}: the graph gives " in message
    assert "than the network for an image of 96x160" in message
    assert files(tmp_path) == {"bee.pt2": b"before"}


def test_wrong_input_is_refused_before_the_network_is_built(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*words: str) -> str:
        before = files(empty.root)
        message = empty.run("export", *words).refusal()
        assert files(empty.root) == before
        return message

    target = str(empty.root / "x.onnx")
    ant = ("--models", "ant", "--write")
    assert refusal("--write", target) == "--models: name the one that is exported, of ant, bee, cat"
    assert "no format ends so; name a file that ends in .onnx (onnx), .pt2 (exported), .xml (openvino)" in refusal(
        *ant, "net.pb"
    )
    assert "files of --format exported end in .pt2; name it so" in refusal(*ant, target, "--format", "exported")
    assert "--format onix: is none; did you mean 'onnx'?" in refusal(*ant, target, "--format", "onix")
    assert "--result class: is none; known: logits, prediction" in refusal(*ant, target, "--result", "class")
    there = str(empty.root / "weights/ant.pth")
    assert f"--write {there}: is there already; name another file, or add --overwrite" in refusal(*ant, there)
    assert "is a directory" in refusal(*ant, str(empty.root)).lower()
    empty.tree["models"][0]["calibration"] = [{"method": "vector", "scale": [1.0] * 19, "bias": [0.5] * 19}]
    empty.save()
    message = refusal(*ant, target, "--result", "prediction")
    assert (
        "model 'ant': its calibration, unlike one temperature, is no part of a graph; take --result logits" in message
    )
    empty.tree["models"][0]["inference"] = {"scales": [0.29, 1.0]}
    empty.save()
    message = refusal(*ant, target)
    assert "model 'ant': inference.scales: no fraction scales images as 0.29 does; take one such as 0.5" in message
    empty.tree["models"][0] = {
        "name": "ant",
        "arch": "onnx",
        "checkpoint": "a.onnx",
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
    }
    empty.save()
    assert "model 'ant': is a network of another library (arch: onnx); export it with" in refusal(*ant, target)
    empty.tree["models"][0] = {"name": "ant", "arch": TINY, "checkpoint": "weights/ant.pth", "dropout": 2}
    empty.save()
    assert "draws random numbers for dropout, which a graph does not" in refusal(
        "--models", "ant-dropout1", "--write", target
    )
    empty.tree["models"][0] = {"name": "ant", "arch": TINY, "checkpoint": "weights/ant.pth"}
    empty.save()
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = refusal(*ant, str(empty.root / "x.xml"))
    assert "--format openvino needs the extra 'openvino'; pip install 'hmsa-pipeline[openvino]'" in message
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "--format onnx needs the extra 'export'; pip install 'hmsa-pipeline[export]'" in refusal(*ant, target)
