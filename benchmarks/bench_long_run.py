"""A long run of small images on a Dask cluster: time per image and memory of everybody, early and late.

    python benchmarks/bench_long_run.py                       # 4,000 images x 7 models, and before it 400 x 7
    python benchmarks/bench_long_run.py --images 1000 --few 100

Scheduler and workers are processes of their own, as ``docs/cluster.md`` starts them. The photographs are hard links
to one small PNG and the networks tiny, so that what is measured is all that is not the network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from bench_scale import world
from hmsa_pipeline.pipeline.storage.run_record import read_runs

PLAIN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}
# See docs/cluster.md for each.
MALLOC = {"OMP_NUM_THREADS": 1, "MALLOC_TRIM_THRESHOLD_": 134217728, "MALLOC_MMAP_THRESHOLD_": 33554432}
DASK = {"DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": json.dumps(MALLOC)}


def begin(log: Path, *words: str, profiler: bool = False) -> subprocess.Popen[bytes]:
    """A process of Python's."""
    dask = {**DASK, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": str(profiler)}
    with log.open("wb") as said:
        command = [sys.executable, "-P", "-m", *words]
        return subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | PLAIN | dask)


def mebibytes(process: psutil.Process) -> float:
    """Resident memory of a process, and of those that it started."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def dump(manifest: Path, output: Path, limit: int, watched: dict[str, psutil.Process], scheduler: Path) -> None:
    """One run, watched, and what it took."""
    run = begin(
        output.with_suffix(".log"),
        *("hmsa_pipeline.cli", "dump", "--manifest", str(manifest), "--output", str(output)),
        *("--limit", str(limit), "--scheduler", str(scheduler), "--image-timeout", "300"),
    )
    watched = {**watched, "run": psutil.Process(run.pid)}
    begun, samples = time.perf_counter(), []
    while run.poll() is None:
        samples.append({name: mebibytes(process) for name, process in watched.items()})
        time.sleep(1)
    took = time.perf_counter() - begun
    if run.returncode:
        raise SystemExit(output.with_suffix(".log").read_text())
    jobs = list(read_runs(output)["dump"].values())
    done, seconds = sum(job["done"] for job in jobs), sum(job["seconds"] for job in jobs)
    each = 1000 * seconds / done
    print(f"{done:,} images: {took:.0f} s, {each:.2f} ms an image in the jobs, {1000 * took / done:.2f} ms in all")
    # The first tenth is start and the models' first loading.
    places = [len(samples) * share // 10 for share in (1, 3, 5, 7)] + [len(samples) - 2]
    for name in watched:
        row = ", ".join(f"{samples[place][name]:.0f}" for place in places)
        most = max(sample[name] for sample in samples)
        print(f"    {name:10} {row} MiB after 10, 30, 50, 70, 100 % of the time; {most:.0f} at most")


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--few", type=int, default=400, help="images of the short run to hold it against")
    parser.add_argument("--models", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--profiler", action="store_true", help="leave Dask's profiler on in the workers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = world(folder, options.images, options.models)
        file = folder / "scheduler.json"
        processes = {"scheduler": begin(folder / "s.log", "dask", "scheduler", "--scheduler-file", str(file))}
        for number in range(options.workers):
            name = f"worker {number}"
            words = ("--scheduler-file", str(file), "--nthreads", "1", "--resources", "GPU=1", "--memory-limit", "0")
            words = (*words, "--name", str(number), "--local-directory", str(folder))
            processes[name] = begin(folder / f"{number}.log", "dask", "worker", *words, profiler=options.profiler)
        try:
            while not file.exists():
                time.sleep(0.1)
            watched = {name: psutil.Process(process.pid) for name, process in processes.items()}
            for name, limit in (("few", options.few), ("many", options.images)):
                dump(manifest, folder / name, limit, watched, file)
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait()


if __name__ == "__main__":
    main()
