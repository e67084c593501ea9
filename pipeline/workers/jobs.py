"""Jobs as the scheduler sees them, and their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from .protocol import Block


@dataclass(frozen=True, slots=True)
class JobImage:
    """One image to do, and its number of pixels."""

    path: str
    pixels: int


@dataclass
class JobSummary:
    """Counts of one job as the scheduler keeps them.

    Attributes:
        done: number of images made in this run.
        failed, fallbacks, others, times: those of its blocks, see `BlockResult`.
        problem: why the job could not be done at all; None if it could.
        interrupted: images are left because the run was told to stop.
        seconds: from the opening of the job to its end.
        images_by_worker: worker -> number of images that it finished.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    problem: str | None = None
    interrupted: bool = False
    seconds: float = 0.0
    images_by_worker: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class JobResult(JobSummary, ABC):
    """Result of one job: its counts in this run, and what it found.

    Attributes:
        skipped: number of images that were complete before.
        gone: images that a store lists and the dataset no longer holds.
        present: images that the dataset holds, as far as ``gone`` is about them.
        looked_at: images that the job was about; None for all of the dataset.
    """

    name: str
    dataset: str
    skipped: int = 0
    gone: Set[str] = frozenset()
    present: Set[str] = frozenset()
    looked_at: Set[str] | None = None

    @property
    def is_idle(self) -> bool:
        """True if there was nothing to do."""
        return not (self.done or self.failed or self.problem)

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """Return the counts for ``--json``."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return the entries for ``run.json``, besides the failures."""


Result = TypeVar("Result", bound=JobResult, covariant=True)


class Job(Protocol[Result]):
    """One job: the images that go into one store, or into one folder of predictions."""

    @property
    def name(self) -> str:
        """Name of the job for people."""
        ...

    @property
    def key(self) -> str:
        """Name of what a worker has to load before it can do the job's blocks."""
        ...

    def open(self) -> list[JobImage]:
        """Lock and prepare the target, and return the images that are not complete; StoreError if it is in use."""
        ...

    def block(self, paths: Sequence[str]) -> Block:
        """Make a block of these images."""
        ...

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        """Return the images that are not complete now."""
        ...

    def sweep(self) -> None:
        """Remove files that dead writers left, when none is at work any more; OSError if one cannot be removed."""

    def close(self) -> None:
        """Release the lock."""

    def result(self, summary: JobSummary) -> Result:
        """Make the job's result; a job that was never opened has counts of zero.

        Raises:
            StoreError: the run cannot continue after the job's problem.
        """
        ...
