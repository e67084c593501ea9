"""The scheduler's notes on a job, and on a block that a worker has."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..runtime.progress import Progress
from .jobs import Job, JobImage, JobSummary
from .protocol import BlockStatus


class ImageQueue:
    """Images that no worker has, with the sum of their pixels, which is asked for with every block."""

    def __init__(self) -> None:
        self._images: deque[JobImage] = deque()
        self.pixels = 0

    def __len__(self) -> int:
        return len(self._images)

    @property
    def first(self) -> JobImage:
        """The next image; IndexError if there is none."""
        return self._images[0]

    def extend(self, images: Iterable[JobImage]) -> None:
        """Add images at the end."""
        for image in images:
            self._images.append(image)
            self.pixels += image.pixels

    def put_back(self, images: Iterable[JobImage]) -> None:
        """Add images, in their order, in front of the others."""
        back = list(images)
        self._images.extendleft(reversed(back))
        self.pixels += sum(image.pixels for image in back)

    def take(self) -> JobImage:
        """Remove and return the next image; IndexError if there is none."""
        image = self._images.popleft()
        self.pixels -= image.pixels
        return image

    def clear(self) -> None:
        """Remove all images."""
        self._images.clear()
        self.pixels = 0


@dataclass
class JobState:
    """A job, its images that no worker has, and its history.

    Attributes:
        images: the images to do in blocks.
        retry_alone: images that were in flight when a worker died.
        deaths: path -> number of workers that died on it.
        died_on: path -> name of the last worker that died on it.
        losses_in_a_row: images given up since the last one that was done.
        running_blocks: number of blocks at work.
        had_blocks: a worker got a block, and may have left partial files.
    """

    job: Job[Any]
    summary: JobSummary = field(default_factory=JobSummary)
    opened_at: float | None = None
    is_closed: bool = False
    images: ImageQueue = field(default_factory=ImageQueue)
    retry_alone: deque[JobImage] = field(default_factory=deque)
    deaths: dict[str, int] = field(default_factory=dict)
    died_on: dict[str, str] = field(default_factory=dict)
    losses_in_a_row: int = 0
    running_blocks: int = 0
    had_blocks: bool = False

    @property
    def has_more(self) -> bool:
        """True if images are left that no worker has, as far as is known."""
        return self.opened_at is None or bool(self.images or self.retry_alone)

    def drop_images(self) -> None:
        """Forget the images that no worker has."""
        self.images.clear()
        self.retry_alone.clear()

    def give_up(self, problem: str) -> None:
        """Drop the job's images because of ``problem``; an earlier one is kept."""
        self.summary.problem = self.summary.problem or problem
        self.drop_images()


@dataclass
class Assignment:
    """A block that a worker has.

    Attributes:
        heard_at: time of its last status.
        hung_image: the image that its worker was killed for.
        is_killed: its worker was killed.
    """

    state: JobState
    images: list[JobImage]
    worker: str
    status: BlockStatus = field(default_factory=lambda: BlockStatus(0))
    heard_at: float = field(default_factory=time.monotonic)
    hung_image: str | None = None
    is_killed: bool = False

    def in_work(self) -> str:
        """Name the image that the worker has been at for longest."""
        image = self.images[0].path if len(self.images) == 1 else self.status.image
        return f"it {f'was at {image}' if image else 'had a block'} of {self.state.job.name}"

    def show(self, progress: Progress, finished: int) -> None:
        """Show that ``finished`` of the block's images are done or failed; the last status may have said so."""
        if finished > self.status.finished:
            progress.advance(finished - self.status.finished, self.worker)
