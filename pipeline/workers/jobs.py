"""Jobs of images as the scheduler sees them, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .protocol import Block


@dataclass(frozen=True)
class JobImage:
    """One image that is to be done, and how large it is in pixels."""

    path: str
    pixels: int


class Job(Protocol):
    """One job: the images that go into one store, or into one folder of predictions."""

    @property
    def name(self) -> str:
        """Names it for people."""
        ...

    @property
    def key(self) -> str:
        """What a worker has to load before it can do the job's blocks."""
        ...

    def open(self) -> list[JobImage]:
        """Lock and prepare what is written to; the images that are not complete. StoreError if it cannot be."""
        ...

    def block(self, paths: Sequence[str]) -> Block:
        """These images as a block."""
        ...

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        """Those of the images that are not complete now."""
        ...

    def sweep(self) -> None:
        """Remove what writers that died left behind; none is at work any more. OSError if it cannot be."""
        ...

    def close(self) -> None:
        """Give the lock back."""
        ...


@dataclass
class JobSummary:
    """What became of one job; ``failed`` and ``fallbacks`` map paths to reasons and to ways.

    ``interrupted`` says that images are left because the run was told to stop.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    interrupted: bool = False
    seconds: float = 0.0
    hands: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
