"""A member's network, of this package or of another library, as a manifest describes it."""

from __future__ import annotations

from ...datasets.taxonomy import CLASS_NAMES
from ...errors import CheckpointError
from ...files import sha256
from ...models.adapters.folder import parts_of, parts_sha256
from ...models.adapters.load import load_member
from ...models.adapters.network import MemberNetwork
from ...models.adapters.settings import AdapterSettings, View
from ...models.checkpoint import load_weights
from ...models.hmsa import OCRNet
from ...models.plain import PlainNetwork
from ...models.registry import ADAPTERS, build_any
from ..config.member import Member


def load_network(member: Member) -> OCRNet | PlainNetwork:
    """Build a member's network on the CPU with its weights, in evaluation mode.

    Raises:
        CheckpointError: its checkpoint does not fit the network.
        ManifestError: the network cannot be built, or does not fit what the manifest says of it.
    """
    if member.arch in ADAPTERS:
        return load_adapter(member)
    model = build_any(member.arch)
    load_weights(model, member.checkpoint_path(), member.arch)
    return model


def load_adapter(member: Member) -> MemberNetwork:
    """Build the network of another library; raises what `load_network` does."""
    view = member.sees
    return load_member(
        AdapterSettings(
            arch=member.arch,
            path=member.checkpoint_path(),
            names=CLASS_NAMES,
            view=None if view is None else View(view.window, view.stride, view.longest),
            classes=member.classes,
            mean=member.mean,
            std=member.std,
            as_library=member.postprocess is not None,
            backbone=member.backbone,
            layers=member.layers,
            norm=member.norm,
            kind=member.kind,
            trusted=member.trusted,
        )
    )


def same_network(one: Member, other: Member) -> bool:
    """Say whether two members run the same network, prepared for the same precision, on whatever they see."""
    return _network_of(one) == _network_of(other)


def _network_of(member: Member) -> Member:
    inference = member.inference
    if inference is not None:
        inference = inference.model_copy(update={"scales": None, "flip": None})
    rest = {"name": "network", "source": None, "weight": 1.0, "temperature": 1.0, "sample": None}
    return member.model_copy(update={**rest, "inference": inference})


def digest_of(member: Member) -> str:
    """Compute the SHA-256 of a member's file, or of the list of its folder's files.

    Raises:
        CheckpointError: there is neither.
    """
    path = member.checkpoint_path()
    if member.arch in ADAPTERS:
        return parts_sha256(member.arch, path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    return sha256(path)


def checkpoint_bytes(member: Member) -> int:
    """Size in bytes of a member's file, or of the files that count if another library wrote several."""
    return sum(part.stat().st_size for part in parts_of(member.arch, member.checkpoint_path()))
