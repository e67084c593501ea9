"""After a worker died or hangs: which of its images are tried again alone, and which are given up.

The images that a worker had in flight when it died are suspects. They are tried one by one, so that the image that
kills workers is found, and only that image is given up, after its fourth worker. An image that has been in work for
too long is listed as failed, and its worker killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ..runtime.progress import Progress
from .job_state import Assignment, JobState
from .jobs import JobImage

MAX_RETRIES = 3
IN_FLIGHT = 32
"""Upper bound of a block's images that are begun and not complete: the suspects when a worker dies."""
SILENCE_SECONDS = 300.0


class Retries:
    """Decides about the images of workers that died or hang.

    ``is_stopping`` tells whether nothing more is to be started; for ``image_timeout`` see `Workers`.
    """

    def __init__(self, progress: Progress, image_timeout: float, is_stopping: Callable[[], bool]) -> None:
        self._progress, self._image_timeout, self._is_stopping = progress, image_timeout, is_stopping

    def suspect_for(self, state: JobState, worker: str, workers: int) -> JobImage | None:
        """Return the next suspect of a job that this worker may try alone.

        Args:
            state: of the job.
            worker: one that died on an image gets it only if there is no other.
            workers: number of workers.
        """
        for image in state.retry_alone:
            if workers == 1 or state.died_on.get(image.path) != worker:
                return image
        return None

    def take_alone(self, state: JobState, worker: str, workers: int) -> JobImage | None:
        """Take that suspect.

        Args:
            state, worker, workers: see `suspect_for`.
        """
        if (image := self.suspect_for(state, worker, workers)) is not None:
            state.retry_alone.remove(image)
        return image

    def after_death(self, assignment: Assignment, deaths: int) -> None:
        """Sort a dead worker's images: complete ones count, suspects are tried alone, the rest is given back."""
        state, images, hung = assignment.state, assignment.images, assignment.hung_image
        missing = set(state.job.incomplete(i.path for i in images if i.path not in state.summary.failed))
        rest = [image for image in images if image.path in missing and image.path != hung]
        done = sum(image.path not in missing for image in images)
        assignment.show(self._progress, done)
        state.summary.done += done
        if done:
            state.losses_in_a_row = 0
        if hung in missing:
            self._list_failure(
                state,
                str(hung),
                f"was still in work after {self._image_timeout:g} s, its worker was stopped; if it is only slow, "
                "raise --image-timeout",
            )
        elif len(rest) == 1 and len(images) == 1:
            self._after_death_alone(state, rest[0], assignment.worker, deaths)
            return
        suspects = [] if hung else rest[:IN_FLIGHT]
        if self._is_stopping() or state.summary.problem:
            state.summary.interrupted |= bool(rest)
            return
        for image in suspects:
            state.deaths[image.path] = state.deaths.get(image.path, 0) + deaths
            state.died_on[image.path] = assignment.worker
        state.retry_alone.extend(suspects)
        state.images.put_back(rest[len(suspects) :])

    def _after_death_alone(self, state: JobState, image: JobImage, worker: str, deaths: int) -> None:
        """Count a death on the only image of a block; retry it, or give it up after too many."""
        total = state.deaths[image.path] = state.deaths.get(image.path, 0) + deaths
        state.died_on[image.path] = worker
        if total <= MAX_RETRIES:
            if self._is_stopping():
                state.summary.interrupted = True
            else:
                state.retry_alone.appendleft(image)
            return
        self._list_failure(
            state, image.path, f"{total} workers died while it was made; is there enough memory for it?"
        )
        state.losses_in_a_row += 1
        if state.losses_in_a_row >= MAX_RETRIES and (state.images or state.retry_alone):
            state.give_up(
                f"{state.job.name}: workers die whatever image they work on; look for a lack of memory there"
            )

    def _list_failure(self, state: JobState, path: str, reason: str) -> None:
        state.summary.failed[path] = reason
        self._progress.advance()

    def hung_workers(self, assignments: Mapping[int, Assignment]) -> list[int]:
        """Return the blocks whose workers are to be killed: they work on one image for too long, or are silent."""
        now, found = time.monotonic(), []
        for number, assignment in assignments.items():
            silence = now - assignment.heard_at
            if assignment.is_killed:
                continue
            if assignment.status.image is not None and assignment.status.age + silence > self._image_timeout:
                assignment.hung_image = assignment.status.image
            elif silence <= max(SILENCE_SECONDS, self._image_timeout):
                continue
            assignment.is_killed = True
            found.append(number)
        return found
