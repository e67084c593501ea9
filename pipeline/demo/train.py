"""Training of the demo's members, some at a time; what is interrupted resumes."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from ...datasets.dataset_specs import NAMES
from ...files import write_json
from ..config.load_recipe import load_recipe
from .members import RECORDS, export_member, read_records, weights_file
from .plan import DemoPlan, cores, line
from .steps import FinishedSteps, start_process, stop


def train_members(finished: FinishedSteps, plan: DemoPlan) -> int:
    """Train the members that are missing, and write their weights and records; return the first exit code but 0.

    Args:
        finished: steps that are done, and those of this run.
        plan: paths and recipes.

    Raises:
        HmsaError: a member's weights cannot be read back.
        OSError: the folder cannot be written.
    """
    left = [name for name in NAMES if f"trained {name}" not in finished]
    parallel = max(1, min(len(left), cores()))
    print(f"\ntraining {len(left)} of {len(NAMES)} members, {parallel} at a time; each keeps a log", flush=True)
    running: list[subprocess.Popen[bytes]] = []
    failed = threading.Event()

    def train(name: str) -> int:
        if failed.is_set():
            return 0
        step = plan.train_member(name)
        log = plan.training_folder(name).with_suffix(".log")
        with log.open("ab") as output:
            process = start_process(step, threads=max(1, cores() // parallel), out=output)
            running.append(process)
            code = process.wait()
        if code:
            failed.set()
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            print(f"$ {line(step)}\nfailed: {' '.join(last)} ({log})", file=sys.stderr, flush=True)
        else:
            finished.add(f"trained {name}")
            # With its line's end, which print writes by itself: another thread's line could come between.
            print(f"$ {line(step)}\n  done ({log})\n", end="", flush=True)
        return code

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(train, name) for name in left]
        try:
            for future in futures:
                if code := future.result():
                    return code
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            stop(running)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    _export(plan)
    return 0


def _export(plan: DemoPlan) -> None:
    """Write the weights and records that are missing."""
    records = read_records(plan.members)
    words = ["demo", "--train", *["--quick"] * plan.quick, "--seed", str(plan.seed)]
    for name in NAMES:
        if name not in records:
            recipe = load_recipe(plan.recipe_file(name))
            target = plan.members / weights_file(name)
            records[name] = export_member(plan.training_folder(name), target, recipe, line(tuple(words)))
            write_json(plan.members / RECORDS, records)
        print(f"{name}: mIoU {records[name]['miou']:.3f} on held-out streets of its own dataset", flush=True)
