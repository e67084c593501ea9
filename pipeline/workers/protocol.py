"""Messages and interfaces between a run and its workers: blocks of images, their progress and their results."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch


@dataclass
class BlockResult:
    """Result of a block; small, because it travels between processes.

    Attributes:
        failed: path -> reason.
        left: paths that were not tried, because the worker was told to stop or could not continue.
        fallbacks: path -> how an image was computed that could not be computed as planned.
        others: path -> member -> share of the probability that it gave to classes that are not among ours, if there
            are such classes.
        problem: why the whole job cannot be done here (its store is in use, its lock is lost); None if it can.
        network_problem: why no job with the same networks can be done; None if they can.
        disk_problem: why nothing more can be written; None if it can.
        seconds: from the first image to the last.
        times: stage (read, forward, write) -> seconds spent in it, where they were measured.
        notes: lines for the user; the run prints each once.
    """

    failed: dict[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    fallbacks: dict[str, str] = field(default_factory=dict)
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    problem: str | None = None
    network_problem: str | None = None
    disk_problem: str | None = None
    seconds: float = 0.0
    times: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockStatus:
    """Progress of a worker within a block.

    Attributes:
        finished: number of images done, with success or without.
        image: path of the image that has been in work for longest, for ``age`` seconds; None if none is.
    """

    finished: int
    image: str | None = None
    age: float = 0.0


class ProgressReporter:
    """Tracks a block in its worker: counts finished images and knows since when each image is in work.

    ``is_stopping`` tells whether the run asked its workers to finish what is in flight; ``on_image_done`` is called
    after every image, by the thread that finished it.
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


@dataclass(frozen=True)
class WorkerDied:
    """The worker of a block is gone; ``deaths`` workers, if the cluster tried the block on several."""

    deaths: int = 1


Event = BlockStatus | BlockResult | WorkerDied | BaseException
"""News of a block: its status, its result, or its end without one. An exception is one that no block should raise."""
OnEvent = Callable[[int, Event], None]
"""Gets the number of a block and its news."""


class Block(Protocol):
    """Some images of one job: small enough to be sent to a worker, and to be repeated if the worker dies."""

    def run(self, report: ProgressReporter) -> BlockResult:
        """Do all images that are not complete yet."""
        ...


class WorkerPool(Protocol):
    """Workers, each of which does one block at a time. A worker's name stays when its process is restarted."""

    @property
    def is_reachable(self) -> bool:
        """False while nothing is known of the workers, because their cluster does not answer."""
        ...

    def start(self, required_paths: tuple[Path, ...]) -> None:
        """Make the workers ready; HmsaError if one cannot reach a required path, of which the first is the output."""

    def describe(self) -> list[str]:
        """One line for people per worker that is there or will be started."""
        ...

    def workers(self) -> list[str]:
        """List the names of the workers that are alive now."""
        ...

    def submit(self, number: int, block: Block, worker: str) -> None:
        """Give a block to an idle worker.

        Args:
            number: identifies the block in events.
            block: the images to do.
            worker: one of `workers`.
        """

    def wait(self, is_stopping: Callable[[], bool], on_event: OnEvent) -> None:
        """Pass on what happened since the last call, in this thread, after about a second; HmsaError if all are gone.

        A pool that works in this process takes as long as its block does, and ends it early if ``is_stopping``.
        """

    def loss_hint(self, worker: str) -> str | None:
        """Say why a worker that is gone may have ended; None if nothing is known."""
        ...

    def stop(self) -> None:
        """Ask all workers to finish the images in flight and end their blocks."""

    def kill(self, number: int) -> None:
        """Kill the process that does block ``number``; a `WorkerDied` event follows."""

    def close(self) -> None:
        """Shut the workers down."""


@dataclass(frozen=True)
class Workers:
    """A worker pool, and how its workers compute.

    Attributes:
        pool: not started yet; only a running cluster is connected already.
        device: the device as the workers see it.
        threads: CPU threads of each worker; None to leave them as they are.
        image_timeout: seconds after which an image that is still in work is given up, and its worker killed.
    """

    pool: WorkerPool
    device: torch.device
    threads: int | None
    image_timeout: float
