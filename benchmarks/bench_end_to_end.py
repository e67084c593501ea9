"""From photographs to class maps: `dump` and `ensemble`, and `predict`, each as its user runs it.

    python benchmarks/bench_end_to_end.py --images 8
    python benchmarks/bench_end_to_end.py --arch hrnet_ocr_mscale --device cuda --precision fp16 --images 64

Seven members with random weights, drawn photographs. The commands take turns, each in processes of its own and into a
folder of its own; what counts is from the first image to the last (`seconds` in run.json), and the whole command
beside it. Prints the medians, what limited each, and the ratio; with ``--against`` also those of another build.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from builds import NOW, Build, add_against, builds
from harness import case_name, machine, size
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from PIL import Image


def prepare(root: Path, arch: str, members: int, images: int, shape: tuple[int, int], precision: str) -> Path:
    """Checkpoints, photographs, and the manifest that names them."""
    (root / "photos").mkdir()
    for number in range(images):
        Image.fromarray(draw_scene(number, *shape).image).save(root / "photos" / f"{number:04}.png")
    models = []
    for number in range(members):
        torch.manual_seed(number)
        path = root / f"member{number}.pth"
        save_checkpoint(path, build(arch), arch=arch)
        models.append({"name": path.stem, "arch": arch, "checkpoint": str(path)})
    path = root / "manifest.yaml"
    manifest = {
        "version": 1,
        "output": "run",
        "inference": {"precision": precision},
        "models": models,
        "datasets": [{"name": "photos", "type": "folder", "root": "photos"}],
    }
    path.write_text(yaml.safe_dump(manifest))
    return path


def run(manifest: Path, output: Path, commands: list[list[str]], build: Build) -> tuple[float, float, str]:
    """Seconds in the images, seconds of the whole commands, and what limited them."""
    begun = time.perf_counter()
    limits = []
    for command in commands:
        words = build.command(*command, "--manifest", manifest, "--output", output)
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, cwd=manifest.parent, env=build.environment()
        )
        limits += [line for line in done.stdout.splitlines() if line.startswith("limited by")]
    whole = time.perf_counter() - begun
    runs: dict[str, dict[str, Any]] = json.loads((output / "run.json").read_text())
    inside = sum(job["seconds"] for command in commands for job in runs[command[0]].values())
    return inside, whole, "; ".join(limits)


def differences(first: Path, second: Path) -> tuple[float, int]:
    """Share of the pixels of another class, and the largest difference of confidences in levels of 65,536."""
    other = pixels = levels = 0
    for path in sorted((first / "predictions").rglob("*_pred.png")):
        twin = second / path.relative_to(first)
        a, b = (np.asarray(Image.open(p)) for p in (path, twin))
        other, pixels = other + int((a != b).sum()), pixels + a.size
        a, b = (np.asarray(Image.open(str(p).replace("_pred", "_conf"))).astype(int) for p in (path, twin))
        levels = max(levels, int(np.abs(a - b).max()))
    return other / pixels, levels


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="hrnet_tiny_ocr_mscale")
    parser.add_argument("--members", type=int, default=7)
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    add_against(parser)
    options = parser.parse_args()
    print(machine())
    device = ["--device", options.device]
    ways = {
        "dump + ensemble": [["dump", *device], ["ensemble"]],
        "predict": [["predict", *device]],
    }
    found: dict[str, list[tuple[float, float, str]]] = {}
    with builds(options.against) as them, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        manifest = prepare(root, options.arch, options.members, options.images, options.size, options.precision)
        outputs: dict[str, Path] = {}
        for turn in range(options.repeats):
            for number, (way, commands) in enumerate(ways.items()):
                for version in them:
                    name = case_name(way, version, them)
                    outputs[name] = root / f"run{turn}-{number}-{len(outputs)}"
                    found.setdefault(name, []).append(run(manifest, outputs[name], commands, version))
        other, levels = differences(*(outputs[case_name(way, NOW, them)] for way in ways))
    medians = {}
    for name, runs in found.items():
        inside, whole = (statistics.median(values) for values in list(zip(*runs, strict=True))[:2])
        medians[name] = inside, whole
        wide = max(map(len, found))
        print(f"{name:{wide}} {inside:7.1f} s in the images, {whole:7.1f} s with start and end; {runs[-1][2]}")
    predict, both = (medians[case_name(way, NOW, them)] for way in ("predict", "dump + ensemble"))
    ratios = [p / d for p, d in zip(predict, both, strict=True)]
    print(f"predict takes {ratios[0]:.2f}x the time in the images, {ratios[1]:.2f}x with start and end")
    for way in ways if len(them) > 1 else ():
        before, after = (medians[case_name(way, version, them)] for version in them)
        print(
            f"{way}: {after[0] / before[0]:.2f}x the time of {options.against} in the images, "
            f"{after[1] / before[1]:.2f}x with start and end"
        )
    print(f"another class at {other:.1e} of the pixels, confidences within {levels} levels")


if __name__ == "__main__":
    main()
