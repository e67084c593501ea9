"""Houses in rows along a street, and the town far behind them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..canvas import Canvas, Colour, Point, mix, shade
from ..street_plan import Plot, Street
from ..style import Style
from .brush import Brush, pane, upright

FACADES: tuple[Colour, ...] = (
    (196, 178, 150),
    (214, 204, 186),
    (172, 98, 76),
    (150, 84, 66),
    (206, 172, 112),
    (176, 176, 172),
    (138, 142, 146),
    (224, 218, 208),
    (190, 150, 130),
    (160, 170, 164),
)
_SIGNBOARDS: tuple[Colour, ...] = (
    (176, 40, 40),
    (34, 88, 150),
    (40, 118, 72),
    (214, 160, 44),
    (60, 60, 66),
    (232, 230, 224),
)

Spot = Callable[..., Point]
"""(metres along a front, metres up, metres out of it) to a place in the street."""


def backdrop(canvas: Canvas, rng: np.random.Generator) -> None:
    """The town far away: roofs and treetops along the horizon."""
    x = -330.0
    while x < 330:
        width, height = rng.uniform(10, 38), rng.uniform(7, 22)
        if rng.random() < 0.6:
            colour = shade(FACADES[rng.integers(len(FACADES))], rng.uniform(0.6, 0.8))
            canvas.solid(upright(x, x + width, 0, height, 300), colour, "building")
        else:
            green = (70 + rng.uniform(-8, 8), 92 + rng.uniform(-8, 8), 58.0)
            for _ in range(24):
                at, up, radius = x + rng.uniform(0, width), rng.uniform(0, height * 0.45), rng.uniform(3, 6)
                canvas.blobs([(at, up, radius, shade(green, rng.uniform(0.8, 1.1)))], 290, "vegetation")
        x += width * rng.uniform(0.7, 1.0)


def house(brush: Brush, street: Street, plot: Plot) -> None:
    """Paint a house with its front to the street and its end to the camera, over the whole of a plot.

    Args:
        brush: paints it.
        street, plot: where it stands.
    """
    canvas, rng, style, _, _ = brush
    side = plot.side
    floors, storey = int(rng.integers(2, 7)), rng.uniform(2.9, 3.5)
    height, length, back = floors * storey + rng.uniform(0.3, 1.2), plot.far - plot.near, side * 13.0
    base = shade(brush.pick(FACADES), rng.uniform(0.85, 1.08))
    front, end = shade(base, street.brightness(side, style.sun)), shade(base, 0.84)
    edge = street.edge(side) + side * rng.choice([0.0, 0.0, 0.8])

    def spot(along: float, up: float, out: float = 0.0) -> Point:
        z = plot.near + along
        return street.at(edge - side * out, z), up, z

    if rng.random() < 0.45:
        _roof(brush, spot, length, back, height, end)
    x, _, _ = spot(0, 0)
    canvas.solid(upright(x, x + back, 0, height, max(plot.near, 0.1)), end, "building")
    if plot.near > 2:
        for column in (0.25, 0.5, 0.75):  # windows in its end
            if rng.random() < 0.6:
                at = x + back * column
                for floor in range(floors):
                    low = floor * storey + storey * 0.35
                    canvas.detail(upright(at - 0.5, at + 0.5, low, low + 1.3, plot.near), mix(end, (40, 46, 56), 0.7))
    strips = max(2, round(length / 3))
    for n in reversed(range(strips)):
        canvas.solid(pane(spot, n * length / strips, (n + 1) * length / strips, 0, height), front, "building")
    for low, high, tone in ((height - 0.35, height, 1.12), (0, 0.5, 0.78)):
        canvas.detail(pane(spot, 0, length, low, high), shade(front, tone))
    shops, windows = (brush._replace(rng=np.random.default_rng(rng.integers(2**32))) for _ in range(2))
    is_shop = bool(rng.random() < 0.45)
    _windows(windows, spot, length, storey, range(int(is_shop), floors), front)
    if is_shop:
        _shops(shops, spot, length, storey)


def _roof(brush: Brush, spot: Spot, length: float, back: float, eaves: float, end: Colour) -> None:
    """A roof that slopes up from the street, with its gable to the camera."""
    tiles: Colour = brush.pick(((148, 74, 58), (92, 84, 84), (120, 62, 50)))
    rise = brush.rng.uniform(2.5, 4.5)
    (x0, _, z0), (x1, _, z1) = spot(0, 0), spot(length, 0)
    ridge = (x0 + back / 2, eaves + rise, z0), (x1 + back / 2, eaves + rise, z1)
    colour = mix(shade(tiles, 0.9), (236, 238, 242), 0.85 * brush.style.snow)
    brush.canvas.solid([(x0, eaves, z0), (x1, eaves, z1), ridge[1], ridge[0]], colour, "building")
    brush.canvas.solid([(x0, eaves, z0), (x0 + back, eaves, z0), ridge[0]], end, "building")


def _windows(brush: Brush, spot: Spot, length: float, storey: float, floors: range, front: Colour) -> None:
    """Windows in columns over the floors that have them; those too far away to be seen are left out."""
    canvas, rng, style, _, _ = brush
    bays = max(1, int(length / rng.uniform(2.4, 3.6)))
    wide, tall = rng.uniform(0.42, 0.62), rng.uniform(0.45, 0.66)
    frame = mix(front, (240, 238, 232), 0.55) if rng.random() < 0.7 else shade(front, 0.62)
    sky = mix(style.haze, style.zenith, 0.5)
    for bay in reversed(range(bays)):
        a, b = ((bay + 0.5 + end * wide / 2) * length / bays for end in (-1, 1))
        _, _, near = spot(a, 0)
        _, _, far = spot(b, 0)
        if far < 1 or canvas.pixels(storey, max(near, 1.0)) < 5:
            continue
        for floor in floors:
            low = floor * storey + storey * (0.9 - tall) + 0.2
            high = low + tall * storey
            canvas.detail(pane(spot, a - 0.12, b + 0.12, low - 0.14, high + 0.1), frame)
            glass, lit = _glass(rng, style, sky)
            canvas.detail(pane(spot, a, b, low, high), glass, lit)
            if canvas.pixels(0.08, far) > 0.7:
                middle = (a + b) / 2
                canvas.detail(pane(spot, middle - 0.04, middle + 0.04, low, high), frame)


def _glass(rng: np.random.Generator, style: Style, sky: Colour) -> tuple[Colour, Colour | None]:
    """Colour of a window, and what it shines in if somebody is at home at night."""
    chance, tone, strength = rng.random(3)
    if style.night and chance < 0.22:
        lit = mix((255, 190, 96), (226, 220, 200), tone)
        return lit, shade(lit, 0.15 + 0.3 * strength)
    glass = mix((44, 52, 62), sky, 0.05 + 0.4 * tone)
    return (mix(glass, (222, 214, 200), 0.6), None) if strength < 0.15 else (glass, None)


def _shops(brush: Brush, spot: Spot, length: float, storey: float) -> None:
    """Shop windows along the ground floor, with boards above them and some awnings."""
    canvas, rng, style, _, _ = brush
    a, top = 0.6, storey * 0.72
    while a < length - 3:
        b = a + min(rng.uniform(3, 6), length - a - 0.4)
        board = brush.pick(_SIGNBOARDS)
        tone, chance, awning = rng.random(3)
        lit: Colour | None = (255, 226, 180) if style.night and chance < 0.6 else None
        glass = lit or mix((46, 50, 56), (150, 150, 146), tone / 2)
        canvas.detail(pane(spot, a, b, 0.35, top), glass, shade(lit, 0.24) if lit else None)
        canvas.detail(pane(spot, a, b, top, top + 0.55), board, shade(board, 0.25) if lit else None)
        if awning < 0.4:
            over = [spot(a, top), spot(b, top), spot(b, top - 0.5, 1.2), spot(a, top - 0.5, 1.2)]
            canvas.solid(over, shade(board, 0.92), "building")
        a = b + 0.6
