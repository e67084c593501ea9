"""Counting one 1024x2048 prediction for all semantic figures, against sorting its pixels as reference tools do.

    python benchmarks/bench_evaluate.py
    python benchmarks/bench_evaluate.py --images 20
    python benchmarks/bench_evaluate.py --before older/hmsa_pipeline --images 4

With --before, the command itself is timed, on predictions and on the stores of seven members, against that of an
older version of the package in that folder, by turns in one run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from bench_ensemble import prepare
from harness import compare, size, tell
from hmsa_pipeline.pipeline.fusion.prediction_files import CONFIDENCE_LEVELS
from hmsa_pipeline.pipeline.scoring.pixel_counts import PixelCounts, count_classes
from PIL import Image

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


CASES = {
    "evaluate": ["evaluate"],
    "evaluate --per-model": ["evaluate", "--per-model"],
    "evaluate --per-model --leave-one-out": ["evaluate", "--per-model", "--leave-one-out"],
}


def command(manifest: Path, words: list[str], package: Path | None) -> Callable[[], None]:
    """Work that runs a command in this process: of the package in this folder, None for the installed one."""
    if package is not None:
        for name in [name for name in sys.modules if name.split(".")[0] == "hmsa_pipeline"]:
            del sys.modules[name]
        sys.path.insert(0, str(package.resolve().parent))
    import hmsa_pipeline
    from hmsa_pipeline.cli import app

    if package is not None and Path(hmsa_pipeline.__file__).resolve().parent != package.resolve():
        raise SystemExit(f"{package}: is no folder of the name hmsa_pipeline")

    def work() -> None:
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            app([*words, "--manifest", str(manifest), "--processes", "1"], standalone_mode=False)

    return work


def against(package: Path, images: int, shape: tuple[int, int], repeats: int) -> None:
    """Compare the command with that of another version.

    Args:
        package: its folder.
        images: how many there are.
        shape: (H, W) of them.
        repeats: turns that count.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        manifest = prepare(root, images, min(2, images), shape, npz=False)
        (root / "masks").mkdir()
        for number in range(images):
            truth = np.random.default_rng(number).integers(0, 19, (-(-shape[0] // 64), -(-shape[1] // 64)))
            truth = truth.repeat(64, 0).repeat(64, 1)[: shape[0], : shape[1]].astype(np.uint8)
            truth[:40] = 255
            Image.fromarray(truth).save(root / "masks" / f"{number:04}.png")
        tree = yaml.safe_load(manifest.read_text())
        tree["datasets"][0]["masks"] = "masks"
        manifest.write_text(yaml.safe_dump(tree))
        from hmsa_pipeline.cli import app

        app(["ensemble", "--manifest", str(manifest), "--workers", "0"], standalone_mode=False)
        for name, words in CASES.items():
            cases = {
                f"before: {name}": partial(command, manifest, words, package),
                f"now: {name}": partial(command, manifest, words, None),
            }
            tell(compare(cases, repeats=repeats), f"before: {name}")


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--before", type=Path, help="folder hmsa_pipeline of an older version")
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    images = options.images
    if options.before is not None:
        against(options.before, images, options.size, options.repeats)
        return
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
