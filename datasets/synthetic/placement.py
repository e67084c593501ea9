"""Placement of objects in a street, with their shadows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .canvas import Canvas, Point
from .ground import Ground
from .objects import houses, people, scenery, vehicles
from .objects import unknown_objects as strangers
from .street_plan import LANE, Street
from .style import Style

Paint = Callable[[np.random.Generator], object]


@dataclass(slots=True)
class Stage:
    """A street and what has been put there so far; things are painted later, far ones first."""

    canvas: Canvas
    ground: Ground
    street: Street
    style: Style
    rng: np.random.Generator
    beside: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    """Beyond the pavements: how far away it is, and what paints it."""
    within: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    """On the road and the pavements, which nothing beyond them hides."""
    lamps: list[Point] = field(default_factory=list)
    """Where the light of street lamps comes from."""

    def put(self, z: float, paint: Paint, *, beside: bool = False) -> None:
        """Place an object; it is painted from random numbers of its own, so that it does not change later ones.

        Args:
            z: metres ahead of the camera.
            paint: paints it.
            beside: it stands beyond the pavement.
        """
        own = np.random.default_rng(self.rng.integers(2**32))
        (self.beside if beside else self.within).append((z, lambda: paint(own)))

    def paint(self) -> None:
        """Paint all that was put here."""
        for things in (self.beside, self.within):
            for _, paint in sorted(things, key=lambda thing: -thing[0]):
                paint()

    def darken(self, x: float, z: float, half: float, near: float, far: float, strength: float = 1.0) -> None:
        """Paint the shade under something.

        Args:
            x: metres to the right of the camera.
            z: metres ahead of the camera.
            half: half of its width, metres.
            near: its near end, metres from ``z``.
            far: its far end, metres from ``z``.
            strength: 0 to 1.
        """
        corners = ((x - half, z + near), (x + half, z + near), (x + half, z + far), (x - half, z + far))
        self.ground.shadow([(across, 0, ahead) for across, ahead in corners], strength)

    def cast(self, x: float, z: float, half: float, tall: float) -> None:
        """Paint the shadow that the sun throws, away from its side.

        Args:
            x: metres to the right of the camera.
            z: metres ahead of the camera.
            half: half of the object's depth, metres.
            tall: its height, metres.
        """
        if self.style.sun:
            reach = -self.street.sunny_side * tall * 0.8 * self.style.shadow
            outline = ((0, -0.6), (1, -1), (1.3, 0), (1, 1), (0, 0.6))
            self.ground.shadow([(x + a * reach, 0, z + b * half) for a, b in outline], 0.75 * self.style.sun)


def line_the_street(stage: Stage) -> None:
    """Houses and parks beyond both pavements."""
    canvas, street, style, rng = stage.canvas, stage.street, stage.style, stage.rng
    for side in (-1, 1):
        edge = street.edge(side)
        for plot in street.plots[side > 0]:
            if not plot.park:
                stage.put(
                    plot.near,
                    lambda own, s=side, p=plot: houses.house(canvas, own, street, style, s, p),
                    beside=True,
                )
                reach = edge - side * rng.uniform(4, 9) * style.shadow
                if style.sun and side == street.sunny_side:  # the shadow of its front, towards the street
                    corners = ((edge, plot.near), (edge, plot.far), (reach, plot.far), (reach, plot.near))
                    stage.ground.shadow([(street.at(x, z), 0, z) for x, z in corners], 0.8 * style.sun)
                continue
            border, tall = rng.random(), rng.uniform(0.7, 1.3)
            if border < 0.3:
                stage.put(
                    plot.near, lambda own, s=side, p=plot: scenery.wall(canvas, own, street, style, s, p), beside=True
                )
            elif border < 0.6:
                stage.put(
                    plot.near, lambda own, s=side, p=plot: scenery.fence(canvas, own, street, s, p), beside=True
                )
            elif border < 0.8:
                ends = street.at(edge, plot.near), plot.near, street.at(edge, plot.far), plot.far
                stage.put(
                    plot.near, lambda own, e=ends, t=tall: scenery.hedge(canvas, own, style, *e, t), beside=True
                )
            for z in np.arange(max(plot.near, 3), plot.far, 3.2):
                for row in (rng.uniform(2, 5), rng.uniform(6, 13)):
                    if rng.random() < 0.8:
                        _plant(stage, street.at(edge + side * row, z), z, rng.uniform(0.8, 1.5), beside=True)


def furnish(stage: Stage) -> None:
    """Lamps, signs, traffic lights, bollards and trees along the kerbs."""
    canvas, street, style, rng = stage.canvas, stage.street, stage.style, stage.rng
    lit = int(rng.choice([-1, 1]))
    for z in np.arange(rng.uniform(7, 20), 150, 24):
        if not street.is_crossed(z, 1):
            at = street.at(street.kerb(lit) + lit * 0.5, z)
            stage.lamps.append(scenery.lamp_head(lit, at, z))
            stage.put(z, lambda _, x=at, z=z: scenery.street_lamp(canvas, style, lit, x, z))
    for side in (-1, 1):
        kerb = street.kerb(side) + side * 0.55
        if rng.random() < 0.5:
            for z in np.arange(rng.uniform(6, 16), 130, rng.uniform(9, 16)):
                if not street.is_crossed(z, 3):
                    _plant(stage, street.at(kerb + side * 0.5, z), z, rng.uniform(0.7, 1.05))
        for z in rng.uniform(7, 70, rng.integers(1, 4)):
            if not street.is_crossed(z, 1):
                at = street.at(kerb, z)
                stage.put(z, lambda own, x=at, z=z: scenery.traffic_sign(canvas, own, x, z))
        for z in rng.uniform(5, 60, rng.integers(0, 4)):
            if not street.is_crossed(z, 1):
                at = street.at(kerb, z)
                stage.put(z, lambda _, x=at, z=z: scenery.pole(canvas, x, z, 0.95, 0.055, (84, 86, 88)))
    if street.crossing and rng.random() < 0.8:
        go = bool(rng.random() < 0.4)
        near, far = street.crossing
        for side, z in ((1, near - 1.0), (-1, near - 0.8), (1, far + 0.8), (-1, far + 1.0)):
            at = street.at(street.kerb(side) + side * 0.45, z)
            stage.put(z, lambda own, x=at, z=z: scenery.traffic_light(canvas, own, x, z, go))


def _plant(stage: Stage, x: float, z: float, size: float, *, beside: bool = False) -> None:
    stage.put(z, lambda own: scenery.tree(stage.canvas, own, stage.style, x, z, size), beside=beside)
    stage.cast(x, z, 1.7 * size, 4 * size)


def fill_the_road(stage: Stage) -> None:
    """Vehicles in their lanes, and parked ones along the kerbs."""
    canvas, street, style, rng = stage.canvas, stage.street, stage.style, stage.rng
    for side in (-1, 1):
        lane = street.middle + side * LANE / 2
        while (street.kerb(side) - lane) * side > (3.2 if street.parking[side > 0] else 1.2):
            z = rng.uniform(9, 34) if side < 0 else rng.uniform(11, 34)
            while z < 130:
                _drive(stage, lane + rng.normal(0, 0.12), z, oncoming=side < 0)
                z += rng.uniform(16, 42) / style.crowd
            lane += side * LANE
        z = rng.uniform(5, 10)
        while street.parking[side > 0] and z < 110:
            if rng.random() < 0.72 and not street.is_crossed(z, 6):
                x, toward = street.at(street.kerb(side) - side * 1.05, z), bool(side < 0 and rng.random() < 0.8)
                stage.put(
                    z,
                    lambda own, x=x, z=z, t=toward: vehicles.car(canvas, own, style, x, z, oncoming=t, parked=True),
                )
                _shade_vehicle(stage, x, z, 1.8, 4.4)
            z += rng.uniform(5.2, 6.4)


def _drive(stage: Stage, lane: float, z: float, *, oncoming: bool) -> None:
    """One vehicle in a lane; most are cars."""
    canvas, street, style = stage.canvas, stage.street, stage.style
    kind, x = stage.rng.random(), street.at(lane, z)
    if kind < 0.66:
        stage.put(z, lambda own: vehicles.car(canvas, own, style, x, z, oncoming=oncoming))
        _shade_vehicle(stage, x, z, 1.8, 4.4)
    elif kind < 0.75:
        stage.put(z, lambda own: vehicles.truck(canvas, own, style, x, z, oncoming=oncoming))
        _shade_vehicle(stage, x, z, 2.4, 8.5)
    elif kind < 0.88:
        tram = kind > 0.82
        stage.put(z, lambda own: vehicles.bus(canvas, own, style, x, z, oncoming=oncoming, tram=tram))
        _shade_vehicle(stage, x, z, 2.4, 19.0 if tram else 11.5)
        if tram:
            track = [(street.at(lane, at), at) for at in range(2, 160, 4)]
            stage.put(math.inf, lambda _: vehicles.rails(canvas, track))
    else:
        motor = kind < 0.94
        stage.put(z, lambda own: people.two_wheeler(canvas, own, style, x, z, motor=motor, ridden=True))
        _shade_vehicle(stage, x, z, 0.5, 1.2)


def _shade_vehicle(stage: Stage, x: float, z: float, wide: float, long: float) -> None:
    stage.darken(x, z, wide / 2 + 0.12, -0.25, long)
    stage.cast(x, z + long / 2, long / 2, 1.2)


def people_it(stage: Stage) -> None:
    """Walkers on both pavements, some who cross, and two-wheelers that wait for their riders."""
    canvas, street, style, rng = stage.canvas, stage.street, stage.style, stage.rng
    places: list[tuple[float, float]] = []
    for side in (-1, 1):
        kerb, width = street.kerb(side), street.pavement[side > 0]
        for z in rng.uniform(6, 75, round(rng.integers(2, 9) * style.crowd)):
            places.append((kerb + side * rng.uniform(0.9, max(1.0, width - 0.4)), z))
        for z in rng.uniform(6, 45, round(rng.integers(0, 3) * style.crowd)):
            at, motor = street.at(kerb + side * 0.75, z), bool(rng.random() < 0.3)
            stage.put(
                z,
                lambda own, x=at, z=z, m=motor: people.two_wheeler(canvas, own, style, x, z, motor=m, ridden=False),
            )
    if street.crossing and rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            places.append((rng.uniform(street.left, street.right), street.crossing[0] - rng.uniform(2, 4.5)))
    for across, z in places:
        at = street.at(across, z)
        stage.put(z, lambda own, x=at, z=z: people.person(canvas, own, x, z))
        stage.darken(at, z, 0.25, -0.2, 0.2, 0.7)


def set_in_the_way(stage: Stage) -> None:
    """Something on the road that no class has a name for, if the style asks for it."""
    animal = stage.style.unknown_object == "animal"
    if stage.style.unknown_object != "none":
        z = stage.rng.uniform(6.5, 10) if animal else stage.rng.uniform(6, 9)
        x = stage.street.at(stage.rng.uniform(-1.6, 1.4), z)
        kind = strangers.animal if animal else strangers.obstacle
        stage.put(z, lambda own: kind(stage.canvas, own, x, z, unseen_kind=stage.style.unseen_kind))
        stage.darken(x, z, 1.1 if animal else 0.4, -0.3, 0.3, 0.8)
