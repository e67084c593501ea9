"""Classes and numbers as colours, for people.

Numbers go from dark blue to yellow: matplotlib's ``cividis`` in five colours, which people with any colour vision
can distinguish (Nuñez et al., Optimizing colormaps with consideration for color vision deficiency, PLOS ONE 2018).
"""

from __future__ import annotations

import numpy as np

from ...datasets.class_set import ClassSet
from ..fusion.prediction_files import CONFIDENCE_LEVELS

_HEAT = ((0, 32, 77), (87, 93, 109), (124, 123, 120), (188, 175, 111), (255, 234, 70))
_STEPS = 256


def class_colours(label: np.ndarray, classes: ClassSet) -> np.ndarray:
    """Ids of ``classes`` (H, W) uint8 in their colours, (H, W, 3) uint8; black where there is none."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = classes.colours
    return table[label]


def blend_over(photograph: np.ndarray, colours: np.ndarray, opacity: float) -> np.ndarray:
    """Blend colours over a photograph.

    Args:
        photograph: (H, W, 3) uint8.
        colours: (H, W, 3) uint8.
        opacity: share of the colours, 0 to 1.
    """
    return np.rint((1 - opacity) * photograph + opacity * colours.astype(np.float32)).astype(np.uint8)


def confidence_as_float(confidence: np.ndarray) -> np.ndarray:
    """Stored confidence (H, W) uint16 as float32 from 0 to 1; see `CONFIDENCE_LEVELS`."""
    return (confidence.astype(np.float32) + 0.5) / CONFIDENCE_LEVELS


def heat_map(values: np.ndarray) -> np.ndarray:
    """Numbers (H, W) from dark blue (0 and less) to yellow (1 and more), (H, W, 3) uint8."""
    places = np.linspace(0, 1, len(_HEAT))
    shares = np.linspace(0, 1, _STEPS)
    table = np.stack([np.interp(shares, places, [colour[c] for colour in _HEAT]) for c in range(3)], 1)
    return np.rint(table).astype(np.uint8)[np.rint(values.clip(0, 1) * (_STEPS - 1)).astype(np.uint8)]


WRONG = (213, 94, 0)
"""Colour of wrong pixels: Okabe and Ito's vermilion, which people with any colour vision see beside grey."""


def wrong_over_grey(photograph: np.ndarray, wrong: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Mark wrong pixels on a dark grey photograph, (H, W, 3) uint8.

    Args:
        photograph: (H, W, 3) uint8.
        wrong: (H, W) bool.
        unknown: (H, W) bool, pixels without a label; they become black.
    """
    grey = photograph.mean(2, dtype=np.float32, keepdims=True)
    pixels = np.rint(np.repeat(0.55 * grey + 40, 3, 2)).astype(np.uint8)
    pixels[wrong] = WRONG
    pixels[unknown] = 0
    return pixels


MANY_CLASSES = 6
"""Size of a prediction set from which on sizes look alike."""


def set_size_colours(sizes: np.ndarray) -> np.ndarray:
    """Sizes of prediction sets (H, W) from dark blue (1) to yellow (6 and more), vermilion (0); (H, W, 3) uint8."""
    pixels = heat_map((sizes.astype(np.float32) - 1) / (MANY_CLASSES - 1))
    pixels[sizes == 0] = WRONG
    return pixels
