"""A folder that a library saved a network in: which files count, and what they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, cannot_read, first_few
from ...files import sha256

_CONTENT = ("*.json", "*.safetensors")


def content_of(folder: Path) -> list[Path]:
    """List the files of a folder that decide what its network computes: ``*.json`` and ``*.safetensors``, by name."""
    return sorted(path for pattern in _CONTENT for path in folder.glob(pattern) if path.is_file())


def folder_sha256(folder: Path) -> str:
    """Compute the SHA-256 of what ``LC_ALL=C sha256sum *.json *.safetensors | LC_ALL=C sort -k 2`` prints there."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in content_of(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_bytes(folder: Path) -> int:
    """Size in bytes of `content_of`."""
    return sum(path.stat().st_size for path in content_of(folder))


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
