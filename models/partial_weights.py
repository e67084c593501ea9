"""Initial weights of a training: a checkpoint, but for the layers that are to learn from nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from ..errors import CheckpointError, first_few, nearest
from .checkpoint import demand_match, demand_numbers, expected_shapes, read_weights, shapes
from .checkpoint_layouts import Weights


def load_initial(
    model: nn.Module,
    path: Path,
    arch: str,
    *,
    fresh: Sequence[str] = (),
    unused: Sequence[str] = (),
    prefix: str = "",
) -> list[str]:
    """Copy the weights of a file into ``model``, all of them or none, but for the fresh layers.

    Args:
        model: a network of the architecture ``arch``, on any device.
        path: whatever `checkpoint.read_weights` reads.
        arch: what the error calls the network.
        fresh: layers of the network that keep the weights they have, such as ``ocr.cls_head``; whatever the file
            says of them is passed over, their shape too.
        unused: layers of the file that the network lacks, after ``prefix`` was put before their names.
        prefix: put before every key of the file, such as ``backbone.`` for a trunk that was saved alone.

    Returns:
        The keys that kept their weights, in the network's order.

    Raises:
        CheckpointError: as `checkpoint.read_weights`; a key outside the fresh layers is missing, unexpected or
            of another shape; a fresh or unused layer does not exist; or a value is no number.
    """
    weights = _fitting(path, shapes(model), arch, fresh, unused, prefix).tensors
    kept = [key for key in model.state_dict() if key not in weights]
    model.load_state_dict(weights, strict=False)
    return kept


def check_initial(
    path: Path,
    arch: str,
    *,
    fresh: Sequence[str] = (),
    unused: Sequence[str] = (),
    prefix: str = "",
    num_classes: int = 19,
) -> str | None:
    """Raise what `load_initial` would raise, without memory for a network.

    Args:
        path, arch, fresh, unused, prefix: as for `load_initial`.
        num_classes: classes of the scores.

    Returns:
        A message on how the weights were found in the file, `Weights.note`.
    """
    return _fitting(path, expected_shapes(arch, num_classes), arch, fresh, unused, prefix).note()


def _fitting(
    path: Path,
    expected: Mapping[str, tuple[int, ...]],
    arch: str,
    fresh: Sequence[str],
    unused: Sequence[str],
    prefix: str,
) -> Weights:
    wanted = {key: shape for key, shape in expected.items() if not _is_in(key, fresh)}
    names = [key.removeprefix(prefix) for key in wanted if key.startswith(prefix)]
    found = read_weights(path, names, [layer.removeprefix(prefix) for layer in (*fresh, *unused)])
    weights = {prefix + key: value for key, value in found.tensors.items()}
    _demand_layers(fresh, expected, f"'{arch}'")
    _demand_layers(unused, weights, str(path))
    weights = {key: value for key, value in weights.items() if not _is_in(key, (*fresh, *unused))}
    try:
        demand_match(path, weights, wanted, arch)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} If some layers are to start from random weights, name them in init.fresh"
        ) from error
    demand_numbers(path, weights)
    return dataclasses.replace(found, tensors=weights)


def _demand_layers(layers: Sequence[str], keys: Iterable[str], where: str) -> None:
    for layer in layers:
        if not any(_is_in(key, (layer,)) for key in keys):
            hint = nearest(layer, _layers(keys, 3))
            if hint.startswith("known:"):  # nothing is near, and there are hundreds
                hint = f"it has {first_few(_layers(keys, 2), 12)}"
            raise CheckpointError(f"{where}: has no layer '{layer}'; {hint}")


def _is_in(key: str, layers: Iterable[str]) -> bool:
    return any(key == layer or key.startswith(f"{layer}.") for layer in layers)


def _layers(keys: Iterable[str], depth: int) -> list[str]:
    """The names of layers down to that depth."""
    return list({".".join(key.split(".")[: n + 1]): None for key in keys for n in range(depth)})
