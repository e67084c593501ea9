"""Reading and writing weights: strict about their shape, and never running what a file asks to run.

A published checkpoint is a pickled dict: ``state_dict``, with ``module.`` before every key, beside
``optimizer``, ``epoch``, ``arch``, ``num_classes``, ``command`` and ``mean_iu``, a NumPy scalar.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError, reason
from ..files import write_bytes
from .checkpoint_layouts import CLASS_NAMES, COUNTER, Weights, find_weights
from .pickled_weights import is_zip, read_pickled
from .registry import build_any

_PREFIX = "module."
_HEAD = "ocr.cls_head.weight"


def read_weights(path: Path, expected: Collection[str] | None = None, keep: Collection[str] = ()) -> Weights:
    """The weights in a file as trainers leave it: pickled by torch, or ``.safetensors``.

    Args:
        path: a published checkpoint, one of `save_checkpoint`, a bare state dict, or what
            `checkpoint_layouts.find_weights` finds in others.
        expected: keys of the network that is to have them.
        keep: layers that are not left out, whatever they are called.

    Returns:
        Tensors on the CPU in the file's order. Where the format allows it they are views of the file: copy them
        before the file changes.

    Raises:
        CheckpointError: the file cannot be read, holds no weights, or asks for code to be run.
    """
    _demand_file(path)
    if path.suffix.lower() == ".safetensors":
        return find_weights(path, _read_safetensors(path), expected, keep)
    # Only the zip format can be mapped; files from before torch 1.6 are read whole.
    return find_weights(path, read_pickled(path, mmap=is_zip(path)), expected, keep)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of `read_weights`, of a network that is not known: no prefix but ``module.`` is taken off.

    Raises:
        CheckpointError: as `read_weights`.
    """
    return read_weights(path).tensors


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint, its tensors on the CPU and in memory.

    Raises:
        CheckpointError: the file cannot be read, holds no mapping, or asks for code to be run.
    """
    _demand_file(path)
    content = read_pickled(path, mmap=False)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no mapping; is it a checkpoint?")
    return content


def load_weights(model: nn.Module, path: Path, arch: str) -> str | None:
    """Copy the weights of a file into ``model``, all of them or none.

    Args:
        model: a network of the architecture ``arch``, on any device.
        path: whatever `read_weights` reads.
        arch: what the error calls the network.

    Returns:
        A message on how the weights were found in the file, `Weights.note`.

    Raises:
        CheckpointError: as `read_weights`; a key is missing, unexpected or of another shape; or a value is no number.
    """
    weights = _fitting(path, shapes(model), arch)
    model.load_state_dict(weights.tensors)
    return weights.note()


def check_weights(path: Path, arch: str, num_classes: int = 19) -> str | None:
    """Return and raise what `load_weights` would, without memory for a network.

    Args:
        path: the file.
        arch: name of the architecture.
        num_classes: classes of the scores.
    """
    return read_fitting_weights(path, arch, num_classes).note()


def read_fitting_weights(path: Path, arch: str, num_classes: int = 19) -> Weights:
    """Return what `read_weights` would, once `check_weights` has nothing against it.

    Args:
        path: the file.
        arch: name of the architecture.
        num_classes: classes of the scores.

    Raises:
        CheckpointError: as `load_weights`.
    """
    return _fitting(path, expected_shapes(arch, num_classes), arch)


def _fitting(path: Path, expected: Mapping[str, tuple[int, ...]], arch: str) -> Weights:
    weights = read_weights(path, expected)
    _demand_classes(path, weights.tensors, expected)
    demand_match(path, weights.tensors, expected, arch)
    demand_numbers(path, weights.tensors)
    return weights


def classes_in(path: Path, arch: str) -> tuple[int, tuple[str, ...] | None]:
    """How many classes a file's network scores, and their names if the file remembers them.

    Args:
        path: whatever `read_weights` reads.
        arch: one of `registry.ARCHITECTURES`.

    Raises:
        CheckpointError: as `read_weights`; or the last layer is not there.
    """
    weights = read_weights(path, expected_shapes(arch))
    if _HEAD not in weights.tensors:
        raise CheckpointError(f"{path}: has no {_HEAD}, its last layer; is it really a '{arch}'?")
    return len(weights.tensors[_HEAD]), weights.class_names


def _demand_classes(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError if a network is ours but for its number of classes."""
    differing = {key for key, shape in expected.items() if key in weights and weights[key].shape != shape}
    if _HEAD not in differing or weights.keys() != expected.keys():
        return
    found, wanted = len(weights[_HEAD]), expected[_HEAD][0]
    if found == wanted or any(weights[key].shape[:1] != (found,) for key in differing):
        return
    raise CheckpointError(
        f"{path}: scores {found} classes, {wanted} are wanted; say which of its classes are which with 'classes' of "
        "the model, such as mapillary65, or choose the manifest's 'classes'"
    )


def save_checkpoint(
    path: Path,
    weights: nn.Module | Mapping[str, Tensor],
    *,
    arch: str,
    epoch: int = 0,
    mean_iu: float = 0.0,
    num_classes: int = 19,
    class_names: Sequence[str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in the published layout, atomically; equal weights give equal bytes.

    Args:
        path: the file to write or replace.
        weights: a network, or its state dict, with or without ``module.`` before its keys.
        arch: name of the architecture, see `registry.ARCHITECTURES`.
        epoch: epochs trained.
        mean_iu: mean intersection over union in validation, 0..1.
        num_classes: classes of the scores.
        class_names: their names, to be remembered; None for none.
        more: further entries, made of tensors, numbers, texts and what holds them; they win over ours.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    content = {
        "state_dict": {_PREFIX + key.removeprefix(_PREFIX): value.detach().cpu() for key, value in state.items()},
        "optimizer": {},
        "epoch": epoch,
        "arch": arch,
        "num_classes": num_classes,
        "mean_iu": np.float64(mean_iu),
        "command": "",
        **({} if class_names is None else {CLASS_NAMES: list(class_names)}),
        **(more or {}),
    }
    # Through memory: given a path, torch writes the temporary name into the file; given an open file,
    # it hides why the disk would not take it.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def _demand_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder, not a checkpoint")
        with path.open("rb") as file:
            if not file.read(1):
                raise CheckpointError(f"{path}: is empty; copy or download the checkpoint again")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is truncated, damaged or no safetensors file") from error


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of everything in a network's state dict."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@functools.cache
def expected_shapes(arch: str, num_classes: int = 19) -> dict[str, tuple[int, ...]]:
    """`shapes` of an architecture, without memory for a network."""
    with torch.device("meta"):
        return shapes(build_any(arch, num_classes))


def demand_match(
    path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], arch: str
) -> None:
    """Raise CheckpointError unless keys and shapes are those expected.

    Args:
        path: the file, for the error.
        weights: key -> tensor.
        expected: key -> shape.
        arch: what the error calls the network.
    """
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    misshaped = [
        f"{key} is {tuple(weights[key].shape)}, not {shape}"
        for key, shape in expected.items()
        if key in weights and weights[key].shape != shape
    ]
    problems = [
        f"{len(keys)} {text} (first: {', '.join(keys[:5])})"
        for keys, text in (
            (missing, f"of {len(expected)} keys are missing"),
            (unexpected, "unexpected"),
            (misshaped, "of another shape"),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}; is it really a '{arch}'?")


def demand_numbers(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a weight is no real number with decimals, NaN or infinite, or a variance negative.

    It names the first key.
    """
    stored = [key for key, value in weights.items() if value.is_meta]
    if stored:
        raise CheckpointError(
            f"{path}: {len(stored)} of {len(weights)} keys have no values, a shape alone (first: {stored[0]}); "
            "save the weights from a network that is not on the device 'meta'"
        )
    odd = [key for key, value in weights.items() if not (value.is_floating_point() or key.endswith(COUNTER))]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} of {len(weights)} keys are {str(weights[odd[0]].dtype).removeprefix('torch.')} "
            f"where numbers with decimals are needed (first: {odd[0]}); quantized weights cannot be used, save the "
            "float ones"
        )
    broken = [(key, problem) for key, value in weights.items() if (problem := _broken(key, value))]
    if not broken:
        return
    key, problem = broken[0]
    halved = weights[key].dtype == torch.float16 and problem == "inf"
    why = (
        "float16 holds nothing above 65504; make the file again from its float32 weights"
        if halved
        else "the training that made it diverged, or the file was converted wrongly; take an earlier checkpoint"
    )
    raise CheckpointError(
        f"{path}: {len(broken)} of {len(weights)} keys hold values that no network can use "
        f"(first: {key} holds {problem}); {why}"
    )


def _broken(key: str, value: Tensor) -> str | None:
    """Name the value that makes a weight unusable; None if all of it is sound."""
    if not value.numel() or not value.is_floating_point():
        return None
    value = value.detach()  # a parameter would warn
    # Ten times as fast as asking each value, and NaN is the least and the greatest of all.
    low, high = (float(end) for end in torch.aminmax(value if value.element_size() > 1 else value.float()))
    if math.isnan(low):
        return "NaN"
    if math.isinf(low) or math.isinf(high):
        return "inf"
    return f"{low:.3g}" if low < 0 and key.endswith("running_var") else None
