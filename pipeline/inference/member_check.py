"""Checks a member's checkpoint before anything starts."""

from __future__ import annotations

import torch

from ...errors import CheckpointError
from ...files import sha256
from ...models.checkpoint import check_weights
from ...models.precision import check_range
from ..config.manifest import Member
from ..runtime.device import AUTOCAST


def check_member(member: Member, precision: str) -> str | None:
    """Check a member's checkpoint against its network and the precision.

    Args:
        member: a member with a checkpoint, not an external one.
        precision: fp16, bf16 or fp32, as it is really used.

    Returns:
        a line for the user about how the weights were found in the file; None if there is nothing to say.

    Raises:
        CheckpointError: it cannot be read, does not fit the network, or has weights beyond the precision's range.
    """
    path = member.checkpoint_path()
    note = check_weights(path, member.arch)
    check_range(path, member.arch, AUTOCAST.get(precision, torch.float32))
    return note


def checkpoint_digest(member: Member) -> str:
    """Return the sha256 of a member's checkpoint; CheckpointError if the manifest gives another."""
    path = member.checkpoint_path()
    found = sha256(path)
    if member.sha256 and member.sha256 != found:
        raise CheckpointError(
            f"{path}: its sha256 is {found[:12]}..., the manifest says {member.sha256[:12]}... for model "
            f"'{member.name}'; fetch the file again, or correct the manifest"
        )
    return found
