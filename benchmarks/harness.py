"""What the benchmarks share: cases run by turns, each in a process of its own, with time and peak memory.

Machines are shared and noisy; a ratio of medians of runs that took turns is what can be compared.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builds import NOW, Build, BuildProcess, Ran

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


def compare(
    cases: Mapping[str, Callable[[], Work]],
    *,
    repeats: int = 5,
    warmups: int = 1,
    builds: Sequence[Build] = (NOW,),
) -> dict[str, Measured]:
    """Run the cases by turns.

    Args:
        cases: name -> what makes the work to be timed, a function of a module or a partial: a new process calls it.
        repeats: runs of each that count.
        warmups: runs of each before them.
        builds: of the package; of two, each runs every case, whose name is then followed by the build's.
    """
    found: dict[str, Measured] = {}
    with ExitStack() as stack:
        processes: dict[str, BuildProcess] = {}
        for name, make in cases.items():
            for build in builds:
                process = stack.enter_context(BuildProcess(build))
                # Whoever sets up does so alone, and whoever fails ends the comparison.
                process.make(make, warmups)
                processes[case_name(name, build, builds)] = process
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
        for _ in range(repeats):
            for name, process in processes.items():
                runs[name].append(process.run())
        for name, process in processes.items():
            seconds, cores = (list(values) for values in zip(*runs[name], strict=True))
            found[name] = Measured(seconds, statistics.median(seconds), statistics.median(cores), *process.memory())
    return found


def case_name(case: str, build: Build, builds: Sequence[Build]) -> str:
    """Name a case as `compare` does where it runs with these builds."""
    return case if len(builds) == 1 else f"{case}, {build.name}"


def machine() -> str:
    """What it ran on, in a line."""
    import torch  # not above: processes that import this module may need none

    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}"


def tell(
    measured: Mapping[str, Measured],
    baseline: str,
    *,
    builds: Sequence[Build] = (NOW,),
    json_file: Path | None = None,
    **more: Any,
) -> None:
    """Print a line for each case, with its ratio to the baseline; JSON beside it.

    Args:
        measured: from `compare`.
        baseline: name of a case; with two builds each case's baseline is itself in the first of them.
        builds: those of `compare`.
        json_file: what to write, if anything.
        more: what else it shall say.
    """
    print(machine())
    wide = max(28, *map(len, measured))
    for name, one in measured.items():
        base = measured[baseline if len(builds) == 1 else f"{name.rpartition(', ')[0]}, {builds[0].name}"]
        spread = f"{min(one.seconds):.3f} to {max(one.seconds):.3f}"
        on_gpu = base.gpu_memory and one.gpu_memory is not None
        held, least = (one.gpu_memory, base.gpu_memory) if on_gpu else (one.memory, base.memory)
        ratio = f"{one.median / base.median:.2f}x time, {one.cores / (base.cores or 1e-9):.2f}x core s"
        ratio += f", {held / least:.2f}x memory" if least and held else ""
        print(f"{name:{wide}} {one.median:8.3f} s ({spread}), {one.cores:8.3f} core s, {held or 0:7.0f} MiB  {ratio}")
    if json_file:
        rows: dict[str, Any] = {name: asdict(one) for name, one in measured.items()}
        json_file.write_text(json.dumps({"machine": machine(), **more, "cases": rows}, indent=1) + "\n")


def tell_commands(found: Mapping[str, Sequence[Ran]], baseline: str, images: int = 1) -> None:
    """Print a line for each kind of command, with its ratio to the baseline.

    Args:
        found: name -> its runs.
        baseline: one of the names.
        images: by which times are divided.
    """

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in found[name])

    per = " per image" if images > 1 else ""
    wide = max(map(len, found))
    for name, runs in found.items():
        times = [run.seconds / images for run in runs]
        ratios = [median(name, field) / (median(baseline, field) or 1e-9) for field in ("seconds", "cores", "memory")]
        print(
            f"{name:{wide}} {statistics.median(times):.3f} s{per} ({min(times):.3f} to {max(times):.3f}), "
            f"{median(name, 'cores') / images:.3f} core s, {median(name, 'memory'):.2f} GB  "
            f"{ratios[0]:.2f}x time, {ratios[1]:.2f}x core s, {ratios[2]:.2f}x memory"
        )


def size(text: str) -> tuple[int, int]:
    """``1024x2048`` as (height, width)."""
    height, width = text.split("x")
    return int(height), int(width)
