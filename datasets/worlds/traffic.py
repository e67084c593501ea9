"""What moves along a street: cars, trucks, buses, trams, two-wheelers and people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Colour, Point, mix, shade
from .style import Style

_PAINTS: tuple[Colour, ...] = (
    (32, 34, 38),
    (188, 190, 194),
    (228, 228, 226),
    (108, 112, 118),
    (150, 30, 34),
    (34, 62, 112),
    (62, 74, 66),
    (198, 168, 120),
)
_GLASS: Colour = (38, 46, 54)
_TYRE: Colour = (24, 24, 26)
_TAIL: Colour = (206, 26, 28)
_HEAD: Colour = (250, 246, 226)
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


@dataclass(frozen=True, slots=True)
class Body:
    """The shape of a vehicle, in metres; profiles run from the end near the camera to the far one."""

    width: float
    hull: tuple[tuple[float, float], ...]
    """(along, up) of the side below the windows, clockwise from the near lower corner."""
    cabin: tuple[tuple[float, float], ...]
    """(along, up) of the part with the windows: near lower, near upper, far upper, far lower corner."""
    inset: float
    """How much narrower the cabin is on each side at its top."""
    wheels: tuple[float, ...]
    """Where along the side its wheels are."""
    radius: float
    """Of the wheels."""


_CARS = (
    Body(  # a hatchback
        1.76,
        ((0.0, 0.3), (0.0, 0.92), (0.1, 0.98), (3.0, 0.98), (4.05, 0.82), (4.1, 0.3)),
        ((0.08, 0.96), (0.5, 1.47), (2.3, 1.47), (3.1, 0.96)),
        0.2,
        (0.75, 3.3),
        0.32,
    ),
    Body(  # a saloon
        1.82,
        ((0.0, 0.3), (0.0, 0.9), (0.1, 0.98), (3.4, 0.96), (4.6, 0.78), (4.65, 0.3)),
        ((0.6, 0.96), (1.25, 1.42), (2.6, 1.42), (3.45, 0.95)),
        0.22,
        (0.9, 3.75),
        0.33,
    ),
    Body(  # one for rough ground
        1.9,
        ((0.0, 0.4), (0.0, 1.08), (0.08, 1.15), (3.2, 1.15), (4.4, 1.02), (4.45, 0.4)),
        ((0.05, 1.12), (0.25, 1.74), (2.6, 1.74), (3.3, 1.12)),
        0.14,
        (0.85, 3.6),
        0.38,
    ),
)
_VAN = Body(
    2.0,
    ((0.0, 0.35), (0.0, 1.2), (0.05, 1.25), (4.6, 1.2), (5.3, 1.0), (5.35, 0.35)),
    ((0.03, 1.2), (0.1, 2.35), (3.9, 2.35), (4.7, 1.2)),
    0.08,
    (0.9, 4.4),
    0.36,
)


def car(
    canvas: Canvas, rng: np.random.Generator, style: Style, x: float, z: float, *, oncoming: bool, parked: bool = False
) -> None:
    """A car whose near end stands at ``z``; we see its front if it is oncoming, else its back."""
    van = bool(rng.random() < 0.14)
    body = _VAN if van else _CARS[rng.integers(len(_CARS))]
    paint = shade(_PAINTS[rng.integers(len(_PAINTS))], rng.uniform(0.85, 1.1))
    snow = style.snow * (0.85 if parked else 0.35)
    _automobile(canvas, style, body, paint, x, z, oncoming=oncoming, parked=parked, snow=snow, blind=van and not oncoming)


def _automobile(
    canvas: Canvas,
    style: Style,
    body: Body,
    paint: Colour,
    x: float,
    z: float,
    *,
    oncoming: bool,
    parked: bool,
    snow: float,
    blind: bool,
) -> None:
    length, half = body.hull[-1][0], body.width / 2
    mirrored = oncoming  # profiles have the bonnet far away

    def along(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(length - a, up) for a, up in reversed(points)] if mirrored else list(points)

    hull, cabin = along(body.hull), along(body.cabin)
    side = -1 if x > 0 else 1  # the flank that we see
    flank = x + side * half
    tall = cabin[1][1]
    canvas.solid(
        [(x - half + 0.06, 0.1, z), (x + half - 0.06, 0.1, z), (x + half - 0.06, 0.5, z), (x - half + 0.06, 0.5, z)],
        (20, 20, 22),
        "car",
    )
    if abs(x) > half * 0.8:
        dull = shade(paint, 0.78)
        canvas.solid([(flank, up, z + a) for a, up in hull], dull, "car")
        canvas.solid([(flank - side * (up - 0.9) * body.inset, up, z + a) for a, up in cabin], dull, "car")
        low, high = cabin[0][1] + 0.04, tall - 0.1
        a0, a1, a2, a3 = (a for a, _ in cabin)
        inner = [(a0 + 0.16, low), (a1 + 0.12, high), (a2 - 0.12, high), (a3 - 0.16, low)]
        pane = [(flank - side * (up - 0.9) * body.inset * 0.96, up, z + a) for a, up in inner]
        if not blind:
            canvas.detail(pane, shade(_GLASS, 0.9))
            middle = (a1 + a2) / 2
            canvas.detail([(flank, low, z + middle - 0.05), (flank, low, z + middle + 0.05), pane[2], pane[1]][:2] + [
                (flank - side * (high - 0.9) * body.inset, high, z + middle + 0.05),
                (flank - side * (high - 0.9) * body.inset, high, z + middle - 0.05),
            ], dull)
        for at in body.wheels:
            _wheel(canvas, flank + side * 0.01, z + (length - at if mirrored else at), body.radius, "car")
    for wheel in (-1, 1):
        canvas.solid(
            [(x + wheel * (half - 0.02), 0, z), (x + wheel * (half - 0.25), 0, z), (x + wheel * (half - 0.25), 0.4, z), (x + wheel * (half - 0.02), 0.4, z)],
            _TYRE,
            "car",
        )
    lower, waist = hull[0][1], hull[1][1]
    # Bonnet or boot, from the near edge up to the cabin.
    a0, up0 = cabin[0]
    canvas.solid(
        [(x - half, waist, z), (x + half, waist, z), (x + half - 0.05, up0, z + a0), (x - half + 0.05, up0, z + a0)],
        mix(shade(paint, 1.12), (236, 238, 242), snow),
        "car",
    )
    a1, up1 = cabin[1]
    top = half - body.inset - 0.03
    canvas.solid(
        [(x - half + 0.06, up0, z + a0), (x + half - 0.06, up0, z + a0), (x + top, up1, z + a1), (x - top, up1, z + a1)],
        paint,
        "car",
    )
    glass = mix(_GLASS, style.haze, 0.22 * (not style.night))
    g0, g1 = 0.1, 0.14
    if not blind:
        canvas.detail(
            [
                (x - half + 0.06 + g0, up0 + 0.05, z + a0),
                (x + half - 0.06 - g0, up0 + 0.05, z + a0),
                (x + top - g0 * 0.6, up1 - g1 * 0.6, z + a1),
                (x - top + g0 * 0.6, up1 - g1 * 0.6, z + a1),
            ],
            mix(glass, (228, 231, 236), snow * 0.5),
        )
    if snow:
        canvas.detail(
            [(x - top, up1, z + a1), (x + top, up1, z + a1), (x + top * 0.9, up1 + 0.09 * snow, z + a1), (x - top * 0.9, up1 + 0.09 * snow, z + a1)],
            (234, 236, 240),
        )
    face = [(x - half, lower, z), (x + half, lower, z), (x + half, waist - 0.02, z), (x + half - 0.06, waist, z), (x - half + 0.06, waist, z), (x - half, waist - 0.02, z)]
    canvas.solid(face, paint, "car")
    _bumper(canvas, x, z, half, lower, waist, oncoming=oncoming, lit=style.night and not parked, day=not parked)


def _bumper(
    canvas: Canvas, x: float, z: float, half: float, lower: float, waist: float, *, oncoming: bool, lit: bool, day: bool
) -> None:
    """The near face of a car: bumper, plate and lamps."""
    canvas.detail(_plate(x, half * 0.96, lower, lower + 0.14, z), (34, 34, 36))
    band = (waist - lower) * 0.5 + lower
    if oncoming:
        canvas.detail(_plate(x, half * 0.5, band - 0.02, waist - 0.1, z), (30, 32, 34))
    canvas.detail(_plate(x, 0.26, band - 0.16, band - 0.05, z), (226, 226, 218))
    for side in (-1, 1):
        inner, outer = x + side * half * 0.62, x + side * half * 0.95
        lamp = [(inner, band + 0.04, z), (outer, band, z), (outer, waist - 0.08, z), (inner, waist - 0.1, z)]
        if oncoming:
            canvas.detail(lamp, (226, 228, 226), _HEAD if lit else ((90, 88, 80) if day else None))
        else:
            canvas.detail(lamp, (176, 24, 26) if not lit else _TAIL, shade(_TAIL, 0.9) if lit else None)


def _plate(x: float, half: float, low: float, high: float, z: float) -> list[Point]:
    return [(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)]


def _wheel(canvas: Canvas, x: float, z: float, radius: float, label: str) -> None:
    """A wheel in the plane of a vehicle's flank."""
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    for share, colour in ((1.0, _TYRE), (0.6, (122, 124, 128)), (0.25, (60, 62, 64))):
        ring = [(x, radius + share * radius * float(np.sin(a)), z + share * radius * float(np.cos(a))) for a in angles]
        if share == 1.0:
            canvas.solid(ring, colour, label)
        else:
            canvas.detail(ring, colour)


def truck(canvas: Canvas, rng: np.random.Generator, style: Style, x: float, z: float, *, oncoming: bool) -> None:
    """A lorry with a box; from ahead its cab, from behind its doors."""
    half, top, length = 1.22, rng.uniform(3.1, 3.7), rng.uniform(6.5, 9)
    box = ((214, 214, 210), (176, 54, 44), (58, 96, 140), (206, 176, 96))[rng.integers(4)]
    cab = shade(_PAINTS[rng.integers(len(_PAINTS))], 1.05)
    begin = 2.0 if oncoming else 0.0
    _box(canvas, "truck", x, z + begin, half, 0.95, top, length, box)
    if canvas.pixels(1, z) > 6 and not oncoming:
        canvas.detail(_plate(x, 0.02, 1.0, top - 0.06, z), shade(box, 0.6))
        for y in (1.0, top - 0.08):
            canvas.detail(_plate(x, half, y, y + 0.06, z), shade(box, 0.7))
    _axles(canvas, "truck", x, z, half, (0.9, length - 1.2), 0.5)
    if oncoming:
        _box(canvas, "truck", x, z, half * 0.97, 0.55, 2.75, 2.0, cab)
        canvas.detail(_plate(x, half * 0.86, 1.62, 2.5, z), mix(_GLASS, style.haze, 0.2))
        canvas.detail(_plate(x, half * 0.7, 0.95, 1.4, z), (52, 54, 56))
    _end_lamps(canvas, style, x, z, half, 0.72, oncoming=oncoming)


def bus(canvas: Canvas, rng: np.random.Generator, style: Style, x: float, z: float, *, oncoming: bool, tram: bool = False) -> None:
    """A city bus, or a tram on rails (the class ``train``)."""
    label = "train" if tram else "bus"
    half, top, length = (1.18, 3.3, 19.0) if tram else (1.25, 3.05, 11.5)
    paint = ((196, 44, 40), (224, 186, 52), (238, 236, 228), (36, 112, 84))[rng.integers(4)]
    floor = 0.25 if tram else 0.4
    if tram:
        for rail in (-0.72, 0.72):
            ahead = [(x + rail - 0.05, 0, NEAR_RAIL), (x + rail + 0.05, 0, NEAR_RAIL), (x + rail + 0.05, 0, z), (x + rail - 0.05, 0, z)]
            canvas.detail(ahead, (70, 68, 66))
    _box(canvas, label, x, z, half, floor, top, length, paint)
    side = -1 if x > 0 else 1
    lit = (248, 226, 178) if style.night else None
    glass = lit or mix(_GLASS, style.haze, 0.2)
    if abs(x) > half:
        panes = max(2, round(length / 1.6))
        for n in reversed(range(panes)):
            z0, z1 = z + length * (n + 0.08) / panes, z + length * (n + 0.92) / panes
            flank = x + side * half
            pane = [(flank, 1.35, z0), (flank, 1.35, z1), (flank, top - 0.55, z1), (flank, top - 0.55, z0)]
            canvas.detail(pane, shade(glass, 0.85), shade(lit, 0.5) if lit else None)
    if not tram:
        _axles(canvas, label, x, z, half, (2.4, length - 2.6), 0.48)
    canvas.detail(_plate(x, half * 0.88, 1.2, top - 0.6, z), glass, shade(lit, 0.5) if lit else None)
    canvas.detail(_plate(x, half * 0.6, top - 0.45, top - 0.15, z), (28, 28, 26))
    canvas.detail(_plate(x, half * 0.4, top - 0.38, top - 0.22, z), (246, 190, 60), (200, 140, 30))
    canvas.detail(_plate(x, half, floor, floor + 0.22, z), shade(paint, 0.5))
    _end_lamps(canvas, style, x, z, half, 0.78, oncoming=oncoming)


NEAR_RAIL = 1.0
"""Where rails begin, in metres ahead."""


def _box(
    canvas: Canvas, label: str, x: float, z: float, half: float, low: float, top: float, length: float, paint: Colour
) -> None:
    """The flank that we see, the roof if we see it, and the near face of a cuboid."""
    side = -1 if x > 0 else 1
    flank = x + side * half
    steps = 3
    for n in reversed(range(steps)):
        z0, z1 = z + length * n / steps, z + length * (n + 1) / steps
        canvas.solid([(flank, low, z0), (flank, low, z1), (flank, top, z1), (flank, top, z0)], shade(paint, 0.72), label)
    canvas.solid(_plate(x, half, low, top, z), paint, label)


def _axles(canvas: Canvas, label: str, x: float, z: float, half: float, along: Sequence[float], radius: float) -> None:
    side = -1 if x > 0 else 1
    if abs(x) > half:
        for at in along:
            _wheel(canvas, x + side * half, z + at, radius, label)
    for wheel in (-1, 1):
        outer, inner = x + wheel * (half - 0.05), x + wheel * (half - 0.4)
        canvas.solid([(outer, 0, z + 0.1), (inner, 0, z + 0.1), (inner, 0.9, z + 0.1), (outer, 0.9, z + 0.1)], _TYRE, label)
    canvas.solid(_plate(x, half * 0.9, 0.45, 0.95, z + 0.05), (38, 38, 40), label)


def _end_lamps(canvas: Canvas, style: Style, x: float, z: float, half: float, up: float, *, oncoming: bool) -> None:
    for side in (-1, 1):
        colour = _HEAD if oncoming else _TAIL
        canvas.disc((x + side * half * 0.8, up, z), 0.13, colour, colour if style.night else None)


def person(canvas: Canvas, rng: np.random.Generator, x: float, z: float, label: str = "person", seat: float = 0.0) -> None:
    """Somebody who walks, stands or, ``seat`` metres above the ground, sits on something."""
    size = rng.uniform(0.9, 1.05) * (1 if seat else rng.choice([1.0, 1.0, 1.0, 0.68]))
    top, legs = (shade(_CLOTHES[rng.integers(len(_CLOTHES))], rng.uniform(0.8, 1.15)) for _ in range(2))
    skin, hair = _SKINS[rng.integers(len(_SKINS))], shade((70, 52, 40), rng.uniform(0.4, 1.8))
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
        canvas.solid_disc(spot(arm * (reach - 0.01), 0.82), 0.045 * size, skin, label)
    trunk = [(-0.17, 0.84), (0.17, 0.84), (0.2, 1.38), (0.1, 1.46), (-0.1, 1.46), (-0.2, 1.38)]
    canvas.solid([spot(*p) for p in trunk], top, label)
    canvas.detail([spot(*p) for p in ((0.03, 0.84), (0.17, 0.84), (0.2, 1.38), (0.1, 1.46))], shade(top, 0.86))
    canvas.solid_disc(spot(0, 1.51), 0.055 * size, shade(skin, 0.85), label)
    canvas.solid_disc(spot(0, 1.63), 0.115 * size, hair, label, 1.15)
    canvas.disc(spot(0.01, 1.6), 0.085 * size, skin)


def two_wheeler(canvas: Canvas, rng: np.random.Generator, style: Style, x: float, z: float, *, motor: bool, ridden: bool) -> None:
    """A bicycle or a motorcycle from behind or from its side, with somebody on it or without."""
    label = "motorcycle" if motor else "bicycle"
    paint = shade(_PAINTS[rng.integers(len(_PAINTS))], 1.1)
    across = bool(rng.random() < (0.3 if ridden else 0.7))
    seat, r = (0.8, 0.3) if motor else (0.95, 0.34)
    if across:
        thick = 0.09 if motor else 0.045
        for wheel in (-0.55, 0.55):
            canvas.solid_disc((x + wheel, r, z), r, _TYRE, label)
            canvas.disc((x + wheel, r, z), r - thick, (112, 116, 118) if motor else (128, 128, 124))
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
        canvas.solid(_plate(x, half, 0.0, 2 * r, z), _TYRE, label)
        canvas.solid(_plate(x, 0.16 if motor else 0.05, 0.5, seat, z), paint, label)
        canvas.solid(_plate(x, 0.36, 0.98, 1.04, z), (44, 44, 46), label)
        if motor:
            for leg in (-1, 1):
                canvas.solid(_plate(x + leg * 0.2, 0.06, 0.3, 0.62, z), (60, 60, 62), label)
        canvas.disc((x, seat - 0.12, z), 0.06, _TAIL, _TAIL if style.night and ridden else None)
    if ridden:
        person(canvas, rng, x - (0.18 if across else 0), z - 0.02, "rider", seat)


def _bar(x: float, z: float, begin: tuple[float, float], end: tuple[float, float], width: float) -> list[Point]:
    """A straight bar in a plane that faces the camera."""
    (x0, y0), (x1, y1) = begin, end
    length = float(np.hypot(x1 - x0, y1 - y0))
    nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return [(x + x0 + nx, y0 + ny, z), (x + x1 + nx, y1 + ny, z), (x + x1 - nx, y1 - ny, z), (x + x0 - nx, y0 - ny, z)]
