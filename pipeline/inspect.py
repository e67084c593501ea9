"""Which of the checkpoints and images that a manifest names are there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import HmsaError
from .manifest import Manifest, Member
from .survey import photographs


@dataclass(frozen=True)
class Finding:
    """One checkpoint or dataset: what was found, or the ``problem``."""

    kind: str
    name: str
    found: str
    problem: str | None = None

    @property
    def said(self) -> str:
        """The problem, or what was found."""
        return self.problem or self.found

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def inspect(manifest: Manifest) -> list[Finding]:
    """Look for every checkpoint and list every dataset; nothing is decoded or loaded."""
    found = [_checkpoint(member) for member in manifest.models]
    for dataset in manifest.datasets:
        try:
            photos = photographs(manifest, dataset)
        except HmsaError as error:
            found.append(Finding("dataset", dataset.name, "", str(error)))
            continue
        unreadable = [photo.path for photo in photos if photo.size is None]
        text = f"{len(photos)} images in {dataset.root_path()}"
        if unreadable:
            text += f", {len(unreadable)} of them unreadable (first: {unreadable[0]})"
        found.append(Finding("dataset", dataset.name, text))
    return found


def _checkpoint(member: Member) -> Finding:
    if member.external:
        return Finding("model", member.name, "external, filled by import-logits")
    try:
        path = member.checkpoint_path()
        if path.is_file():
            return Finding("model", member.name, f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
        problem = f"{path}: there is no such checkpoint; put it there or correct --assets"
    except HmsaError as error:
        problem = str(error)
    return Finding("model", member.name, "", problem)
