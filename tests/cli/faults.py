"""Workers in trouble: photographs that kill or stop whoever reads them, and the processes that work for a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# Python runs this in every process; only those that another Python started are workers.
_SITE = """
import multiprocessing, os, pathlib, signal, time

def _patched(whole):
    def call(path, *arguments, **options):
        if path.suffix == ".png" and multiprocessing.parent_process() is not None:
            if path.name.startswith("hang"):
                time.sleep(3600)
            if path.name.startswith("kill"):
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGKILL)
        return whole(path, *arguments, **options)
    return call

for _name in ("read_bytes", "open"):
    setattr(pathlib.Path, _name, _patched(getattr(pathlib.Path, _name)))
"""


def troubled(folder: Path) -> dict[str, str]:
    """Environment in which ``hang*.png`` hangs and ``kill*.png`` kills every worker that reads it."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": str(folder / "site")}


def workers(pid: int) -> list[psutil.Process]:
    """The worker processes of the command ``pid``."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if "spawn_main" in " ".join(_line(child))]


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_for(when: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until ``when`` holds; AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not when():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def kill(process: psutil.Process | subprocess.Popen[bytes]) -> None:
    """``kill -9``."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
