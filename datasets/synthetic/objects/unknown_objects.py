"""Objects of no class in the way of the car: the mask calls them void."""

from __future__ import annotations

import math

import numpy as np

from ..canvas import Colour, Point, shade
from .brush import Brush, band, disc, plate


def animal(brush: Brush) -> None:
    """Paint an animal on four legs from its side: a cow, a horse, or of the unseen kinds a zebra or a leopard."""
    canvas, rng, style, x, z = brush
    kind = int(rng.integers(2)) + 2 * style.unseen_kind
    coat: Colour = ((150, 88, 54), (92, 62, 44), (226, 222, 214), (222, 172, 92))[kind]
    mark: Colour = ((236, 230, 220), (56, 38, 30), (34, 32, 34), (64, 44, 30))[kind]
    size = (1.0, 1.15, 1.0, 0.72)[kind]
    facing = 1 if rng.random() < 0.5 else -1

    def spot(dx: float, up: float) -> Point:
        return x + facing * dx * size, up * size, z

    def part(points: list[tuple[float, float]], colour: Colour) -> None:
        canvas.solid([spot(*p) for p in points], colour, "void")

    legs = ((-0.72, -0.08), (-0.5, 0.06), (0.42, 0.1), (0.62, -0.06))
    for n, (at, step) in enumerate(legs):
        tone, foot = shade(coat, 0.72 if n % 2 else 0.95), at + step
        part([(at - 0.1, 0.9), (at + 0.12, 0.9), (foot + 0.06, 0.02), (foot - 0.06, 0.02)], tone)
        part([(foot - 0.07, 0.1), (foot + 0.07, 0.1), (foot + 0.09, 0), (foot - 0.07, 0)], (40, 34, 30))
    part([(-0.84, 1.28), (-0.98, 1.1), (-1.02, 0.55), (-0.94, 0.55), (-0.88, 1.0), (-0.8, 1.15)], shade(coat, 0.8))
    trunk = [
        (0.82 * math.cos(a) - 0.06, 1.06 + 0.36 * math.sin(a) * (1.05 if math.cos(a) > 0 else 0.95))
        for a in np.linspace(0, 2 * math.pi, 22)
    ]
    part(trunk, coat)
    canvas.detail([spot(px, min(py, 0.98)) for px, py in trunk], shade(coat, 0.82))
    up = 0.35 if kind in (1, 2) else 0.05  # horses carry their heads high
    part([(0.45, 1.32), (0.72, 0.92), (1.12, 1.2 + up), (0.92, 1.52 + up)], coat)
    head = [(0.88, 1.52), (1.12, 1.5), (1.5, 1.2), (1.46, 1.06), (1.3, 1.04), (1.0, 1.16)]
    part([(along, above + up) for along, above in head], shade(coat, 1.05))
    part([(0.92, 1.5 + up), (0.86, 1.68 + up), (1.02, 1.54 + up)], shade(coat, 0.8))
    canvas.detail(disc(spot(1.15, 1.38 + up), 0.035 * size), (18, 16, 16))
    if kind == 0:
        part([(1.0, 1.5 + up), (1.0, 1.72 + up), (1.08, 1.5 + up)], (226, 218, 196))
        for _ in range(5):
            cx, cy, r = rng.uniform(-0.65, 0.5), rng.uniform(0.9, 1.25), rng.uniform(0.08, 0.17)
            blot = [
                (cx + r * rng.uniform(0.7, 1.5) * math.cos(a), cy + r * 0.8 * math.sin(a))
                for a in np.linspace(0, 6.0, 9)
            ]
            canvas.detail([spot(*p) for p in blot], mark)
    elif kind == 1:
        canvas.detail([spot(*p) for p in ((0.42, 1.34), (0.9, 1.6 + up), (0.84, 1.36 + up), (0.5, 1.2))], mark)
    elif kind == 2:
        for at in np.arange(-0.72, 0.7, 0.17):
            reach = 0.34 * math.sqrt(max(0.05, 1 - ((at + 0.06) / 0.84) ** 2))
            top, foot = 1.06 + reach, 1.06 - reach * 0.7
            stripe = ((at - 0.035, top), (at + 0.04, top), (at + 0.06, foot), (at + 0.02, foot))
            canvas.detail([spot(*p) for p in stripe], mark)
    else:
        for _ in range(46):
            cx, cy = rng.uniform(-0.75, 0.62), rng.uniform(0.8, 1.34)
            if ((cx + 0.06) / 0.8) ** 2 + ((cy - 1.06) / 0.33) ** 2 < 0.9:
                canvas.detail(disc(spot(cx, cy), rng.uniform(0.03, 0.05) * size), mark)


def obstacle(brush: Brush) -> None:
    """Paint lost cargo: a box or a cone, or of the unseen kinds a ball or a tyre."""
    canvas, rng, style, x, z = brush
    kind = int(rng.integers(2)) + 2 * style.unseen_kind
    if kind == 0:
        half, high = rng.uniform(0.25, 0.45), rng.uniform(0.35, 0.6)
        card: Colour = (176, 132, 84)
        canvas.solid(plate(x, half, 0, high, z), card, "void")
        canvas.solid(band(x, (half, high, z), (half * 0.9, high, z + 0.7)), shade(card, 1.2), "void")
        canvas.detail(plate(x, 0.03, 0, high, z), shade(card, 0.72))
    elif kind == 1:
        canvas.solid(plate(x, 0.3, 0, 0.06, z), (200, 74, 26), "void")
        canvas.solid(band(x, (0.21, 0.06, z), (0.04, 0.75, z)), (232, 92, 30), "void")
        for low, high in ((0.22, 0.36), (0.48, 0.58)):
            a, b = 0.21 - 0.246 * (low - 0.06), 0.21 - 0.246 * (high - 0.06)
            canvas.detail(band(x, (a, low, z), (b, high, z)), (240, 240, 236))
    elif kind == 2:
        r = rng.uniform(0.22, 0.4)
        ball: Colour = brush.pick(((206, 44, 48), (44, 110, 190), (238, 190, 40)))
        canvas.solid(disc((x, r, z), r), shade(ball, 0.8), "void")
        canvas.detail(disc((x - r * 0.14, r * 1.16, z), r * 0.72), ball)
        canvas.detail(disc((x - r * 0.3, r * 1.4, z), r * 0.22), shade(ball, 1.5))
    else:
        canvas.solid(disc((x, 0.17, z), 0.36, 0.47), (26, 26, 28), "void")
        canvas.solid(disc((x, 0.25, z), 0.35, 0.42), (44, 44, 46), "void")
        hole = [(x + 0.17 * math.cos(a), 0.26 + 0.07 * math.sin(a), z) for a in np.linspace(0, 6, 12)]
        canvas.detail(hole, (70, 68, 66))
