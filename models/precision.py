"""Check that weights fit the precision that a network is to compute in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .checkpoint import expected_shapes, read_weights
from .prepare_inference import prepare_for_inference
from .registry import build_any

_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_EPS = 1e-5  # of every normalisation that `prepare` folds


def demand_range(path: Path, model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the weights of a network that `prepare` made ready against what ``dtype`` holds.

    Args:
        path: the checkpoint that they were read from, for the message.
        model, dtype: the network, and in which it computes.

    Raises:
        CheckpointError: a weight, its normalisation folded in, is beyond the largest number of ``dtype``; it names
            the first key.
    """
    parameters = dict(model.named_parameters())
    if not parameters:  # another library holds them, and computes as it likes
        return
    names, weights = zip(*parameters.items(), strict=True)
    largest = torch.stack([weight.detach().abs().max().float() for weight in weights]).cpu().tolist()
    limit = torch.finfo(dtype).max
    beyond = [name for name, value in zip(names, largest, strict=True) if not value <= limit]
    if not beyond:
        return
    wider = {torch.float16: "bf16 or fp32", torch.bfloat16: "fp32"}.get(dtype)
    fix = f"use precision {wider}" if wider else "the training that made it diverged; take an earlier checkpoint"
    raise CheckpointError(
        f"{path}: {len(beyond)} weights are beyond {limit:.6g}, the largest number of {_NAMES[dtype]} "
        f"(first: {beyond[0]}); {fix}"
    )


def check_range(
    path: Path, arch: str, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None, num_classes: int = 19
) -> None:
    """Raise what `demand_range` would of a file that `checkpoint.check_weights` passes.

    Args:
        path, arch, dtype: the file, its architecture, and in which it is to compute.
        weights: what `checkpoint.read_fitting_weights` read from it; read again if None.
        num_classes: classes of the scores.
    """
    weights = read_weights(path, expected_shapes(arch, num_classes)).tensors if weights is None else weights
    if _bound(weights) <= torch.finfo(dtype).max:
        return
    with torch.device("meta"):
        model = build_any(arch, num_classes)
    model.load_state_dict(weights, assign=True)
    demand_range(path, prepare_for_inference(model.float(), dtype), dtype)


def _bound(weights: Mapping[str, Tensor]) -> float:
    """Upper bound of the weights' magnitude, with any normalisation of the network folded into them.

    To fold for certain takes twice as long as all other checks of the file together, and is needed only above this.
    """
    largest = scale = 0.0
    for key, value in weights.items():
        if not value.numel() or not value.is_floating_point():
            continue
        value = value.float()
        if key.endswith("running_var"):
            gain = weights.get(f"{key.removesuffix('running_var')}weight")
            factor = (value.double() + _EPS).rsqrt() * (1.0 if gain is None else gain.double().abs())
            scale = max(scale, float(factor.max()))
        else:
            low, high = torch.aminmax(value)
            largest = max(largest, -float(low), float(high))
    return largest * (1 + 2 * scale)
