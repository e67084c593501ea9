"""The plan of a street: where road, pavement, houses and parks lie, before anything is painted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .canvas import Camera

LANE = 3.2
"""Width of a lane in metres."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A stretch of land beside the street."""

    near: float
    """Where it begins, metres ahead."""
    far: float
    """Where it ends."""
    park: bool
    """Grass, trees and hedges; houses stand on other plots."""
    side: int
    """-1 on the left of the street, 1 on the right."""


@dataclass(frozen=True, slots=True)
class Street:
    """A street that bends slightly; all positions across are metres from the line that the camera follows."""

    camera: Camera
    bend: float
    """How fast the line leaves the straight: it is ``bend * z**2`` to the right at ``z`` metres ahead."""
    left: float
    """Where the road ends on the left (negative) ..."""
    right: float
    """... and on the right."""
    middle: float
    """Where the two directions part."""
    pavement: tuple[float, float]
    """Width of the pavement on the left and on the right."""
    crossing: tuple[float, float] | None
    """From where to where another street crosses."""
    plots: tuple[Plot, ...]
    """On the left, then on the right, near ones first; a crossing street leaves a gap."""
    parking: tuple[bool, bool]
    """True where cars are parked, along the left and the right edge."""
    sunny_side: int
    """-1 if the sun stands on the left, 1 if on the right."""

    def at(self, across: float, z: float) -> float:
        """The position, relative to the camera, of what lies ``across`` from the line at ``z`` metres ahead."""
        return across + self.bend * z * z

    def kerb(self, side: int) -> float:
        """Where road and pavement meet on one side (-1 left, 1 right)."""
        return self.left if side < 0 else self.right

    def edge(self, side: int) -> float:
        """Where the pavement ends and the plots begin."""
        return self.kerb(side) + side * self.pavement[side > 0]

    def brightness(self, side: int, sun: float) -> float:
        """Brightness of a wall on one side that faces the street, in sunshine of that strength."""
        return 1 - 0.3 * sun * (side == self.sunny_side) + 0.06 * sun * (side != self.sunny_side)

    def is_crossed(self, z: float, margin: float = 0.0) -> bool:
        """True if another street crosses at ``z``."""
        return self.crossing is not None and self.crossing[0] - margin < z < self.crossing[1] + margin


def plan_street(rng: np.random.Generator) -> Street:
    """A street as it may be met in a European town."""
    camera = Camera(height=rng.uniform(1.3, 1.7), horizon=rng.uniform(0.41, 0.5), focal=rng.uniform(0.78, 0.98))
    parking = (bool(rng.random() < 0.45), bool(rng.random() < 0.45))
    lanes = int(rng.choice([1, 1, 2]))
    own = LANE / 2 + rng.uniform(-0.2, 0.3)
    right = own + (lanes - 1) * LANE + (2.1 if parking[1] else 0.3)
    middle = own - LANE
    left = middle - lanes * LANE - (2.1 if parking[0] else 0.3)
    crossing = None
    if rng.random() < 0.55:
        begin = rng.uniform(16, 48)
        crossing = (begin, begin + rng.uniform(8, 13))
    urban = rng.random() < 0.75
    return Street(
        camera=camera,
        bend=rng.normal(0, 0.0007),
        left=left,
        right=right,
        middle=middle,
        pavement=(rng.uniform(1.8, 4.5), rng.uniform(1.8, 4.5)),
        crossing=crossing,
        plots=tuple(plot for side in (-1, 1) for plot in _plan_plots(rng, crossing, urban, side)),
        parking=parking,
        sunny_side=int(rng.choice([-1, 1])),
    )


def _plan_plots(
    rng: np.random.Generator, crossing: tuple[float, float] | None, urban: bool, side: int
) -> Iterator[Plot]:
    z, houses = -6.0, 0.85 if urban else 0.3
    while z < 190:
        far = z + rng.uniform(9, 26)
        if crossing and z < crossing[1] and far > crossing[0] - 2:
            if crossing[0] - 2 - z > 5:
                yield Plot(z, crossing[0] - 2, bool(rng.random() > houses), side)
            z = crossing[1] + 2
            continue
        yield Plot(z, far, bool(rng.random() > houses), side)
        z = far + (0 if rng.random() < 0.8 else rng.uniform(2, 6))
