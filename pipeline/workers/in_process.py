"""Who does the work: the interface of a crew of workers, and the crew that is this process alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .protocol import Block, BlockFinished, BlockProgress, Event, ProgressReporter, Worker


class InProcessPool:
    """No worker but this process: nothing to start, and nothing to save the run from a hang or a crash."""

    dashboard: str | None = None

    def __init__(self, device: str = "cpu") -> None:
        self._hand = Worker("", device)
        self._given: tuple[int, Block] | None = None

    def start(self, places: tuple[Path, ...]) -> None:
        """Nothing needs to be made ready."""

    def describe(self) -> list[str]:
        """One line."""
        return [f"this process: {self._hand.device}"]

    def hands(self) -> list[Worker]:
        """One, without a name."""
        return [self._hand]

    def submit(self, number: int, block: Block, hand: Worker) -> None:
        """Keep the block for `wait`."""
        self._given = number, block

    def wait(self, timeout: float, stop: Callable[[], bool], sink: Callable[[Event], None]) -> None:
        """Do the block."""
        if self._given is None:
            return
        (number, block), self._given = self._given, None
        report: ProgressReporter

        def settled() -> None:
            sink(BlockProgress(number, self._hand.name, report.news()))

        report = ProgressReporter(stop, settled)
        sink(BlockFinished(number, block.run(report)))

    def stop(self) -> None:
        """`wait` is told by its argument."""

    def kill(self, number: int) -> None:
        """Nobody calls this: a block that hangs here hangs the caller."""

    def close(self) -> None:
        """Nothing was started."""
