"""The identity of a store: which model its logits come from, and the settings they were made with.

Plain data; `zarr_backend` reads it from the attributes of the Zarr group, `logit_store` writes it there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StoreIdentity:
    """The model and settings that a store's logits were made with. A store only ever holds logits of one identity.

    Attributes:
        model: the member's name.
        architecture: its name in the registry, or ``external`` for imported logits.
        checkpoint: file name of the checkpoint, None for imported logits.
        sha256: SHA-256 of the checkpoint's content; the file may be renamed, its content may not change.
        scales: inference scales, ascending.
        flip: whether logits of the mirrored image were averaged in.
        precision: fp16, bf16 or fp32, as really computed. None for imported logits, as are scales and flip.
        classes: names of the C classes, in train-id order.
        preprocessing: how pixels became the network's input.
        encoding: name of the chunk encoding.
        source: for imported logits, where they came from, what kind of output they were, which channels were taken
            and how often the files were enlarged.
        compile: mode of torch.compile, which changes the last digits; ``off`` is not written into a store.
    """

    model: str
    architecture: str
    checkpoint: str | None = None
    sha256: str | None = None
    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    precision: str | None = None
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any] | None = None
    encoding: str = "lossless"
    source: Mapping[str, Any] | None = None
    compile: str = "off"

    @property
    def exif(self) -> bool:
        """True if images were turned as their EXIF tag says."""
        return (self.preprocessing or {}).get("orientation") == "exif"

    def differences(self, other: StoreIdentity) -> list[str]:
        """List the settings in which ``other`` differs, each as ``NAME VALUE there, OTHER'S now``.

        The checkpoint's file name does not count, since its content does.
        """
        mine, theirs = ({"compile": "off"} | one.as_json() for one in (self, other))
        return [
            f"{name} {mine[name]} there, {theirs[name]} now"
            for name in mine
            if name != "checkpoint" and mine[name] != theirs[name]
        ]

    def as_json(self) -> dict[str, Any]:
        """Return all fields by name, as JSON gives them back; ``compile`` only if something was compiled."""
        found = json.loads(json.dumps(asdict(self)))
        return found if self.compile != "off" else {name: found[name] for name in found if name != "compile"}

    @classmethod
    def from_json(cls, attributes: Mapping[str, Any]) -> StoreIdentity:
        """Read the identity from a group's attributes; KeyError or ValueError if a field is missing or wrong."""
        known: dict[str, Any] = {"compile": "off"} | dict(attributes)
        known = {field.name: known[field.name] for field in fields(cls)}
        if isinstance(known["source"], Mapping):
            known["source"] = {"kind": "logits"} | dict(known["source"])  # versions that knew no other kind
        for name in ("scales", "classes"):
            if isinstance(known[name], list):
                known[name] = tuple(known[name])
            elif name == "classes" or known[name] is not None:
                raise ValueError(f"{name} is no list")
        return cls(**known)
