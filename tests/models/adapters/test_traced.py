"""TorchScript and torch.export as members, against the networks that they were saved from."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.errors import CheckpointError, HmsaError, ManifestError
from hmsa_pipeline.models.adapters.settings import View
from torch import nn

from .graph_nets import Small, assert_golden, member, picture, seen

SIDES = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}


def script(path: Path, network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))
    return network


def trace(path: Path, network: nn.Module, size: tuple[int, int] = (64, 96)) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, (torch.randn(1, 3, *size),), check_trace=False).save(str(path))
    return network


def export(
    path: Path, network: nn.Module, size: tuple[int, int] = (64, 96), sides: Any = SIDES, batch: int = 1
) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (torch.randn(batch, 3, *size),), dynamic_shapes=(sides,))
        torch.export.save(program, path)
    return network


class Scripted(nn.Module):
    """Layers alone, which torch.jit.script understands."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 19, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("step", [4, 14])
def test_a_trace_sees_what_the_network_sees(step: int, tmp_path: Path) -> None:
    network = trace(tmp_path / "a.pt", Small(step).eval(), (64, 96) if step == 4 else (56, 84))
    ours = member("torchscript", tmp_path / "a.pt")
    assert ours.body.sizes.multiple == {4: 32, 14: 14}[step]
    assert_golden(ours, network, ours.body.sizes.multiple)


def test_a_script_is_run_in_evaluation_mode(tmp_path: Path) -> None:
    network = script(tmp_path / "a.pt", Scripted().train())
    assert_golden(member("torchscript", tmp_path / "a.pt"), network.eval(), 32)


@pytest.mark.parametrize("step", [4, 14])
def test_an_export_sees_what_the_network_sees(step: int, tmp_path: Path) -> None:
    limits = {side: step * torch.export.Dim(name, min=2, max=60) for side, name in ((2, "h"), (3, "w"))}
    network = export(tmp_path / "a.pt2", Small(step).eval(), (step * 4, step * 6), limits)
    ours = member("exported", tmp_path / "a.pt2")
    assert ours.body.sizes.multiple == {4: 32, 14: 14}[step]
    assert_golden(ours, network, ours.body.sizes.multiple)


def test_limits_of_an_export_hold_for_the_sizes_that_are_tried(tmp_path: Path) -> None:
    far = {side: torch.export.Dim(name, min=100, max=400) for side, name in ((2, "h"), (3, "w"))}
    export(tmp_path / "a.pt2", Small().eval(), (128, 160), far)
    assert member("exported", tmp_path / "a.pt2").body.sizes.multiple == 32
    near = {side: torch.export.Dim(name, min=8, max=25) for side, name in ((2, "h"), (3, "w"))}
    export(tmp_path / "a.pt2", Small().eval(), (12, 16), near)
    with pytest.raises(CheckpointError, match="the graph's limits leave no multiple"):
        member("exported", tmp_path / "a.pt2")


def test_an_export_of_one_size_sees_windows(tmp_path: Path) -> None:
    network = export(tmp_path / "a.pt2", Small().eval(), (64, 64), None)
    ours, pixels = member("exported", tmp_path / "a.pt2"), picture(64, 64)
    assert ours.view.as_json() == {"window": [64, 64], "stride": [48, 48]}
    with torch.no_grad():
        logits = nn.functional.interpolate(network(seen(pixels)), (64, 64), mode="bilinear")
    torch.testing.assert_close(ours.predict(normalise(pixels), [1.0]), logits, atol=1e-4, rtol=0)
    assert ours.predict(normalise(picture(61, 83)), [1.0], flip=True).shape == (1, 19, 61, 83)
    with pytest.raises(ManifestError, match="takes 64x64 only"):
        member("exported", tmp_path / "a.pt2", view=View())
    export(tmp_path / "a.pt2", Small(14).eval(), (64, 70), None)
    with pytest.raises(CheckpointError, match="the last row of 64x70 changes nothing"):
        member("exported", tmp_path / "a.pt2")


def test_an_output_of_one_size_needs_windows(tmp_path: Path) -> None:
    trace(tmp_path / "a.pt", Small(size=(16, 24)).eval())
    with pytest.raises(CheckpointError, match="the output for 96x64 is 16x24, of another shape"):
        member("torchscript", tmp_path / "a.pt")
    assert member("torchscript", tmp_path / "a.pt", view=View((64, 96))).body.sizes.fixed == (64, 96)


MAKE: dict[str, Callable[[Path, nn.Module], object]] = {"torchscript": trace, "exported": export}


def test_an_export_is_moved_with_what_it_makes_while_it_runs(tmp_path: Path) -> None:
    network = export(tmp_path / "a.pt2", Counts().eval())
    ours = member("exported", tmp_path / "a.pt2")
    elsewhere = ours.body.run(torch.zeros(1, 3, 64, 96, device="meta"))
    assert (elsewhere.device.type, elsewhere.shape) == ("meta", (1, 19, 16, 24))
    assert_golden(ours, network, 32)


class Counts(Small):
    """Makes a tensor while it runs."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) + torch.arange(19, device=x.device)[:, None, None]


@pytest.mark.parametrize("arch", MAKE)
def test_code_needs_trust_before_anything_is_read(arch: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=f"arch: {arch} .*; if you trust .* add --trust") as refused:
        member(arch, tmp_path / "missing", trusted=False)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("arch", MAKE)
@pytest.mark.parametrize("what", ["all", "dropout", "norm"])
def test_training_mode_that_was_taken_down_is_refused(arch: str, what: str, tmp_path: Path) -> None:
    network = Small().eval()
    (network if what == "all" else getattr(network, what)).train()
    MAKE[arch](tmp_path / "a.pt2", network)
    with pytest.raises(CheckpointError, match="in training mode"):
        member(arch, tmp_path / "a.pt2")


class Noisy(Small):
    """Random without dropout."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) + torch.rand(1)


@pytest.mark.parametrize("arch", MAKE)
def test_two_results_for_one_image_are_refused(arch: str, tmp_path: Path) -> None:
    MAKE[arch](tmp_path / "a.pt2", Noisy().eval())
    with pytest.raises(CheckpointError, match="gives two results for one image"):
        member(arch, tmp_path / "a.pt2")


@pytest.mark.parametrize("arch", MAKE)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is truncated, damaged or no"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "(is truncated, damaged or no|is no archive)"),
    ],
)
def test_other_files_are_refused(arch: str, make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "a.pt2")
    with pytest.raises(HmsaError, match=message) as refused:
        member(arch, tmp_path / "a.pt2")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("arch", MAKE)
def test_outputs_that_are_no_logits_are_refused(arch: str, tmp_path: Path) -> None:
    for ending, message in (("pair", "gives several maps"), ("classes", "gives no map of floats")):
        MAKE[arch](tmp_path / "a.pt2", Small(ending=ending).eval())
        with pytest.raises(CheckpointError, match=message):
            member(arch, tmp_path / "a.pt2")


def test_a_batch_of_two_is_refused(tmp_path: Path) -> None:
    export(tmp_path / "a.pt2", Small().eval(), batch=2)
    with pytest.raises(CheckpointError, match="takes 2 images at a time"):
        member("exported", tmp_path / "a.pt2")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Change the entries of an archive, called without its name."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"a/{name}", content)


class Marks:
    """A pickle that leaves a mark where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_of_an_archive_are_not_read(tmp_path: Path) -> None:
    path, mark = tmp_path / "a.pt2", tmp_path / "mark"
    network = export(path, Small().eval())
    buffer = io.BytesIO()
    torch.save(Marks(mark), buffer)
    rewritten(path, lambda entries: entries.update({"data/sample_inputs/model.pt": buffer.getvalue()}))
    assert_golden(member("exported", path), network, 32)
    assert not mark.exists()
    rewritten(path, lambda entries: entries.update({"data/constants/custom_obj_0": b""}))
    with pytest.raises(
        CheckpointError, match=r"holds what may run code when it is read \(data/constants/custom_obj_0\)"
    ):
        member("exported", path)


def test_pickled_weights_of_an_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    export(path, Small().eval())

    def pickled(entries: dict[str, bytes]) -> None:
        name = "data/weights/model_weights_config.json"
        content = json.loads(entries[name])
        content["config"]["head.weight"]["use_pickle"] = True
        entries[name] = json.dumps(content).encode()

    rewritten(path, pickled)
    with pytest.raises(CheckpointError, match=r"says that weights are pickled \(head.weight\)"):
        member("exported", path)
