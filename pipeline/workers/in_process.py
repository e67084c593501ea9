"""The worker pool of ``--workers 0``: this process alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .protocol import Block, OnEvent, ProgressReporter


class InProcessPool:
    """Runs blocks in this process: nothing to start, and no protection against an image that hangs or crashes.

    ``device`` is the name of the device, for people.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._submitted: tuple[int, Block] | None = None

    def start(self, required_paths: tuple[Path, ...]) -> None:
        """Do nothing: this process is ready."""

    def describe(self) -> list[str]:
        """One line that names the device."""
        return [f"this process: {self._device}"]

    def workers(self) -> list[str]:
        """Return the one worker, which has no name."""
        return [""]

    def submit(self, number: int, block: Block, worker: str) -> None:
        """Keep the block for `wait`.

        Args:
            number, block, worker: see `WorkerPool.submit`.
        """
        self._submitted = number, block

    def wait(self, is_stopping: Callable[[], bool], on_event: OnEvent) -> None:
        """Run the block that was submitted, if there is one."""
        if self._submitted is None:
            return
        (number, block), self._submitted = self._submitted, None
        report = ProgressReporter(is_stopping, lambda: on_event(number, report.status()))
        on_event(number, block.run(report))

    @property
    def is_reachable(self) -> bool:
        """True: the worker is this process."""
        return True

    def loss_hint(self, worker: str) -> str | None:
        """Return None: no worker is lost without this process."""

    def stop(self) -> None:
        """Do nothing: the block asks ``is_stopping`` by itself."""

    def kill(self, number: int) -> None:
        """Do nothing: a block that hangs here hangs the caller, too."""

    def close(self) -> None:
        """Do nothing: nothing was started."""
