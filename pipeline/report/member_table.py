"""The table of members of a report's page: each member's network and settings, as its stores say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.manifest import Manifest
from ..config.member import Member
from ..fusion.member_stores import open_store, voting_members
from ..storage.other_shares import other_shares
from ..storage.output_folder import store_path
from ..store.identity import StoreIdentity
from ..store.logit_store import LogitStore


def member_table(manifest: Manifest) -> list[dict[str, str]]:
    """Describe the voting members that have a store of one of the datasets, a row of texts each.

    Raises:
        StoreError: a store cannot be read.
    """
    rows = []
    for member in voting_members(manifest):
        paths = [store_path(manifest.output, dataset.name, member.name) for dataset in manifest.datasets]
        stores = [path for path in paths if LogitStore.exists(path)]
        if stores:
            shares = [share for path in stores for share in other_shares(path).values()]
            rows.append(_row(member, open_store(stores[0]).identity, shares))
    return rows


def _row(member: Member, identity: StoreIdentity, shares: Sequence[float]) -> dict[str, str]:
    said = identity.preprocessing or {}
    kind = (identity.source or {}).get("kind") or said.get("kind") or "logits"
    without = [name for name, found in (said.get("classes") or {}).items() if not found]
    return {
        "name": member.name,
        "network": said.get("network") or identity.architecture,
        "source": member.source or "-",
        "sees": _sees(identity, said),
        "precision": identity.precision or "-",
        "output": str(kind),
        "without": ", ".join(without) or "-",
        "other": f"{100 * sum(shares) / len(shares):.2f} %" if shares else "-",
        "weight": f"{member.weight:g}",
        "temperature": f"{member.temperature:.4g}",
        "calibration": ", ".join(
            one.method if one.dataset is None else f"{one.method} on {one.dataset}" for one in member.calibration
        )
        or "-",
    }


def _sees(identity: StoreIdentity, said: Mapping[str, Any]) -> str:
    """Say in words what the network saw of an image."""
    if identity.scales is None:
        return "-"
    parts = ["scale" + "s" * (len(identity.scales) > 1) + f" {', '.join(f'{one:g}' for one in identity.scales)}"]
    if identity.flip:
        parts.append("mirrored, too")
    sample = said.get("sample") or {}
    parts += [f"{name} {sample[name]:g}" for name in ("scale", "dropout") if name in sample]
    parts += ["the mirrored image"] if sample.get("flip") else []
    view = said.get("view")
    if isinstance(view, Mapping):
        if "longest" in view:
            parts.append(f"longer side {view['longest']}")
        else:
            window, stride = ("x".join(map(str, view[name])) for name in ("window", "stride"))
            parts.append(f"windows of {window}, {stride} apart")
    return "; ".join(parts)
