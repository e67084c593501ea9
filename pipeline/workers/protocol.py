"""What a run and its workers tell each other: blocks of images, how far they are, and what became of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Outcome:
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
class News:
    """How far a worker is with a block.

    Attributes:
        settled: images done, well or badly.
        image: the one that has been in work for longest; None if none is.
        age: for how long, in seconds.
    """

    settled: int
    image: str | None = None
    age: float = 0.0


class Report:
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

    def news(self) -> News:
        """How far the block is now."""
        with self._lock:
            if not self._working:
                return News(self._settled)
            (_, image), since = min(self._working.items(), key=lambda item: item[1])
            return News(self._settled, image, time.monotonic() - since)


class Block(Protocol):
    """Some images of one job, small enough to be sent to a worker and to be done again after its death."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The images, in the order in which they are done."""
        ...

    def run(self, report: Report) -> Outcome:
        """Do all of them that are not complete yet."""
        ...
