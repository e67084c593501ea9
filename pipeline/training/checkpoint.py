"""Training checkpoints: a run's whole state in one file, so that it can go on as if it had never stopped."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...datasets.class_set import ClassSet
from ...errors import CheckpointError, ManifestError, first_few
from ...models.checkpoint import read_checkpoint, read_state_dict, save_checkpoint
from ..config.class_set_field import DEFAULT, class_set_of
from ..config.recipe import Recipe

# What may change between a run and its continuation: where things lie, and how the same steps are computed.
_FREE = {
    *("output", "data.root", "data.cache", "loss.distillation.stores"),
    *("workers", "batch_size", "activation_checkpointing"),
}
_FREE_SECTIONS = ("checkpoints.",)
_ENTRY = re.compile(r"\[\d+\]")


@dataclass
class TrainingProgress:
    """How far a run has come."""

    epoch: int = 0  # the one it is in
    step: int = 0  # steps of it that are done
    best: float | None = None  # mean IoU; None before the first validation
    sums: dict[str, float] = field(default_factory=dict)  # of each term of the loss over those steps
    history: list[dict[str, Any]] = field(default_factory=list)  # of epochs that are over, for `TrainingLog.epoch`


@dataclass
class TrainingCheckpoint:
    """A run as it was saved.

    Attributes:
        weights: key -> tensor.
        optimizer, scheduler, scaler: their state dicts.
        rng: states of the random numbers, one of each process.
        recipe: resolved.
        images: `sources.fingerprint` of what it learns from.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    position: TrainingProgress
    rng: list[dict[str, Tensor]]
    recipe: dict[str, Any]
    images: str


def save_run(path: Path, run: TrainingCheckpoint, *, arch: str, classes: ClassSet) -> None:
    """Write a run, atomically, as a checkpoint that `dump` can read too.

    Args:
        path: the file to write or replace; OSError if that fails.
        run: its state.
        arch: name of the architecture.
        classes: that the network scores.
    """
    at = run.position
    training = {
        "scheduler": run.scheduler,
        "scaler": run.scaler,
        "step": at.step,
        "best": at.best,
        "sums": at.sums,
        "history": at.history,
        "rng": run.rng,
        "recipe": run.recipe,
        "images": run.images,
        "version": __version__,
    }
    more = {"optimizer": run.optimizer, "training": training}
    remembered = remembered_classes(classes)
    save_checkpoint(path, run.weights, arch=arch, epoch=at.epoch, mean_iu=at.best or 0.0, more=more, **remembered)


def remembered_classes(classes: ClassSet) -> dict[str, Any]:
    """Describe classes to `save_checkpoint`; by name only if they are not those of published checkpoints."""
    return {"num_classes": len(classes), "class_names": None if classes.is_default else classes.names}


def read_run(path: Path) -> TrainingCheckpoint:
    """Read what `save_run` wrote; CheckpointError if the file cannot be read or was not written by it."""
    weights = {key: tensor.clone() for key, tensor in read_state_dict(path).items()}
    content = read_checkpoint(path)
    _require_intact(path)
    try:
        training = content["training"]
        if not isinstance(training["recipe"], dict):
            raise TypeError("a recipe is a mapping")
        run = TrainingCheckpoint(
            weights=weights,
            optimizer=content["optimizer"],
            scheduler=training["scheduler"],
            scaler=training["scaler"],
            position=TrainingProgress(
                content["epoch"], training["step"], training["best"], training["sums"], training["history"]
            ),
            rng=training["rng"],
            recipe=training["recipe"],
            images=training["images"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: holds weights but no training run to go on with; --init starts from it"
        ) from error
    if not _is_whole(run):
        raise CheckpointError(f"{path}: what it says of the training run is damaged")
    return run


def classes_of_saved(run: TrainingCheckpoint) -> int:
    """How many classes the network of a run scores."""
    return len(class_set_of(_hashable(run.recipe.get("classes", DEFAULT))))


def _hashable(classes: Any) -> Any:
    if isinstance(classes, str):
        return classes
    return tuple((one["name"], tuple(one["color"])) for one in classes)


def _require_intact(path: Path) -> None:
    """Raise CheckpointError if a part is not as it was written, which torch does not look at."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: is damaged ({damaged} is not as it was written)")


def _is_whole(run: TrainingCheckpoint) -> bool:
    """True if every part has the type that `save_run` was given."""
    position: Any = run.position
    trees: tuple[Any, ...] = (run.optimizer, run.scheduler, run.scaler, run.recipe, position.sums)
    states: Any = run.rng
    return (
        all(isinstance(tree, dict) for tree in trees)
        and "param_groups" in run.optimizer
        and all(isinstance(count, int) and count >= 0 for count in (position.epoch, position.step))
        and (position.best is None or isinstance(position.best, float))
        and isinstance(position.history, list)
        and isinstance(states, list)
        and all(isinstance(state, dict) and "cpu" in state for state in states)
    )


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of this process' random numbers."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_rng_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on with random numbers where `rng_state` was called."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


# Settings that runs of earlier versions do not name, and what those did.
_ADDED: dict[str, Any] = {
    "data.mapping": None,
    "data.without_masks": [],
    "data.allow_unlabelled": False,
    "data.labels": "own",
    "data.share": None,
    "data.threshold": None,
    "data.weight_by_confidence": False,
    "data.boost": None,
    "data.until_epoch": None,
    "loss.border_relaxation": 0,
    "loss.distillation": None,
    "loss.distillation.target": "mean",
}


def require_same_recipe(path: Path, saved: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise ManifestError if a run cannot go on under ``recipe`` as it began; it names what differs.

    Args:
        path: the run's checkpoint, for the error.
        saved: the resolved recipe that it began with.
        recipe: the one to go on with.
    """
    now = dict(_leaves(recipe.resolved()))
    before = {name: value for name, value in _ADDED.items() if name in now} | dict(_leaves(saved))
    names = sorted(before.keys() | now.keys())
    different = [
        f"{name} was {before.get(name, 'not known')} and is {now.get(name, 'not known')}"
        for name in names
        if _ENTRY.sub("", name) not in _FREE
        and not name.startswith(_FREE_SECTIONS)
        and _said(before, name) != _said(now, name)
    ]
    if different:
        raise ManifestError(
            f"{path}: was begun with another recipe: {first_few(different)}; give what it was begun with, or begin "
            "another run in another --output (or in this one by --overwrite)"
        )


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for i, one in enumerate(value):
                yield from _leaves(one, f"{above}{key}[{i}].")
        else:
            yield above + key, value


def _said(leaves: Mapping[str, Any], name: str) -> Any:
    value = leaves.get(name)
    # Auto-labels may have moved, too; a fingerprint tells whether they are the same.
    if name.endswith(".labels") and isinstance(value, str):
        return value.partition(" ")[0]
    # Assets may have moved; a file of another name is another file.
    return [Path(p).name for p in value] if name == "init.checkpoint" and isinstance(value, Sequence) else value
