"""ONNX files as members, against the networks that they were exported from."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.errors import CheckpointError, HmsaError, ManifestError
from hmsa_pipeline.models.adapters.folder import parts_of, parts_sha256
from hmsa_pipeline.models.adapters.settings import View
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from .graph_nets import Small, assert_golden, member, picture, seen


def export(path: Path, network: nn.Module, size: tuple[int, int] = (64, 96), **options: Any) -> nn.Module:
    """Let torch write an ONNX file; sizes are dynamic unless ``dynamic_axes`` says otherwise."""
    given = {"dynamic_axes": {"image": {0: "batch", 2: "height", 3: "width"}}} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.randn(1, 3, *size),), str(path), dynamo=False, input_names=["image"], **given
        )
    return network


@pytest.mark.parametrize(("step", "multiple"), [(4, 32), (14, 14), (24, 48)])
def test_the_belief_is_the_network_s_and_sees_the_last_pixels(step: int, multiple: int, tmp_path: Path) -> None:
    network = export(tmp_path / "a.onnx", Small(step))
    ours = member("onnx", tmp_path / "a.onnx")
    assert (ours.body.sizes.multiple, ours.body.kind, ours.body.channels) == (multiple, "logits", 19)
    assert_golden(ours, network, multiple)


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_what_comes_out_is_what_the_manifest_says(kind: str, tmp_path: Path) -> None:
    network = export(tmp_path / "a.onnx", Small(ending=kind))
    assert_golden(member("onnx", tmp_path / "a.onnx", kind=kind), network, 32)
    with pytest.raises(ManifestError, match="no value of its output is below zero; say what they are with 'kind:"):
        member("onnx", tmp_path / "a.onnx")
    if kind == "scores":
        with pytest.raises(ManifestError, match=r"add up to .*; are they 'kind: scores'\?"):
            member("onnx", tmp_path / "a.onnx", kind="probabilities")


def test_a_graph_of_one_size_sees_windows(tmp_path: Path) -> None:
    network = export(tmp_path / "a.onnx", Small(), (64, 64), dynamic_axes=None)
    ours = member("onnx", tmp_path / "a.onnx")
    assert ours.view.as_json() == {"window": [64, 64], "stride": [48, 48]}
    pixels = picture(64, 64)
    with torch.no_grad():
        logits = nn.functional.interpolate(network(seen(pixels)), (64, 64), mode="bilinear")
    torch.testing.assert_close(ours.predict(normalise(pixels), [1.0]), logits, atol=1e-4, rtol=0)
    assert ours.predict(normalise(picture(61, 83)), [1.0]).shape == (1, 19, 61, 83)
    with pytest.raises(ManifestError, match="takes 64x64 only"):
        member("onnx", tmp_path / "a.onnx", view=View())


def test_pixels_that_a_fixed_size_leaves_out_are_found(tmp_path: Path) -> None:
    export(tmp_path / "a.onnx", Small(14), (64, 70), dynamic_axes=None)
    with pytest.raises(CheckpointError, match="the last row of 64x70 changes nothing"):
        member("onnx", tmp_path / "a.onnx")


def test_an_output_of_one_size_is_used_in_windows_of_its_shape_alone(tmp_path: Path) -> None:
    network = export(tmp_path / "a.onnx", Small(size=(16, 24)))
    with pytest.raises(CheckpointError, match="the output for 96x64 is 16x24, of another shape"):
        member("onnx", tmp_path / "a.onnx")
    ours, pixels = member("onnx", tmp_path / "a.onnx", view=View((64, 96))), picture(64, 96)
    with torch.no_grad():
        logits = nn.functional.interpolate(network(seen(pixels)), (64, 96), mode="bilinear")
    torch.testing.assert_close(ours.predict(normalise(pixels), [1.0]), logits, atol=1e-4, rtol=0)


def test_half_precision_runs_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    network = export(path, Small())
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for one in (*model.graph.input, *model.graph.output):
        one.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    onnx.save(model, path)
    ours, pixels = member("onnx", path), picture(64, 96)
    with torch.no_grad():
        logits = nn.functional.interpolate(network(seen(pixels)), (64, 96), mode="bilinear")
    found = ours.predict(normalise(pixels), [1.0])
    torch.testing.assert_close(found, logits, atol=0.02, rtol=0)
    assert found.dtype == torch.float32


def test_weights_beside_the_file_count_and_lie_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    network = export(path, Small())
    alone = parts_sha256("onnx", path)
    assert alone == hashlib.sha256(path.read_bytes()).hexdigest()
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="a.onnx.data", size_threshold=0)
    assert [part.name for part in parts_of("onnx", path)] == ["a.onnx", "a.onnx.data"]
    sums = [
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a.onnx", "a.onnx.data")
    ]
    assert parts_sha256("onnx", path) == hashlib.sha256("".join(sums).encode()).hexdigest()
    assert_golden(member("onnx", path), network, 32)
    content = (tmp_path / "a.onnx.data").read_bytes()
    (tmp_path / "a.onnx.data").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"its weight .* cannot be read .*; export the network again"):
        member("onnx", path)
    (tmp_path / "a.onnx.data").rename(tmp_path / "b.data")
    with pytest.raises(CheckpointError, match=r"its weights are in a\.onnx\.data, which is not there"):
        member("onnx", path)
    (tmp_path / "a.onnx.data").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="names weights outside of its folder"):
        member("onnx", path)


@pytest.mark.parametrize("name", ["../weights.data", "/etc/passwd"])
def test_weights_elsewhere_are_refused_in_whatever_graph_they_stand(name: str, tmp_path: Path) -> None:
    export(tmp_path / "a.onnx", Small())
    model = onnx.load(tmp_path / "a.onnx")
    value = TensorProto(name="value", data_type=TensorProto.FLOAT, dims=[1])
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value=name)
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=value)],
        "inner",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])],
    )
    condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    model.graph.node.extend([condition, helper.make_node("If", ["c"], ["r"], then_branch=inner, else_branch=inner)])
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(CheckpointError, match="names weights outside of its folder"):
        member("onnx", tmp_path / "a.onnx")


def test_of_two_maps_the_one_called_logits_is_taken(tmp_path: Path) -> None:
    network = export(tmp_path / "a.onnx", Small(ending="pair"), output_names=["features", "aux"])
    with pytest.raises(CheckpointError, match=r"has 2 outputs that may be its logits \(features, aux\); keep one"):
        member("onnx", tmp_path / "a.onnx")
    export(tmp_path / "a.onnx", network, output_names=["logits", "aux"])
    assert member("onnx", tmp_path / "a.onnx").body.channels == 19


class Turned(Small):
    """Takes channels last."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.permute(0, 3, 1, 2))


class TwoInputs(Small):
    """Takes a second image."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        return super().forward(x if y is None else x + y)


def channels_last(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Turned().eval(), (torch.randn(1, 64, 96, 3),), str(path), dynamo=False)


def two_inputs(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = (torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64))
        torch.onnx.export(TwoInputs().eval(), images, str(path), dynamo=False, input_names=["a", "b"])


def batch_of_two(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Small().eval(), (torch.randn(2, 3, 64, 64),), str(path), dynamo=False)


def no_number(path: Path) -> None:
    network = Small()
    network.head.weight.data[0] = torch.nan
    export(path, network)


def no_operation(path: Path) -> None:
    export(path, Small())
    model = onnx.load(path)
    model.graph.node[0].op_type = "Nothing"
    onnx.save(model, path)


def in_training(path: Path, network: nn.Module | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            (network or Small()).train(),
            (torch.randn(1, 3, 64, 64),),
            str(path),
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
        )


def with_dropout(path: Path) -> None:
    network = Small()
    network.norm = nn.Identity()
    in_training(path, network)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "names on a hub are not fetched"),
        (lambda path: path.mkdir(), "is a folder; name the file in it"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01." * 50), "is truncated, damaged or no ONNX file"),
        (lambda path: path.write_bytes(b""), "is truncated, damaged or no ONNX file"),
        (lambda path: export(path, Small(ending="classes")), "no output is a map of floats"),
        (channels_last, r"takes \(1, 64, 96, 3\), where \(batch, 3, height, width\) is needed"),
        (two_inputs, r"takes 2 inputs \(a, b\), where one image is needed"),
        (batch_of_two, "takes 2 images at a time"),
        (no_number, r"head\.weight holds NaN"),
        (no_operation, "ONNX Runtime .* cannot load it"),
        (in_training, "was exported in training mode .BatchNormalization"),
        (with_dropout, "was exported in training mode .Dropout"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "a.onnx")
    with pytest.raises(HmsaError, match=message) as refused:
        member("onnx", tmp_path / "a.onnx")
    assert len(str(refused.value).splitlines()) == 1


def test_what_the_graph_does_not_say_is_asked_for(tmp_path: Path) -> None:
    export(tmp_path / "a.onnx", Small())
    for settings, message in (
        ({"mean": None, "std": None}, "give 'mean' and 'std'"),
        ({"classes": None}, "its 19 classes have no names"),
        ({"kind": "probabilities"}, "its output goes down to"),
    ):
        with pytest.raises(ManifestError, match=message):
            member("onnx", tmp_path / "a.onnx", **settings)
