"""One picture of a street with its mask, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..taxonomy import IGNORE, PALETTE
from . import placement
from .canvas import OBJECT, Canvas
from .ground import Ground, paint_sky
from .objects import houses
from .street_plan import plan_street
from .style import Style
from .weather import Exposure, take

_CLEAR = Style()
_SMALLEST = 16
# Pictures up to this many pixels are drawn at twice their size, which smooths edges; larger ones need it less.
_SMOOTHED = 2**20


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn photograph."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    mask: NDArray[np.uint8]
    """(H, W) train ids; 255 for what belongs to no class."""
    objects: NDArray[np.uint16]
    """(H, W) number of the object that is seen, from 1; 0 for the surroundings."""


def draw_scene(seed: int, height: int, width: int, style: Style = _CLEAR) -> Scene:
    """A street as a car sees it.

    What stands where depends on ``seed`` alone, so that one street can be seen at several sizes and in any
    weather.

    Args:
        seed: not negative.
        height, width: of the picture in pixels, at least 16.
        style: the weather and the light, and whether something stands in the way.

    Raises:
        ValueError: a negative seed, or a picture that is too small.
    """
    if height < _SMALLEST or width < _SMALLEST:
        raise ValueError(f"a scene of {height} x {width} pixels is too small; {_SMALLEST} x {_SMALLEST} is the least")
    content, texture = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    street = plan_street(content)
    canvas = Canvas(height, width, 2 if height * width <= _SMOOTHED else 1, street.camera)
    stage = placement.Stage(canvas, Ground(canvas, street), street, style, content)
    placement.line_the_street(stage)
    placement.furnish(stage)
    placement.fill_the_road(stage)
    placement.people_it(stage)
    paint_sky(canvas, texture, style)
    houses.backdrop(canvas, content)
    placement.set_in_the_way(stage)  # last of all that is drawn by lot, so that the rest stays the same without it
    stage.ground.paint(texture, style)
    stage.paint()
    scale = canvas.scale
    objects, ids = np.divmod(np.asarray(canvas.ids)[scale // 2 :: scale, scale // 2 :: scale], OBJECT)
    mask = ids.astype(np.uint8)
    depth = np.asarray(canvas.depth)[scale // 2 :: scale, scale // 2 :: scale]
    rgb, glow = (np.asarray(layer.reduce(scale), dtype=np.float32) for layer in (canvas.rgb, canvas.glow))
    image = take(Exposure(rgb, mask, depth, glow), canvas.camera, stage.lamps, style, texture)
    image = _tinted(image, mask, style.tint) if style.tint else image
    return Scene(image, mask, objects.astype(np.uint16))


def _tinted(image: NDArray[np.uint8], mask: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """The image with a share of every class' colour in it; what belongs to no class stays as it is."""
    known = mask != IGNORE
    colours = np.array(PALETTE, dtype=np.float32)
    tinted = image.copy()
    tinted[known] = np.rint(image[known] * (1 - share) + colours[mask[known]] * share).astype(np.uint8)
    return tinted
