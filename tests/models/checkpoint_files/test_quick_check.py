"""`is_surely_sound` beside `check_weights` and `check_range`, whose answer it gives without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.errors import CheckpointError
from hmsa_pipeline.models.checkpoint import check_weights, expected_shapes, save_checkpoint
from hmsa_pipeline.models.checkpoint_files.quick_check import SIGNATURES, is_surely_sound, signature
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.precision import check_range
from hmsa_pipeline.models.registry import ARCHITECTURES, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

ARCH = "hrnet_tiny_ocr_mscale"
CLASSES = [f"class {number}" for number in range(19)]
State = dict[str, Tensor]


@pytest.fixture
def state(tiny: HMSA) -> State:
    return {key: value.clone() for key, value in tiny.state_dict().items()}


def published(state: State) -> dict[str, Any]:
    """What the published files hold."""
    return {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01}]},
        "epoch": 175,
        "mean_iu": np.float64(0.61),
        "command": "train.py",
    }


def is_sound(path: Path, arch: str = ARCH, classes: Sequence[str] = CLASSES) -> bool:
    """What torch's checks have to say, in every precision; a note is something to say, too."""
    try:
        if check_weights(path, arch, len(classes)) is not None:
            return False
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            check_range(path, arch, dtype, num_classes=len(classes))
    except CheckpointError:
        return False
    return True


SAVERS: dict[str, Callable[[State, Path], object]] = {
    "published": lambda state, path: torch.save(published(state), path),
    "ours": lambda state, path: save_checkpoint(path, state, arch=ARCH),
    "ours with names": lambda state, path: save_checkpoint(path, state, arch=ARCH, class_names=CLASSES),
    "bare": lambda state, path: torch.save(state, path),
    "bare, prefixed": lambda state, path: torch.save(published(state)["state_dict"], path),
    "half": lambda state, path: torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path
    ),
    "safetensors": lambda state, path: save_file(state, path.rename(path.with_suffix(".safetensors"))),
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_usual_files_are_recognised(tmp_path: Path, state: State, save: Callable[[State, Path], object]) -> None:
    path = tmp_path / "w.pth"
    path.touch()
    save(state, path)
    (path,) = tmp_path.iterdir()
    assert is_surely_sound(path, ARCH, CLASSES)
    assert is_sound(path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_of_ours_is_known_with_any_number_of_classes(arch: str) -> None:
    for count in (19, 7):
        assert signature(expected_shapes(arch, count), count) == SIGNATURES[arch]
    assert signature(expected_shapes(arch, 19), 7) == ""


def test_a_network_of_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save_checkpoint(path, build(ARCH, 7), arch=ARCH, class_names=CLASSES[:7])
    assert is_surely_sound(path, ARCH, CLASSES[:7])
    assert not is_surely_sound(path, ARCH, CLASSES)
    assert not is_surely_sound(path, ARCH, CLASSES[1:8])


def changed(key: str, value: float) -> Callable[[State], object]:
    def change(state: State) -> None:
        state[key].view(-1)[-1] = value

    return change


def without_variance(state: State) -> None:
    state["backbone.conv1.weight"] *= 1e4
    state["backbone.bn1.running_var"].zero_()


WRONG: dict[str, Callable[[State], object]] = {
    "a key is missing": lambda state: state.pop("ocr.cls_head.bias"),
    "a key too many": lambda state: state.update(more=torch.ones(3)),
    "another shape": lambda state: state.update({"ocr.cls_head.weight": torch.ones(19, 64, 1, 2)}),
    "turned": lambda state: state.update({"ocr.cls_head.weight": state["ocr.cls_head.weight"].transpose(0, 1)}),
    "quantized": lambda state: state.update({"ocr.cls_head.bias": torch.ones(19, dtype=torch.int8)}),
    "NaN": changed("ocr.cls_head.weight", float("nan")),
    "infinity": changed("backbone.bn1.weight", float("-inf")),
    "a negative variance": changed("backbone.bn1.running_var", -0.5),
    "a weight beyond fp16": changed("ocr.cls_head.bias", 7e4),
    "a weight beyond fp16 below zero": changed("ocr.cls_head.bias", -7e4),
    "a norm that leads beyond fp16": changed("backbone.bn1.weight", 1e7),
    "a variance that leads beyond fp16": without_variance,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_whatever_is_wrong_is_not_recognised(tmp_path: Path, state: State, change: Callable[[State], object]) -> None:
    change(state)
    path = tmp_path / "w.pth"
    save_checkpoint(path, state, arch=ARCH)
    assert not is_sound(path)
    assert not is_surely_sound(path, ARCH, CLASSES)


def test_what_needs_a_note_is_not_recognised(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    contents: list[Any] = [
        {**published(state), "state_dict_ema": state},
        {**published(state), "ema": {"weights": {"a": torch.ones(2)}}},
        {"model": state},
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        {f"net.{key}": value for key, value in state.items()},
        {**published(state), "class_names": CLASSES[::-1]},
        list(state.values()),
    ]
    for content in contents:
        torch.save(content, path)
        assert not is_surely_sound(path, ARCH, CLASSES)


def test_other_files_are_not_recognised(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    assert not is_surely_sound(path, ARCH, CLASSES)
    assert not is_surely_sound(tmp_path, ARCH, CLASSES)
    path.touch()
    assert not is_surely_sound(path, ARCH, CLASSES)
    torch.save(published(state), path, _use_new_zipfile_serialization=False)
    assert not is_surely_sound(path, ARCH, CLASSES)
    save_checkpoint(path, state, arch=ARCH)
    assert not is_surely_sound(path, "hrnet_ocr", CLASSES)
    assert not is_surely_sound(path, "transformers", CLASSES)
    path.rename(tmp_path / "w.safetensors")
    assert not is_surely_sound(tmp_path / "w.safetensors", ARCH, CLASSES)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, tiny: HMSA) -> bytes:
    path = tmp_path_factory.mktemp("content") / "w.pth"
    save_checkpoint(path, tiny, arch=ARCH)
    return path.read_bytes()


@given(place=st.integers(-90_000, 60_000), value=st.integers(0, 255), share=st.sampled_from([1.0, 1.0, 0.999, 0.5]))
@settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_are_recognised_only_if_torch_reads_them(
    tmp_path: Path, content: bytes, place: int, value: int, share: float
) -> None:
    """The pickle stands at the beginning, the archive's list of files at the end."""
    damaged = bytearray(content)
    damaged[place] = value
    path = tmp_path / "w.pth"
    path.write_bytes(damaged[: int(len(damaged) * share)])
    if is_surely_sound(path, ARCH, CLASSES):
        assert check_weights(path, ARCH) is None


def test_an_end_that_torch_refuses_is_not_recognised(tmp_path: Path, content: bytes) -> None:
    """Of a directory on no disk zipfile takes no notice."""
    damaged = bytearray(content)
    damaged[-26] = 0
    path = tmp_path / "w.pth"
    path.write_bytes(damaged)
    assert not is_surely_sound(path, ARCH, CLASSES)
    with pytest.raises(CheckpointError):
        check_weights(path, ARCH)


def test_torch_is_not_loaded(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    save_checkpoint(path, state, arch=ARCH)
    code = (
        "import sys; from pathlib import Path\n"
        "from hmsa_pipeline.models.checkpoint_files.quick_check import is_surely_sound\n"
        f"print(is_surely_sound(Path({str(path)!r}), {ARCH!r}, {CLASSES!r}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
