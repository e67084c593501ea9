"""Vehicles on four wheels and more: cars, lorries, buses and trams."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..canvas import Canvas, Colour, Point, mix, shade
from .brush import Brush, band, disc, pane, plate, upright

PAINTS: tuple[Colour, ...] = (
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
TYRE: Colour = (24, 24, 26)
TAIL: Colour = (206, 26, 28)
_HEAD: Colour = (250, 246, 226)


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
    """Radius of the wheels, metres."""


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


def car(brush: Brush, *, oncoming: bool, parked: bool = False) -> None:
    """A car whose near end we see: its front if it is oncoming, else its back.

    Args:
        brush: paints it.
        oncoming: it faces the camera.
        parked: it stands at the kerb.
    """
    canvas, rng, style, x, z = brush
    van = bool(rng.random() < 0.14)
    body = _VAN if van else brush.pick(_CARS)
    paint = shade(brush.pick(PAINTS), rng.uniform(0.85, 1.1))
    snow = style.snow * (0.85 if parked else 0.35)
    half, waist = body.width / 2, body.hull[1][1]
    low = body.hull[0][1]
    cabin = _from_near(body, body.cabin, oncoming)
    (near, sill), (top_at, top) = cabin[:2]
    roof = half - body.inset
    canvas.solid(plate(x, half - 0.06, 0.1, 0.5, z), (20, 20, 22), "car")
    if abs(x) > half * 0.8:
        _flank(brush, body, paint, oncoming=oncoming, panes=oncoming or not van)
    for wheel in (-1, 1):
        canvas.solid(plate(x + wheel * (half - 0.135), 0.115, 0, 0.4, z), TYRE, "car")
    # From the near edge up: bonnet or boot, windscreen, roof.
    bonnet = mix(shade(paint, 1.12), (236, 238, 242), snow)
    canvas.solid(band(x, (half, waist, z), (half, sill, z + near)), bonnet, "car")
    canvas.solid(band(x, (half, sill, z + near), (roof, top, z + top_at)), paint, "car")
    glass = mix(_GLASS, style.haze, 0.22 * (not style.night))
    if van and not oncoming:  # two doors with a small pane each
        for door in (-1, 1):
            canvas.detail(plate(x + door * roof * 0.5, roof * 0.34, sill + 0.28, top - 0.22, z + near), glass)
        canvas.detail(plate(x, 0.015, sill, top - 0.05, z + near), shade(paint, 0.6))
    else:
        screen = band(x, (half - 0.1, sill + 0.05, z + near), (roof - 0.06, top - 0.08, z + top_at))
        canvas.detail(screen, mix(glass, (228, 231, 236), snow * 0.5))
    if snow:
        cover = band(x, (roof, top, z + top_at), (roof * 0.9, top + 0.09 * snow, z + top_at))
        canvas.solid(cover, (234, 236, 240), "car")
    canvas.solid(plate(x, half, low, waist - 0.02, z), paint, "car")
    canvas.solid(band(x, (half, waist - 0.02, z), (half - 0.06, waist, z)), paint, "car")
    _bumper(brush, half, low, waist, oncoming=oncoming, parked=parked)


def _from_near(body: Body, profile: Sequence[tuple[float, float]], oncoming: bool) -> list[tuple[float, float]]:
    """A profile as it stands on the road: bodies are drawn with the bonnet far away."""
    length = body.hull[-1][0]
    return [(length - along, up) for along, up in reversed(profile)] if oncoming else list(profile)


def _flank(brush: Brush, body: Body, paint: Colour, *, oncoming: bool, panes: bool) -> None:
    """The side of a car that is turned to the camera."""
    canvas, _, _, x, z = brush
    side, dull = -1 if x > 0 else 1, shade(paint, 0.78)
    flank = x + side * body.width / 2
    cabin = _from_near(body, body.cabin, oncoming)
    sill, top = cabin[0][1], cabin[1][1]

    def spot(along: float, up: float) -> Point:
        return flank - side * body.inset * (up - sill) / (top - sill), up, z + along

    canvas.solid([(flank, up, z + along) for along, up in _from_near(body, body.hull, oncoming)], dull, "car")
    canvas.solid([spot(*point) for point in cabin], dull, "car")
    if panes:
        low, high = sill + 0.04, top - 0.1
        a, b, c, d = (along for along, _ in cabin)
        inner = ((a + 0.16, low), (b + 0.12, high), (c - 0.12, high), (d - 0.16, low))
        canvas.detail([spot(*point) for point in inner], shade(_GLASS, 0.9))
        post = (b + c) / 2
        canvas.detail(pane(spot, post - 0.05, post + 0.05, low, high), dull)
    for along, _ in _from_near(body, [(at, 0.0) for at in body.wheels], oncoming):
        _wheel(canvas, flank + side * 0.01, z + along, body.radius, "car")


def _bumper(brush: Brush, half: float, lower: float, waist: float, *, oncoming: bool, parked: bool) -> None:
    """The near face of a car: bumper, plate and lamps."""
    canvas, _, style, x, z = brush
    lit = style.night and not parked
    canvas.detail(plate(x, half * 0.96, lower, lower + 0.14, z), (34, 34, 36))
    band = (waist - lower) * 0.5 + lower
    if oncoming:
        canvas.detail(plate(x, half * 0.5, band - 0.02, waist - 0.1, z), (30, 32, 34))
    canvas.detail(plate(x, 0.26, band - 0.16, band - 0.05, z), (226, 226, 218))
    for side in (-1, 1):
        inner, outer = x + side * half * 0.62, x + side * half * 0.95
        lamp = [(inner, band + 0.04, z), (outer, band, z), (outer, waist - 0.08, z), (inner, waist - 0.1, z)]
        if oncoming:
            canvas.detail(lamp, (226, 228, 226), _HEAD if lit else (None if parked else (90, 88, 80)))
        else:
            canvas.detail(lamp, (176, 24, 26) if not lit else TAIL, shade(TAIL, 0.9) if lit else None)


def _wheel(canvas: Canvas, x: float, z: float, radius: float, label: str) -> None:
    """A wheel in the plane of a vehicle's flank."""
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    for share, colour in ((1.0, TYRE), (0.6, (122, 124, 128)), (0.25, (60, 62, 64))):
        ring = [
            (x, radius + share * radius * float(np.sin(a)), z + share * radius * float(np.cos(a))) for a in angles
        ]
        if share == 1.0:
            canvas.solid(ring, colour, label)
        else:
            canvas.detail(ring, colour)


def truck(brush: Brush, *, oncoming: bool) -> None:
    """Paint a lorry with a box; from ahead its cab, from behind its doors."""
    canvas, rng, style, x, z = brush
    half, top, length = 1.22, rng.uniform(3.1, 3.7), rng.uniform(6.5, 9)
    box = brush.pick(((214, 214, 210), (176, 54, 44), (58, 96, 140), (206, 176, 96)))
    cab = shade(brush.pick(PAINTS), 1.05)
    begin = 2.0 if oncoming else 0.0
    _box(brush._replace(z=z + begin), "truck", box, half, 0.95, top, length)
    if canvas.pixels(1, z) > 6 and not oncoming:
        canvas.detail(plate(x, 0.02, 1.0, top - 0.06, z), shade(box, 0.6))
        for y in (1.0, top - 0.08):
            canvas.detail(plate(x, half, y, y + 0.06, z), shade(box, 0.7))
    _axles(brush, "truck", half, (0.9, length - 1.2), 0.5)
    if oncoming:
        _box(brush, "truck", cab, half * 0.97, 0.55, 2.75, 2.0)
        canvas.detail(plate(x, half * 0.86, 1.62, 2.5, z), mix(_GLASS, style.haze, 0.2))
        canvas.detail(plate(x, half * 0.7, 0.95, 1.4, z), (52, 54, 56))
    _end_lamps(brush, half, 0.72, oncoming=oncoming)


def bus(brush: Brush, *, oncoming: bool, tram: bool = False) -> None:
    """Paint a city bus, or a tram on rails (the class ``train``).

    Args:
        brush: paints it.
        oncoming: it faces the camera.
        tram: a tram, not a bus.
    """
    canvas, _, style, x, z = brush
    label = "train" if tram else "bus"
    half, top, length = (1.18, 3.3, 19.0) if tram else (1.25, 3.05, 11.5)
    paint = brush.pick(((196, 44, 40), (224, 186, 52), (238, 236, 228), (36, 112, 84)))
    floor = 0.25 if tram else 0.4
    _box(brush, label, paint, half, floor, top, length)
    lit = (248, 226, 178) if style.night else None
    glass = lit or mix(_GLASS, style.haze, 0.2)
    if abs(x) > half:
        panes = max(2, round(length / 1.6))
        for n in reversed(range(panes)):
            a, b = length * (n + 0.08) / panes, length * (n + 0.92) / panes
            window = pane(_side_of(brush, half), a, b, 1.35, top - 0.55)
            canvas.detail(window, shade(glass, 0.85), shade(lit, 0.2) if lit else None)
    if not tram:
        _axles(brush, label, half, (2.4, length - 2.6), 0.48)
    canvas.detail(plate(x, half * 0.88, 1.2, top - 0.6, z), glass, shade(lit, 0.2) if lit else None)
    canvas.detail(plate(x, half * 0.6, top - 0.45, top - 0.15, z), (28, 28, 26))
    canvas.detail(plate(x, half * 0.4, top - 0.38, top - 0.22, z), (246, 190, 60), (200, 140, 30))
    canvas.detail(plate(x, half, floor, floor + 0.22, z), shade(paint, 0.5))
    _end_lamps(brush, half, 0.78, oncoming=oncoming)


def rails(brush: Brush, track: Sequence[tuple[float, float]]) -> None:
    """Two rails in the road along ``(x, z)`` positions of the track's middle; the mask keeps the road."""
    for gauge in (-0.72, 0.72):
        for (x0, z0), (x1, z1) in itertools.pairwise(track):
            x0, x1 = x0 + gauge, x1 + gauge
            rail = [(x0 - 0.05, 0, z0), (x0 + 0.05, 0, z0), (x1 + 0.05, 0, z1), (x1 - 0.05, 0, z1)]
            brush.canvas.detail(rail, (66, 65, 64))


def _side_of(brush: Brush, half: float) -> Callable[[float, float], Point]:
    """(metres along, metres up) to a place on the flank that we see of a vehicle, ``half`` from its middle."""
    _, _, _, x, z = brush
    flank = x + (-1 if x > 0 else 1) * half
    return lambda along, up: (flank, up, z + along)


def _box(brush: Brush, label: str, paint: Colour, half: float, low: float, top: float, length: float) -> None:
    """The flank that we see and the near face of a cuboid."""
    for n in reversed(range(3)):
        flank = pane(_side_of(brush, half), length * n / 3, length * (n + 1) / 3, low, top)
        brush.canvas.solid(flank, shade(paint, 0.72), label)
    brush.canvas.solid(plate(brush.x, half, low, top, brush.z), paint, label)


def _axles(brush: Brush, label: str, half: float, along: Sequence[float], radius: float) -> None:
    canvas, _, _, x, z = brush
    if abs(x) > half:
        for at in along:
            flank, _, ahead = _side_of(brush, half)(at, 0)
            _wheel(canvas, flank, ahead, radius, label)
    for wheel in (-1, 1):
        outer, inner = x + wheel * (half - 0.05), x + wheel * (half - 0.4)
        canvas.solid(upright(outer, inner, 0, 0.9, z + 0.1), TYRE, label)
    canvas.solid(plate(x, half * 0.9, 0.45, 0.95, z + 0.05), (38, 38, 40), label)


def _end_lamps(brush: Brush, half: float, up: float, *, oncoming: bool) -> None:
    colour = _HEAD if oncoming else TAIL
    for side in (-1, 1):
        brush.canvas.detail(
            disc((brush.x + side * half * 0.8, up, brush.z), 0.13), colour, colour if brush.style.night else None
        )
