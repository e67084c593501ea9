"""How a scene looks: the light, the weather, what is on the lens, and what does not belong there."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ...errors import nearest
from .canvas import Colour


@dataclass(frozen=True, slots=True)
class Style:
    """The looks of a scene; what stands where does not depend on them, but for ``unknown_object`` and ``crowd``."""

    zenith: Colour = (108, 154, 208)
    """Colour of the sky far up."""
    haze: Colour = (208, 221, 232)
    """Colour of the sky at the horizon, and of fog."""
    clouds: float = 0.45
    """How much of the sky they cover, 0 to 1."""
    sun: float = 1.0
    """Strength of direct sunlight, and so of shadows, 0 to 1."""
    shadow: float = 1.0
    """Length of shadows; above 1 the sun stands low."""
    light: Colour = (1.14, 1.13, 1.1)
    """Factors of red, green and blue by daylight."""
    fog: float = 0.0012
    """Extinction per metre."""
    night: bool = False
    """True if lamps, windows and headlights light the street."""
    wet: float = 0.0
    """How much the ground mirrors, 0 to 1."""
    snow: float = 0.0
    """How much of the ground and of the trees is white, 0 to 1."""
    rain: float = 0.0
    """How much falling rain is seen, 0 to 1."""
    flakes: float = 0.0
    """How much falling snow is seen, 0 to 1."""
    lens: Literal["clean", "flare", "drops"] = "clean"
    """The sun that shines into the lens, or drops of water on it."""
    unknown_object: Literal["none", "animal", "obstacle"] = "none"
    """Object of no class in the way (void in the mask)."""
    unseen_kind: bool = False
    """True if that, or an odd road, is of a kind that none of the seven datasets is drawn with."""
    crowd: float = 1.0
    """How much more is on the road and the pavements than in a quiet town."""
    dirt: float = 0.0
    """How far road and pavement are trodden earth, 0 to 1."""
    odd_road: bool = False
    """True if the road is made of something no road is made of; in the mask it stays a road."""
    tint: float = 0.0
    """How far everything takes on the colour of its class, 0 to 1: easier to learn from than any street."""


@functools.cache
def read_looks() -> dict[str, Any]:
    """The content of looks.yaml, with its lists as tuples."""
    return _frozen(yaml.safe_load(Path(__file__).with_name("looks.yaml").read_text(encoding="utf-8")))


def _frozen(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _frozen(value) for key, value in content.items()}
    return tuple(map(_frozen, content)) if isinstance(content, list) else content


def style_of(look: str | Mapping[str, Any]) -> Style:
    """The style of that name in looks.yaml, or one described as there; ValueError if there is none."""
    if isinstance(look, str):
        if look not in read_looks()["styles"]:
            raise ValueError(f"there is no style '{look}'; {nearest(look, read_looks()['styles'])}")
        return style_of(read_looks()["styles"][look])
    changes = dict(look)
    base = style_of(changes.pop("like")) if "like" in changes else Style()
    return replace(base, **changes)
