"""Progress of long work: two bars on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

LOG_SECONDS = 30.0


class Progress:
    """Counts images of one job after another.

    Args:
        total: images of all jobs together, without those that were complete before.
        unit: what is counted.
    """

    def __init__(self, total: int, unit: str = "image") -> None:
        self._total, self._done, self._unit = total, 0, unit
        self._job, self._job_total, self._job_done = "", 0, 0
        self._start = self._logged = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bars: list[tqdm[NoReturn]] = []
        if self._terminal and total:
            self._bars = [
                tqdm(total=total, desc="total", unit=f" {unit}", position=0, smoothing=0.05),
                tqdm(total=0, unit=f" {unit}", position=1, leave=False),
            ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in reversed(self._bars):
            bar.close()

    def job(self, name: str, total: int) -> None:
        """Begin the job ``name`` of ``total`` images."""
        self._job, self._job_total, self._job_done = name, total, 0
        if self._bars:
            self._bars[1].set_description(name)
            self._bars[1].reset(total=total)

    def advance(self, count: int = 1) -> None:
        """One image, or ``count`` of them, is done, well or badly."""
        self._done += count
        self._job_done += count
        for bar in self._bars:
            bar.update(count)
        if not self._bars and time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            self.note(self._line())

    def note(self, line: str) -> None:
        """Print a line without tearing the bars."""
        tqdm.write(line, file=sys.stderr)

    def aside(self) -> AbstractContextManager[None]:
        """While the block prints, the bars step aside."""
        return tqdm.external_write_mode(file=sys.stdout)

    def _line(self) -> str:
        rate = self._done / max(1e-9, time.monotonic() - self._start)
        left = tqdm.format_interval(int((self._total - self._done) / rate))
        return (
            f"{self._job} {self._job_done}/{self._job_total}, total {self._done}/{self._total} {self._unit}s, "
            f"{rate:.2f} {self._unit}s/s, {left} left"
        )
