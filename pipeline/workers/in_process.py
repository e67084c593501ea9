"""Who does the work: the interface of a crew of workers, and the crew that is this process alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .protocol import Block, News, Outcome, Report


@dataclass(frozen=True)
class Hand:
    """One worker: its name, stable over restarts of its process, and what it computes on."""

    name: str
    device: str = ""
    host: str = ""


@dataclass(frozen=True)
class Heard:
    """A worker said how far it is with block ``number``."""

    number: int
    hand: str
    news: News


@dataclass(frozen=True)
class Ended:
    """Block ``number`` is done."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Raised:
    """Block ``number`` ended with an exception that no block may end with."""

    number: int
    error: BaseException


@dataclass(frozen=True)
class Died:
    """The worker of block ``number`` is gone, ``times`` workers one after another if a cluster tried again."""

    number: int
    times: int


Event = Heard | Ended | Raised | Died


class Crew(Protocol):
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

    def hands(self) -> list[Hand]:
        """The workers that live now."""
        ...

    def submit(self, number: int, block: Block, hand: Hand) -> None:
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


class Alone:
    """No worker but this process: nothing to start, and nothing to save the run from a hang or a crash."""

    dashboard: str | None = None

    def __init__(self, device: str = "cpu") -> None:
        self._hand = Hand("", device)
        self._given: tuple[int, Block] | None = None

    def start(self, places: tuple[Path, ...]) -> None:
        """Nothing needs to be made ready."""

    def describe(self) -> list[str]:
        """One line."""
        return [f"this process: {self._hand.device}"]

    def hands(self) -> list[Hand]:
        """One, without a name."""
        return [self._hand]

    def submit(self, number: int, block: Block, hand: Hand) -> None:
        """Keep the block for `wait`."""
        self._given = number, block

    def wait(self, timeout: float, stop: Callable[[], bool], sink: Callable[[Event], None]) -> None:
        """Do the block."""
        if self._given is None:
            return
        (number, block), self._given = self._given, None
        report: Report

        def settled() -> None:
            sink(Heard(number, self._hand.name, report.news()))

        report = Report(stop, settled)
        sink(Ended(number, block.run(report)))

    def stop(self) -> None:
        """`wait` is told by its argument."""

    def kill(self, number: int) -> None:
        """Nobody calls this: a block that hangs here hangs the caller."""

    def close(self) -> None:
        """Nothing was started."""
