"""Progress of long work: a bar per worker and one for all on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NoReturn, Self

from tqdm import tqdm

from ..text import plural

LOG_SECONDS = 30.0
LINE_LENGTH = 120


def say(line: str) -> None:
    """Print a line on standard error without tearing the bars."""
    tqdm.write(line, file=sys.stderr)


@dataclass
class _Part:
    """The job that one worker is doing, and how far it is."""

    name: str
    total: int
    done: int = 0
    bar: tqdm[NoReturn] | None = None


class Progress:
    """Shows how many images of all jobs are done; one worker or several do the jobs.

    ``total`` counts the images of all jobs together, without those that were complete before; ``unit`` names one.
    """

    def __init__(self, total: int, unit: str = "image") -> None:
        self._total, self._done, self._unit = total, 0, unit
        self._parts: dict[str, _Part] = {}
        self._start = self._logged = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm[NoReturn] | None = None
        if self._terminal and total:
            self._bar = tqdm(total=total, desc="total", unit=f" {unit}", position=0, smoothing=0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self._parts.values()):
            if part.bar is not None:
                part.bar.close()
        if self._bar is not None:
            self._bar.close()

    def job(self, name: str, total: int, worker: str = "") -> None:
        """Begin a job.

        Args:
            name: of the job.
            total: number of its images.
            worker: name of the worker that does it.
        """
        before = self._parts.get(worker)
        bar = before.bar if before else None
        if self._bar is not None:
            if bar is None:
                bar = tqdm(total=0, unit=f" {self._unit}", position=1 + len(self._parts), leave=False)
            bar.set_description(f"{worker} {name}".strip())
            bar.reset(total=total)
        self._parts[worker] = _Part(name, total, bar=bar)

    def drop(self, worker: str) -> None:
        """Forget a worker that is gone."""
        part = self._parts.pop(worker, None)
        if part is not None and part.bar is not None:
            part.bar.close()

    def advance(self, count: int = 1, worker: str = "") -> None:
        """Count images as done, whether they failed or not."""
        self._done += count
        part = self._parts.get(worker)
        if part is not None:
            part.done += count
            if part.bar is not None:
                part.bar.update(count)
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            say(self._line())

    def aside(self) -> AbstractContextManager[None]:
        """Hide the bars while the block prints."""
        return tqdm.external_write_mode(file=sys.stdout)

    def _line(self) -> str:
        rate = self._done / max(1e-9, time.monotonic() - self._start)
        left = tqdm.format_interval(int((self._total - self._done) / rate))
        total = f"total {self._done}/{self._total} {self._unit}s, {rate:.2f} {self._unit}s/s, {left} left"
        parts = sorted(self._parts.items())
        workers = [f"{worker} {part.name} {part.done}/{part.total}".strip() for worker, part in parts]
        names = Counter(part.name for _, part in parts).most_common()
        jobs = [f"{plural(count, 'worker')} {name}" for name, count in names]
        most = [*jobs[:1], plural(len(names) - 1, "other job")]
        shown = (", ".join([*one, total]) for one in (workers, jobs, most, [plural(len(parts), "worker")]))
        return next((line for line in shown if len(line) < LINE_LENGTH), total)
