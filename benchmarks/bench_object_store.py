"""Dump, fuse, verify and status of many small images in an object store, and a listing, by turns with another build.

    python benchmarks/bench_object_store.py --images 2000 --objects 100000 --other ../older/.venv/bin/python

``--other`` is the Python of the other build's environment. The server is that of ``tests/s3_server.py``, a process
of its own; each turn has a bucket of its own. The network is tiny and sees one scale, so that requests are what is
measured.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import yaml
from bench_scale import world
from hmsa_pipeline.pipeline.storage.filesystem import parse_location, write_bytes

COMMANDS = {
    "dump": ("dump", "--workers", "0", "--device", "cpu"),
    "ensemble": ("ensemble", "--workers", "0"),
    "verify": ("verify",),
    "status": ("status",),
}
PLAIN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}
LISTING = """
import sys, time
from hmsa_pipeline.pipeline.storage.filesystem import listing, parse_location
place = parse_location(sys.argv[1])
list(listing(place / "none"))
begun, before = time.perf_counter(), time.process_time()
assert sum(found.bytes for found in listing(place)) == int(sys.argv[2])
print(time.perf_counter() - begun, time.process_time() - before)
"""


@contextmanager
def server() -> Iterator[None]:
    """Put the variables that lead to an S3 server into the environment while the block runs."""
    script = Path(__file__).parent.parent / "tests" / "s3_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = list(itertools.islice(process.stdout, 5))
    os.environ.update(line.removeprefix("export ").strip().split("=", 1) for line in lines)
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()


def new_bucket(name: str) -> str:
    """Make a bucket; its URL."""
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


def run(python: str, *words: str) -> tuple[float, float, str]:
    """Run Python; how many seconds it took, how many of a core's, and what it printed."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([python, "-P", *words], env=os.environ | PLAIN, capture_output=True, text=True)
    took, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{python} {' '.join(words)}\n{done.stdout}{done.stderr}")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def report(name: str, seconds: dict[str, list[float]]) -> None:
    """Print a row: the medians of the builds, all their runs, and the ratio of ours to the other."""
    middle = {build: statistics.median(times) for build, times in seconds.items()}
    row = "   ".join(
        f"{build} {middle[build]:8.2f} s ({', '.join(f'{t:.2f}' for t in times)})" for build, times in seconds.items()
    )
    ratio = f"   {middle['ours'] / middle['other']:.2f}x" if "other" in middle else ""
    print(f"{name:15} {row}{ratio}", flush=True)


def bench_commands(folder: Path, images: int, builds: dict[str, str], turns: int) -> None:
    """Measure the commands, from the start of the process to its end."""
    manifest = world(folder, images, 2)
    tree = yaml.safe_load(manifest.read_text()) | {"inference": {"scales": [1.0]}}
    manifest.write_text(yaml.safe_dump(tree))
    names = [name + part for part in ("", " (core)") for name in (*COMMANDS, "total")]
    taken: dict[str, dict[str, list[float]]] = {name: {build: [] for build in builds} for name in names}
    for turn in range(turns):
        urls = {build: new_bucket(f"{build}-{turn}") for build in builds}
        for name, words in COMMANDS.items():
            order = list(builds) if turn % 2 == 0 else list(builds)[::-1]
            for build in order:
                options = ("--manifest", str(manifest), "--output", f"{urls[build]}/run")
                took, worked, _ = run(builds[build], "-m", "hmsa_pipeline.cli", *words, *options)
                taken[name][build].append(took)
                taken[f"{name} (core)"][build].append(worked)
        for build in builds:
            for part in ("", " (core)"):
                taken[f"total{part}"][build].append(sum(taken[name + part][build][turn] for name in COMMANDS))
    print(f"{images:,} images of 48x80, two models, {turns} turns; 'core' is processor time, the server's apart")
    for name, seconds in taken.items():
        report(name, seconds)


def bench_listing(objects: int, builds: dict[str, str], turns: int) -> None:
    """Measure a listing of small objects, of which a thousand lie in a folder; processes and first requests apart."""
    place = parse_location(f"{new_bucket('listed')}/run")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: write_bytes(place / f"{n // 1000:04}" / f"c.{n}.0.0.0", b"x"), range(objects)))
    taken: dict[str, list[float]] = {build: [] for build in builds}
    worked: dict[str, list[float]] = {build: [] for build in builds}
    for _ in range(turns):
        for build, python in builds.items():
            seconds, core = run(python, "-c", LISTING, str(place), str(objects))[2].split()
            taken[build].append(float(seconds))
            worked[build].append(float(core))
    print(f"a listing of {objects:,} objects, {turns} turns")
    report("listing", taken)
    report("listing (core)", worked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--other", help="Python of another build's environment")
    args = parser.parse_args()
    builds = {"ours": sys.executable} | ({"other": args.other} if args.other else {})
    with server(), tempfile.TemporaryDirectory() as folder:
        if args.images:
            bench_commands(Path(folder), args.images, builds, args.turns)
        if args.objects:
            bench_listing(args.objects, builds, args.turns + 1)


if __name__ == "__main__":
    main()
