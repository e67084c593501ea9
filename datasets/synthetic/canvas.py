"""A camera that looks along a street, and the layers that things are painted on, far ones first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..taxonomy import CLASS_NAMES, IGNORE

Colour = tuple[float, float, float]
"""Red, green, blue, 0 to 255."""
Point = tuple[float, float, float]
"""Metres to the right of the camera, above the ground, and ahead of the camera."""
Points = Sequence[Point]

LABEL = {name: train_id for train_id, name in enumerate(CLASS_NAMES)} | {"void": IGNORE}
OBJECT = 256
"""Factor of an object's number before it is added to a train id."""
NEAR = 0.7  # metres; what is nearer to the camera is cut off
FAR = 2000.0


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera above the ground that looks straight ahead."""

    height: float
    """Metres above the ground."""
    horizon: float
    """Row of the horizon, as a share of the picture's height."""
    focal: float
    """Focal length, in widths of the picture."""


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mix a share of one colour into another.

    Args:
        a, b: the colours, RGB.
        share: of ``b``, 0 to 1.
    """
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def shade(colour: Colour, factor: float) -> Colour:
    """``colour``, brighter or darker."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def noise(rng: np.random.Generator, height: int, width: int, cells: float, flat: float = 1.0) -> NDArray[np.float32]:
    """Smooth value noise (height, width) in about -1 to 1.

    Args:
        rng: source of random numbers.
        height, width: of the picture, in pixels.
        cells: hills across its width.
        flat: how many times wider than high a hill is.
    """
    grid = (max(2, round(cells * flat * height / width) + 1), max(2, round(cells) + 1))
    values = rng.uniform(-1, 1, grid).astype(np.float32)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))


class Canvas:
    """Four layers of one size that are painted together.

    ``rgb`` holds colours in plain daylight, ``ids`` train ids with the number of the object times `OBJECT` added,
    ``depth`` metres, and ``glow`` the colour of what shines by itself. All are painted at ``scale`` times the size of
    the picture that comes out.
    """

    def __init__(self, height: int, width: int, scale: int, camera: Camera) -> None:
        self.camera = camera
        self.scale = scale
        self.height, self.width = height * scale, width * scale
        self.focal = camera.focal * self.width
        self.horizon = camera.horizon * self.height
        size = (self.width, self.height)
        self.rgb = Image.new("RGB", size)
        self.object = 0
        """Number of the object that is painted now; 0 for the surroundings."""
        self.ids = Image.new("I", size, LABEL["sky"])
        self.depth = Image.new("F", size, FAR)
        self.glow = Image.new("RGB", size)
        self.bind()

    def bind(self) -> None:
        """Paint on the present layers from now on; to be called after one was replaced as a whole."""
        self._draw = tuple(ImageDraw.Draw(layer) for layer in (self.rgb, self.ids, self.depth, self.glow))

    def project(self, points: Points) -> list[tuple[float, float]]:
        """Columns and rows of a polygon's corners, of that part of it that lies before the camera."""
        if any(point[2] < NEAR for point in points):
            points = _cut(points)
        middle, eye = self.width / 2, self.camera.height
        screen = []
        for x, y, z in points:
            size = self.focal / z
            screen.append((middle + x * size, self.horizon + (eye - y) * size))
        return screen

    def pixels(self, metres: float, z: float) -> float:
        """How many pixels of the canvas ``metres`` take at distance ``z``."""
        return metres * self.focal / z

    def solid(self, points: Points, colour: Colour, label: str) -> None:
        """Paint a polygon of one class; it hides what was painted before.

        Args:
            points: its corners (x, y, z), metres.
            colour: RGB.
            label: the class.
        """
        screen = self.project(points)
        if not self._is_in_view(screen):
            return
        rgb, ids, depth, glow = self._draw
        rgb.polygon(screen, _ink(colour))
        ids.polygon(screen, self._id(label))
        depth.polygon(screen, sum(point[2] for point in points) / len(points))
        glow.polygon(screen, 0)

    def detail(self, points: Points, colour: Colour, lit: Colour | None = None) -> None:
        """Paint a polygon on a surface that is there already.

        Args:
            points: its corners (x, y, z), metres.
            colour: RGB.
            lit: the colour in which it shines by itself; None if it does not.
        """
        screen = self.project(points)
        if self._is_in_view(screen):
            self._draw[0].polygon(screen, _ink(colour))
            if lit:
                self._draw[3].polygon(screen, _ink(lit))

    def blobs(self, blobs: Sequence[tuple[float, float, float, Colour]], z: float, label: str) -> None:
        """Paint round spots, as leaves are painted.

        Args:
            blobs: (x, y, radius, colour) of each.
            z: metres ahead of the camera.
            label: the class.
        """
        rgb, ids, depth, glow = self._draw
        size, middle, eye = self.focal / z, self.width / 2, self.camera.height
        for x, y, radius, colour in blobs:
            u, v, r = middle + x * size, self.horizon + (eye - y) * size, max(radius * size, 0.5)
            box = (u - r, v - r, u + r, v + r)
            if box[2] >= 0 and box[0] <= self.width and box[3] >= 0 and box[1] <= self.height:
                rgb.ellipse(box, _ink(colour))
                ids.ellipse(box, self._id(label))
                depth.ellipse(box, z)
                glow.ellipse(box, 0)

    def _id(self, label: str) -> int:
        return LABEL[label] + OBJECT * self.object

    def _is_in_view(self, screen: list[tuple[float, float]]) -> bool:
        if len(screen) < 3:
            return False
        columns, rows = [u for u, _ in screen], [v for _, v in screen]
        return max(columns) >= 0 and min(columns) <= self.width and max(rows) >= 0 and min(rows) <= self.height


def _ink(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = colour
    return min(255, max(0, int(red))), min(255, max(0, int(green))), min(255, max(0, int(blue)))


def _cut(points: Points) -> list[Point]:
    """The part of a polygon that lies farther away than `NEAR` (Sutherland and Hodgman, CACM 1974)."""
    kept: list[Point] = []
    for (x0, y0, z0), (x1, y1, z1) in zip(points, [*points[1:], points[0]], strict=True):
        if z0 >= NEAR:
            kept.append((x0, y0, z0))
        if (z0 >= NEAR) != (z1 >= NEAR):
            t = (NEAR - z0) / (z1 - z0)
            kept.append((x0 + t * (x1 - x0), y0 + t * (y1 - y0), NEAR))
    return kept
