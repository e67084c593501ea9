"""Planning, resume scan and image table for many images and seven models, without a network.

    python benchmarks/bench_scale.py --images 4000
    python benchmarks/bench_scale.py --images 100000 --table

Photographs are hard links to one small PNG, shards are files of one byte: what is measured is what a run does
before its first image. ``--table`` makes no files and measures one store's table alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.manifest import load_manifest
from hmsa_pipeline.pipeline.plan import plan_dump
from hmsa_pipeline.pipeline.store import LogitStore, Photograph
from PIL import Image

TINY = "hrnet_tiny_ocr_mscale"
SIZE = (48, 80)


def timed(name: str, work: Callable[[], object]) -> object:
    begun = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:44} {time.perf_counter() - begun:8.2f} s   {peak:7.0f} MiB at peak so far")
    return result


def world(folder: Path, images: int, models: int) -> Path:
    photos = folder / "photos"
    photos.mkdir()
    first = folder / "first.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(first)
    for number in range(images):
        # A file takes no more than 65,000 links.
        if number % 50_000 == 0:
            source = folder / f"source{number}.png"
            source.write_bytes(first.read_bytes())
        os.link(source, photos / f"{number:07}.png")
    torch.manual_seed(0)
    save_checkpoint(folder / "w.pth", build(TINY), arch=TINY)
    members = [{"name": f"m{n}", "arch": TINY, "checkpoint": "w.pth"} for n in range(models)]
    manifest = folder / "m.yaml"
    datasets = [{"name": "street", "type": "folder", "root": "photos"}]
    tree = {"version": 1, "output": str(folder / "out"), "models": members, "datasets": datasets}
    manifest.write_text(yaml.safe_dump(tree))
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--models", type=int, default=7)
    parser.add_argument("--table", action="store_true", help="only one store's table, without files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.table:
            photos = [Photograph(f"day/{number:07}.png", 100, (1024, 2048)) for number in range(options.images)]
            plan = plan_dump(load_manifest(world(folder, 1, 1)), device="cpu")
            store = LogitStore.create(folder / "one.zarr", plan.jobs[0].identity, {})
            timed("register the table", lambda: store.register(photos))
            print(f"{'zarr.json':44} {(folder / 'one.zarr/zarr.json').stat().st_size / 1e6:8.1f} MB")
            timed("open the store", lambda: LogitStore.open(folder / "one.zarr"))
            timed("scan for complete images (none)", store.complete)
            return
        source = world(folder, options.images, options.models)
        print(f"{options.images} images x {options.models} models")
        plan = timed("plan, nothing done yet", lambda: plan_dump(load_manifest(source), device="cpu"))
        for job in plan.jobs:  # type: ignore[attr-defined]
            store = LogitStore.create(job.store, job.identity, {})
            store.register(job.photographs)
            for index in range(0, options.images, 2):
                store.shard_path(index).write_bytes(b"x")  # type: ignore[union-attr]
        plan = timed("plan with half of every store complete", lambda: plan_dump(load_manifest(source), device="cpu"))
        assert plan.todo == options.models * (options.images // 2)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
