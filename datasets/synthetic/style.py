"""How a scene looks: the light, the weather, what is on the lens, and what does not belong there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

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


_OBSTACLE = Style(
    zenith=(150, 168, 190),
    haze=(205, 212, 218),
    clouds=0.8,
    sun=0.4,
    light=(0.92, 0.92, 0.92),
    unknown_object="obstacle",
)

STYLES: dict[str, Style] = {
    "clear": Style(),
    "overcast": Style(zenith=(168, 178, 190), haze=(206, 211, 215), clouds=1.0, sun=0.1, light=(0.9, 0.92, 0.95)),
    "fog": Style(
        zenith=(178, 180, 184), haze=(199, 201, 203), clouds=0.0, sun=0.0, light=(0.84, 0.86, 0.86), fog=0.028
    ),
    "night": Style(
        zenith=(8, 9, 16), haze=(30, 24, 20), clouds=0.3, sun=0.0, light=(0.085, 0.08, 0.1), night=True, wet=0.12
    ),
    "rain": Style(
        zenith=(152, 158, 165),
        haze=(188, 193, 198),
        clouds=1.0,
        sun=0.0,
        light=(0.76, 0.79, 0.83),
        fog=0.006,
        wet=0.75,
        rain=0.7,
    ),
    "snow": Style(
        zenith=(190, 195, 203),
        haze=(214, 217, 221),
        clouds=0.8,
        sun=0.0,
        light=(0.9, 0.93, 0.98),
        fog=0.007,
        snow=0.8,
        flakes=0.7,
    ),
    "flare": Style(zenith=(120, 128, 122), haze=(212, 200, 160), clouds=0.2, light=(0.62, 0.62, 0.55), lens="flare"),
    "raindrops": Style(
        zenith=(150, 156, 162),
        haze=(190, 194, 198),
        clouds=1.0,
        sun=0.0,
        light=(0.74, 0.76, 0.79),
        fog=0.005,
        wet=0.35,
        rain=0.25,
        lens="drops",
    ),
    "animal": Style(unknown_object="animal"),
    "obstacle": _OBSTACLE,
    "unmet animal": Style(unknown_object="animal", unseen_kind=True),
    "unmet obstacle": replace(_OBSTACLE, unseen_kind=True),
    "odd road": Style(odd_road=True),
    "out of context": Style(odd_road=True, unseen_kind=True),
    "tinted": Style(tint=0.7),
}
"""Looks by name; they follow the six subsets of the BRAVO challenge (Vu et al., 2024, arXiv 2409.15107)."""
