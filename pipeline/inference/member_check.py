"""Checks a member's checkpoint before anything starts, and says what identifies its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...datasets.decode.tensors import MEAN, STD
from ...datasets.taxonomy import CLASS_NAMES
from ...errors import CheckpointError
from ...models.checkpoint import read_fitting_weights
from ...models.precision import check_range, demand_range
from ...models.registry import ADAPTERS
from ..config.manifest import DatasetEntry, InferenceOptions, Member
from ..runtime.device import AUTOCAST
from ..store.identity import StoreIdentity
from .member_network import digest_of, load_adapter

PREPROCESSING = {"colour": "RGB", "range": [0, 1], "mean": list(MEAN), "std": list(STD)}


@dataclass(frozen=True)
class CheckedMember:
    """Result of `check_member`: a line for the user, if any, and how pixels become the network's input."""

    note: str | None
    preprocessing: Mapping[str, Any]


def check_member(member: Member, precision: str) -> CheckedMember:
    """Check a member's checkpoint against its network and the precision.

    The note says how the weights were found in the file, or what another library's network does differently here.

    Raises:
        CheckpointError: it cannot be read, does not fit the network, or has weights beyond the precision's range.
        ManifestError: view or classes of the manifest do not fit the network.
    """
    path, dtype = member.checkpoint_path(), AUTOCAST.get(precision, torch.float32)
    if member.arch in ADAPTERS:
        network = load_adapter(member)
        demand_range(path, network, dtype)
        notes = (*network.body.notes, network.classes.note(CLASS_NAMES))
        return CheckedMember("; ".join(filter(None, notes)) or None, network.describe(CLASS_NAMES))
    weights = read_fitting_weights(path, member.arch)
    check_range(path, member.arch, dtype, weights.tensors)
    return CheckedMember(weights.note(), PREPROCESSING)


def checkpoint_digest(member: Member) -> str:
    """Return the sha256 of a member's checkpoint; CheckpointError if the manifest gives another."""
    path = member.checkpoint_path()
    found = digest_of(member)
    if member.sha256 and member.sha256 != found:
        raise CheckpointError(
            f"{path}: its sha256 is {found[:12]}..., the manifest says {member.sha256[:12]}... for model "
            f"'{member.name}'; fetch the file again, or correct the manifest"
        )
    return found


def identities_of(
    members: Sequence[Member], options: InferenceOptions, encoding: str
) -> tuple[list[StoreIdentity], list[str]]:
    """Check each member's checkpoint and return its logits' identity, and the lines of `check_member`.

    Args:
        members: members with a checkpoint.
        options: the manifest's options as they are really used.
        encoding: of the logits.

    Raises:
        CheckpointError: a checkpoint does not fit the manifest.
    """
    identities, notes = [], []
    for member in members:
        path = member.checkpoint_path()
        checked = check_member(member, options.precision)
        if checked.note:
            notes.append(f"model {member.name}: {path.name}: {checked.note}")
        identities.append(
            StoreIdentity(
                model=member.name,
                architecture=member.arch,
                checkpoint=path.name,
                sha256=checkpoint_digest(member),
                scales=tuple(sorted(options.scales)),
                flip=options.flip,
                precision=options.precision,
                classes=CLASS_NAMES,
                preprocessing=checked.preprocessing,
                encoding=encoding,
                compile=options.compile,
            )
        )
    return identities, notes


def identity_for_dataset(identity: StoreIdentity, dataset: DatasetEntry) -> StoreIdentity:
    """Return the identity of a member's logits over ``dataset``, which may turn photographs."""
    if not dataset.exif:
        return identity
    return replace(identity, preprocessing={**(identity.preprocessing or {}), "orientation": dataset.orientation})
