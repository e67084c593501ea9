"""The process of one build of the package in `builds.BuildProcess`: calls functions, and answers on standard output.

It imports nothing but the standard library itself, so that what a build's own modules import is all there is.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Calls:
    """What `builds.BuildProcess` asks for."""

    def __init__(self) -> None:
        self._work: Callable[[], Any] = lambda: None
        self._before = self._held = 0.0

    def call(self, place: tuple[str, str], given: bytes) -> Any:
        """Call a function of a module."""
        function = getattr(importlib.import_module(place[0]), place[1])
        arguments, named = pickle.loads(given)
        return function(*arguments, **named)

    def make(self, place: tuple[str, str], given: bytes, warmups: int) -> None:
        """Make the work, do it some times, and forget the memory that this took."""
        self._work = self.call(place, given)
        for _ in range(warmups):
            self._work()
        gc.collect()
        if cuda := _cuda():
            cuda.synchronize()
            cuda.reset_peak_memory_stats()
            self._held = cuda.memory_allocated()
        self._before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def run(self, place: None, given: bytes) -> tuple[float, float]:
        """Do the work: seconds, and seconds of all cores."""
        begun, worked = time.perf_counter(), time.process_time()
        self._work()
        if cuda := _cuda():
            cuda.synchronize()
        return time.perf_counter() - begun, time.process_time() - worked

    def memory(self, place: None, given: bytes) -> tuple[float, float | None]:
        """MiB of growth to the peak, of the process and on the GPU."""
        cuda = _cuda()
        gpu = (cuda.max_memory_allocated() - self._held) / 2**20 if cuda else None
        return _resident("VmHWM") - self._before, gpu


def _cuda() -> Any:
    """``torch.cuda`` if the work uses torch and there is a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _resident(field: str) -> float:
    """MiB, of a line of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def main() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the work prints is no answer
    calls = Calls()
    while True:
        try:
            what, place, given, *more = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, getattr(calls, what)(place, given, *more)
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            answer = False, (line, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
