"""Connected regions of a mask, and masks written as polygons that are painted one over the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Corners = list[tuple[int, int]]
"""Column and row of each corner of a polygon, in pixels."""

# Right, then clockwise, as seen on a picture whose rows go down.
_STEPS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


class Region(NamedTuple):
    """Pixels of one id that hang together."""

    id: int
    top: int
    left: int
    inside: NDArray[np.bool_]
    """(h, w), of the smallest box around them, whose corner is ``top``, ``left``."""


def number_regions(ids: NDArray[np.uint8]) -> NDArray[np.intp]:
    """(H, W): for each pixel the number of its region, counted from 0 in reading order of their first pixels.

    Pixels belong together if they share an edge and have the same id.
    """
    begins = np.ones(ids.shape, dtype=bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    runs = np.cumsum(begins.ravel()).reshape(ids.shape) - 1
    touch = ids[1:] == ids[:-1]
    count = int(runs[-1, -1]) + 1
    upper, lower = np.divmod(np.unique(runs[:-1][touch] * count + runs[1:][touch]), count)
    # Each run takes over the lowest number among the runs that it touches, until none gets lower.
    lowest = np.arange(count)
    while True:
        before = lowest.copy()
        both = np.minimum(lowest[upper], lowest[lower])
        for side in (upper, lower):
            np.minimum.at(lowest, lowest[side], both)
        lowest = lowest[lowest]
        if np.array_equal(lowest, before):
            return np.unique(lowest, return_inverse=True)[1][runs]


def find_regions(ids: NDArray[np.uint8]) -> Iterator[Region]:
    """The regions of ``ids`` (H, W), in reading order of their first pixels."""
    numbers = number_regions(ids)
    height, width = ids.shape
    count = int(numbers.max()) + 1
    rows, columns = np.indices(ids.shape)
    low, high = np.full((2, count), max(height, width)), np.full((2, count), -1)
    for axis, where in enumerate((rows, columns)):
        np.minimum.at(low[axis], numbers.ravel(), where.ravel())
        np.maximum.at(high[axis], numbers.ravel(), where.ravel())
    for number in range(count):
        (top, left), (bottom, right) = low[:, number], high[:, number] + 1
        inside = numbers[top:bottom, left:right] == number
        yield Region(int(ids[top, left + int(inside[0].argmax())]), int(top), int(left), inside)


def to_polygons(ids: NDArray[np.uint8], background: int) -> list[tuple[int, Corners]]:
    """Polygons that, painted in this order on ``background`` by ``PIL.ImageDraw``, give ``ids`` (H, W) exactly.

    One goes round each region, holes and all, larger ones first; what lies in the holes is painted later. Where
    the painter rounds otherwise than the outline was meant, rectangles at the end put it right.

    Returns:
        Id and corners of each; the corners are centres of pixels, at least three a polygon.
    """
    regions = [region for region in find_regions(ids) if region.id != background]
    # Nothing in a hole of a region has a box as large as the region's own.
    regions.sort(key=lambda region: region.inside.size, reverse=True)
    polygons = [(region.id, _place(trace(region.inside), region)) for region in regions]
    painted = np.asarray(paint_polygons(polygons, ids.shape, background))
    polygons += _rectangles(ids, painted != ids)
    return polygons


def paint_polygons(polygons: list[tuple[int, Corners]], shape: tuple[int, ...], background: int) -> NDArray[np.uint8]:
    """Paint polygons in their order into a map (H, W) uint8.

    Args:
        polygons: label and corners of each.
        shape: H and W, in front of any others.
        background: the label of the rest.
    """
    picture = Image.new("L", (shape[1], shape[0]), background)
    draw = ImageDraw.Draw(picture)
    for label, corners in polygons:
        draw.polygon(corners, fill=label)
    return np.asarray(picture)


def trace(inside: NDArray[np.bool_]) -> Corners:
    """The outline of a region through the centres of its outermost pixels, clockwise from its first pixel.

    Where the region is a single pixel or a line one pixel thick, corners are given twice so that there are three.

    Moore's neighbour tracing, ended as Jacob's criterion says.
    """
    pixels = np.pad(inside, 1).tolist()
    x0, y0 = int(inside[0].argmax()) + 1, 1
    x, y, heading = x0, y0, 0
    path: Corners = []
    first = None
    while True:
        # From where we came from, clockwise, so that the outside stays on the left.
        turns = ((heading + 5 + turn) % 8 for turn in range(8))
        step = next((t for t in turns if pixels[y + _STEPS[t][1]][x + _STEPS[t][0]]), None)
        if step is None or ((x, y) == (x0, y0) and step == first):
            break
        if first is None or step != heading:
            path.append((x - 1, y - 1))
        first = step if first is None else first
        x, y, heading = x + _STEPS[step][0], y + _STEPS[step][1], step
    path = path or [(x0 - 1, 0)]
    return path + path[-1:] * (3 - len(path))


def _place(corners: Corners, region: Region) -> Corners:
    return [(x + region.left, y + region.top) for x, y in corners]


def _rectangles(ids: NDArray[np.uint8], wrong: NDArray[np.bool_]) -> list[tuple[int, Corners]]:
    """Rows of wrong pixels of one id, each a polygon."""
    found: list[tuple[int, Corners]] = []
    for y in np.nonzero(wrong.any(axis=1))[0].tolist():
        x = 0
        while x < ids.shape[1]:
            end = x + 1
            if wrong[y, x]:
                while end < ids.shape[1] and wrong[y, end] and ids[y, end] == ids[y, x]:
                    end += 1
                found.append((int(ids[y, x]), [(x, y), (end - 1, y), (end - 1, y), (x, y)]))
            x = end
    return found
