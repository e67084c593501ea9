"""A folder that a library saved a network in: which files count, and what they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, cannot_read, first_few
from ...files import sha256
from .graphs.onnx_network import external_parts

_CONTENT = ("*.json", "*.safetensors")
_WEIGHTS = ("*.safetensors", "*.pth", "*.pt", "*.ckpt", "*.bin")


def parts_of(arch: str, path: Path) -> list[Path]:
    """List the files that decide what a network computes, by name.

    Args:
        arch: one of `registry.ADAPTERS`.
        path: the file, with those that an ONNX file names, or a folder: of ``timm_linear`` all of its weights count,
            of others ``*.json`` and ``*.safetensors``.

    Raises:
        CheckpointError: there is neither.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_dir():
        return sorted([path, *(external_parts(path) if arch == "onnx" else ())])
    patterns = _WEIGHTS if arch == "timm_linear" else _CONTENT
    return sorted(found for pattern in patterns for found in path.glob(pattern) if found.is_file())


def parts_sha256(arch: str, path: Path) -> str:
    """Compute the SHA-256 of a file, or, of several or a folder, of what ``sha256sum`` prints of `parts_of`."""
    parts = parts_of(arch, path)
    if parts == [path]:
        return sha256(path)
    folder = path if path.is_dir() else path.parent
    lines = [f"{sha256(part)}  {part.relative_to(folder).as_posix()}\n" for part in parts]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weight_files(path: Path) -> list[Path]:
    """Return a file itself, or the files of weights in a folder; CheckpointError if there are none."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file or folder; names on a hub are not fetched: download the weights, and "
            "give their path"
        )
    found = parts_of("timm_linear", path)
    if not found:
        raise CheckpointError(f"{path}: holds no weights ({', '.join(_WEIGHTS)})")
    return found


def demand_folder(path: Path, library: str) -> None:
    """Raise CheckpointError unless ``path`` is a folder with a configuration and safe weights.

    Args:
        path: absolute.
        library: name of the library that saves such folders, for the error.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such folder; names on a hub are not fetched: download the network, and give the "
            "path of its folder"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a file; {library} reads the folder that save_pretrained wrote")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: holds no config.json; {library} reads the folder that save_pretrained wrote")
    if not any(path.glob("*.safetensors")):
        others = [found.name for pattern in ("*.bin", "*.pth", "*.pt", "*.ckpt") for found in path.glob(pattern)]
        found = f"only {first_few(sorted(others))}, which may run code when read" if others else "no weights"
        raise CheckpointError(
            f"{path}: holds {found}, and no *.safetensors; where you trust them, load the network with {library} and "
            "save it again with save_pretrained(folder)"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping from a JSON file; CheckpointError if it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(cannot_read(path, error) + "; save the network again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no mapping; save the network again")
    return found
