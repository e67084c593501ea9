"""Reading and writing weights: strict about their shape, and never running what a file asks to run.

A published checkpoint is a pickled dict: ``state_dict``, with ``module.`` before every key, beside
``optimizer``, ``epoch``, ``arch``, ``num_classes``, ``command`` and ``mean_iu``, a NumPy scalar.
"""

from __future__ import annotations

import functools
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_bytes
from .registry import build_any

_PREFIX = "module."

# What the NumPy scalar in a published file is made of; NumPy 1 knew its constructor by another name.
_ALLOWED = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights in a published checkpoint, one of ours, a bare state dict, or ``.safetensors``.

    Returns:
        Tensors on the CPU in the file's order, keys without ``module.``. Where the format allows it
        they are views of the file: copy them before the file changes.

    Raises:
        CheckpointError: the file cannot be read, holds no weights, or asks for code to be run.
    """
    _demand_file(path)
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickled(path, _is_zip(path))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not (isinstance(content, dict) and content):
        raise CheckpointError(f"{path}: holds no state dict; is it a checkpoint?")
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise CheckpointError(f"{path}: holds no state dict ({key!r} is no tensor); is it a checkpoint?")
    if all(key.startswith(_PREFIX) for key in content):
        return {key.removeprefix(_PREFIX): value for key, value in content.items()}
    return dict(content)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint, its tensors on the CPU and in memory.

    Raises:
        CheckpointError: the file cannot be read, holds no mapping, or asks for code to be run.
    """
    _demand_file(path)
    content = _read_pickled(path, mmap=False)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no mapping; is it a checkpoint?")
    return content


def load_weights(model: nn.Module, path: Path, arch: str) -> None:
    """Copy the weights of a file into ``model``, all of them or none.

    Args:
        model: a network of the architecture ``arch``, on any device.
        path: whatever `read_state_dict` reads.
        arch: what the error calls the network.

    Raises:
        CheckpointError: as `read_state_dict`; or a key is missing, unexpected or of another shape.
    """
    weights = read_state_dict(path)
    demand_match(path, weights, shapes(model), arch)
    model.load_state_dict(weights)


def check_weights(path: Path, arch: str, num_classes: int = 19) -> None:
    """Raise what `load_weights` would raise, without memory for a network."""
    demand_match(path, read_state_dict(path), expected_shapes(arch, num_classes), arch)


def save_checkpoint(
    path: Path,
    weights: nn.Module | Mapping[str, Tensor],
    *,
    arch: str,
    epoch: int = 0,
    mean_iu: float = 0.0,
    num_classes: int = 19,
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
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is truncated, damaged or no safetensors file") from error


def _read_pickled(path: Path, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says about pickle protocols ends in the error below
            # Only the zip format can be mapped; files from before torch 1.6 are read whole.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that may be anything make torch raise almost anything
        name = _refused_name(error, path) if isinstance(error, pickle.UnpicklingError) else None
        if name is None:
            raise CheckpointError(f"{path}: is truncated, damaged or no checkpoint") from error
        raise CheckpointError(
            f"{path}: refused, it asks for '{name}', which weights do not need; save its state_dict alone"
        ) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _refused_name(error: pickle.UnpicklingError, path: Path) -> str | None:
    """What a pickle wanted to have and was not given; None if it failed for another reason."""
    named = re.search(r"(?:GLOBAL |via `add_safe_globals`,? but got <class ')([\w.]+)", str(error))
    if named:
        return named[1]
    # torch gives up on pickle protocol 4 and later before it has seen a name.
    try:
        if not _is_zip(path):
            with path.open("rb") as file:
                return _first_foreign_name(file)
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(pickled) as file:
                return _first_foreign_name(file)
    except Exception:  # the pickles end without one, or zipfile makes of damage what it likes
        return None


def _first_foreign_name(file: IO[bytes]) -> str:
    """The first name that a stream of pickles imports from elsewhere than torch, NumPy and collections.

    The opcodes are listed, not run. A name stands in its opcode, or in the two strings before it, which
    may have been put into the memo and got from there. Raises where it finds none.
    """
    while True:
        pushed: list[str] = []
        memo: dict[Any, str] = {}
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "MEMOIZE":
                memo[len(memo)] = pushed[-1]
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = pushed[-1]
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                pushed.append(memo[argument])
            else:
                pushed.append(argument if isinstance(argument, str) else "")
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                module, name = argument.split(" ", 1) if argument else pushed[-3:-1]
                if module.partition(".")[0] not in ("torch", "numpy", "collections"):
                    return f"{module}.{name}"


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
    """Raise CheckpointError unless keys and shapes are those expected."""
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
