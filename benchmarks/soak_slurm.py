"""A long run on a real Slurm in which workers are killed and the job is requeued: is anything lost, or done twice?

    python benchmarks/soak_slurm.py                                    # 20,000 images x 3 models, a kill a minute
    python benchmarks/soak_slurm.py --images 1000 --kill-seconds 20

Starts Slurm with two nodes (``tests/cluster/README.md`` says what it needs) and submits one job of ``cluster slurm``.
Photographs are hard links to a few small PNGs, and a network is one convolution (``--network`` names another), since
the cluster and the stores are what is tried. While the job runs, a worker process is killed
every so often, if there are new images since the last time. At half of the work, one worker is killed together with
Dask's process that would restart it, and then the job is requeued. In the end, every image must be in every store and
sound, and no complete shard may have been written again. The memory of all processes is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build_any
from PIL import Image

NETWORK = "soak_convolution"
MODULE = """
from hmsa_pipeline.models.plain import PlainNetwork
from torch import nn


class Convolution(PlainNetwork):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 3, padding=1)

    def forward(self, images):
        return self.layer(images)
"""
SIZE = (32, 64)
DRAWN = 16
LOOK_SECONDS = 5.0
REQUEUE_SECONDS = 10.0
"""A job that starts again in the second of its requeue is refused by the nodes."""
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
CLUSTER = Path(__file__).resolve().parents[1] / "tests" / "cluster"


def install_network(folder: Path) -> None:
    """Make a package below ``folder`` that adds the network (docs/extending.md); the whole job sees it."""
    info = folder / "soak-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "soak_network.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: soak\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hmsa_pipeline.models]\n{NETWORK} = soak_network:Convolution\n")
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = str(folder)


def world(folder: Path, images: int, models: int, network: str) -> Path:
    """Make photographs, checkpoints and a manifest below ``folder``; returns the manifest."""
    draw = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(images):
        path = folder / "photos" / f"{number:06}.png"
        if number < DRAWN:
            Image.fromarray(draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        else:
            path.hardlink_to(folder / "photos" / f"{number % DRAWN:06}.png")
    members = []
    for number in range(models):
        torch.manual_seed(number)
        save_checkpoint(folder / f"{number}.pth", build_any(network), arch=network)
        members.append({"name": f"m{number}", "arch": network, "checkpoint": f"{number}.pth"})
    tree = {
        "version": 1,
        "output": str(folder / "out"),
        "inference": {"scales": [1.0], "precision": "fp32"},
        "models": members,
        "datasets": [{"name": "street", "type": "folder", "root": "photos"}],
    }
    manifest = folder / "soak.yaml"
    manifest.write_text(yaml.safe_dump(tree))
    return manifest


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Run Slurm while the block runs; its commands find it through the environment."""
    folder.mkdir()
    subprocess.run([CLUSTER / "start_slurm.sh", folder], check=True)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield
    finally:
        subprocess.run([CLUSTER / "stop_slurm.sh", folder], check=False)


def hmsa(*words: str) -> Any:
    """Run one of our commands; returns its ``--json``."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *words, "--json", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


@dataclass
class Watch:
    """A job and what was seen of it.

    Attributes:
        shards: complete shard file -> its inode and time, when it was first seen.
        again: shards that were later seen with another inode or time.
        memory: process, as role and number -> (complete images, MiB) at each look.
    """

    job: str
    output: Path
    shards: dict[str, tuple[int, int]] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    memory: dict[tuple[str, int], list[tuple[int, float]]] = field(default_factory=dict)

    def state(self) -> dict[str, str]:
        """Ask Slurm about the job."""
        command = ["scontrol", "--oneliner", "show", "job", self.job]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def look(self) -> None:
        """Look at all shards and processes."""
        for folder in self.output.glob("logits/street/*.zarr/*x*"):
            with os.scandir(folder) as found:
                for entry in found:
                    if entry.name.startswith("c.") and (status := entry.stat()).st_size:
                        seen = status.st_ino, status.st_mtime_ns
                        if self.shards.setdefault(entry.path, seen) != seen:
                            self.again.add(entry.path)
        for role, process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                samples = self.memory.setdefault((role, process.pid), [])
                samples.append((len(self.shards), process.memory_info().rss / 2**20))

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """Find the job's processes, each with its role."""
        file = str(self.output.parent / f"scheduler-{self.job}.json")  # other Slurms have jobs of this number, too
        for process in psutil.process_iter(["cmdline"]):
            words: list[str] = process.info["cmdline"] or []
            if file not in words or "bash" in words[0]:
                continue
            if "scheduler" in words:
                yield "scheduler", process
            elif "worker" in words and "srun" not in words[0]:
                yield "nanny", process
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield from (
                        ("worker", one) for one in process.children() if "spawn_main" in " ".join(one.cmdline())
                    )
            elif "dump" in words:
                yield "run", process

    def kill(self, role: str) -> bool:
        """Kill a process of this role, with those that it started; says whether there was one."""
        found = [process for name, process in self.processes() if name == role]
        if not found:
            return False
        victim = random.choice(found)
        for process in (victim, *victim.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return True


def run(watch: Watch, images: int, kill_seconds: float) -> tuple[int, float]:
    """Watch the job to its end, and disturb it; returns how many workers were killed, and the seconds."""
    begun = killed_at = time.monotonic()
    kills, before, is_requeued = 0, 0, False
    while watch.state()["JobState"] not in OVER:
        watch.look()
        if not is_requeued and len(watch.shards) >= images / 2:
            kills += watch.kill("nanny")
            subprocess.run(["scontrol", "requeue", watch.job], check=True)
            time.sleep(REQUEUE_SECONDS)
            subprocess.run(["scontrol", "update", f"JobId={watch.job}", "StartTime=now"], check=True)
            is_requeued, killed_at = True, time.monotonic()
            print(f"requeued after {len(watch.shards):,} images", flush=True)
        elif time.monotonic() - killed_at >= kill_seconds and len(watch.shards) > before:
            kills += watch.kill("worker")
            killed_at, before = time.monotonic(), len(watch.shards)
            print(f"{killed_at - begun:.0f} s: {len(watch.shards):,} images, {kills} workers killed", flush=True)
        time.sleep(LOOK_SECONDS)
    watch.look()
    return kills, time.monotonic() - begun


def report_memory(watch: Watch) -> None:
    """Print the memory of each process that was there for more than a tenth of the images."""
    for (role, pid), samples in watch.memory.items():
        first, last = samples[0][0], samples[-1][0]
        if last - first < len(watch.shards) / 10:
            continue
        at = [first + share * (last - first) // 10 for share in (1, 3, 5, 7, 10)]
        shown = [next(size for images, size in samples if images >= place) for place in at]
        row = ", ".join(f"{size:.0f}" for size in shown)
        print(f"  {role} {pid}: {row} MiB after 10, 30, 50, 70, 100 % of its {last - first:,} images")


def main() -> None:
    """Run, and print what was found; exit code 1 if something was lost or done twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--network", default=NETWORK, help=f"architecture of all models; default: {NETWORK}")
    parser.add_argument("--kill-seconds", type=float, default=60.0, help="time between two kills")
    parser.add_argument("--time", default="55", help="time limit of the job, after which it is requeued")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as scratch,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(scratch)
        folder.chmod(0o755)  # munge's user looks below it
        install_network(folder / "site")
        manifest = world(folder, options.images, options.models, options.network)
        stack.enter_context(slurm(folder / "slurm"))
        words = ("--manifest", str(manifest), "--folder", str(folder), "--nodes", "2", "--time", options.time)
        cpus = ("--device", "cpu", "--workers-per-node", "1", "--cpus-per-worker", "1")
        job = hmsa("cluster", "slurm", *words, *cpus, "--run", "dump", "--submit")
        watch = Watch(job["job"], folder / "out")
        total = options.images * options.models
        kills, seconds = run(watch, total, options.kill_seconds)
        shown = watch.state()
        runs = json.loads((folder / "out/run.json").read_text())["dump"].values()
        failed = sum(len(one["failed"]) for one in runs)
        verified = hmsa("verify", "--manifest", str(manifest))
        sound = sum(one["sound"] for one in verified)
        locks = [path.name for path in itertools.chain(*(folder.rglob(name) for name in ("*.lock", "*.partial")))]
        print(f"{shown['JobState']}, {shown['Restarts']} requeues, {kills} workers killed, {seconds:.0f} s")
        print(
            f"{total:,} images: {len(watch.shards):,} shards, {sound:,} sound, {failed} failed, "
            f"{len(watch.again)} written again, {total / seconds:.1f} images/s; left over: {locks}"
        )
        report_memory(watch)
        is_good = shown["JobState"] == "COMPLETED" and len(watch.shards) == sound == total
        if not is_good or failed or watch.again or locks:
            print(Path(job["log"]).read_text()[-20_000:], file=sys.stderr)
            raise SystemExit(1)


if __name__ == "__main__":
    main()
