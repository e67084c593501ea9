"""Small training runs on drawn worlds, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hmsa_pipeline.models.checkpoint import read_checkpoint, read_state_dict
from torch import Tensor

from .bench import TINY

SMALL = ("--arch", TINY, "--crop-size", "32x64", "--workers", "0", "--global-batch", "2", "--batch-size", "2")
"""What makes a shipped recipe one of seconds."""


def options(data_root: Path, output: Path, *more: str, dataset: str = "gta5") -> list[str]:
    """Words of a small run on a drawn dataset; ``more`` win over the others."""
    long_edge = ("--set", "augmentation.long_edge=96") if dataset == "mapillary" else ()
    words = ["train", "--dataset", dataset, "--data-root", str(data_root), "--output", str(output)]
    return [*words, *SMALL, *long_edge, *more]


def history(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "history.json").read_text())


def last(output: Path) -> dict[str, Any]:
    """Everything in the last checkpoint of a run."""
    return read_checkpoint(output / "checkpoints" / "last.pth")


def weights(output: Path) -> dict[str, Tensor]:
    """The network as it was last saved."""
    return dict(read_state_dict(output / "checkpoints" / "last.pth"))


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees of tensors and plain values are equal to the bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)
