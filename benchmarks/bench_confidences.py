"""Fusing seven members' logits of 16,384 pixels with each confidence function, beside mean-softmax.

    python benchmarks/bench_confidences.py

A strip of this size is what `hmsa-pipeline ensemble` fuses at once. Reading logits and writing PNGs are not counted.
All functions run by turns on one thread, and so do all of them together (`fuse_several`). Prints the median ns for
each pixel, and the median of the ratios to mean-softmax of the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from harness import machine
from hmsa_pipeline.pipeline.fusion.fuse import CONFIDENCES, fuse, fuse_several

MEMBERS, PIXELS = 7, 16384
EQUAL = [1.0] * MEMBERS


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    repeats = parser.parse_args().repeats
    print(machine())
    torch.set_num_threads(1)
    torch.manual_seed(0)
    common = 4 * torch.randn(19, PIXELS)
    members = [(common + torch.randn(19, PIXELS)).half() for _ in range(MEMBERS)]

    def one(name: str) -> Callable[[], object]:
        return lambda: fuse(members, EQUAL, confidence=name)

    runs = {name: one(name) for name in CONFIDENCES}
    runs["all of them"] = lambda: fuse_several(members, EQUAL, confidences=CONFIDENCES)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - begun)
    print(f"{'':20}{'ns/pixel':>9}{'ratio':>8}")
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, seconds["mean-softmax"], strict=True))
        print(f"{name:20}{statistics.median(found) / PIXELS * 1e9:9.0f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
