"""What a store says about itself: whose logits it holds, made with what, and its table of images.

Plain data, read from and written to the attributes of the Zarr group by `pipeline.store`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Identity:
    """What a store's logits were made with; only work of one identity is ever mixed in one store.

    Attributes:
        model: the member's name.
        architecture: its name in the registry, or ``external`` for imported logits.
        checkpoint: file name of the checkpoint, None for imported logits.
        sha256: of the checkpoint's content; the file may be renamed, its content may not change.
        scales: inference scales, ascending.
        flip: whether logits of the mirrored image were averaged in.
        precision: fp16, bf16 or fp32, as really computed; None for imported logits, as scales and flip.
        classes: names of the C classes, in train-id order.
        preprocessing: how pixels became the network's input.
        encoding: name of the chunk encoding.
        source: for imported logits, where they came from and which channels were taken.
        compile: mode of torch.compile, which changes the last digits; ``off`` stands in no store.
    """

    model: str
    architecture: str
    checkpoint: str | None
    sha256: str | None
    scales: tuple[float, ...] | None
    flip: bool | None
    precision: str | None
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any] | None
    encoding: str = "lossless"
    source: Mapping[str, Any] | None = None
    compile: str = "off"

    @property
    def exif(self) -> bool:
        """Whether photographs were turned as EXIF says."""
        return (self.preprocessing or {}).get("orientation") == "exif"

    def differences(self, other: Identity) -> list[str]:
        """Every setting in which ``other`` is another work, as ``name mine there, other's now``."""
        mine, theirs = ({"compile": "off"} | one.as_json() for one in (self, other))
        return [
            f"{name} {mine[name]} there, {theirs[name]} now"
            for name in mine
            if name != "checkpoint" and mine[name] != theirs[name]
        ]

    def as_json(self) -> dict[str, Any]:
        """All fields by name, as JSON gives them back; ``compile`` only if something was compiled."""
        found = _as_plain(asdict(self))
        return found if self.compile != "off" else {name: found[name] for name in found if name != "compile"}

    @classmethod
    def from_json(cls, attributes: Mapping[str, Any]) -> Identity:
        """The identity among a group's attributes; ValueError or KeyError if it is not all there."""
        known: dict[str, Any] = {"compile": "off"} | dict(attributes)
        known = {field.name: known[field.name] for field in fields(cls)}
        for name in ("scales", "classes"):
            if isinstance(known[name], list):
                known[name] = tuple(known[name])
            elif name == "classes" or known[name] is not None:
                raise ValueError(f"{name} is no list")
        return cls(**known)


def _as_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _as_plain(v) for k, v in value.items()}
    return [_as_plain(v) for v in value] if isinstance(value, tuple | list) else value
