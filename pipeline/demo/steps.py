"""The steps of a demonstration: each is a command line, and is not done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from ... import __version__
from ...files import write_json
from .plan import Words, line

Run = Callable[[Words], int]
"""Runs a command line in this process and returns its exit code."""


class FinishedSteps:
    """The finished steps, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._steps: list[str] = json.loads(path.read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError, TypeError):
            self._steps = []

    def __contains__(self, step: str) -> bool:
        return step in self._steps

    def add(self, step: str) -> None:
        """Remember it."""
        self._steps.append(step)
        write_json(self._path, {"version": __version__, "steps": self._steps})


def run_step(finished: FinishedSteps, step: Words, run: Run) -> int:
    """Run a step unless it is done; its exit code.

    Args:
        finished: steps that are done; takes this one.
        step: the command.
        run: runs it.
    """
    print(f"\n$ {line(step)}", flush=True)
    if line(step) in finished:
        print("done before", flush=True)
        return 0
    code = run(step)
    if not code:
        finished.add(line(step))
    return code


def start_process(
    step: Words, *, threads: int | None = None, out: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a step in its own process group: Ctrl-C in the terminal does not reach it, `stop` passes it on once.

    Args:
        step: the command.
        threads: of its computations; None for the default.
        out: takes what it says; None for this process' streams.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *step]
    return subprocess.Popen(command, stdout=out, stderr=out, env=environment, process_group=0)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt the processes once and wait until they have saved; a second interruption leaves them running."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        process.wait()
