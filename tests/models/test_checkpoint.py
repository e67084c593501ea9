from __future__ import annotations

import os
import pickle
import re
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline import files
from hmsa_pipeline.errors import CheckpointError
from hmsa_pipeline.models.checkpoint import check_weights, load_weights, read_state_dict, save_checkpoint
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.registry import build
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy._core.multiarray import scalar
from safetensors.torch import save_file
from torch import Tensor, nn

ARCH = "hrnet_tiny_ocr_mscale"
State = dict[str, Tensor]
Saver = Callable[[Path, State], None]


def published(state: State) -> dict[str, Any]:
    """What the published files hold."""
    return {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01}]},
        "epoch": 175,
        "arch": "ocrnet.HRNet_Mscale",
        "num_classes": 19,
        "mean_iu": np.float64(0.61),
        "command": "train.py --dataset cityscapes",
    }


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVERS: dict[str, Saver] = {
    "published": lambda path, state: torch.save(published(state), path),
    "published-legacy": lambda path, state: legacy(published(state), path),
    "bare": lambda path, state: torch.save(state, path),
    "bare-legacy": lambda path, state: legacy(state, path),
    "bare-prefixed": lambda path, state: torch.save(published(state)["state_dict"], path),
    "ours": lambda path, state: save_checkpoint(path, state, arch=ARCH),
}


@pytest.fixture
def state(tiny: HMSA) -> State:
    return dict(tiny.state_dict())


def message(path: Path, read: Callable[[Path], object] = read_state_dict) -> str:
    """The error that reading ``path`` gives: one line that begins with the file."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def check(path: Path) -> None:
    check_weights(path, ARCH)


def load(path: Path) -> None:
    load_weights(build(ARCH), path, ARCH)


@pytest.mark.parametrize("saver", SAVERS.values(), ids=SAVERS)
def test_every_layout_loads(tmp_path: Path, tiny: HMSA, state: State, saver: Saver) -> None:
    path = tmp_path / "weights.pth"
    saver(path, state)
    assert list(read_state_dict(path)) == list(state)
    check(path)
    model = build(ARCH)
    load_weights(model, path, ARCH)
    images = torch.rand(1, 3, 20, 30)
    assert torch.equal(model.predict(images, [0.5, 1.0]), tiny.predict(images, [0.5, 1.0]))


@pytest.mark.parametrize("name", ["w.safetensors", "w.SafeTensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_load(tmp_path: Path, state: State, name: str, prefix: str) -> None:
    save_file({prefix + key: value for key, value in state.items()}, tmp_path / name)
    check(tmp_path / name)
    model = build(ARCH)
    load_weights(model, tmp_path / name, ARCH)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("save", [torch.save, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:numpy.core")
def test_scalars_of_either_numpy_load(
    tmp_path: Path,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[Any, Path], None],
    module: str,
    kind: type[np.floating],
) -> None:
    path = tmp_path / "weights.pth"
    with monkeypatch.context() as patch:
        patch.setattr(scalar, "__module__", module)
        save(published(state) | {"mean_iu": kind(0.5)}, path)
    assert f"c{module}\nscalar\n".encode() in path.read_bytes()
    check(path)


@pytest.mark.parametrize(("name", "mapped"), [("published", True), ("published-legacy", False)])
def test_files_are_mapped_where_they_can_be(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, name: str, mapped: bool
) -> None:
    path = tmp_path / "weights.pth"
    SAVERS[name](path, state)
    asked = []
    original = torch.load

    def spy(*args: Any, **settings: Any) -> Any:
        asked.append((settings["mmap"], settings["weights_only"]))
        return original(*args, **settings)

    monkeypatch.setattr(torch, "load", spy)
    read_state_dict(path)
    assert asked == [(mapped, True)]


class Malice:
    """Makes a folder when a trusting reader unpickles it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


MALICIOUS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": legacy,
    "zip-protocol-4": lambda content, path: torch.save(content, path, pickle_protocol=4),
    "legacy-protocol-4": lambda content, path: torch.save(
        content, path, pickle_protocol=4, _use_new_zipfile_serialization=False
    ),
} | {
    f"pickle-protocol-{protocol}": lambda content, path, protocol=protocol: path.write_bytes(
        pickle.dumps(content, protocol)
    )
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
}


@pytest.mark.parametrize("save", MALICIOUS.values(), ids=MALICIOUS)
def test_malice_is_refused_and_named(tmp_path: Path, state: State, save: Callable[[Any, Path], None]) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    save({"command": Malice(mark), "state_dict": state}, path)
    for read in (read_state_dict, check, load):
        assert f"asks for '{os.name}.mkdir'" in message(path, read)
        assert not mark.exists()


def test_malice_is_found_behind_weights(tmp_path: Path, state: State) -> None:
    path = tmp_path / "evil.pth"
    for content in (
        [state, Malice(tmp_path / "mark")],
        {"state_dict": state, os.name: Malice(tmp_path / "mark")},
    ):
        torch.save(content, path, pickle_protocol=4)
        assert f"asks for '{os.name}.mkdir'" in message(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_protocols_that_torch_cannot_read_are_not_called_malice(tmp_path: Path, state: State, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(state, path, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    assert message(path) == "is truncated, damaged or no checkpoint"


def test_malice_would_have_worked(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malice(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (nn.Conv2d(1, 1, 1), "torch.nn.modules.conv.Conv2d"),
        ({"epoch": Fraction(1, 2)}, "fractions.Fraction"),
        ({"root": defaultdict(list)}, "collections.defaultdict"),
    ],
)
def test_harmless_globals_are_refused_too(tmp_path: Path, content: Any, name: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert f"asks for '{name}" in message(tmp_path / "w.pth")


class Parts(nn.Module):
    """A network with a part whose name is one that trainers give to a whole network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Conv2d(1, 1, 1)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "access"),
    [
        (lambda state: {"model": state, "at": Fraction(1, 2)}, '["model"]'),
        (
            lambda state: {"model_state_dict": state, "args": {"model": "w48"}, "at": Fraction(1, 2)},
            '["model_state_dict"]',
        ),
        (lambda state: {"state_dict": state, "at": Fraction(1, 2)}, '["state_dict"]'),
        (lambda _: {"net": Parts()}, '["net"].state_dict()'),
        (lambda _: Parts(), ".state_dict()"),
    ],
)
def test_a_refusal_says_how_to_get_at_the_weights(
    tmp_path: Path, state: State, content: Callable[[State], Any], access: str, zipped: bool
) -> None:
    path = tmp_path / "w.pth"
    torch.save(content(state), path, _use_new_zipfile_serialization=zipped)
    advice = f'torch.save(torch.load("w.pth", weights_only=False){access}, "weights.pth")'
    assert message(path).endswith(advice)


def test_reading_leaves_no_global_allowed(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    torch.save(published(state), path)
    read_state_dict(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    assert message(tmp_path / "absent.pth") == "no such checkpoint"
    assert message(tmp_path) == "is a folder, not a checkpoint"
    (tmp_path / "empty.pth").touch()
    assert "is empty" in message(tmp_path / "empty.pth")
    beside = tmp_path / "empty.pth" / "w.pth"
    assert "cannot be read: Not a directory" in message(beside)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"hello, world\n" * 20,
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"<!DOCTYPE html>",
        bytes(2000),
        b"PK\x03\x04",
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert "is truncated, damaged or no" in message(tmp_path / name)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    content = published({"a.weight": torch.arange(40.0), "a.bias": torch.ones(3)})
    torch.save(content, folder / "zip.pth")
    legacy(content, folder / "legacy.pth")
    save_file(content["state_dict"], folder / "w.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(name=st.sampled_from(["zip.pth", "legacy.pth", "w.safetensors"]), share=st.floats(0, 1, exclude_max=True))
@example(name="zip.pth", share=1 - 1e-9)
@example(name="legacy.pth", share=1 - 1e-9)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_files_are_refused(tmp_path: Path, small_files: dict[str, bytes], name: str, share: float) -> None:
    path = tmp_path / name
    content = small_files[name]
    path.write_bytes(content[: int(share * len(content))])
    # A legacy file may end within a name: what is left of it is not allowed either.
    assert re.match("is empty|is truncated|refused, it asks for", message(path))


@given(name=st.sampled_from(["zip.pth", "legacy.pth", "w.safetensors"]), data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_with_a_wrong_byte_load_or_are_refused(
    tmp_path: Path, small_files: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    path = tmp_path / name
    content = bytearray(small_files[name])
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        weights = read_state_dict(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(value.isreal().all() for value in weights.values())


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({}, "no state dict, but nothing at all"),
        ({"state_dict": {}}, "no state dict, but entries without weights (state_dict)"),
        ({"state_dict": 3, "epoch": 1}, "no state dict, but entries without weights (state_dict, epoch)"),
        ([torch.ones(2)], "no state dict, but one object of the type list"),
        (torch.ones(2), "no state dict, but one object of the type Tensor"),
        ({1: torch.ones(2)}, "no state dict, but a mapping whose keys are no names (1)"),
        ({"loss": torch.ones(2)}, "no weights, only what stands beside a network (loss)"),
    ],
    ids=repr,
)
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: Any, held: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert message(tmp_path / "w.pth") == f"holds {held}; is it a checkpoint?"


@pytest.mark.parametrize("read", [check, load])
def test_missing_keys_are_counted(tmp_path: Path, state: State, read: Callable[[Path], None]) -> None:
    total, gone = len(state), list(state)[-12:]
    path = tmp_path / "w.pth"
    torch.save({key: value for key, value in state.items() if key not in gone}, path)
    assert message(path, read) == (
        f"12 of {total} keys are missing (first: {', '.join(gone[:5])}); is it really a '{ARCH}'?"
    )


@pytest.mark.parametrize("read", [check, load])
def test_unexpected_and_misshaped_keys_are_counted(
    tmp_path: Path, state: State, read: Callable[[Path], None]
) -> None:
    wrong = {f"extra.{i}": torch.ones(1) for i in range(6)}
    wrong["ocr.cls_head.weight"] = torch.ones(65, 64, 1, 1)
    wrong["ocr.cls_head.bias"] = torch.ones(65)
    path = tmp_path / "w.pth"
    torch.save(state | wrong, path)
    assert message(path, read) == (
        "6 unexpected (first: extra.0, extra.1, extra.2, extra.3, extra.4); "
        "2 of another shape (first: ocr.cls_head.weight is (65, 64, 1, 1), not (19, 64, 1, 1), "
        f"ocr.cls_head.bias is (65,), not (19,)); is it really a '{ARCH}'?"
    )


ODD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "quantized": (lambda value: value.to(torch.int8), "are int8 where numbers with decimals are needed"),
    "complex": (lambda value: value.to(torch.complex64), "are complex64 where numbers with decimals are needed"),
    "shapes alone": (lambda value: value.to("meta"), "have no values, a shape alone"),
}


@pytest.mark.parametrize("kind", ODD)
def test_values_that_are_no_weights_are_refused(tmp_path: Path, state: State, kind: str) -> None:
    change, problem = ODD[kind]
    path = tmp_path / "w.pth"
    first = next(iter(state))
    torch.save({**state, first: change(state[first])}, path)
    for read in (check, load):
        text = message(path, read)
        assert text.startswith(f"1 of {len(state)} keys {problem} (first: {first})")


def test_parameters_load_without_a_warning(tmp_path: Path, tiny: HMSA, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "w.pth"
    torch.save({**tiny.state_dict(), **dict(tiny.named_parameters())}, path)
    assert any(value.requires_grad for value in torch.load(path).values())
    load(path)
    assert [str(warning.message) for warning in recwarn] == []


def test_half_a_checkpoint_leaves_the_network_as_it_was(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    torch.save(dict(list(state.items())[:-1]), path)
    model = build(ARCH)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(model, path, ARCH)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_foreign_architecture_is_asked_about(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    torch.save(state, path)
    text = message(path, lambda path: check_weights(path, "hrnet_ocr_mscale"))
    assert "of 1903 keys are missing" in text
    assert text.endswith("is it really a 'hrnet_ocr_mscale'?")


def test_another_number_of_classes_is_another_shape(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    torch.save(state, path)
    text = message(path, lambda path: check_weights(path, ARCH, num_classes=20))
    assert text.startswith("scores 19 classes, 20 are wanted; say which of its classes are which with 'classes'")


def test_saving_writes_the_published_layout(tmp_path: Path, state: State) -> None:
    path = tmp_path / "new" / "w.pth"
    save_checkpoint(path, build(ARCH), arch=ARCH, epoch=7, mean_iu=0.25)
    content = torch.load(path, weights_only=False)
    assert list(content) == list(published(state))
    assert list(content["state_dict"]) == [f"module.{key}" for key in state]
    assert (content["epoch"], content["arch"], content["num_classes"]) == (7, ARCH, 19)
    assert isinstance(content["mean_iu"], np.float64)
    assert content["mean_iu"] == 0.25


def test_equal_weights_give_equal_bytes(tmp_path: Path, tiny: HMSA) -> None:
    again = build(ARCH)
    again.load_state_dict(tiny.state_dict())
    save_checkpoint(tmp_path / "a.pth", tiny, arch=ARCH)
    save_checkpoint(tmp_path / "b.pth", nn.DataParallel(again), arch=ARCH)
    save_checkpoint(tmp_path / "c.pth", build(ARCH), arch=ARCH)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.pth", "b.pth", "c.pth"))
    assert a == b
    assert a != c


def test_failed_saving_keeps_the_old_file(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.pth"
    save_checkpoint(path, state, arch=ARCH)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fill", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, state, arch=ARCH, epoch=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
