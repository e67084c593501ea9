"""What the benchmarks share: cases run by turns, each in a process of its own, with time and peak memory.

Machines are shared and noisy; a ratio of medians of runs that took turns is what can be compared.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]


@dataclass(frozen=True)
class Measured:
    """One case.

    Attributes:
        seconds: of each run, in their order.
        median: of them.
        cores: seconds of all cores together, the median.
        memory: MiB that the process grew by at its peak, over what it held before the runs.
        gpu_memory: MiB that were allocated on the GPU at the peak, over what was before the runs; None without one.
    """

    seconds: list[float]
    median: float
    cores: float
    memory: float
    gpu_memory: float | None


def compare(cases: Mapping[str, Callable[[], Work]], *, repeats: int = 5, warmups: int = 1) -> dict[str, Measured]:
    """Run the cases by turns.

    Args:
        cases: name -> what makes the work to be timed; sent to a new process, so a function of a module or a partial.
        repeats: runs of each that count.
        warmups: runs of each before them.
    """
    context = multiprocessing.get_context("spawn")
    children: dict[str, tuple[Connection, Any]] = {}
    for name, make in cases.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, make, warmups), daemon=True)
        process.start()
        # Whoever sets up does so alone, and whoever falls ends the comparison.
        theirs.close()
        ours.recv()
        children[name] = (ours, process)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    cores: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, (connection, _) in children.items():
            connection.send("run")
            taken, worked = connection.recv()
            seconds[name].append(taken)
            cores[name].append(worked)
    found = {}
    for name, (connection, process) in children.items():
        connection.send("end")
        memory, gpu_memory = connection.recv()
        process.join()
        middle, worked = statistics.median(seconds[name]), statistics.median(cores[name])
        found[name] = Measured(seconds[name], middle, worked, memory, gpu_memory)
    return found


def _serve(connection: Connection, make: Callable[[], Work], warmups: int) -> None:
    work = make()
    for _ in range(warmups):
        work()
    gc.collect()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else 0
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    connection.send("ready")
    while connection.recv() == "run":
        begun, worked = time.perf_counter(), time.process_time()
        work()
        if cuda:
            torch.cuda.synchronize()
        connection.send((time.perf_counter() - begun, time.process_time() - worked))
    gpu = (torch.cuda.max_memory_allocated() - held) / 2**20 if cuda else None
    connection.send((_resident("VmHWM") - before, gpu))


def _resident(field: str) -> float:
    """MiB, of a line of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def machine() -> str:
    """What it ran on, in a line."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}"


def tell(measured: Mapping[str, Measured], baseline: str, *, json_file: Path | None = None, **more: Any) -> None:
    """Print a line for each case, with its ratio to the baseline; JSON beside it."""
    print(machine())
    base = measured[baseline]
    for name, one in measured.items():
        spread = f"{min(one.seconds):.3f} to {max(one.seconds):.3f}"
        memory = base.gpu_memory and one.gpu_memory is not None
        held, least = (one.gpu_memory, base.gpu_memory) if memory else (one.memory, base.memory)
        ratio = f"{one.median / base.median:.2f}x time, {held / least:.2f}x memory" if least and held else ""
        print(f"{name:28} {one.median:8.3f} s ({spread}), {one.cores:8.3f} core s, {held or 0:7.0f} MiB  {ratio}")
    if json_file:
        rows: dict[str, Any] = {name: asdict(one) for name, one in measured.items()}
        json_file.write_text(json.dumps({"machine": machine(), **more, "cases": rows}, indent=1) + "\n")


def size(text: str) -> tuple[int, int]:
    """``1024x2048`` as (height, width)."""
    height, width = text.split("x")
    return int(height), int(width)
