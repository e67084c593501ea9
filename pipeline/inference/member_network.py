"""A member's network, of this package or of another library, as a manifest describes it."""

from __future__ import annotations

from collections.abc import Sequence

from ...datasets.class_set import ClassSet
from ...errors import CheckpointError, ManifestError
from ...files import sha256
from ...models.adapters.class_table import ClassTable, channels_of, class_table
from ...models.adapters.folder import parts_of, parts_sha256
from ...models.adapters.load import load_member
from ...models.adapters.network import MemberNetwork
from ...models.adapters.settings import AdapterSettings, View
from ...models.checkpoint import classes_in, load_weights
from ...models.hmsa import OCRNet
from ...models.plain import PlainNetwork
from ...models.registry import ADAPTERS, ARCHITECTURES, build_any
from ..config.class_set_field import describe_classes, member_choice
from ..config.member import Member


def load_network(member: Member, classes: ClassSet) -> OCRNet | PlainNetwork:
    """Build a member's network on the CPU with its weights, in evaluation mode.

    Args:
        member: whose.
        classes: of the manifest; for what the network scores see `network_classes`.

    Raises:
        CheckpointError: its checkpoint does not fit the network.
        ManifestError: the network cannot be built, or does not fit what the manifest says of it.
    """
    if member.arch in ADAPTERS:
        return load_adapter(member, classes)
    model = build_any(member.arch, network_classes(member, classes)[0])
    load_weights(model, member.checkpoint_path(), member.arch)
    return model


def network_classes(member: Member, classes: ClassSet) -> tuple[int, ClassTable | None]:
    """How many classes a network scores that is no adapter's, and how they become the manifest's; None if they are.

    Args:
        member: whose.
        classes: of the manifest.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ManifestError: the member's ``classes`` do not fit the network.
    """
    choice = member_choice(member.classes, classes)
    if choice is None:
        return len(classes), None
    where, labels, count = f"model '{member.name}'", None, channels_of(choice)
    if count is None and member.arch not in ARCHITECTURES:
        raise ManifestError(
            f"{where}: a network of arch {member.arch} names no classes; give 'classes' as a list, one a channel"
        )
    if count is None:
        count, names = classes_in(member.checkpoint_path(), member.arch)
        labels = dict(enumerate(names)) if names is not None and len(names) == count else None
    return count, class_table(where, count, labels, choice, classes.names)


def require_same_classes(member: Member, names: Sequence[str] | None, classes: ClassSet) -> None:
    """Raise ManifestError if a checkpoint remembers other classes than the manifest's, and no table maps them.

    Args:
        member: whose.
        names: of the checkpoint; None if it remembers none.
        classes: of the manifest.
    """
    if member.classes is None and names is not None and tuple(names) != classes.names:
        raise ManifestError(
            f"model '{member.name}': {member.checkpoint_path()} was trained on other classes "
            f"({describe_classes(names)}) than the manifest's ({classes}); say which are which with 'classes' of the "
            "model, or choose the manifest's 'classes'"
        )


def load_adapter(member: Member, classes: ClassSet) -> MemberNetwork:
    """Build the network of another library; arguments and errors are those of `load_network`."""
    view = member.sees
    return load_member(
        AdapterSettings(
            arch=member.arch,
            path=member.checkpoint_path(),
            names=classes.names,
            view=None if view is None else View(view.window, view.stride, view.longest),
            classes=member_choice(member.classes, classes),
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
    rest = {"name": "network", "source": None, "weight": 1.0, "temperature": 1.0, "calibration": (), "sample": None}
    return member.model_copy(update={**rest, "max_logits": None, "inference": inference})


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
