"""Files of a backbone of timm with a linear head: which keys are the backbone's, and what the head is made of."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, first_few, reason
from ..checkpoint import COUNTER, demand_match, demand_numbers, read_weights
from .folder import weight_files

HEADS = ("head", "decode_head", "linear_head", "seg_head", "segmentation_head", "classifier", "linear")
"""First parts of the names of a head's layers where the backbone's names have no prefix."""
# First layers as timm, and as the authors of ConvNeXt call them.
_ANCHORS = ("patch_embed.proj.weight", "downsample_layers.0.0.weight")
# Only a class for the whole image needs these; the mask token only pretraining.
_UNUSED = re.compile(r"(head|head_dist|fc_norm|attn_pool)\..*|mask_token")
# features_only of timm flattens the lists of some backbones.
_FLAT = re.compile(r"^(stem|stages|layers|blocks|features)_(\d+)(?=\.)")


@dataclass(frozen=True)
class Parts:
    """Content of files: keys of the backbone without their prefix, keys of the head, and the pixels' numbers.

    Attributes:
        trunk, head: key -> tensor.
        mean, std: three numbers each, 0..1, if the files hold them.
        notes: lines for the user.
    """

    trunk: dict[str, Tensor]
    head: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    notes: tuple[str, ...]


def read_parts(path: Path, first: str) -> Parts:
    """Read a file, or all files of weights in a folder, without running what they ask to run.

    Args:
        path: absolute.
        first: name of the weight of the backbone's first convolution.

    Raises:
        CheckpointError: there is nothing, it cannot be read, or holds no backbone, several, or no head.
    """
    trunk: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    notes: list[str] = []
    for file in weight_files(path):
        weights = read_weights(file)
        notes += filter(None, [weights.note()])
        one, other = _divided(file, weights.tensors, first)
        if trunk and one:
            raise CheckpointError(f"{path}: holds the backbone in several files; leave one of them alone there")
        trunk |= one
        if twice := sorted(head.keys() & other):
            raise CheckpointError(f"{path}: holds {twice[0]} in several files; leave one of them alone there")
        head |= other
    if not trunk:
        raise CheckpointError(
            f"{path}: holds no backbone: no key ends in {first}; a head alone needs the file of its backbone beside "
            "it in one folder"
        )
    mean, std = (_numbers(path, head, name) for name in ("pixel_mean", "pixel_std"))
    if not head:
        raise CheckpointError(
            f"{path}: holds a backbone and no head; put the file of the head beside it in one folder, and name that"
        )
    return Parts(trunk, head, mean, std, tuple(notes))


def _divided(file: Path, tensors: Mapping[str, Tensor], first: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide what a file holds into the backbone, without its prefix, and the rest."""
    anchors = (first, *_ANCHORS)
    prefixes = sorted({key[:start] for key in tensors for start in _starts(key) if _plain(key[start:]) in anchors})
    if not prefixes:
        return {}, dict(tensors)
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{file}: holds the backbone more than once ({first_few(prefixes)}); save the one that is meant alone"
        )
    (prefix,) = prefixes
    trunk: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, value in tensors.items():
        own = key.startswith(prefix) if prefix else key.partition(".")[0] not in (*HEADS, "pixel_mean", "pixel_std")
        if own:
            trunk[_plain(key[len(prefix) :])] = value
        else:
            head[key] = value
    return trunk, head


def _plain(key: str) -> str:
    return _FLAT.sub(r"\1.\2", key)


def _starts(key: str) -> list[int]:
    """Places in a key at which a name can begin."""
    return [0, *(match.end() for match in re.finditer(r"\.", key))]


def _numbers(path: Path, head: dict[str, Tensor], name: str) -> tuple[float, ...] | None:
    keys = [key for key in head if key.rpartition(".")[2] == name]
    values = [head.pop(key).float().flatten() for key in keys]
    if not values:
        return None
    if len(values) > 1 or values[0].numel() != 3:
        raise CheckpointError(f"{path}: '{keys[0]}' is not three numbers; give 'mean' and 'std' in the manifest")
    return tuple((values[0] / (255 if values[0].max() > 2 else 1)).tolist())


def load_trunk(path: Path, trunk: dict[str, Tensor], network: Any, unpruned: set[str], name: str) -> None:
    """Copy the weights of a backbone into ``network``, all of them or none; also under its authors' own names.

    Args:
        path: for errors.
        trunk: key -> tensor.
        network: of timm, without what is not needed.
        unpruned: keys of the same with everything.
        name: of the backbone, for errors.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape; or a value is no number.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None and not trunk.keys() >= expected.keys():
        try:
            trunk = convert(dict(trunk), network)
        except Exception as error:  # of another library's conversions there is no end
            raise CheckpointError(
                f"{path}: timm cannot read it as '{name}' ({type(error).__name__}: {reason(error)[:200]}); is it the "
                "right backbone?"
            ) from error
    used = {
        key: value
        for key, value in trunk.items()
        if key in expected or not (key in unpruned or _UNUSED.fullmatch(key))
    }
    counters = {key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(COUNTER)}
    used = counters | used
    demand_match(path, used, expected, name)
    demand_numbers(path, used)
    network.load_state_dict(used)


class LinearHead(nn.Module):
    """One linear layer for every place of a map, after a normalisation or none.

    Args:
        path: the head was read from, for errors.
        tensors: key -> tensor of one linear layer (K, D) or 1x1 convolution (K, D, 1, 1), and of a `nn.LayerNorm` or
            batch norm of D channels; whatever their names are.

    Raises:
        CheckpointError: it is something else.
    """

    norm: nn.Module | None

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        demand_numbers(path, tensors)
        left = {key: value.float() for key, value in tensors.items() if not key.endswith(COUNTER)}
        linear = [
            key.removesuffix(".weight")
            for key, value in left.items()
            if key.endswith(".weight") and value.ndim in (2, 4) and value.shape[2:] in ((), (1, 1))
        ]
        if len(linear) != 1:
            raise CheckpointError(
                f"{path}: its head is not one linear layer after at most one normalisation: {len(linear)} linear "
                f"layers beside the backbone ({first_few(tensors)})"
            )
        weight, bias = left.pop(f"{linear[0]}.weight").flatten(1), left.pop(f"{linear[0]}.bias", None)
        self.classes, self.width = weight.shape
        self.linear = nn.Linear(self.width, self.classes, bias=bias is not None)
        self._fill(path, self.linear, {"weight": weight} | ({} if bias is None else {"bias": bias}))
        self.norm = None
        if left:
            names = {key.rpartition(".")[0] for key in left}
            found = {key.rpartition(".")[2]: value for key, value in left.items()}
            batch = "running_mean" in found
            self.norm = nn.BatchNorm1d(self.width) if batch else nn.LayerNorm(self.width)
            if len(names) > 1 or len(found) != len(left):
                raise CheckpointError(
                    f"{path}: its head is not one linear layer after at most one normalisation: beside "
                    f"{linear[0]} it holds {first_few(left)}"
                )
            counter = {COUNTER: torch.zeros((), dtype=torch.int64)} if batch else {}
            self._fill(path, self.norm, found | counter)

    @property
    def is_layer_norm(self) -> bool:
        """True if it normalises the channels of each place."""
        return isinstance(self.norm, nn.LayerNorm)

    def _fill(self, path: Path, layer: nn.Module, values: Mapping[str, Tensor]) -> None:
        expected = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
        demand_match(path, values, expected, f"linear head of {self.width} channels")
        layer.load_state_dict(dict(values))

    def forward(self, maps: Tensor) -> Tensor:
        """Compute logits (N, K, h, w) of a map (N, D, h, w)."""
        places = maps.flatten(2).transpose(1, 2)
        if self.norm is not None:
            shape = places.shape
            places = self.norm(places.reshape(-1, self.width)).reshape(shape)
        return self.linear(places).transpose(1, 2).unflatten(2, maps.shape[-2:])
