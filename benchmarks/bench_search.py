"""Scoring all 127 combinations of seven members, against `evaluate --per-model --leave-one-out`, which scores 15.

    python benchmarks/bench_search.py --images 8
    python benchmarks/bench_search.py --images 8 --alike 0

Both commands run by turns, each in processes of its own, over labelled images of 1024x2048 that are links to a few
different ones, so that they lie in the page cache. Members share a part of their logits (`--alike`), so that they
agree on some of the pixels; with 0 they agree by chance, which is the worst case for the search. Prints seconds per
image and peak memory (of all processes, proportional set size). ``--against`` times the `evaluate` of another
revision, which has to read this one's stores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from bench_ensemble import MEMBERS, drawn
from builds import NOW, add_against, builds, run_command
from harness import machine, size
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

TARGET, MEMORY = 4.0, 1.5


def prepare(root: Path, images: int, different: int, shape: tuple[int, int], alike: float) -> tuple[Path, float]:
    """Labelled images with the logits of seven members: the manifest, and the share of pixels on which all agree."""
    names = [f"{number:04}.png" for number in range(images)]
    for folder in ("photos", "masks"):
        (root / folder).mkdir()
    agreed = []
    common = [drawn(10_000 + number, *shape) for number in range(different)]
    for number, name in enumerate(names):
        draw = np.random.default_rng(number % different)
        truth = common[number % different].argmax(0).astype(np.uint8)
        blocks = (shape[0] // 32, shape[1] // 32)
        wrong = (draw.random(blocks) < 0.15).repeat(32, 0).repeat(32, 1)
        truth[wrong] = draw.integers(0, 19, blocks).repeat(32, 0).repeat(32, 1)[wrong]
        truth[: shape[0] // 10] = 255
        Image.fromarray(truth).save(root / "masks" / name)
        Image.new("RGB", shape[::-1]).save(root / "photos" / name)
    said = [np.zeros((len(MEMBERS), *shape), np.uint8) for _ in range(different)]
    for m, member in enumerate(MEMBERS):
        identity = StoreIdentity(model=member, architecture="external", classes=CLASS_NAMES)
        store = LogitStore.create(root / "run" / "logits" / "photos" / f"{member}.zarr", identity, {})
        store.register(Photograph(name, (root / "photos" / name).stat().st_size, shape) for name in names)
        for i in range(images):
            if i < different:
                logits = alike * common[i] + (1 - alike) * drawn(1000 * i + m, *shape)
                store.write(i, logits.astype(np.float16))
                said[i][m] = logits.argmax(0)
            else:
                here, there = store.shard_path(i % different), store.shard_path(i)
                assert here is not None
                assert there is not None
                os.link(here, there)
    agreed = [float((one == one[0]).all(0).mean()) for one in said]
    manifest = {
        "version": 1,
        "output": str(root / "run"),
        "models": [{"name": name, "arch": "external"} for name in MEMBERS],
        "datasets": [{"name": "photos", "type": "folder", "root": "photos", "masks": "masks"}],
    }
    path = root / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return path, statistics.mean(agreed)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--different", type=int, default=2, help="images that are no links")
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--alike", type=float, default=0.75, help="part of the logits that all members share")
    parser.add_argument("--repeats", type=int, default=3)
    add_against(parser)
    options = parser.parse_args()
    print(machine())
    with builds(options.against) as them, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.manual_seed(0)
        manifest, agreed = prepare(root, options.images, options.different, options.size, options.alike)
        run_command(NOW, ["ensemble", "--manifest", manifest, "--workers", "0"])
        print(f"all members agree on {agreed:.0%} of the pixels")
        commands = {
            "evaluate": ["evaluate", "--manifest", str(manifest), "--per-model", "--leave-one-out"],
            "search": ["search", "--manifest", str(manifest)],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        memory = dict.fromkeys(commands, 0.0)
        for _ in range(options.repeats):
            for name, words in commands.items():
                ran = run_command(them[0] if name == "evaluate" else NOW, words)
                seconds[name].append(ran.seconds / options.images)
                print(f"  {name} {ran.seconds:.1f} s, {ran.memory:.2f} GB", flush=True)
                memory[name] = max(memory[name], ran.memory)
        for name, found in seconds.items():
            spread = f"{min(found):.2f} to {max(found):.2f}"
            print(f"{name:10} {statistics.median(found):.2f} s per image ({spread}), {memory[name]:.2f} GB at most")
        ratio = statistics.median(seconds["search"]) / statistics.median(seconds["evaluate"])
        verdict = "met" if ratio <= TARGET and memory["search"] <= MEMORY else "MISSED"
        print(f"search takes {ratio:.2f}x the time; targets {TARGET}x and {MEMORY} GB: {verdict}")


if __name__ == "__main__":
    main()
