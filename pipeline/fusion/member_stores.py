"""The members of an ensemble as readers meet them: their stores, and what some of them say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ...errors import ManifestError
from ..config.manifest import FusionFunctions as Functions
from ..config.manifest import Manifest, Member
from ..storage.output_folder import store_path
from ..store.logit_store import LogitStore
from .fuse import fuse, quantise

ENSEMBLE = "ensemble"
"""The name of all members together."""

MemberStore = tuple[Member, Path]
"""A member and its store of one dataset."""

LabelAndConfidence = tuple[np.ndarray, np.ndarray]
"""Class map (H, W) uint8 and confidence (H, W) uint16."""

_opened: dict[str, LogitStore] = {}


def opened(path: Path) -> LogitStore:
    """The store, as it was when this process opened it first; StoreError as for `LogitStore.open`."""
    if str(path) not in _opened:
        _opened[str(path)] = LogitStore.open(path)
    return _opened[str(path)]


def voting_members(manifest: Manifest) -> list[Member]:
    """The members that take part."""
    return [member for member in manifest.models if member.weight]


def stores_of(manifest: Manifest, dataset: str, images: Sequence[str]) -> tuple[MemberStore, ...]:
    """The members that take part, each with its store; StoreError if one is missing or lacks images."""
    found = []
    for member in voting_members(manifest):
        path = store_path(manifest.output, dataset, member.name)
        LogitStore.open(path).require_complete(images)
        found.append((member, path))
    return tuple(found)


def scored_combinations(
    members: Sequence[Member], *, per_model: bool, leave_one_out: bool
) -> dict[str, tuple[int, ...]]:
    """What is scored besides the ensemble: name -> positions of the members that make it up.

    Args:
        members: of the ensemble.
        per_model: whether each member is a subject.
        leave_one_out: whether the ensemble without each member is one.

    Raises:
        ManifestError: nothing would be left without the only member.
    """
    if leave_one_out and len(members) < 2:
        raise ManifestError("--leave-one-out: there is one member, and nothing left without it")
    numbers = range(len(members))
    found: dict[str, tuple[int, ...]] = {}
    if per_model:
        found |= {members[i].name: (i,) for i in numbers}
    if leave_one_out:
        found |= {f"without {members[i].name}": tuple(j for j in numbers if j != i) for i in numbers}
    return found


def predict_from_stores(
    members: Sequence[MemberStore], image: str, subjects: Mapping[str, Sequence[int]], functions: Functions
) -> dict[str, LabelAndConfidence]:
    """What subjects say about an image, from the stores: every strip of logits is read once.

    Args:
        members: with their stores.
        image: its path in the dataset.
        subjects: name -> positions of members.
        functions: of label and confidence.

    Raises:
        StoreError: logits are missing or damaged.
    """
    stores = [opened(path) for _, path in members]
    rows = [store.index[image] for store in stores]
    parts: dict[str, list[LabelAndConfidence]] = {name: [] for name in subjects}
    with ThreadPoolExecutor(2) as pool:
        for start, stop in stores[0].strips(rows[0]):
            read = pool.map(lambda s, row, a=start, b=stop: torch.from_numpy(s.read(row, a, b)), stores, rows)
            logits = list(read)
            for name, numbers in subjects.items():
                fused = fuse(
                    [logits[i] for i in numbers],
                    [members[i][0].weight for i in numbers],
                    [members[i][0].temperature for i in numbers],
                    label=functions.label,
                    confidence=functions.confidence,
                )
                parts[name].append((fused.label.numpy(), quantise(fused.confidence).numpy()))
    whole = {}
    for name, strips in parts.items():
        label, confidence = (np.concatenate(one) for one in zip(*strips, strict=True))
        whole[name] = (label, confidence)
    return whole
