"""Reference outputs in ``tests/data``, and the synthetic weights and images that they were made from.

Nothing in these weights is trained. Every tensor is a function of its key and shape alone: NumPy's
PCG64, seeded by the CRC-32 of the key, draws it, so that any machine makes the same bits.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"

# Gains keep logits and attention in a range where a comparison means something.
_HEAD_GAINS = {"ocr.cls_head.weight": 4.0, "ocr.aux_head.2.weight": 3.0, "scale_attn.conv2.weight": 2.0}
_DAMPED_NORM = re.compile(r"backbone\.(.*\.fuse_layers\..*|.*\.bn3|.*\.branches\..*\.bn2)\.weight")
_DAMPING = 0.25


def spec(name: str) -> dict[str, Any]:
    """A state-dict specification: ``entries`` of key, shape and dtype in order, and ``num_parameters``."""
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def case(name: str) -> dict[str, Any]:
    """The arrays of a reference file, and under ``meta`` how it was made."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays: dict[str, Any] = {key: file[key] for key in file.files if key != "meta"}
        return arrays | {"meta": json.loads(str(file["meta"]))}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Reference weights for a state dict of these keys and shapes; any architecture of ours will do."""
    return {
        key: _tensor(key, shape, f"{key.rpartition('.')[0]}.running_mean" in shapes) for key, shape in shapes.items()
    }


def _tensor(key: str, shape: tuple[int, ...], of_norm: bool) -> Tensor:
    draw = _generator(zlib.crc32(key.encode()))
    match key.rpartition(".")[2]:
        case "num_batches_tracked":
            return torch.zeros(shape, dtype=torch.int64)
        case "running_var":
            values = draw.uniform(0.5, 1.5, shape)
        case "running_mean" | "bias":
            values = 0.1 * draw.standard_normal(shape)
        case "weight" if of_norm:
            values = draw.uniform(0.5, 1.5, shape) * (_DAMPING if _DAMPED_NORM.fullmatch(key) else 1.0)
        case "weight":
            # Zero mean per filter: behind a ReLU, inputs have a level that would drown what differs.
            gain = math.sqrt(2 / math.prod(shape[1:])) * _HEAD_GAINS.get(key, 1.0)
            values = draw.standard_normal(shape) * gain
            values -= values.mean(axis=(1, 2, 3), keepdims=True)
        case other:
            raise AssertionError(f"no rule for {other} in {key}")
    return torch.from_numpy(values.astype(np.float32))


def image(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random image, (height, width, 3) uint8: value noise of three grids, and a little grain."""
    draw = _generator(seed)
    total = np.zeros((height, width, 3))
    for cells, amplitude in ((3, 90.0), (9, 70.0), (23, 50.0)):
        nodes = draw.uniform(-1.0, 1.0, (cells + 2, 2 * cells + 2, 3))
        rows, row_share = _positions(height, cells)
        columns, column_share = _positions(width, 2 * cells)
        row_share, column_share = row_share[:, None, None], column_share[None, :, None]
        upper, lower = (
            nodes[r][:, columns] * (1 - column_share) + nodes[r][:, columns + 1] * column_share
            for r in (rows, rows + 1)
        )
        total += amplitude * (upper * (1 - row_share) + lower * row_share)
    total += 120.0 + draw.uniform(-6.0, 6.0, total.shape)
    return total.round().clip(0, 255).astype(np.uint8)


def _positions(pixels: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel centre the grid node before it, and how far it is on the way to the next."""
    share, node = np.modf((np.arange(pixels) + 0.5) * cells / pixels)
    return node.astype(int), share


def normalise(pixels: np.ndarray) -> Tensor:
    """An image (H, W, 3) uint8 to (1, 3, H, W) float32 with ImageNet's mean and deviation taken out."""
    channels = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (channels - mean) / deviation


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
