"""Things that stand along a street: trees, hedges, walls, fences, lamps, traffic lights and signs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..canvas import Colour, Point, mix, shade
from ..street_plan import Plot, Street
from ..style import Style
from .brush import Brush, band, disc, pane, plate, upright

_STREETLIGHT: Colour = (255, 214, 150)


def tree(brush: Brush, size: float = 1.0) -> None:
    """Paint a broad-leaved tree of ``size`` times 6.5 m of height."""
    canvas, rng, style, x, z = brush
    crown, middle = 2.1 * size * rng.uniform(0.85, 1.2), 4.4 * size
    trunk = 0.15 * size
    bark = shade((92, 78, 64), rng.uniform(0.75, 1.1))
    canvas.solid(band(x, (trunk, 0, z), (trunk * 0.7, middle, z)), bark, "vegetation")
    canvas.detail([(x, 0, z), (x + trunk, 0, z), (x + trunk * 0.7, middle, z), (x, middle, z)], shade(bark, 0.75))
    green = _leaf_colour(rng)
    count = int(np.clip(canvas.pixels(crown, z) * 1.6, 14, 130))
    spots = []
    for _ in range(count):
        angle, away = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
        dx, dy = crown * away * math.cos(angle), crown * 0.9 * away * math.sin(angle)
        spots.append((dx, dy, crown * rng.uniform(0.14, 0.3) * (1.15 - 0.4 * away)))
    spots.sort(key=lambda spot: spot[1])  # bright leaves on top of dark ones
    leaves = [
        (x + dx, middle + dy, radius, _leaf(rng, style, green, (dy / crown + 1) / 2)) for dx, dy, radius in spots
    ]
    canvas.blobs(leaves, z, "vegetation")


def hedge(brush: Brush, street: Street, plot: Plot, height: float) -> None:
    """Paint bushes in a row along a plot.

    Args:
        brush: paints them.
        street, plot: where they stand.
        height: metres.
    """
    canvas, rng, style, _, _ = brush
    green = _leaf_colour(rng)
    edge, z0, z1 = street.edge(plot.side), plot.near, plot.far
    x0, x1 = street.at(edge, z0), street.at(edge, z1)
    steps = max(2, int(abs(z1 - z0) / 0.5))
    for n in range(steps):  # from the far end to the near one
        t = 1 - n / steps
        x, z = x0 + (x1 - x0) * t, z0 + (z1 - z0) * t
        if z > 1:
            spots = [
                (x + rng.normal(0, 0.25), y, rng.uniform(0.18, 0.32), _leaf(rng, style, green, y / height))
                for y in sorted(rng.uniform(0.05, height, 5))
            ]
            canvas.blobs(spots, z, "vegetation")


def _leaf_colour(rng: np.random.Generator) -> Colour:
    return mix((74, 104, 46), (112, 124, 48), rng.random()) if rng.random() < 0.85 else (150, 112, 46)


def _leaf(rng: np.random.Generator, style: Style, green: Colour, up: float) -> Colour:
    colour = shade(green, 0.5 + 0.6 * up + rng.uniform(-0.1, 0.1))
    return mix(colour, (232, 235, 240), style.snow * min(max(up * 1.3 - 0.35 + rng.uniform(-0.2, 0.2), 0), 0.9))


def _pieces(plot: Plot, length: float) -> Iterator[tuple[float, float]]:
    """Ends of pieces of about that length along a plot, in metres ahead; the far ones first."""
    steps = max(2, int((plot.far - plot.near) / length))
    for n in reversed(range(steps)):
        near, far = (plot.near + (plot.far - plot.near) * t / steps for t in (n, n + 1))
        yield near, far


def wall(brush: Brush, street: Street, plot: Plot) -> None:
    """Paint a garden wall of bricks or of plaster along a plot.

    Args:
        brush: paints it.
        street, plot: where it stands.
    """
    canvas, rng, style, _, _ = brush
    height = rng.uniform(1.1, 2.1)
    bricks = bool(rng.random() < 0.6)
    base = (158, 104, 84) if bricks else (190, 184, 174)
    colour = shade(base, street.brightness(plot.side, style.sun) * rng.uniform(0.8, 1.0))
    edge = street.edge(plot.side)

    def spot(z: float, y: float) -> Point:
        return street.at(edge, z), y, z

    for z0, z1 in _pieces(plot, 3):
        canvas.solid(pane(spot, z0, z1, 0, height), colour, "wall")
        if bricks and z1 > 1 and canvas.pixels(0.2, max(z0, 1)) > 3:
            for y in np.arange(0.2, height, 0.2):
                canvas.detail(pane(spot, z0, z1, y, y + 0.025), shade(colour, 1.18))
        top = mix(shade(colour, 1.15), (236, 238, 242), style.snow)
        canvas.detail(pane(spot, z0, z1, height - 0.12, height), top)


def fence(brush: Brush, street: Street, plot: Plot) -> None:
    """Paint a fence along a plot; the mask calls all of it a fence, gaps included, as people label it.

    Args:
        brush: paints it.
        street, plot: where it stands.
    """
    canvas, rng, _, _, _ = brush
    height = rng.uniform(1.0, 1.6)
    wood = bool(rng.random() < 0.5)
    bars, behind = ((150, 118, 84), (96, 96, 66)) if wood else ((72, 82, 78), (104, 116, 88))
    edge = street.edge(plot.side)
    pitch = 0.25 if wood else 0.16

    def spot(z: float, y: float) -> Point:
        return street.at(edge, z), y, z

    for z0, z1 in _pieces(plot, 2.5):
        canvas.solid(pane(spot, z0, z1, 0, height), behind, "fence")
        for y in (0.15, height - 0.15):
            canvas.detail(pane(spot, z0, z1, y, y + 0.07), bars)
        if z1 < 1 or canvas.pixels(pitch, max(z0, 1.0)) < 1.5:
            continue
        for z in np.arange(max(z0, 1.0), z1, pitch):
            canvas.detail(pane(spot, z, z + pitch * 0.5, 0, height), bars)


def lamp_head(side: int, x: float, z: float) -> Point:
    """Where the light of a `street_lamp` comes from.

    Args:
        side: -1 on the left of the street, 1 on the right.
        x, z: where its pole stands.
    """
    return x - side * 1.9, 7.16, z


def street_lamp(brush: Brush, side: int) -> None:
    """Paint a lamp on a tall pole at one side (-1 left, 1 right) with an arm over the road."""
    canvas, _, style, x, z = brush
    grey = (118, 122, 124)
    pole(brush, 7.2, 0.075, grey)
    arm, low, _ = lamp_head(side, x, z)
    canvas.solid([(x, 7.0, z), (arm, 7.25, z), (arm, 7.36, z), (x, 7.15, z)], grey, "pole")
    canvas.solid(band(arm, (0.35, low, z), (0.3, 7.36, z)), (90, 92, 94), "pole")
    if style.night:
        canvas.detail(disc((arm, low, z), 0.24), _STREETLIGHT, _STREETLIGHT)


def pole(brush: Brush, height: float, radius: float, colour: Colour) -> None:
    """Paint a round pole.

    Args:
        brush: paints it.
        height, radius: metres.
        colour: RGB.
    """
    canvas, _, _, x, z = brush
    canvas.solid(plate(x, radius, 0, height, z), shade(colour, 0.8), "pole")
    canvas.detail(upright(x - radius, x - radius * 0.1, 0, height, z), shade(colour, 1.12))


def traffic_light(brush: Brush, go: bool) -> None:
    """Paint three lamps in a dark box on a pole; the green one is lit if ``go``, else the red one."""
    canvas, rng, _, x, z = brush
    pole(brush, 2.6, 0.07, (104, 108, 110))
    size = rng.uniform(0.95, 1.2)
    canvas.solid(plate(x, 0.21 * size, 2.35, 2.35 + 1.05 * size, z), (30, 32, 32), "traffic light")
    lamps: tuple[tuple[float, Colour, bool], ...] = (
        (0.18, (60, 235, 140), go),
        (0.52, (250, 190, 40), False),
        (0.86, (250, 52, 40), not go),
    )
    for up, colour, on in lamps:
        ink = colour if on else shade(colour, 0.25)
        canvas.detail(disc((x, 2.35 + up * size, z), 0.12 * size), ink, shade(colour, 0.9) if on else None)


def traffic_sign(brush: Brush) -> None:
    """Paint a sign on a pole: a limit, a warning, a rule, a right of way or a direction."""
    canvas, rng, _, x, z = brush
    top = rng.uniform(2.3, 2.8)
    pole(brush, top + 0.2, 0.04, (140, 144, 146))
    kind, r = int(rng.integers(5)), rng.uniform(0.34, 0.45)
    red, white, blue = (196, 34, 40), (238, 238, 234), (32, 84, 164)
    if kind == 0:
        canvas.solid(disc((x, top, z), r), red, "traffic sign")
        canvas.detail(disc((x, top, z), r * 0.74), white)
        canvas.detail(plate(x, r * 0.36, top - r * 0.25, top + r * 0.25, z), (50, 50, 54))
    elif kind == 1:
        canvas.solid([(x - r, top - r * 0.7, z), (x + r, top - r * 0.7, z), (x, top + r, z)], red, "traffic sign")
        s = r * 0.6
        canvas.detail([(x - s, top - s * 0.75, z), (x + s, top - s * 0.75, z), (x, top + s * 0.85, z)], white)
    elif kind == 2:
        canvas.solid(disc((x, top, z), r), blue, "traffic sign")
        canvas.detail(plate(x, r * 0.14, top - r * 0.6, top + r * 0.5, z), white)
    elif kind == 3:
        canvas.solid([(x - r, top, z), (x, top - r, z), (x + r, top, z), (x, top + r, z)], white, "traffic sign")
        s = r * 0.72
        canvas.detail([(x - s, top, z), (x, top - s, z), (x + s, top, z), (x, top + s, z)], (244, 190, 40))
    else:
        board = blue if rng.random() < 0.6 else (30, 104, 70)
        canvas.solid(plate(x, r * 2, top - r * 0.6, top + r * 0.7, z), board, "traffic sign")
        for y in (-0.25, 0.15):
            end = x + r * rng.uniform(0.2, 1.5)
            canvas.detail(upright(x - r * 1.6, end, top + r * y, top + r * (y + 0.2), z), white)
