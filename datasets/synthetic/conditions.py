"""Which conditions of the drawn test set each drawn training dataset shows.

A mean of probabilities needs a majority that knows. Each of the seven conditions is shown by four datasets, each
dataset shows four, and any two datasets share exactly two: the complement of the Fano plane. So no dataset is like
the whole test set, none is ignorant of it, and no two are alike. Of the ways to do this, it is the one that fits best
what the real datasets hold, or what was made from them: Foggy Cityscapes and RainCityscapes, BDD100K's night, rain
and snow, IDD-AW's rain and snow, IDD's earthen roads, WildDash's hazards of weather and lens, SHIFT's fog, night and
rain.
"""

from __future__ import annotations

from collections.abc import Mapping

CONDITIONS: tuple[str, ...] = ("fog", "night", "rain", "snow", "flare", "raindrops", "odd road")
"""Names of styles in looks.yaml. Training frames have other odd roads than the test set."""

SHOWN: Mapping[str, tuple[str, str, str, str]] = {
    "cityscapes": ("fog", "rain", "raindrops", "odd road"),
    "bdd100k": ("night", "rain", "snow", "raindrops"),
    "idd": ("rain", "snow", "flare", "odd road"),
    "mapillary": ("fog", "night", "snow", "odd road"),
    "wilddash": ("fog", "snow", "flare", "raindrops"),
    "gta5": ("night", "flare", "raindrops", "odd road"),
    "shift": ("fog", "night", "rain", "flare"),
}
"""Dataset -> the conditions that its frames show, beside clear weather, which all show."""
