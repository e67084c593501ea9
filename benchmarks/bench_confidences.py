"""Fusing seven members' logits of 16,384 pixels with each confidence function, beside mean-softmax.

    python benchmarks/bench_confidences.py
    python benchmarks/bench_confidences.py --stores

A strip of this size is what `hmsa-pipeline ensemble` fuses at once. Reading logits and writing PNGs are not counted.
All functions run by turns on one thread, and so do all of them together (`fuse_several`). Prints the median ns for
each pixel, and the median of the ratios to mean-softmax of the same turn.

With ``--stores`` an image of 1024x2048 is read from seven stores and fused: by mean-softmax, by mutual information,
by all functions from one look at the stores as `evaluate --confidences` does, and by one after the other. Prints the
median core seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_ensemble import prepare
from harness import machine
from hmsa_pipeline.pipeline.config.calibration_field import MaxLogits
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.config.manifest import FusionFunctions
from hmsa_pipeline.pipeline.fusion.fuse import CONFIDENCES, fuse, fuse_several
from hmsa_pipeline.pipeline.fusion.member_stores import confidences_from_stores, predict_from_stores, stores_of

MEMBERS, PIXELS = 7, 16384
EQUAL = [1.0] * MEMBERS


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--stores", action="store_true")
    given = parser.parse_args()
    print(machine())
    torch.set_num_threads(1)
    if given.stores:
        from_stores()
    else:
        of_strips(given.repeats)


def from_stores(repeats: int = 3) -> None:
    """Measure an image that is read from stores."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = load_manifest(str(prepare(Path(folder), 1, 1, (1024, 2048), npz=False)))
        (image,) = [path.name for path in (Path(folder) / "photos").iterdir()]
        standard = MaxLogits(mean=(8.0,) * 19, deviation=(2.0,) * 19)
        stores = tuple(
            (member.model_copy(update={"max_logits": standard}), path)
            for member, path in stores_of(manifest, "photos", [image])
        )

        def alone(name: str) -> None:
            predict_from_stores(
                stores, image, {"": range(MEMBERS)}, FusionFunctions.model_validate({"confidence": name})
            )

        runs: dict[str, Callable[[], object]] = {
            "mean-softmax": lambda: alone("mean-softmax"),
            "mutual-information": lambda: alone("mutual-information"),
            "all from one look": lambda: confidences_from_stores(stores, image, "mean-softmax", CONFIDENCES),
            "one after the other": lambda: [alone(name) for name in CONFIDENCES],
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(repeats + 1):
            for name, run in runs.items():
                before = os.times()
                run()
                after = os.times()
                if turn:
                    seconds[name].append(after.user + after.system - before.user - before.system)
        for name, found in seconds.items():
            print(f"{name:20}{statistics.median(found):6.2f} core s")


def of_strips(repeats: int) -> None:
    """Measure strips in memory."""
    torch.manual_seed(0)
    common = 4 * torch.randn(19, PIXELS)
    members = [(common + torch.randn(19, PIXELS)).half() for _ in range(MEMBERS)]

    standards = [MaxLogits(mean=(8.0,) * 19, deviation=(2.0,) * 19)] * MEMBERS

    def one(name: str) -> Callable[[], object]:
        return lambda: fuse(members, EQUAL, None, (), standards, confidence=name)

    runs = {name: one(name) for name in CONFIDENCES}
    runs["all of them"] = lambda: fuse_several(members, EQUAL, None, (), standards, confidences=CONFIDENCES)
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
