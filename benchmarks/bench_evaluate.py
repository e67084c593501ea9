"""Counting one 1024x2048 prediction for all semantic figures, against sorting its pixels as reference tools do.

python benchmarks/bench_evaluate.py
python benchmarks/bench_evaluate.py --images 20
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from hmsa_pipeline.pipeline.fusion.prediction_files import CONFIDENCE_LEVELS
from hmsa_pipeline.pipeline.scoring.pixel_counts import PixelCounts, count_classes

TARGET = 5.0


def memory() -> float:
    """MiB of this process at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A class map, its confidence, and labels that agree with it in three pixels of four."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 19, (16, 32)).repeat(64, 0).repeat(64, 1).astype(np.uint8)
    other = draw.integers(0, 19, label.shape).astype(np.uint8)
    truth = np.where(draw.random(label.shape) < 0.75, label, other)
    truth[:40] = 255
    return label, (draw.beta(6, 2, label.shape) * 65535).astype(np.uint16), truth.astype(np.uint8)


def by_sorting(label: np.ndarray, confidence: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same counts by sorting all pixels and adding them one by one."""
    known = truth != 255
    label, truth, confidence = (a[known].astype(np.int64) for a in (label, truth, confidence))
    matrix = np.bincount(19 * truth + label, minlength=361).reshape(19, 19)
    order = np.argsort(confidence)
    right, confidence = (label == truth)[order], confidence[order]
    levels = np.zeros((2, CONFIDENCE_LEVELS))
    np.add.at(levels[1], confidence, right)
    np.add.at(levels[0], confidence, ~right)
    return matrix, levels


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    images = parser.parse_args().images
    total, ours, theirs = PixelCounts(), [], []
    peaks = []
    for seed in range(images):
        maps = drawn(seed)
        begun = time.perf_counter()
        counts = count_classes(*maps)
        total += counts
        ours.append(time.perf_counter() - begun)
        peaks.append(memory())
        if seed < 6:
            begun = time.perf_counter()
            matrix, levels = by_sorting(*maps)
            theirs.append(time.perf_counter() - begun)
            if (matrix != counts.confusion).any() or (levels != counts.levels).any():
                raise SystemExit("the two ways count differently")
    begun = time.perf_counter()
    total.figures()
    figures = time.perf_counter() - begun
    ratio = float(np.median(theirs) / np.median(ours))
    mine, other = 1000 * np.median(ours), 1000 * np.median(theirs)
    print(f"counting {mine:.0f} ms an image, by sorting {other:.0f} ms: {ratio:.1f}x")
    verdict = "ok" if ratio >= TARGET else "MISSED"
    print(f"target {TARGET}x: {verdict}; all figures of all images {1000 * figures:.1f} ms")
    print(f"memory {peaks[min(6, images - 1)]:.0f} MiB after the first images, {peaks[-1]:.0f} MiB at the end")


if __name__ == "__main__":
    main()
