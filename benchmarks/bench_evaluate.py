"""Counting one 1024x2048 prediction for all semantic figures, against sorting its pixels as reference tools do.

    python benchmarks/bench_evaluate.py
    python benchmarks/bench_evaluate.py --images 20
    python benchmarks/bench_evaluate.py --against HEAD~10 --images 4

With ``--against`` the command itself is timed, on predictions and on the stores of seven members, by turns with that
of another revision.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from bench_ensemble import prepare
from builds import Build, BuildProcess, Ran, add_against, builds, run_command
from harness import size, tell_commands
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


CASES = (["evaluate"], ["evaluate", "--per-model"], ["evaluate", "--per-model", "--leave-one-out"])


def add_masks(manifest: Path, images: int, shape: tuple[int, int]) -> None:
    """Masks that agree with the photographs' logits by chance."""
    (manifest.parent / "masks").mkdir()
    for number in range(images):
        truth = np.random.default_rng(number).integers(0, 19, (-(-shape[0] // 64), -(-shape[1] // 64)))
        truth = truth.repeat(64, 0).repeat(64, 1)[: shape[0], : shape[1]].astype(np.uint8)
        truth[: shape[0] // 26] = 255
        Image.fromarray(truth).save(manifest.parent / "masks" / f"{number:04}.png")
    tree = yaml.safe_load(manifest.read_text())
    tree["datasets"][0]["masks"] = "masks"
    manifest.write_text(yaml.safe_dump(tree))


def commands(revision: str, images: int, shape: tuple[int, int], repeats: int) -> None:
    """Compare the command with that of another revision, each on stores and predictions of its own.

    Args:
        revision: of the repository.
        images: how many there are.
        shape: (H, W) of them.
        repeats: turns that count.
    """
    with builds(revision) as them, tempfile.TemporaryDirectory() as folder:
        manifests: dict[Build, Path] = {}
        for number, build in enumerate(them):
            root = Path(folder, str(number))
            root.mkdir()
            with BuildProcess(build) as process:
                manifests[build] = process.call(prepare, root, images, min(2, images), shape, "lossless")
            add_masks(manifests[build], images, shape)
            run_command(build, ["ensemble", "--manifest", manifests[build], "--workers", "0"])
        for words in CASES:
            found: dict[str, list[Ran]] = {build.name: [] for build in them}
            for _ in range(repeats):
                for build, manifest in manifests.items():
                    ran = run_command(build, [*words, "--manifest", manifest, "--processes", "1"])
                    found[build.name].append(ran)
            print(" ".join(words))
            tell_commands(found, revision, images)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--repeats", type=int, default=3)
    add_against(parser)
    options = parser.parse_args()
    images = options.images
    if options.against is not None:
        commands(options.against, images, options.size, options.repeats)
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
