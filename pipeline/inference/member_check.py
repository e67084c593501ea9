"""Checks a member's checkpoint before anything starts, and says what identifies its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...datasets.class_set import ClassSet
from ...datasets.decode.tensors import MEAN, STD
from ...errors import CheckpointError, ManifestError
from ...models.checkpoint import read_fitting_weights
from ...models.precision import check_range, demand_range
from ...models.registry import ADAPTERS, build_any
from ...models.sampling import has_dropout
from ..config.manifest import DatasetEntry
from ..config.member import Member
from ..config.member_inference import InferenceOptions
from ..runtime.device import AUTOCAST
from ..store.identity import StoreIdentity
from .member_network import digest_of, load_adapter, network_classes, require_same_classes, same_network

NO_DROPOUT = "the network has no dropout that is above 0, so that every pass would be the same; remove 'dropout'"
PREPROCESSING = {"colour": "RGB", "range": [0, 1], "mean": list(MEAN), "std": list(STD)}


@dataclass(frozen=True)
class CheckedMember:
    """Result of `check_member`: a line for the user, if any, and how pixels become the network's input.

    Attributes:
        drops: whether the network has dropout.
    """

    note: str | None
    preprocessing: Mapping[str, Any]
    drops: bool = False


@dataclass
class MemberChecks:
    """Results of `check_member` and `checkpoint_digest`, once for all members of the same network.

    Attributes:
        classes: of the manifest.
    """

    classes: ClassSet
    _checked: list[tuple[Member, str, CheckedMember]] = field(default_factory=list)
    _digests: list[tuple[Member, str]] = field(default_factory=list)

    def check(self, member: Member, precision: str) -> CheckedMember:
        """Check a member; a note stands in the result of a network's first member only.

        Raises:
            CheckpointError, ManifestError: see `check_member`; or the member is of dropout, and there is none.
        """
        for other, used, found in self._checked:
            if used == precision and same_network(member, other):
                checked = replace(found, note=None)
                break
        else:
            checked = check_member(member, precision, self.classes)
            self._checked.append((member, precision, checked))
        sample = member.sample
        if sample is None:
            return checked
        if sample.dropout is not None and not checked.drops:
            raise ManifestError(f"model '{member.name}': {NO_DROPOUT}")
        return replace(checked, preprocessing={**checked.preprocessing, "sample": sample.as_json()})

    def digest(self, member: Member) -> str:
        """Return what `checkpoint_digest` does, and raise what it does."""
        for other, digest in self._digests:
            if same_network(member, other):
                return digest
        self._digests.append((member, checkpoint_digest(member)))
        return self._digests[-1][1]


def check_member(member: Member, precision: str, classes: ClassSet) -> CheckedMember:
    """Check a member's checkpoint against its network and the precision.

    The note says how the weights were found in the file, which classes the network lacks, or what another library's
    network does differently here.

    Args:
        member: whose.
        precision: of its forward pass.
        classes: of the manifest.

    Raises:
        CheckpointError: it cannot be read, does not fit the network, or has weights beyond the precision's range.
        ManifestError: view or classes of the manifest do not fit the network.
    """
    path, dtype = member.checkpoint_path(), AUTOCAST.get(precision, torch.float32)
    if member.arch in ADAPTERS:
        network = load_adapter(member, classes)
        demand_range(path, network, dtype)
        notes = (*network.body.notes, network.classes.note(classes.names))
        note = "; ".join(filter(None, notes)) or None
        return CheckedMember(note, network.describe(classes.names), has_dropout(network))
    count, table = network_classes(member, classes)
    weights = read_fitting_weights(path, member.arch, count)
    require_same_classes(member, weights.class_names, classes)
    check_range(path, member.arch, dtype, weights.tensors, count)
    with torch.device("meta"):
        drops = has_dropout(build_any(member.arch, count))
    if table is None:
        return CheckedMember(weights.note(), PREPROCESSING, drops)
    note = "; ".join(filter(None, (weights.note(), table.note(classes.names)))) or None
    return CheckedMember(note, {**PREPROCESSING, **table.as_json(classes.names)}, drops)


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
    members: Sequence[Member], options: InferenceOptions, encoding: str, classes: ClassSet
) -> tuple[list[StoreIdentity], list[str]]:
    """Check each member's checkpoint and return its logits' identity, and the lines of `check_member`.

    Args:
        members: members with a checkpoint; what they do otherwise is as they really do it.
        options: the manifest's options as they are really used.
        encoding: of the logits.
        classes: of the manifest.

    Raises:
        CheckpointError: a checkpoint does not fit the manifest.
    """
    identities, notes, checks = [], [], MemberChecks(classes)
    for member in members:
        path, own = member.checkpoint_path(), member.options(options)
        checked = checks.check(member, own.precision)
        if checked.note:
            notes.append(f"model {member.name}: {path.name}: {checked.note}")
        identities.append(
            StoreIdentity(
                model=member.name,
                architecture=member.arch,
                checkpoint=path.name,
                sha256=checks.digest(member),
                scales=tuple(sorted(own.scales)),
                flip=own.flip,
                precision=own.precision,
                classes=classes.names,
                preprocessing=checked.preprocessing,
                encoding=encoding,
                compile=own.compile,
            )
        )
    return identities, notes


def identity_for_dataset(identity: StoreIdentity, dataset: DatasetEntry) -> StoreIdentity:
    """Return the identity of a member's logits over ``dataset``, which may turn photographs."""
    if not dataset.exif:
        return identity
    return replace(identity, preprocessing={**(identity.preprocessing or {}), "orientation": dataset.orientation})
