"""All that is to be measured on a GPU, in eight minutes at most: tests, forward pass, commands, training, precision.

    python benchmarks/gpu/run.py --out results
    python benchmarks/gpu/run.py --out results --photographs DIR --checkpoint w48.pth
    python benchmarks/gpu/run.py --out results --rehearse

Each step is a process of its own that is killed at its time limit, so that one that hangs costs only itself. Its
result is written at once, as ``steps/NAME.json`` and into ``results.json``; a table of all is printed at the end and
kept as ``table.txt``. ``--rehearse`` takes the same way on a CPU with the tiny network. See README.md beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_PATIENCE = 5
TAIL = 4000
"""Characters of a step's output that are kept with its result."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: of the step; what it does is said in ``steps.py``.
        seconds: after which it is killed.
        again: whether what is left of the time at the end goes to another try, if it was killed: what compilers made
            is cached.
    """

    name: str
    seconds: float
    again: bool = False


STEPS = (
    Step("prepare", 40),
    Step("tests", 100),
    Step("forward", 50),
    Step("compile", 50, again=True),
    Step("autotune", 40, again=True),
    Step("dump", 45),
    Step("predict", 40),
    Step("train", 40),
    Step("train-checkpointing", 40),
    Step("precision", 35),
)
"""In the order of what they are worth; all limits together are the eight minutes."""


def run_step(step: Step, seconds: float, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run one step, and keep what it wrote, as far as it came.

    Returns:
        ``rows`` and ``facts`` that the step wrote, ``seconds`` it took, and, if it failed or was killed, ``error``
        and the ``tail`` of its output.
    """
    target = options.out / "steps" / f"{step.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    words = [sys.executable, "-u", str(HERE / "steps.py"), step.name, "--json", str(target), "--work", str(work)]
    words += ["--rehearse"] if options.rehearse else []
    for name in ("photographs", "checkpoint"):
        if value := getattr(options, name):
            words += [f"--{name}", str(value)]
    begun = time.monotonic()
    log = work / f"{step.name}.log"
    with log.open("wb") as output:
        # In a group of its own: its children, such as workers and compilers, end with it.
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    result: dict[str, Any] = {"step": step.name, "rows": [], "facts": {}}
    if target.is_file():
        result |= json.loads(target.read_text())
    result["seconds"] = round(time.monotonic() - begun, 1)
    tail = log.read_text(errors="replace")[-TAIL:]
    if code is None:
        result["error"] = f"was killed at its limit of {seconds:.0f} s"
    elif code:
        lines = [line for line in tail.splitlines() if line.strip()]
        result["error"] = f"exit {code}: {lines[-1] if lines else 'no output'}"
    if "error" in result:
        result["tail"] = tail
    write(target, result)
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write(path: Path, value: Any) -> None:
    """Write JSON so that whoever kills this finds the old or the new file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


def table(results: list[dict[str, Any]]) -> str:
    """All rows of all steps, what failed among them."""
    lines = []
    for result in results:
        facts = ", ".join(f"{name} {value}" for name, value in result["facts"].items())
        lines.append(f"== {result['step']} ({result['seconds']:.0f} s){': ' if facts else ''}{facts}")
        for row in result["rows"]:
            figures = ", ".join(f"{name} {value}" for name, value in row.items() if name != "case")
            lines.append(f"   {row['case']:44} {figures}")
        if "error" in result:
            lines.append(f"   FAILED: {result['error']}")
    return "\n".join(lines)


def main() -> int:
    """Run the steps as far as the time goes; the exit code is 1 if any failed or was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs; without, streets are drawn")
    parser.add_argument("--checkpoint", type=Path, help="a trained HRNet-W48; without, weights of a fixed rule")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all steps together")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU, with the tiny network, to see that all runs"
    )
    options = parser.parse_args()
    for name in ("photographs", "checkpoint"):
        if (path := getattr(options, name)) and not path.exists():
            parser.error(f"--{name} {path}: is not there; correct the path, or leave it out")
    options.out.mkdir(parents=True, exist_ok=True)
    steps = [step for step in STEPS if not options.only or step.name in (*options.only, "prepare")]
    if options.rehearse:  # what is tried is whether all runs, on however busy a machine
        steps = [replace(step, seconds=_PATIENCE * step.seconds) for step in steps]
        options.budget *= _PATIENCE
    end = time.monotonic() + options.budget
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as folder:

        def do(step: Step, seconds: float) -> dict[str, Any]:
            print(f"{step.name} (at most {seconds:.0f} s) ...", flush=True)
            result = run_step(step, seconds, options, Path(folder))
            print(f"  {result.get('error', 'done')}, {result['seconds']:.0f} s", flush=True)
            return result

        for step in steps:
            left = end - time.monotonic()
            if left < 1:
                results.append(
                    {"step": step.name, "rows": [], "facts": {}, "seconds": 0, "error": "no time was left"}
                )
            else:
                results.append(do(step, min(step.seconds, left)))
            write(options.out / "results.json", results)
        for place, step in enumerate(steps):
            left = end - time.monotonic()
            if step.again and "killed" in results[place].get("error", "") and left > 20:
                second = do(step, left)
                if len(second["rows"]) >= len(results[place]["rows"]):
                    results[place] = second
                else:
                    write(options.out / "steps" / f"{step.name}.json", results[place])
                write(options.out / "results.json", results)
    shown = table(results)
    (options.out / "table.txt").write_text(shown + "\n")
    print(shown)
    return 1 if any("error" in result for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
