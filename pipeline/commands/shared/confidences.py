"""Options that name functions of confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....errors import HmsaError

if TYPE_CHECKING:
    from ...config.manifest import Manifest


def require_confidences(manifest: Manifest, flag: str, names: Sequence[str]) -> list[str]:
    """Return ``names``, each once; HmsaError if one is unknown, or has no meaning for the manifest's members.

    Args:
        manifest: its members.
        flag: the option that named them.
        names: functions of confidence.
    """
    from ...fusion.fuse import CONFIDENCES, UNWEIGHTED, nearest_function
    from ...fusion.member_stores import require_max_logits, voting_members

    for name in names:
        if name not in CONFIDENCES:
            raise HmsaError(f"{flag} {name}: is no confidence; {nearest_function(name, CONFIDENCES)}")
        if name in UNWEIGHTED and len({member.weight for member in voting_members(manifest)}) > 1:
            raise HmsaError(f"{flag} {name}: has no meaning for members of different weights; leave it out")
    require_max_logits(manifest, flag, names)
    return list(dict.fromkeys(names))
