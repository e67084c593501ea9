"""Paints one object: what every function of this package is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from ..canvas import Canvas, Point
from ..style import Style

Choice = TypeVar("Choice")


class Brush(NamedTuple):
    """Canvas and chance to paint an object with, and where it stands."""

    canvas: Canvas
    rng: np.random.Generator
    """Its own: nothing that is painted later depends on how often it is asked."""
    style: Style
    x: float
    """Metres to the right of the camera."""
    z: float
    """Metres ahead of the camera, of its near end."""

    def pick(self, choices: tuple[Choice, ...]) -> Choice:
        """One of them, at random."""
        return choices[self.rng.integers(len(choices))]


def upright(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    """List the corners of a rectangle that faces the camera.

    Args:
        x0, x1: its left and its right end, metres.
        y0, y1: its lower and its upper end, metres.
        z: metres ahead of the camera.
    """
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def plate(x: float, half: float, low: float, high: float, z: float) -> list[Point]:
    """List the corners of an `upright` rectangle that is given by its middle.

    Args:
        x, half: its middle and half of its width, metres.
        low, high, z: as for `upright`.
    """
    return upright(x - half, x + half, low, high, z)


def band(x: float, lower: Point, upper: Point) -> list[Point]:
    """List the corners of a trapezoid between two level edges.

    Args:
        x: its middle, metres.
        lower, upper: edges, each given as (half its length, how far up, how far ahead), metres.
    """
    (half0, up0, z0), (half1, up1, z1) = lower, upper
    return [(x - half0, up0, z0), (x + half0, up0, z0), (x + half1, up1, z1), (x - half1, up1, z1)]


def pane(spot: Callable[[float, float], Point], a: float, b: float, low: float, high: float) -> list[Point]:
    """List the corners of a rectangle on a front or a flank.

    Args:
        spot: (metres along the surface, metres up) to a place in the street.
        a, b: where it begins and ends, metres along.
        low, high: its lower and its upper end, metres.
    """
    return [spot(a, low), spot(b, low), spot(b, high), spot(a, high)]


def disc(centre: Point, radius: float, flat: float = 1.0) -> list[Point]:
    """List the corners of a disc that faces the camera.

    Args:
        centre, radius: metres.
        flat: its height in widths.
    """
    x, y, z = centre
    angles = [2 * math.pi * n / 14 for n in range(14)]
    return [(x + radius * math.cos(a), y + radius * flat * math.sin(a), z) for a in angles]
