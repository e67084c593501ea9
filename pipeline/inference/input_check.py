"""Which of the checkpoints and images that a manifest names are there and can be used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...errors import HmsaError
from ...models.precision import check_range
from ..config.manifest import Manifest, Member
from ..member_check import check_member, digest
from ..runtime.device import AUTOCAST, resolve_device, resolve_precision
from .inputs import survey


@dataclass(frozen=True)
class Finding:
    """One checkpoint or dataset: what was found, or the ``problem``."""

    kind: str
    name: str
    found: str
    problem: str | None = None
    missing: bool = True
    """Whether the problem is that it is not there, and not that it cannot be used."""

    @property
    def state(self) -> str:
        """``ok``, ``MISSING`` or ``WRONG``."""
        return "ok" if self.problem is None else "MISSING" if self.missing else "WRONG"

    @property
    def said(self) -> str:
        """The problem, or what was found."""
        return self.problem or self.found

    def as_json(self) -> dict[str, Any]:
        """Kind, name, what was found, the problem, and the state."""
        fields = asdict(self)
        del fields["missing"]
        return fields | {"state": self.state}


def inspect(manifest: Manifest) -> list[Finding]:
    """Hold every checkpoint against its network, precision and sha256, and list every dataset.

    Nothing is decoded or run.
    """
    found = [_checkpoint(member, manifest.inference.precision) for member in manifest.models]
    for dataset in manifest.datasets:
        try:
            looked = survey(manifest, dataset, afresh=True)
        except HmsaError as error:
            found.append(Finding("dataset", dataset.name, "", str(error)))
            continue
        photos = looked.photographs
        unreadable = [photo.path for photo in photos if photo.size is None]
        text = f"{len(photos)} images in {dataset.root_path()}"
        if unreadable:
            text += f", {len(unreadable)} of them unreadable (first: {unreadable[0]})"
        found.append(Finding("dataset", dataset.name, "; ".join([text, *looked.remarks])))
    return found


def _checkpoint(member: Member, precision: str) -> Finding:
    if member.external:
        return Finding("model", member.name, "external, filled by import-logits")
    try:
        path = member.checkpoint_path()
    except HmsaError as error:
        return Finding("model", member.name, "", str(error))
    if not path.exists():
        return Finding(
            "model", member.name, "", f"{path}: there is no such checkpoint; put it there or correct --assets"
        )
    notes = []
    try:
        # As elsewhere on this machine; on another one, that computes in what the manifest wants, it may be refused.
        used, _ = resolve_precision(precision, resolve_device("auto"))
        if note := check_member(member, used):
            notes.append(note)
        if member.sha256:
            digest(member)
            notes.append("its sha256 is that of the manifest")
    except (HmsaError, OSError) as error:
        return Finding("model", member.name, "", _said(error), missing=False)
    if used != precision:
        try:
            check_range(path, member.arch, AUTOCAST[precision])
        except HmsaError as error:
            notes.append(f"of no use on a GPU: {error}")
    return Finding("model", member.name, "; ".join([f"{path} ({path.stat().st_size / 1e6:.1f} MB)", *notes]))


def _said(error: HmsaError | OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
