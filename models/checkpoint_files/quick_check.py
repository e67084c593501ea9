"""Recognises, without torch, a checkpoint that has nothing against it, as most have.

`checkpoint.check_weights` builds a network to know which keys and shapes it wants. Here a digest of them is enough,
because what does not match is not explained: after False, the caller asks `check_weights`, which names what is wrong,
or finds the weights in a file of another layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .torch_archive import read_archive

SIGNATURES = {
    "hrnet_ocr_mscale": "474a98832a4380d13358d6f65bc401bf4c62a1a90d431a934761926550d6dcf4",
    "hrnet_ocr": "251cae737e9b0e5e97220763bb1275408bf9192a57371e2d095433abeea5b7bb",
    "hrnet_tiny_ocr_mscale": "43572a05131d8b431dddb256dc6bf2a268ad754a944983f088b416fcec24d12b",
}
"""Architecture -> `signature` of its state dict."""

_CLASS_LAYERS = ("ocr.cls_head.", "ocr.aux_head.2.")
"""Layers whose first axis is the classes."""
_LIMIT = 65504.0  # the largest number of fp16, which is the narrowest precision
_EPS = 1e-5
_PREFIX, _STATE, _NAMES = "module.", "state_dict", "class_names"
_COUNTER = "num_batches_tracked"


def is_surely_sound(path: Path, arch: str, classes: Sequence[str]) -> bool:
    """Say whether a checkpoint surely fits its network, in every precision and on every device.

    It does if it is in the layout that this package and the published checkpoints have, with all keys and shapes, and
    finite weights of which none, its normalisation folded in, can be beyond the largest number of fp16.

    Args:
        path: a file of ``torch.save``, or ``.safetensors``.
        arch: any architecture; those that have no signature are never recognised.
        classes: names that the network's classes must have, where the file remembers them.
    """
    wanted = SIGNATURES.get(arch)
    if wanted is None:
        return False
    try:
        weights = _read_weights(path, classes)
    except Exception:  # bytes that may be anything make unpicklers raise almost anything
        return False
    if weights is None or signature({key: value.shape for key, value in weights.items()}, len(classes)) != wanted:
        return False
    return _has_numbers(weights)


def signature(shapes: Mapping[str, Sequence[int]], classes: int) -> str:
    """Compute the SHA-256 of the keys and shapes of a state dict, which is the same for any number of classes.

    Args:
        shapes: key -> shape.
        classes: their number; "" for a network that scores another one.
    """
    lines = []
    for key in sorted(shapes):
        sides = [str(side) for side in shapes[key]]
        if key.startswith(_CLASS_LAYERS):
            if sides[:1] != [str(classes)]:
                return ""
            sides[0] = "classes"
        lines.append(f"{key} {','.join(sides)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_weights(path: Path, classes: Sequence[str]) -> Mapping[str, np.ndarray] | None:
    """Read the weights of a file in the usual layout; None if it is in another, or of other classes."""
    if path.suffix.lower() == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    content = read_archive(path)
    if not isinstance(content, dict):
        return None
    weights = content
    if _STATE in content:
        weights, names = content[_STATE], content.get(_NAMES)
        beside = (value for key, value in content.items() if key not in (_STATE, "optimizer"))
        if any(map(_holds_arrays, beside)) or (names is not None and names != list(classes)):
            return None
    if not isinstance(weights, dict) or not all(isinstance(value, np.ndarray) for value in weights.values()):
        return None
    if all(key.startswith(_PREFIX) for key in weights):
        return {key.removeprefix(_PREFIX): value for key, value in weights.items()}
    return weights


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_arrays, value.values()))
    return isinstance(value, np.ndarray)


def _has_numbers(weights: Mapping[str, np.ndarray]) -> bool:
    """Say whether all weights are finite, variances not negative, and none can leave fp16 when norms are folded."""
    largest = scale = 0.0
    for key, value in weights.items():
        if value.dtype.kind != "f":
            if not key.endswith(_COUNTER):
                return False
            continue
        if not value.size:
            continue
        values = value.astype(np.float32, copy=False) if value.dtype.itemsize < 4 else value
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            return False
        if key.endswith("running_var"):
            if low < 0:
                return False
            gain = np.abs(weights[f"{key.removesuffix('running_var')}weight"].astype(np.float64))
            scale = max(scale, float((gain / np.sqrt(values.astype(np.float64) + _EPS)).max()))
        else:
            largest = max(largest, -low, high)
    # As `precision` bounds a folded weight; mean and bias of a normalisation go through its gain, too.
    return largest * (1 + 2 * scale) <= _LIMIT
