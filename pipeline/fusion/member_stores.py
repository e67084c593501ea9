"""The members' stores: opened once a process, read strip by strip, and fused in any combination."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.class_set import ClassSet
from ...errors import ManifestError, StoreError, first_few, nearest
from ..config.class_set_field import describe_classes
from ..config.manifest import FusionFunctions, Manifest
from ..config.member import Member
from ..storage.output_folder import store_path
from ..store.logit_store import LogitStore
from .calibrated_logits import logit_map
from .fuse import STANDARDISED, Fused, fuse, fuse_several, is_one_pass, quantise

ENSEMBLE = "ensemble"
"""Name of all members together."""

CACHED_PIXELS = 16384
"""Pixels that are fused at once: their logits of all classes stay in a core's cache."""

_ONE_PASS_PIXELS = 16
"""Times as many are fused at once where few pixels are looked at at a time anyway: calls cost time, too."""

MemberStore = tuple[Member, Path]
"""A member and its store of one dataset."""

LabelAndConfidence = tuple[np.ndarray, np.ndarray]
"""Class map (H, W) uint8 and confidence (H, W) uint16."""

_stores: dict[str, LogitStore] = {}


def open_store(path: Path) -> LogitStore:
    """Return the store at ``path``, opened once in this process as long as its table does not change."""
    store = _stores.get(str(path))
    with contextlib.suppress(OSError):  # which `LogitStore.open` explains
        if store is not None and store.is_current():
            return store
    store = _stores[str(path)] = LogitStore.open(path)
    return store


def voting_members(manifest: Manifest) -> list[Member]:
    """Return the members of a weight above 0; ManifestError if one lacks what ``ensemble.confidence`` needs."""
    require_max_logits(manifest, "ensemble.confidence", [manifest.ensemble.confidence])
    return [member for member in manifest.models if member.weight]


def require_max_logits(manifest: Manifest, where: str, confidences: Sequence[str]) -> None:
    """Raise ManifestError if a confidence standardises max logits, and a voting member has no ``max_logits``.

    Args:
        manifest: its models.
        where: the option or the field that names the confidences.
        confidences: names of functions.
    """
    lacking = [member.name for member in manifest.models if member.weight and member.max_logits is None]
    if STANDARDISED in confidences and lacking:
        raise ManifestError(
            f"{where} {STANDARDISED}: {'model' if len(lacking) == 1 else 'models'} {first_few(lacking, 3)} "
            f"{'has' if len(lacking) == 1 else 'have'} no max_logits; fit them with 'hmsa-pipeline calibrate "
            "--max-logits'"
        )


def stores_of(manifest: Manifest, dataset: str, images: Sequence[str]) -> tuple[MemberStore, ...]:
    """Return the voting members, each with its store of a dataset; StoreError if one is missing or lacks images.

    They are calibrated as the manifest says for this dataset.

    Args:
        manifest: its models and output folder.
        dataset: its name.
        images: paths that every store must hold.
    """
    found = []
    for given in voting_members(manifest):
        member = given.on(dataset)
        path = store_path(manifest.output, dataset, member.name)
        store = LogitStore.open(path)
        require_store_classes(store, manifest.class_set)
        store.require_complete(images)
        found.append((member, path))
    return tuple(found)


def require_store_classes(store: LogitStore, classes: ClassSet) -> None:
    """Raise StoreError if a store holds logits of other classes than the manifest's, which nothing maps to them."""
    if store.identity.classes != classes.names:
        raise StoreError(
            f"{store.path}: holds logits of other classes ({describe_classes(store.identity.classes)}) than the "
            f"manifest's ({classes}); give its model a table with 'classes' and make it again with --overwrite, or "
            "choose the manifest's 'classes'"
        )


def scored_combinations(
    members: Sequence[Member], *, per_model: bool, leave_one_out: bool, named: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Return what is scored besides the ensemble: name -> positions of the members that are fused.

    Args:
        members: the members of the ensemble.
        per_model: score each member alone.
        leave_one_out: score the ensemble without each member; ManifestError if there is only one.
        named: score these, too: ``ensemble``, a member, or ``without`` and a member; ManifestError for another name.
    """
    if leave_one_out and len(members) < 2:
        raise ManifestError("--leave-one-out: there is one member, and nothing left without it")
    numbers = range(len(members))
    alone = {members[i].name: (i,) for i in numbers}
    others = {f"without {members[i].name}": tuple(j for j in numbers if j != i) for i in numbers}
    others = others if len(members) > 1 else {}
    known = [ENSEMBLE, *alone, *others]
    if unknown := [name for name in named if name not in known]:
        raise ManifestError(f"--compare {unknown[0]}: is not scored; {nearest(unknown[0], known)}")
    return {name: which for name, which in alone.items() if per_model or name in named} | {
        name: which for name, which in others.items() if leave_one_out or name in named
    }


def fuse_members(logits: Iterable[Tensor], members: Sequence[Member], functions: FusionFunctions) -> Fused:
    """Fuse logits with the members' weights, calibrations and temperatures; see `fuse`.

    Args:
        logits: of each member, (C, ...); may be lazy.
        members: the members, as they are calibrated on the dataset, see `Member.on`.
        functions: functions of the label and of the confidence.
    """
    return fuse(
        logits,
        [member.weight for member in members],
        [member.temperature for member in members],
        [logit_map(member) for member in members],
        [member.max_logits for member in members],
        label=functions.label,
        confidence=functions.confidence,
    )


def fused_strips(
    members: Sequence[Member],
    stores: Sequence[LogitStore],
    image: str,
    combinations: Mapping[str, Sequence[int]],
    functions: FusionFunctions,
    read_all: Callable[..., Iterable[Any]] = map,
) -> Iterator[tuple[slice, dict[str, Fused]]]:
    """Fuse an image a few rows at a time; every strip of logits is read once.

    Args:
        members: the members that take part.
        stores: their stores.
        image: its path in the dataset.
        combinations: name -> positions of the members that are fused.
        functions: functions of the label and of the confidence.
        read_all: `map`, or that of an executor, which reads the stores side by side.

    Yields:
        rows of the image, and by name what was fused there, (rows, W).

    Raises:
        StoreError: logits are missing or damaged.
    """
    for rows, logits in member_strips(stores, image, read_all, pixels_at_once(members, functions)):
        yield (
            rows,
            {
                name: fuse_members([logits[i] for i in numbers], [members[i] for i in numbers], functions)
                for name, numbers in combinations.items()
            },
        )


def pixels_at_once(members: Sequence[Member], functions: FusionFunctions) -> int:
    """Return how many pixels of all members are best read and fused at once."""
    maps = [logit_map(member) for member in members]
    return CACHED_PIXELS * (_ONE_PASS_PIXELS if is_one_pass(functions.label, functions.confidence, maps) else 1)


def member_strips(
    stores: Sequence[LogitStore],
    image: str,
    read_all: Callable[..., Iterable[Any]] = map,
    pixels: int | None = None,
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Read an image's logits a few rows at a time: rows, and of each store logits (C, rows, W) float16.

    They are views of memory that is used again for the next rows.

    Args:
        stores: of the members.
        image: its path in the dataset.
        read_all: `map`, or that of an executor, which reads the stores side by side.
        pixels: given at once, at most, but at least a row; `CACHED_PIXELS` if None.

    Raises:
        StoreError: logits are missing or damaged.
    """
    indices = [store.index[image] for store in stores]
    rooms = [store.room_for_strip(index) for store, index in zip(stores, indices, strict=True)]
    step = max(1, (pixels or CACHED_PIXELS) // rooms[0].shape[2])
    for start, stop in stores[0].strips(indices[0]):

        def read(store: LogitStore, index: int, room: np.ndarray, a: int = start, b: int = stop) -> Tensor:
            return torch.from_numpy(store.read(index, a, b, room))

        strips = list(read_all(read, stores, indices, rooms))
        for y in range(0, stop - start, step):
            yield slice(start + y, min(start + y + step, stop)), [strip[:, y : y + step] for strip in strips]


def predict_from_stores(
    members: Sequence[MemberStore],
    image: str,
    combinations: Mapping[str, Sequence[int]],
    functions: FusionFunctions,
    look: Callable[[str, slice, Tensor], None] | None = None,
) -> dict[str, LabelAndConfidence]:
    """Predict an image with several combinations of members; StoreError if logits are missing or damaged.

    Args:
        members: with their stores.
        image, combinations, functions: see `fused_strips`.
        look: called with the name of a combination, rows, and their probabilities (C, rows, W) float32; None if these
            are not wanted. Needs a function of the label that is one of `fuse.PROBABLE`.
    """
    stores = [open_store(path) for _, path in members]
    voting = [member for member, _ in members]
    # Whole maps from the beginning: strips of them, kept between larger arrays that come and go, scatter memory.
    shape = stores[0].size(stores[0].index[image])
    found = {name: (np.empty(shape, np.uint8), np.empty(shape, np.uint16)) for name in combinations}
    pixels = CACHED_PIXELS if look else pixels_at_once(voting, functions)
    with ThreadPoolExecutor(2) as pool:
        for rows, logits in member_strips(stores, image, pool.map, pixels):
            for name, numbers in combinations.items():
                chosen = [voting[i] for i in numbers]
                fused = fuse_several(
                    [logits[i] for i in numbers],
                    [member.weight for member in chosen],
                    [member.temperature for member in chosen],
                    [logit_map(member) for member in chosen],
                    [member.max_logits for member in chosen],
                    label=functions.label,
                    confidences=(functions.confidence,),
                    probabilities=look is not None,
                )
                if look and fused.probabilities is not None:
                    look(name, rows, fused.probabilities)
                label, confidence = found[name]
                label[rows] = fused.label.numpy()
                confidence[rows] = quantise(fused.confidences[functions.confidence]).numpy()
    return found


def confidences_from_stores(
    members: Sequence[MemberStore], image: str, label: str, confidences: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fuse an image once for several confidences; StoreError if logits are missing or damaged.

    Args:
        members: with their stores.
        image: its path in the dataset.
        label: function of the class map.
        confidences: names of the functions.

    Returns:
        class map (H, W) uint8, and by name confidences (H, W) uint16.
    """
    voting = [member for member, _ in members]
    weights, temperatures = [member.weight for member in voting], [member.temperature for member in voting]
    maps, standards = [logit_map(member) for member in voting], [member.max_logits for member in voting]
    stores = [open_store(path) for _, path in members]
    shape = stores[0].size(stores[0].index[image])
    found, sure = np.empty(shape, np.uint8), {name: np.empty(shape, np.uint16) for name in confidences}
    with ThreadPoolExecutor(2) as pool:
        for rows, logits in member_strips(stores, image, pool.map):
            fused = fuse_several(logits, weights, temperatures, maps, standards, label=label, confidences=confidences)
            found[rows] = fused.label.numpy()
            for name, confidence in fused.confidences.items():
                sure[name][rows] = quantise(confidence).numpy()
    return found, sure
