"""Planning, resume scan, image table and scheduler for many images and seven models, without a network.

    python benchmarks/bench_scale.py                              # 4,000 images x 7 models
    python benchmarks/bench_scale.py --images 1000000 --models 1
    python benchmarks/bench_scale.py --images 1000000 --complete 0.1      # the plan of seven models, resumed
    python benchmarks/bench_scale.py --table 1000 10000 100000 1000000
    python benchmarks/bench_scale.py --table 1000000 --against HEAD~10
    python benchmarks/bench_scale.py --table 10000000 --no-shards         # ten million images, without files
    python benchmarks/bench_scale.py --tasks 100000

What is measured is what a run does before its first image. Photographs and shards are hard links to one small
file, so that a million of them take no inodes; a table is one store's alone, with no photographs behind it.
Every figure comes from a process of its own, because memory that one step frees would hide the next one's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from builds import NOW, Build, BuildProcess, add_against, builds
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.inference.dump import plan_dump
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

TINY = "hrnet_tiny_ocr_mscale"
SIZE = (48, 80)
TARGET_SECONDS = 2.0
# ext4 takes 65,000 links to one file.
LINKS = 50_000
IDENTITY = StoreIdentity(
    model="m0",
    architecture=TINY,
    checkpoint="w.pth",
    sha256="0" * 64,
    scales=(0.5, 1.0, 2.0),
    flip=False,
    precision="fp16",
    classes=tuple(f"class {number}" for number in range(19)),
)

# ------------------------------------------------------------------ measuring


def memory(name: str) -> float:
    """MiB of this process: ``VmRSS`` now, ``VmHWM`` at its peak.

    Not ``ru_maxrss``, in which a child process begins with what its parent had.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def row(name: str, seconds: float | None, mebibytes: float | None, note: str = "") -> None:
    """One line of the table on the terminal."""
    took = "" if seconds is None else f"{seconds:.2f} s"
    more = "" if mebibytes is None else f"{mebibytes:.0f} MiB"
    print(f"{name:44} {took:>10} {more:>10}  {note}".rstrip(), flush=True)


def alone(step: Callable[..., Any], *arguments: Any, build: Build = NOW) -> Any:
    """``step`` in a process of its own."""
    with BuildProcess(build) as process:
        return process.call(step, *arguments)


def compared(what: str, found: Sequence[dict[str, Any]], them: Sequence[Build]) -> None:
    """Print what a step took in each build, and the ratios if there are two."""
    for one, version in zip(found, them, strict=True):
        ratio = ""
        if version != them[0]:
            of = [one[unit] / max(found[0][unit], 1e-9) for unit in ("seconds", "mebibytes")]
            ratio = f"{of[0]:.3f}x time, {of[1]:.3f}x memory"
        name = what if len(them) == 1 else f"{what}, {version.name}"
        row(name, one["seconds"], one["mebibytes"], "; ".join(filter(None, (ratio, one.get("note", "")))))


@contextmanager
def measured(found: dict[str, Any]) -> Iterator[None]:
    """Puts ``seconds`` and the growth to the peak, ``mebibytes``, into ``found``."""
    before, begun = memory("VmRSS"), time.perf_counter()
    yield
    found["seconds"] = time.perf_counter() - begun
    found["mebibytes"] = memory("VmHWM") - before


# ------------------------------------------------------------------ planning


def link(source: Path, targets: Iterator[Path]) -> None:
    """Make ``targets`` hard links to ``source``, or to copies of it where it has too many."""
    content, first = source.read_bytes(), source
    for number, target in enumerate(targets):
        if number % LINKS == 0:
            source = first.with_name(f"{number}-{first.name}")
            source.write_bytes(content)
        os.link(source, target)


def world(folder: Path, images: int, models: int) -> Path:
    """Photographs, a checkpoint and a manifest below ``folder``; the manifest's path."""
    photos = folder / "photos"
    photos.mkdir()
    first = folder / "first.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(first)
    link(first, (photos / f"{number:07}.png" for number in range(images)))
    torch.manual_seed(0)
    save_checkpoint(folder / "w.pth", build(TINY), arch=TINY)
    members = [{"name": f"m{n}", "arch": TINY, "checkpoint": "w.pth"} for n in range(models)]
    manifest = folder / "m.yaml"
    datasets = [{"name": "street", "type": "folder", "root": "photos"}]
    tree = {"version": 1, "output": str(folder / "out"), "models": members, "datasets": datasets}
    manifest.write_text(yaml.safe_dump(tree))
    return manifest


def fill(store: LogitStore, images: int, share: float) -> None:
    """Fake shards of the first ``share`` of the images in every ten, so that rows are missing everywhere."""
    source = store.path.parent / f"{store.path.name}.shard"
    source.write_bytes(b"x")
    shards = (store.shard_path(index) for index in range(images) if index % 10 < 10 * share)
    link(source, (shard for shard in shards if shard is not None))


def plan(manifest: Path) -> dict[str, Any]:
    """`plan_dump`, with what it found to do."""
    found: dict[str, Any] = {}
    with measured(found):
        found["todo"] = plan_dump(load_manifest(manifest), torch.device("cpu")).todo
    return found


def register(manifest: Path, share: float) -> dict[str, Any]:
    """Every job's store made, as ``dump`` makes it; then shards are put into it, which is not measured."""
    jobs = plan_dump(load_manifest(manifest), torch.device("cpu")).jobs
    found: dict[str, Any] = {}
    with measured(found):
        for job in jobs:
            LogitStore.create(job.store, job.identity, {}).register(job.photographs)
    for job in jobs:
        fill(LogitStore.open(job.store), len(job.photographs), share)
    return found


def begin(manifest: Path) -> dict[str, Any]:
    """Every job's store taken up by a run that goes on, and kept in memory, as the run keeps it."""
    jobs = plan_dump(load_manifest(manifest), torch.device("cpu")).jobs
    found: dict[str, Any] = {}
    with measured(found):
        stores = []
        for job in jobs:
            store = LogitStore.for_writing(job.store, job.identity, {})
            store.register(job.photographs)
            stores.append((store, store.complete()))
    return found


def bench_plan(folder: Path, images: int, models: int, share: float, them: Sequence[Build]) -> None:
    """Measure all that happens before the first image."""
    roots = [folder / f"plan{number}" for number in range(len(them))]
    for root in roots:
        root.mkdir()
    manifests = [alone(world, root, images, models, build=b) for root, b in zip(roots, them, strict=True)]
    print(f"{images:,} images x {models} models, {share:.0%} of them complete; memory is growth to the peak")

    def each(step: Callable[..., Any], *more: Any) -> list[dict[str, Any]]:
        return [alone(step, manifest, *more, build=b) for manifest, b in zip(manifests, them, strict=True)]

    fresh = each(plan)
    for one in fresh:
        one["note"] = verdict(one["seconds"], images, models)
    compared("plan, no stores", fresh, them)
    compared("make and register all stores", each(register, share), them)
    resumed = each(plan)
    for one in resumed:
        one["note"] = verdict(one["seconds"], images, models)
    compared("plan, resume scan", resumed, them)
    done = sum(index % 10 < 10 * share for index in range(images))
    for first, second in zip(fresh, resumed, strict=True):
        if (first["todo"], second["todo"]) != (models * images, models * (images - done)):
            raise SystemExit(f"the scan found {second['todo']} of {models * (images - done)} images to do")
    compared("take up all stores", each(begin), them)
    for version in them:
        what = "a process with the package imported"
        name = what if len(them) == 1 else f"{what}, {version.name}"
        row(name, None, alone(nothing, build=version)["mebibytes"])


def nothing() -> dict[str, Any]:
    """What a process takes that has done nothing."""
    return {"mebibytes": memory("VmHWM")}


def verdict(seconds: float, images: int, models: int) -> str:
    """Whether the target is met, which is for 4,000 images and seven models."""
    if images * models > 28_000:
        return ""
    return "ok" if seconds <= TARGET_SECONDS else f"SLOWER than {TARGET_SECONDS} s"


# ------------------------------------------------------------------ one store's table


def photographs(images: int) -> list[Photograph]:
    """Of a street data set: names as long as there, two sizes."""
    sizes = ((1024, 2048), (720, 1280))
    name = "day/{:04}/{:07}_leftImg8bit.png"
    return [Photograph(name.format(n // 1000, n), 2_000_000 + n, sizes[n % 2]) for n in range(images)]


def table_register(path: Path, images: int) -> dict[str, Any]:
    """The table set in a new store."""
    photos = photographs(images)
    store = LogitStore.create(path, IDENTITY, {})
    found: dict[str, Any] = {}
    with measured(found):
        store.register(photos)
    return found


def table_grow(path: Path, images: int) -> dict[str, Any]:
    """One photograph more."""
    store = LogitStore.open(path, writable=True)
    photos = [*photographs(images), Photograph("night/one.png", 1, SIZE)]
    found: dict[str, Any] = {}
    with measured(found):
        store.register(photos)
    return found


def table_open(path: Path) -> dict[str, Any]:
    """The store opened."""
    found: dict[str, Any] = {}
    with measured(found):
        store = LogitStore.open(path)
    found["images"] = len(store.images)
    return found


def table_block(path: Path) -> dict[str, Any]:
    """What a worker needs of a store for its block: the rows of 512 images from the middle."""
    found: dict[str, Any] = {}
    with measured(found):
        store = LogitStore.open(path)
        middle = len(store.images) // 2
        found["paths"] = [store.images[index].path for index in range(middle, min(middle + 512, len(store.images)))]
    return found


def table_size(path: Path) -> int:
    """Bytes of the table of images, and of the group's attributes, which held it in format version 1."""
    columns = (file.stat().st_size for file in (path / "images").rglob("*") if file.is_file())
    return (path / "zarr.json").stat().st_size + sum(columns)


def table_scan(path: Path, images: int) -> dict[str, Any]:
    """Every shard there, and found."""
    store = LogitStore.open(path)
    fill(store, images, 1.0)
    found: dict[str, Any] = {}
    with measured(found):
        found["complete"] = sum(store.complete())
    return found


def bench_table(folder: Path, counts: list[int], them: Sequence[Build], *, shards: bool) -> None:
    """Measure tables of several sizes; without ``shards`` no image is complete, and no scan is measured."""
    print("memory is growth to the peak")
    for images in counts:
        paths = [folder / str(images) / str(number) / "m0.zarr" for number in range(len(them))]
        for path in paths:
            path.parent.mkdir(parents=True)
        places = list(zip(paths, them, strict=True))
        made = [alone(table_register, path, images, build=version) for path, version in places]
        for one, path in zip(made, paths, strict=True):
            one["note"] = f"table {table_size(path) / 1e6:.1f} MB"
        compared(f"{images:,} images: register", made, them)
        opened = [alone(table_open, path, build=version) for path, version in places]
        compared(f"{images:,} images: open", opened, them)
        # Of this tree alone: the benchmark of a revision before it has no such step.
        block = alone(table_block, paths[-1], build=them[-1])
        compared(f"{images:,} images: open, and a worker's block", [block], them[-1:])
        if shards:
            scanned = [alone(table_scan, path, images, build=version) for path, version in places]
            compared(f"{images:,} images: scan for complete ones", scanned, them)
            if any(one["complete"] != images for one in scanned):
                raise SystemExit(f"{[one['complete'] for one in scanned]} of {images} images are complete")
        grown = [alone(table_grow, path, images, build=version) for path, version in places]
        compared(f"{images:,} images: append one", grown, them)
        expected = [photo.path for photo in photographs(images)[images // 2 :][:512]]
        if {one["images"] for one in opened} != {images} or block["paths"] != expected:
            raise SystemExit(f"{[one['images'] for one in opened]} of {images} images are listed, or others")


# ------------------------------------------------------------------ Dask's scheduler


def _work(number: int) -> int:
    return number


async def queued(count: int, scratch: str) -> dict[str, Any]:
    """All tasks submitted at once; nobody is there to do them, so that what is measured is what waiting takes."""
    from distributed import Client, Scheduler

    found: dict[str, Any] = {}
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        with measured(found):
            futures = client.map(_work, range(count), pure=False)
            while len(scheduler.tasks) < count:
                await asyncio.sleep(0.05)
        found["held"] = len(scheduler.tasks)
        del futures
    return found


async def few_at_once(count: int, scratch: str) -> dict[str, Any]:
    """Tasks done one after another by one worker, eight of them in flight."""
    from distributed import Client, Scheduler, Worker, as_completed

    found: dict[str, Any] = {"held": 0}
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler,
        Worker(scheduler.address, nthreads=1, dashboard_address="127.0.0.1:0", local_directory=scratch),
        Client(scheduler.address, asynchronous=True) as client,
    ):

        async def some(number: int) -> None:
            numbers = iter(range(number))
            pending: Any = as_completed([client.submit(_work, n, pure=False) for n in itertools.islice(numbers, 8)])
            async for _ in pending:
                found["held"] = max(found["held"], len(scheduler.tasks))
                for n in itertools.islice(numbers, 1):
                    pending.add(client.submit(_work, n, pure=False))

        await some(200)  # what a worker's start takes is not a task's
        with measured(found):
            await some(count)
    return found


def tasks(kind: Callable[..., Any], count: int) -> dict[str, Any]:
    """Scheduler, worker and client in this process, which holds nothing else that grows."""
    from dask import config

    config.set({"logging.distributed": "error"})  # read when distributed is imported
    # As a run sets it: what the scheduler remembers of old tasks, for those who mend it.
    with config.set({"distributed.admin.low-level-log-length": 100}), tempfile.TemporaryDirectory() as scratch:
        return asyncio.run(kind(count, scratch))


def bench_tasks(count: int) -> None:
    """Measure what Dask keeps of tasks that wait, and of tasks that are handed to it a few at a time."""
    print("scheduler, client and worker in one process; memory is growth to the peak")
    for what, kind, number in (
        ("queued at once", queued, count),
        ("with 8 in flight", few_at_once, count // 10),
    ):
        found = alone(tasks, kind, number)
        note = (
            f"{1024 * found['mebibytes'] / number:.2f} KiB a task, {found['held']} at most in the scheduler, "
            f"{number / found['seconds']:.0f} tasks/s"
        )
        row(f"{number:,} tasks {what}", found["seconds"], found["mebibytes"], note)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--models", type=int, default=7)
    parser.add_argument("--complete", type=float, default=0.5, help="share of shards that are there")
    parser.add_argument("--table", type=int, nargs="+", metavar="IMAGES", help="only one store's table, of each size")
    parser.add_argument("--no-shards", action="store_true", help="with --table: no image is complete")
    parser.add_argument("--tasks", type=int, help="only Dask's scheduler, with so many tasks")
    add_against(parser)
    options = parser.parse_args()
    if options.tasks and options.against:
        parser.error("--against: --tasks measures Dask alone; leave one of them out")
    with builds(options.against) as them, tempfile.TemporaryDirectory() as scratch:
        if options.table:
            bench_table(Path(scratch), options.table, them, shards=not options.no_shards)
        elif options.tasks:
            bench_tasks(options.tasks)
        else:
            bench_plan(Path(scratch), options.images, options.models, options.complete, them)


if __name__ == "__main__":
    main()
