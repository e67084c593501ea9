"""Fusing seven members at 1024x2048: `hmsa-pipeline ensemble`, and the way of the research forks.

    python benchmarks/bench_ensemble.py --images 32
    python benchmarks/bench_ensemble.py --images 32 --against HEAD~10 --no-baseline

The baseline loads every member's `np.savez_compressed` logits as float32, stacks them, takes the softmax twice (once
for the class map, once for the confidence) and writes two PNGs; one process per core. Both run by turns, over images
that are links to a few different ones, so that they lie in the page cache: the processors are measured and not the
disk. Prints seconds per image, peak memory (of all processes, proportional set size), the ratio, and how far the
answers differ. With ``--against`` another build fuses its own stores of the same logits, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from builds import NOW, Build, BuildProcess, Peak, Ran, add_against, builds, run_command
from harness import machine, size, tell_commands
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

MEMBERS = tuple(f"member{number}" for number in range(7))


def drawn(seed: int, height: int, width: int) -> np.ndarray:
    """Logits (19, H, W) float16 that compress about as a network's do: regions, some noise, enlarged four times."""
    torch.manual_seed(seed)
    coarse = torch.nn.functional.interpolate(
        4 * torch.randn(1, len(CLASS_NAMES), height // 16, width // 16), scale_factor=4, mode="bicubic"
    )
    coarse += 0.05 * torch.randn(coarse.shape)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].half().numpy()


def prepare(
    root: Path, images: int, different: int, shape: tuple[int, int], encoding: str = "lossless", *, npz: bool = True
) -> Path:
    """A manifest and the members' full stores, with ``npz`` the same logits as the forks keep them; its path."""
    names = [f"{number:04}.png" for number in range(images)]
    (root / "photos").mkdir()
    for name in names:
        Image.new("RGB", shape[::-1]).save(root / "photos" / name)
    for m, member in enumerate(MEMBERS):
        identity = StoreIdentity(model=member, architecture="external", classes=CLASS_NAMES, encoding=encoding)
        store = LogitStore.create(root / "run" / "logits" / "photos" / f"{member}.zarr", identity, {})
        photos = root / "photos"
        store.register(Photograph(name, (photos / name).stat().st_size, shape) for name in names)
        files = [root / "npz" / member / f"{name}.npz" for name in names]
        files[0].parent.mkdir(parents=True)
        for i, file in enumerate(files):
            first = i % different
            if i < different:
                logits = drawn(1000 * i + m, *shape)
                store.write(i, logits)
                if npz:
                    np.savez_compressed(file, logits=logits)
            else:
                if npz:
                    os.link(files[first], file)
                here, there = store.shard_path(first), store.shard_path(i)
                assert here is not None
                assert there is not None
                os.link(here, there)
    manifest = {
        "version": 1,
        "output": str(root / "run"),
        "models": [{"name": name, "arch": "external"} for name in MEMBERS],
        "datasets": [{"name": "photos", "type": "folder", "root": "photos"}],
    }
    path = root / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return path


# ------------------------------------------------------------------ the baseline


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the classes, (M, C, H, W)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def fuse_one(files: Sequence[Path], target: Path) -> None:
    """One image, the straightforward way."""
    logits = np.stack([np.load(file)["logits"].astype(np.float32) for file in files])
    label = softmax(logits).mean(axis=0).argmax(axis=0).astype(np.uint8)
    confidence = softmax(logits).mean(axis=0).max(axis=0)
    levels = np.minimum(np.floor(confidence * 65536), 65535).astype(np.uint16)
    Image.fromarray(label).save(f"{target}_pred.png")
    Image.fromarray(levels).save(f"{target}_conf.png")


def baseline(root: Path, processes: int) -> float:
    """Seconds per image."""
    target = root / "baseline"
    target.mkdir(exist_ok=True)
    names = sorted(path.name for path in (root / "photos").iterdir())
    work = [
        ([root / "npz" / m / f"{name}.npz" for m in MEMBERS], target / name.removesuffix(".png")) for name in names
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(os.path.exists, [(root,)] * processes)  # started, and everything imported
        begun = time.perf_counter()
        pool.starmap(fuse_one, work, chunksize=1)
        seconds = time.perf_counter() - begun
    return seconds / len(names)


# ------------------------------------------------------------------ ours


def ours(manifest: Path, build: Build = NOW) -> tuple[float, Ran]:
    """Seconds in the command's images, so that no start is counted, and what the whole command took."""
    words = ["ensemble", "--overwrite", "--workers", "0", "--manifest", manifest]
    ran = run_command(build, words)
    record = json.loads((manifest.parent / "run" / "run.json").read_text())
    return record["ensemble"]["photos"]["seconds"], ran


def differences(root: Path) -> tuple[float, int]:
    """Share of the pixels of another class, and the largest difference of confidences in levels of 65,536."""
    folder, other, levels, pixels = root / "run" / "predictions" / "photos", 0, 0, 0
    for theirs in sorted((root / "baseline").glob("*_pred.png")):
        a, b = (np.asarray(Image.open(path)) for path in (theirs, folder / theirs.name))
        other, pixels = other + int((a != b).sum()), pixels + a.size
        name = theirs.name.replace("_pred", "_conf")
        a, b = (np.asarray(Image.open(path)).astype(int) for path in (theirs.with_name(name), folder / name))
        levels = max(levels, int(np.abs(a - b).max()))
    return other / pixels, levels


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--different", type=int, default=2, help="images that are no links")
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--encoding", default="lossless", choices=["lossless", "small", "compact"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-baseline", action="store_true")
    add_against(parser)
    options = parser.parse_args()
    print(machine())
    cores = len(os.sched_getaffinity(0))
    with builds(options.against) as them, tempfile.TemporaryDirectory() as folder:
        manifests: dict[Build, Path] = {}
        for number, build in enumerate(them):
            root = Path(folder, str(number))
            root.mkdir()
            # The logits as npz are for the baseline alone, but older builds have no switch for them.
            more = {"npz": not options.no_baseline} if build == NOW else {}
            with BuildProcess(build) as process:
                arguments = (root, options.images, options.different, options.size, options.encoding)
                manifests[build] = process.call(prepare, *arguments, **more)
        seconds: dict[str, list[float]] = {"baseline": []} if not options.no_baseline else {}
        seconds |= {build.name: [] for build in them}
        runs: dict[str, list[Ran]] = {build.name: [] for build in them}
        peaks: dict[str, float] = dict.fromkeys(seconds, 0.0)
        root = manifests[NOW].parent
        for _ in range(options.repeats):
            if not options.no_baseline:
                with Peak() as peak:
                    seconds["baseline"].append(baseline(root, cores))
                peaks["baseline"] = max(peaks["baseline"], peak.most)
            for build, manifest in manifests.items():
                inside, ran = ours(manifest, build)
                seconds[build.name].append(inside / options.images)
                runs[build.name].append(ran)
                peaks[build.name] = max(peaks[build.name], ran.memory)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        for name, found in seconds.items():
            spread = f"{min(found):.2f} to {max(found):.2f}"
            print(f"{name:10} {medians[name]:.2f} s per image ({spread}), {peaks[name]:.2f} GB at most")
        if len(them) > 1:
            print(f"{medians['now'] / medians[options.against]:.2f}x the time per image; whole commands, with start:")
            tell_commands(runs, options.against, options.images)
        if not options.no_baseline:
            other, levels = differences(root)
            print(
                f"{medians['baseline'] / medians['now']:.1f}x as fast as the baseline; another class at "
                f"{other:.1e} of the pixels, confidence within {levels} levels"
            )


if __name__ == "__main__":
    main()
