"""The worker pool of ``--workers 0``: this process alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .protocol import Block, BlockFinished, BlockProgress, Event, ProgressReporter, Worker


class InProcessPool:
    """Runs blocks in this process: nothing to start, and no protection against an image that hangs or crashes.

    Args:
        device: name of the device, for people.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._worker = Worker("", device)
        self._submitted: tuple[int, Block] | None = None

    def start(self, required_paths: tuple[Path, ...]) -> None:
        """Do nothing: this process is ready."""

    def describe(self) -> list[str]:
        """One line that names the device."""
        return [f"this process: {self._worker.device}"]

    def workers(self) -> list[Worker]:
        """Return the one worker, which has no name."""
        return [self._worker]

    def submit(self, number: int, block: Block, worker: Worker) -> None:
        """Keep the block for `wait`.

        Args:
            number: identifies the block in events.
            block: the images to do.
            worker: not used: there is only one.
        """
        self._submitted = number, block

    def wait(self, timeout: float, is_stopping: Callable[[], bool], on_event: Callable[[Event], None]) -> None:
        """Run the block that was submitted, if there is one.

        Args:
            timeout: not used: a block takes as long as it takes.
            is_stopping: tells the block to end early.
            on_event: gets the block's progress and its end.
        """
        if self._submitted is None:
            return
        (number, block), self._submitted = self._submitted, None
        report: ProgressReporter

        def on_image_done() -> None:
            on_event(BlockProgress(number, report.status()))

        report = ProgressReporter(is_stopping, on_image_done)
        on_event(BlockFinished(number, block.run(report)))

    def stop(self) -> None:
        """Do nothing: the block asks ``is_stopping`` by itself."""

    def kill(self, number: int) -> None:
        """Do nothing: a block that hangs here hangs the caller, too."""

    def close(self) -> None:
        """Do nothing: nothing was started."""
