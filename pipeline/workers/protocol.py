"""What a run and its workers tell each other: blocks of images, how far they are, and what became of them."""

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
    """One worker: its name, stable over restarts of its process, and what it computes on."""

    name: str
    device: str = ""
    host: str = ""


@dataclass(frozen=True)
class BlockProgress:
    """A worker said how far it is with block ``number``."""

    number: int
    hand: str
    news: BlockStatus


@dataclass(frozen=True)
class BlockFinished:
    """Block ``number`` is done."""

    number: int
    outcome: BlockResult


@dataclass(frozen=True)
class BlockRaised:
    """Block ``number`` ended with an exception that no block may end with."""

    number: int
    error: BaseException


@dataclass(frozen=True)
class WorkerDied:
    """The worker of block ``number`` is gone, ``times`` workers one after another if a cluster tried again."""

    number: int
    times: int


Event = BlockProgress | BlockFinished | BlockRaised | WorkerDied


class WorkerPool(Protocol):
    """Workers, each of which does one block at a time.

    Attributes:
        dashboard: where a browser shows what they do; None where nobody shows it, or not yet.
    """

    dashboard: str | None

    def start(self, places: tuple[Path, ...]) -> None:
        """Make the workers ready; HmsaError if one cannot reach ``places``, of which the first is the output."""
        ...

    def describe(self) -> list[str]:
        """The workers there are or will be, a line each, for people."""
        ...

    def hands(self) -> list[Worker]:
        """The workers that live now."""
        ...

    def submit(self, number: int, block: Block, hand: Worker) -> None:
        """Give a block to a worker that has none."""
        ...

    def wait(self, timeout: float, stop: Callable[[], bool], sink: Callable[[Event], None]) -> None:
        """Give ``sink`` what happened since the last call, after at most about ``timeout`` seconds.

        Args:
            timeout: in seconds; a crew that works in this process takes as long as a block does.
            stop: says whether blocks that run in this process are to end early.
            sink: called in this thread.

        Raises:
            HmsaError: the crew is gone for good.
        """
        ...

    def stop(self) -> None:
        """Ask all workers to finish the images in flight and end their blocks."""
        ...

    def kill(self, number: int) -> None:
        """End the process that does block ``number``, which is then said to have died."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


@dataclass
class BlockResult:
    """What became of a block's images; small, because it travels.

    Attributes:
        failed: path -> reason.
        left: paths that were not looked at, because the worker was told to stop or could not go on.
        fallbacks: path -> how an image was made that could not be made as planned.
        problem: why the whole job cannot be done here (its store is in use, its lock is lost); None if it can.
        disk: why nothing more can be written; None if it can.
        seconds: from the first image to the last.
        times: where they went, by part, where that was looked at.
        notes: lines for the user, which the run says once.
    """

    failed: dict[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    fallbacks: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    disk: str | None = None
    seconds: float = 0.0
    times: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockStatus:
    """How far a worker is with a block.

    Attributes:
        settled: images done, well or badly.
        image: the one that has been in work for longest; None if none is.
        age: for how long, in seconds.
    """

    settled: int
    image: str | None = None
    age: float = 0.0


class ProgressReporter:
    """The worker's side of `News`: counts what is settled and knows since when each image is in work.

    Args:
        stop: says whether the run asked its workers to finish what is in flight.
        settled: called, by the thread that settles it, after every image.
    """

    def __init__(self, stop: Callable[[], bool], settled: Callable[[], None] = lambda: None) -> None:
        self._stop, self._settled_one = stop, settled
        self._settled = 0
        self._working: dict[tuple[int, str], float] = {}
        self._lock = threading.Lock()

    @property
    def stopping(self) -> bool:
        """Whether no further image is to be begun."""
        return self._stop()

    def settle(self) -> None:
        """One image more is done, well or badly."""
        with self._lock:
            self._settled += 1
        self._settled_one()

    @contextlib.contextmanager
    def at_work(self, image: str) -> Iterator[None]:
        """While the block runs, this thread works on ``image``: reads it, computes it, or writes it."""
        key = threading.get_ident(), image
        with self._lock:
            self._working[key] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._working.pop(key, None)

    def news(self) -> BlockStatus:
        """How far the block is now."""
        with self._lock:
            if not self._working:
                return BlockStatus(self._settled)
            (_, image), since = min(self._working.items(), key=lambda item: item[1])
            return BlockStatus(self._settled, image, time.monotonic() - since)


class Block(Protocol):
    """Some images of one job, small enough to be sent to a worker and to be done again after its death."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The images, in the order in which they are done."""
        ...

    def run(self, report: ProgressReporter) -> BlockResult:
        """Do all of them that are not complete yet."""
        ...
