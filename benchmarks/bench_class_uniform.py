"""Class-uniform centroids of many masks: ours against boolean masks, one core, the same results asserted.

    python benchmarks/bench_class_uniform.py --masks 1000

The masks are a few drawn scenes, upsampled to 1024x2048 and shifted by another number of columns each. The plain
way makes one boolean mask per class and tile. It comes in two kinds: the usual one lists the coordinates of its
pixels and averages them, the thrifty one adds up its rows and columns. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator

import numpy as np
from hmsa_pipeline.datasets.class_uniform import tile_centroids
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from hmsa_pipeline.datasets.taxonomy import NUM_CLASSES
from numpy.typing import NDArray

SIZE = (1024, 2048)
SCENES = 8
ENLARGED = 2

Mask = NDArray[np.uint8]


def masks(count: int) -> Iterator[Mask]:
    """``count`` different masks of (1024, 2048)."""
    scenes = [draw_scene(seed, SIZE[0] // ENLARGED, SIZE[1] // ENLARGED).mask for seed in range(min(SCENES, count))]
    large = [scene.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1) for scene in scenes]
    for number in range(count):
        yield np.roll(large[number % len(large)], 7 * number, axis=1)


def plain(mask: Mask, tile: int, centre: Callable[[NDArray[np.bool_]], tuple[int, int]]) -> NDArray[np.int32]:
    """One boolean mask per class and tile, and ``centre`` (x, y) of those that are not empty."""
    found = []
    for label in range(NUM_CLASSES):
        for top in range(0, mask.shape[0] - tile + 1, tile):
            for left in range(0, mask.shape[1] - tile + 1, tile):
                where = mask[top : top + tile, left : left + tile] == label
                if where.any():
                    x, y = centre(where)
                    found.append((label, left + x, top + y))
    return np.array(found, dtype=np.int32).reshape(-1, 3)


def listed(where: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) by the coordinates of every pixel."""
    y, x = np.nonzero(where)
    return int(x.mean()), int(y.mean())


def projected(where: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) by sums over rows and over columns."""
    rows, columns = where.sum(axis=1), where.sum(axis=0)
    area = int(rows.sum())
    return int(np.arange(len(columns)) @ columns) // area, int(np.arange(len(rows)) @ rows) // area


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description="Class-uniform centroids: ours against boolean masks, as JSON.")
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--tile", type=int, default=1024)
    args = parser.parse_args()
    ways: dict[str, Callable[[Mask], NDArray[np.int32]]] = {
        "ours": lambda mask: tile_centroids(mask, args.tile),
        "listed": lambda mask: plain(mask, args.tile, listed),
        "projected": lambda mask: plain(mask, args.tile, projected),
    }
    seconds = dict.fromkeys(ways, 0.0)
    centroids = 0
    for mask in masks(args.masks):
        results = []
        for name, way in ways.items():
            begun = time.perf_counter()
            results.append(way(mask))
            seconds[name] += time.perf_counter() - begun
        if not all(np.array_equal(results[0], other) for other in results[1:]):
            raise SystemExit("the ways disagree")
        centroids += len(results[0])
    figures = {
        "masks": args.masks,
        "size": SIZE,
        "tile": args.tile,
        "centroids": centroids,
        "cores": os.cpu_count(),
        "milliseconds_per_mask": {name: round(1000 * total / args.masks, 3) for name, total in seconds.items()},
        "listed / ours": round(seconds["listed"] / seconds["ours"], 1),
        "projected / ours": round(seconds["projected"] / seconds["ours"], 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
