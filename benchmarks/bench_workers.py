"""What it costs to start the training loader's worker processes, by the way they are started.

    python benchmarks/bench_workers.py --workers 2

By turns: a plain fork; a fork server that has imported what workers need, as training does; and one that has not.
Prints JSON: seconds until the first batch, and the memory that only one worker holds, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from hmsa_pipeline.pipeline.training.batches import start_workers_server
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

WAYS = ("fork", "server", "server without imports")


class Frames(Dataset[Tensor]):
    """Samples that cost nothing."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, number: int) -> Tensor:
        return torch.zeros(3, 4, 4)


def start(way: str, workers: int) -> dict[str, float]:
    """Seconds and MB of workers that are started now."""
    begun = time.perf_counter()
    if way == "server":
        start_workers_server()
    loader = DataLoader(
        Frames(),
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork" if way == "fork" else "forkserver",
    )
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - begun
    processes = getattr(batches, "_workers")  # noqa: B009  torch says of no other way to them
    return {"seconds": seconds, "own_mb": statistics.median(own_memory(process.pid) for process in processes)}


def own_memory(process: int) -> float:
    """MB that a process has written and shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description="What it costs to start the loader's workers, as JSON.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=WAYS, help="start them in this way, once")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(start(args.one, args.workers)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for way in WAYS:
            words = [sys.executable, "-P", __file__, "--one", way, "--workers", str(args.workers)]
            result = subprocess.run(words, capture_output=True, text=True, check=True)
            found[way].append(json.loads(result.stdout))
    figures = {
        way: {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
        for way, rows in found.items()
    }
    print(json.dumps({"workers": args.workers} | figures))


if __name__ == "__main__":
    main()
