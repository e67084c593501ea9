"""Placement of objects in a street, with their shadows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .canvas import Canvas, Point
from .ground import Ground
from .objects import houses, people, scenery, unknown_objects, vehicles
from .objects.brush import Brush
from .street_plan import LANE, Street
from .style import Style


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

    def put(self, x: float, z: float, paint: Callable[[Brush], object], *, beside: bool = False) -> None:
        """Place an object; it is painted from random numbers of its own, so that it does not change later ones.

        Args:
            x: metres to the right of the camera; of no meaning for what stands along a plot.
            z: metres ahead of the camera.
            paint: paints it.
            beside: it stands beyond the pavement.
        """
        own = np.random.default_rng(self.rng.integers(2**32))
        brush = Brush(self.canvas, own, self.style, x, z)
        (self.beside if beside else self.within).append((z, partial(paint, brush)))

    def paint(self) -> None:
        """Paint all that was put here, each an object of its own."""
        for things in (self.beside, self.within):
            for _, paint in sorted(things, key=lambda thing: -thing[0]):
                self.canvas.object += 1
                paint()

    def darken(self, x: float, z: float, half: float, near: float, far: float, strength: float = 1.0) -> None:
        """Paint the shade under something.

        Args:
            x, z: where it stands, metres.
            half: half of its width, metres.
            near, far: its ends, metres from ``z``.
            strength: 0 to 1.
        """
        corners = ((x - half, z + near), (x + half, z + near), (x + half, z + far), (x - half, z + far))
        self.ground.shadow([(across, 0, ahead) for across, ahead in corners], strength)

    def cast(self, x: float, z: float, half: float, tall: float) -> None:
        """Paint the shadow that the sun throws, away from its side.

        Args:
            x, z: where the object stands, metres.
            half: half of its depth, metres.
            tall: its height, metres.
        """
        if self.style.sun:
            reach = -self.street.sunny_side * tall * 0.8 * self.style.shadow
            outline = ((0, -0.6), (1, -1), (1.3, 0), (1, 1), (0, 0.6))
            self.ground.shadow([(x + a * reach, 0, z + b * half) for a, b in outline], 0.75 * self.style.sun)


def line_the_street(stage: Stage) -> None:
    """Houses and parks beyond both pavements."""
    street, style, rng = stage.street, stage.style, stage.rng
    for plot in street.plots:
        side, edge = plot.side, street.edge(plot.side)
        if not plot.park:
            stage.put(0, plot.near, partial(houses.house, street=street, plot=plot), beside=True)
            reach = edge - side * rng.uniform(4, 9) * style.shadow
            if style.sun and side == street.sunny_side:  # the shadow of its front, towards the street
                corners = ((edge, plot.near), (edge, plot.far), (reach, plot.far), (reach, plot.near))
                stage.ground.shadow([(street.at(x, z), 0, z) for x, z in corners], 0.8 * style.sun)
            continue
        border, tall = rng.random(), rng.uniform(0.7, 1.3)
        if border < 0.3:
            stage.put(0, plot.near, partial(scenery.wall, street=street, plot=plot), beside=True)
        elif border < 0.6:
            stage.put(0, plot.near, partial(scenery.fence, street=street, plot=plot), beside=True)
        elif border < 0.8:
            stage.put(0, plot.near, partial(scenery.hedge, street=street, plot=plot, height=tall), beside=True)
        for z in np.arange(max(plot.near, 3), plot.far, 3.2):
            for row in (rng.uniform(2, 5), rng.uniform(6, 13)):
                if rng.random() < 0.8:
                    _plant(stage, street.at(edge + side * row, z), z, rng.uniform(0.8, 1.5), beside=True)


def furnish(stage: Stage) -> None:
    """Lamps, signs, traffic lights, bollards and trees along the kerbs."""
    street, rng = stage.street, stage.rng
    lit = int(rng.choice([-1, 1]))
    for z in np.arange(rng.uniform(7, 20), 150, 24):
        if not street.is_crossed(z, 1):
            at = street.at(street.kerb(lit) + lit * 0.5, z)
            stage.lamps.append(scenery.lamp_head(lit, at, z))
            stage.put(at, z, partial(scenery.street_lamp, side=lit))
    bollard = partial(scenery.pole, height=0.95, radius=0.055, colour=(84, 86, 88))
    for side in (-1, 1):
        kerb = street.kerb(side) + side * 0.55
        if rng.random() < 0.5:
            for z in np.arange(rng.uniform(6, 16), 130, rng.uniform(9, 16)):
                if not street.is_crossed(z, 3):
                    _plant(stage, street.at(kerb + side * 0.5, z), z, rng.uniform(0.7, 1.05))
        for z in rng.uniform(7, 70, rng.integers(1, 4)):
            if not street.is_crossed(z, 1):
                stage.put(street.at(kerb, z), z, scenery.traffic_sign)
        for z in rng.uniform(5, 60, rng.integers(0, 4)):
            if not street.is_crossed(z, 1):
                stage.put(street.at(kerb, z), z, bollard)
    if street.crossing and rng.random() < 0.8:
        light = partial(scenery.traffic_light, go=bool(rng.random() < 0.4))
        near, far = street.crossing
        for side, z in ((1, near - 1.0), (-1, near - 0.8), (1, far + 0.8), (-1, far + 1.0)):
            stage.put(street.at(street.kerb(side) + side * 0.45, z), z, light)


def _plant(stage: Stage, x: float, z: float, size: float, *, beside: bool = False) -> None:
    stage.put(x, z, partial(scenery.tree, size=size), beside=beside)
    stage.cast(x, z, 1.7 * size, 4 * size)


def fill_the_road(stage: Stage) -> None:
    """Vehicles in their lanes, and parked ones along the kerbs."""
    street, style, rng = stage.street, stage.style, stage.rng
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
                stage.put(x, z, partial(vehicles.car, oncoming=toward, parked=True))
                _shade_vehicle(stage, x, z, 1.8, 4.4)
            z += rng.uniform(5.2, 6.4)


def _drive(stage: Stage, lane: float, z: float, *, oncoming: bool) -> None:
    """One vehicle in a lane; most are cars."""
    kind, x = stage.rng.random(), stage.street.at(lane, z)
    if kind < 0.66:
        vehicle, wide, long = partial(vehicles.car, oncoming=oncoming), 1.8, 4.4
    elif kind < 0.75:
        vehicle, wide, long = partial(vehicles.truck, oncoming=oncoming), 2.4, 8.5
    elif kind < 0.88:
        tram = kind > 0.82
        vehicle, wide, long = partial(vehicles.bus, oncoming=oncoming, tram=tram), 2.4, 19.0 if tram else 11.5
    else:
        vehicle, wide, long = partial(people.two_wheeler, motor=kind < 0.94, ridden=True), 0.5, 1.2
    stage.put(x, z, vehicle)
    _shade_vehicle(stage, x, z, wide, long)
    if 0.82 < kind < 0.88:
        track = [(stage.street.at(lane, at), at) for at in range(2, 160, 4)]
        stage.put(x, math.inf, partial(vehicles.rails, track=track))


def _shade_vehicle(stage: Stage, x: float, z: float, wide: float, long: float) -> None:
    stage.darken(x, z, wide / 2 + 0.12, -0.25, long)
    stage.cast(x, z + long / 2, long / 2, 1.2)


def people_it(stage: Stage) -> None:
    """Walkers on both pavements, some who cross, and two-wheelers that wait for their riders."""
    street, style, rng = stage.street, stage.style, stage.rng
    places: list[tuple[float, float]] = []
    for side in (-1, 1):
        kerb, width = street.kerb(side), street.pavement[side > 0]
        for z in rng.uniform(6, 75, round(rng.integers(2, 9) * style.crowd)):
            places.append((kerb + side * rng.uniform(0.9, max(1.0, width - 0.4)), z))
        for z in rng.uniform(6, 45, round(rng.integers(0, 3) * style.crowd)):
            waiting = partial(people.two_wheeler, motor=bool(rng.random() < 0.3), ridden=False)
            stage.put(street.at(kerb + side * 0.75, z), z, waiting)
    if street.crossing and rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            places.append((rng.uniform(street.left, street.right), street.crossing[0] - rng.uniform(2, 4.5)))
    for across, z in places:
        at = street.at(across, z)
        stage.put(at, z, people.person)
        stage.darken(at, z, 0.25, -0.2, 0.2, 0.7)


def set_in_the_way(stage: Stage) -> None:
    """Something on the road that no class has a name for, if the style asks for it."""
    animal = stage.style.unknown_object == "animal"
    if stage.style.unknown_object != "none":
        z = stage.rng.uniform(6.5, 10) if animal else stage.rng.uniform(6, 9)
        x = stage.street.at(stage.rng.uniform(-1.6, 1.4), z)
        stage.put(x, z, unknown_objects.animal if animal else unknown_objects.obstacle)
        stage.darken(x, z, 1.1 if animal else 0.4, -0.3, 0.3, 0.8)
