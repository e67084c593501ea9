"""Messages and interfaces between a run and its workers: blocks of images, their progress and their results."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Worker:
    """One worker: its name, which stays when its process is restarted, and its device."""

    name: str
    device: str = ""


@dataclass(frozen=True)
class BlockProgress:
    """A worker reported the status of block ``number``."""

    number: int
    status: BlockStatus


@dataclass(frozen=True)
class BlockFinished:
    """Block ``number`` is done."""

    number: int
    result: BlockResult


@dataclass(frozen=True)
class BlockRaised:
    """Block ``number`` ended with an exception that no block should raise: a bug."""

    number: int
    error: BaseException


@dataclass(frozen=True)
class WorkerDied:
    """The worker of block ``number`` is gone.

    ``deaths`` is above 1 if the cluster tried the block on several workers and all of them died.
    """

    number: int
    deaths: int


Event = BlockProgress | BlockFinished | BlockRaised | WorkerDied


class WorkerPool(Protocol):
    """Workers, each of which does one block at a time."""

    def start(self, required_paths: tuple[Path, ...]) -> None:
        """Make the workers ready.

        Raises:
            HmsaError: a worker cannot reach one of ``required_paths``, of which the first is the output folder.
        """
        ...

    def describe(self) -> list[str]:
        """One line for people per worker that is there or will be started."""
        ...

    def workers(self) -> list[Worker]:
        """List the workers that are alive now."""
        ...

    def submit(self, number: int, block: Block, worker: Worker) -> None:
        """Give a block to an idle worker.

        Args:
            number: identifies the block in events.
            block: the images to do.
            worker: one of `workers`.
        """
        ...

    def wait(self, timeout: float, is_stopping: Callable[[], bool], on_event: Callable[[Event], None]) -> None:
        """Pass on what happened since the last call, after at most about ``timeout`` seconds.

        Args:
            timeout: in seconds; a pool that works in this process takes as long as its block does.
            is_stopping: tells a block that runs in this process to end early.
            on_event: called in this thread.

        Raises:
            HmsaError: the workers are gone for good.
        """
        ...

    def stop(self) -> None:
        """Ask all workers to finish the images in flight and end their blocks."""
        ...

    def kill(self, number: int) -> None:
        """Kill the process that does block ``number``; a `WorkerDied` event follows."""
        ...

    def close(self) -> None:
        """Shut the workers down."""
        ...


@dataclass
class BlockResult:
    """Result of a block; small, because it travels between processes.

    Attributes:
        failed: path -> reason.
        left: paths that were not tried, because the worker was told to stop or could not continue.
        fallbacks: path -> how an image was computed that could not be computed as planned.
        problem: why the whole job cannot be done here (its store is in use, its lock is lost); None if it can.
        disk_problem: why nothing more can be written; None if it can.
        seconds: from the first image to the last.
        times: stage -> seconds spent in it, where they were measured.
        notes: lines for the user; the run prints each once.
    """

    failed: dict[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    fallbacks: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    disk_problem: str | None = None
    seconds: float = 0.0
    times: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockStatus:
    """Progress of a worker within a block.

    Attributes:
        finished: number of images done, with success or without.
        image: path of the image that has been in work for longest; None if none is.
        age: how long it has been in work, in seconds.
    """

    finished: int
    image: str | None = None
    age: float = 0.0


class ProgressReporter:
    """Tracks a block in its worker: counts finished images and knows since when each image is in work.

    Args:
        is_stopping: tells whether the run asked its workers to finish what is in flight.
        on_image_done: called after every image, by the thread that finished it.
    """

    def __init__(self, is_stopping: Callable[[], bool], on_image_done: Callable[[], None] = lambda: None) -> None:
        self._is_stopping, self._on_image_done = is_stopping, on_image_done
        self._finished = 0
        self._working: dict[tuple[int, str], float] = {}
        self._lock = threading.Lock()

    @property
    def is_stopping(self) -> bool:
        """True if no further image should be started."""
        return self._is_stopping()

    def image_done(self) -> None:
        """Count one more image as finished, with success or without."""
        with self._lock:
            self._finished += 1
        self._on_image_done()

    @contextlib.contextmanager
    def working_on(self, image: str) -> Iterator[None]:
        """Mark ``image`` as in work by this thread (read, computed or written) inside the ``with`` block."""
        key = threading.get_ident(), image
        with self._lock:
            self._working[key] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._working.pop(key, None)

    def status(self) -> BlockStatus:
        """Return the block's progress now."""
        with self._lock:
            if not self._working:
                return BlockStatus(self._finished)
            (_, image), since = min(self._working.items(), key=lambda item: item[1])
            return BlockStatus(self._finished, image, time.monotonic() - since)


class Block(Protocol):
    """Some images of one job: small enough to be sent to a worker, and to be repeated if the worker dies."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The images, in the order in which they are done."""
        ...

    def run(self, report: ProgressReporter) -> BlockResult:
        """Do all images that are not complete yet."""
        ...
