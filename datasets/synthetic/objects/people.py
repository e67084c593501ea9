"""People, and what they ride."""

from __future__ import annotations

import numpy as np

from ..canvas import Colour, Point, shade
from .brush import Brush, disc, plate
from .vehicles import PAINTS, TAIL, TYRE

_CLOTHES: tuple[Colour, ...] = (
    (36, 42, 62),
    (70, 72, 76),
    (150, 36, 40),
    (216, 210, 198),
    (54, 92, 124),
    (84, 98, 62),
    (196, 148, 60),
    (110, 60, 104),
)
_SKINS: tuple[Colour, ...] = ((232, 190, 160), (206, 158, 124), (150, 104, 76), (96, 66, 50))


def person(brush: Brush, label: str = "person", seat: float = 0.0) -> None:
    """Paint somebody who walks, stands or sits on something.

    Args:
        brush: paints them.
        label: the class, ``person`` or ``rider``.
        seat: metres of the seat above the ground; 0 for nobody seated.
    """
    canvas, rng, _, x, z = brush
    size = rng.uniform(0.9, 1.05) * (1 if seat else rng.choice([1.0, 1.0, 1.0, 0.68]))
    top, legs = (shade(brush.pick(_CLOTHES), rng.uniform(0.8, 1.15)) for _ in range(2))
    skin, hair = brush.pick(_SKINS), shade((70, 52, 40), rng.uniform(0.4, 1.8))
    stride = 0.0 if seat else rng.uniform(0.02, 0.2)
    lean = rng.uniform(-0.03, 0.03)
    base = seat - 0.82 * size if seat else 0.0

    def spot(dx: float, up: float) -> Point:
        return x + dx * size + lean * up, base + up * size, z

    for leg in (-1, 1):
        foot = leg * (0.07 + stride)
        if seat:  # the knee is forward, the foot on a pedal
            points = [(leg * 0.06, 0.86), (leg * 0.2, 0.82), (leg * 0.2, 0.42), (leg * 0.08, 0.42)]
        else:
            points = [(leg * 0.02 - 0.07, 0.88), (leg * 0.02 + 0.09, 0.88), (foot + 0.06, 0.04), (foot - 0.06, 0.04)]
        canvas.solid([spot(*p) for p in points], shade(legs, 0.9 + 0.12 * leg), label)
        if not seat:
            shoe = [(foot - 0.07, 0.05), (foot + 0.07, 0.05), (foot + 0.09, 0.0), (foot - 0.08, 0.0)]
            canvas.solid([spot(*p) for p in shoe], (34, 32, 32), label)
    for arm in (-1, 1):
        reach = 0.24 + stride * 0.4
        points = [(arm * 0.17, 1.4), (arm * 0.24, 1.36), (arm * (reach + 0.03), 0.84), (arm * (reach - 0.06), 0.84)]
        canvas.solid([spot(*p) for p in points], shade(top, 0.82 + 0.08 * arm), label)
        canvas.solid(disc(spot(arm * (reach - 0.01), 0.82), 0.045 * size), skin, label)
    trunk = [(-0.17, 0.84), (0.17, 0.84), (0.2, 1.38), (0.1, 1.46), (-0.1, 1.46), (-0.2, 1.38)]
    canvas.solid([spot(*p) for p in trunk], top, label)
    canvas.detail([spot(*p) for p in ((0.03, 0.84), (0.17, 0.84), (0.2, 1.38), (0.1, 1.46))], shade(top, 0.86))
    canvas.solid(disc(spot(0, 1.51), 0.055 * size), shade(skin, 0.85), label)
    canvas.solid(disc(spot(0, 1.63), 0.115 * size, 1.15), hair, label)
    canvas.detail(disc(spot(0.01, 1.6), 0.085 * size), skin)


def two_wheeler(brush: Brush, *, motor: bool, ridden: bool) -> None:
    """Paint a bicycle or a motorcycle from behind or from its side.

    Args:
        brush: paints it.
        motor: it is a motorcycle.
        ridden: somebody sits on it.
    """
    canvas, rng, style, x, z = brush
    label = "motorcycle" if motor else "bicycle"
    paint = shade(brush.pick(PAINTS), 1.1)
    across = bool(rng.random() < 0.3) or not ridden
    seat, r = (0.8, 0.3) if motor else (0.95, 0.34)
    if across:
        thick = 0.09 if motor else 0.045
        for wheel in (-0.55, 0.55):
            canvas.solid(disc((x + wheel, r, z), r), TYRE, label)
            canvas.detail(disc((x + wheel, r, z), r - thick), (112, 116, 118) if motor else (128, 128, 124))
        for begin, end, width in (
            ((-0.55, r), (-0.15, 0.72), 0.05),
            ((-0.15, 0.72), (0.42, 0.78), 0.06),
            ((0.05, r), (0.42, 0.8), 0.06),
            ((-0.55, r), (0.05, r), 0.05),
            ((0.55, r), (0.4, 0.98), 0.05),
            ((0.05, r), (-0.2, seat), 0.05),
        ):
            canvas.solid(_bar(x, z, begin, end, width * (2.2 if motor else 1.0)), paint, label)
        canvas.solid(_bar(x, z, (-0.36, seat), (-0.02, seat), 0.09 if motor else 0.06), (28, 26, 26), label)
        canvas.solid(_bar(x, z, (0.32, 1.0), (0.46, 0.98), 0.05), (40, 40, 42), label)
        if motor:
            canvas.solid(_bar(x, z, (-0.25, 0.45), (0.3, 0.45), 0.34), shade(paint, 0.5), label)
            canvas.solid(_bar(x, z, (-0.02, 0.76), (0.38, 0.84), 0.2), paint, label)
    else:
        half = 0.09 if motor else 0.04
        canvas.solid(plate(x, half, 0.0, 2 * r, z), TYRE, label)
        canvas.solid(plate(x, 0.16 if motor else 0.05, 0.5, seat, z), paint, label)
        canvas.solid(plate(x, 0.36, 0.98, 1.04, z), (44, 44, 46), label)
        if motor:
            for leg in (-1, 1):
                canvas.solid(plate(x + leg * 0.2, 0.06, 0.3, 0.62, z), (60, 60, 62), label)
        canvas.detail(disc((x, seat - 0.12, z), 0.06), TAIL, TAIL if style.night and ridden else None)
    if ridden:
        person(brush._replace(x=x - (0.18 if across else 0), z=z - 0.02), "rider", seat)


def _bar(x: float, z: float, begin: tuple[float, float], end: tuple[float, float], width: float) -> list[Point]:
    """A straight bar in a plane that faces the camera."""
    (x0, y0), (x1, y1) = begin, end
    length = float(np.hypot(x1 - x0, y1 - y0))
    nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    corners = ((x0, y0, 1), (x1, y1, 1), (x1, y1, -1), (x0, y0, -1))
    return [(x + at + edge * nx, up + edge * ny, z) for at, up, edge in corners]
