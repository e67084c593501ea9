"""Workers in trouble: photographs that kill or stop whoever reads them, and the processes that work for a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..limits import PATIENCE

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

# Processes that another Python starts take their time, and Dask is told to have little patience with them.
_SLOW = """
import sys, time

if "--multiprocessing-fork" in sys.orig_argv:
    time.sleep({seconds})
"""

# Workers read a few photographs, and the next ones only once they may.
_GATE = """
import multiprocessing, pathlib, time

_whole, _here = pathlib.Path.open, pathlib.Path(__file__).parent

def _gated(path, *arguments, **options):
    if path.suffix == ".png" and path.stem >= "{first}" and multiprocessing.parent_process() is not None:
        while not (_here / "go").exists():
            time.sleep(0.01)
    return _whole(path, *arguments, **options)

pathlib.Path.open = _gated
"""

# One process saves a training run; it stands still right after one of its saves until it may go on.
_HOLD = """
import os, pathlib, time

_replace, _here, _saves = os.replace, pathlib.Path(__file__).parent, 0

def replace(source, target, **options):
    global _saves
    _replace(source, target, **options)
    _saves += os.path.basename(target) == "last.pth"
    if _saves == {saves} and not (_here / "held").exists():
        (_here / "held").touch()
        while not (_here / "go").exists():
            time.sleep(0.01)

os.replace = replace
"""


@dataclass(frozen=True)
class Hold:
    """A training run that stands still in the middle of an epoch."""

    folder: Path
    saves: int
    """After how many saves of ``last.pth``."""

    def environment(self) -> dict[str, str]:
        """Environment in which the run is to be begun; once held, it never is again."""
        self.folder.mkdir()
        (self.folder / "sitecustomize.py").write_text(_HOLD.format(saves=self.saves))
        return {"PYTHONPATH": str(self.folder)}

    def wait(self, process: subprocess.Popen[str]) -> None:
        """Wait until ``process`` stands still; AssertionError if it ends before."""

        def held() -> bool:
            assert process.poll() is None, process.communicate()
            return (self.folder / "held").exists()

        wait_for(held)

    def release(self) -> None:
        (self.folder / "go").touch()


def troubled(folder: Path) -> dict[str, str]:
    """Environment in which ``hang*.png`` hangs and ``kill*.png`` kills every worker that reads it."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": str(folder / "site")}


def slow(folder: Path, seconds: float) -> dict[str, str]:
    """Environment in which every worker starts so much later, and Dask waits for a second for the next one."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SLOW.format(seconds=seconds))
    return {"PYTHONPATH": str(folder / "site"), "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s"}


def gated(folder: Path, first: str) -> dict[str, str]:
    """Environment in which workers wait before PNG files from ``first`` on, until ``folder/site/go`` exists."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_GATE.format(first=first))
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
        return [process.name(), *process.cmdline()]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_for(when: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until ``when`` holds; AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not when():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def kill(process: psutil.Process | subprocess.Popen[bytes]) -> None:
    """``kill -9``."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
