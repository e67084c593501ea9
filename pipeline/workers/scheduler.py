"""Gives blocks of images to workers and makes sure that every image is done or listed as failed.

The worker pool starts the workers and notices when one is lost; the scheduler decides which block goes next, how
large it is, and what to do with the images of a worker that died or hangs:

* a worker keeps its network as long as images of it are left, then takes over from the job with the most left;
* the images that a worker had in flight when it died are retried one by one, so that the image that kills workers is
  found, and only that image is given up, after its fourth worker;
* a worker that has worked on one image for too long is killed, and that image is listed as failed.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DiskError, StoreError
from ..runtime.progress import Progress
from ..runtime.stop_signal import StopSignal
from .jobs import Job, JobImage, JobSummary
from .protocol import BlockFinished, BlockProgress, BlockRaised, BlockStatus, Event, Worker, WorkerDied, WorkerPool

BLOCK_SECONDS = 120.0
FIRST_IMAGES = 8
MAX_IMAGES = 512
MAX_RETRIES = 3
IN_FLIGHT = 32
"""Upper bound of a block's images that are begun and not complete: the suspects when a worker dies."""
SILENCE_SECONDS = 300.0


@dataclass
class _JobState:
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

    job: Job
    summary: JobSummary = field(default_factory=JobSummary)
    opened_at: float | None = None
    is_closed: bool = False
    images: deque[JobImage] = field(default_factory=deque)
    retry_alone: deque[JobImage] = field(default_factory=deque)
    deaths: dict[str, int] = field(default_factory=dict)
    died_on: dict[str, str] = field(default_factory=dict)
    losses_in_a_row: int = 0
    running_blocks: int = 0
    had_blocks: bool = False

    @property
    def pixels_left(self) -> int:
        return sum(image.pixels for image in (*self.images, *self.retry_alone))

    @property
    def has_more(self) -> bool:
        return self.opened_at is None or bool(self.images or self.retry_alone)

    def drop_images(self) -> None:
        self.images.clear()
        self.retry_alone.clear()

    def give_up(self, problem: str) -> None:
        self.summary.problem = self.summary.problem or problem
        self.drop_images()


@dataclass
class _Assignment:
    """A block that a worker has."""

    state: _JobState
    images: list[JobImage]
    worker: Worker
    status: BlockStatus = field(default_factory=lambda: BlockStatus(0))
    heard_at: float = field(default_factory=time.monotonic)
    hung_image: str | None = None
    is_killed: bool = False


def run_jobs(
    jobs: Sequence[Job],
    pool: WorkerPool,
    progress: Progress,
    on_job_end: Callable[[int, JobSummary], None],
    *,
    required_paths: tuple[Path, ...],
    image_timeout: float,
) -> bool:
    """Run all jobs with the workers, which are started when the first image is to be done.

    Args:
        jobs: in the order in which they are begun.
        pool: the workers.
        progress: shows the progress of each worker.
        on_job_end: called with a job's position and its counts, as soon as it ends.
        required_paths: folders and files that every worker must reach, the output folder first.
        image_timeout: seconds after which an image that is still in work is given up.

    Returns:
        whether the run was told to stop (by Ctrl-C or SIGTERM) before everything was done.

    Raises:
        DiskError: nothing more can be written; complete images are kept.
        HmsaError: the workers are gone for good.
        KeyboardInterrupt: told to stop a second time: at once.
    """
    with StopSignal() as stop_signal:
        scheduler = _Scheduler(jobs, pool, progress, on_job_end, required_paths, image_timeout, stop_signal)
        try:
            scheduler.run()
        finally:
            scheduler.close()
    if scheduler.disk_problem:
        raise DiskError(scheduler.disk_problem)
    return scheduler.interrupted


class _Scheduler:
    def __init__(
        self,
        jobs: Sequence[Job],
        pool: WorkerPool,
        progress: Progress,
        on_job_end: Callable[[int, JobSummary], None],
        required_paths: tuple[Path, ...],
        image_timeout: float,
        stop_signal: StopSignal,
    ) -> None:
        self._states = [_JobState(job) for job in jobs]
        self._pool, self._progress, self._on_job_end = pool, progress, on_job_end
        self._noted: set[str] = set()
        self._required_paths, self._image_timeout, self._stop_signal = required_paths, image_timeout, stop_signal
        self._assignments: dict[int, _Assignment] = {}
        self._numbers = itertools.count()
        self._loaded: dict[str, str] = {}
        self._pixels_per_second: dict[str, float] = {}
        self._is_started = self._has_told_workers = False
        self.disk_problem: str | None = None
        self.interrupted = False

    def run(self) -> None:
        while True:
            if self._is_stopping():
                self._stop()
            else:
                self._assign_blocks()
            self._close_jobs()
            if not self._assignments and (self._is_stopping() or all(state.is_closed for state in self._states)):
                break
            self._pool.wait(1.0, self._is_stopping, self._handle_event)
            self._kill_hung_workers()
        self.interrupted = self._stop_signal.requested and (
            any(state.summary.interrupted for state in self._states)
            or not all(state.is_closed for state in self._states)
        )

    def close(self) -> None:
        """Release every lock, also after an exception."""
        for state in self._states:
            if state.opened_at is not None and not state.is_closed:
                state.job.close()

    def _is_stopping(self) -> bool:
        return self._stop_signal.requested or self.disk_problem is not None

    def _stop(self) -> None:
        for state in self._states:
            if state.opened_at is not None and state.has_more:
                state.summary.interrupted = True
                state.drop_images()
        if not self._has_told_workers:
            self._has_told_workers = True
            if self._stop_signal.requested:
                self._progress.note("interrupted: the images in flight are being finished")
            if self._assignments:
                self._pool.stop()

    def _close_jobs(self) -> None:
        for position, state in enumerate(self._states):
            if state.opened_at is None or state.is_closed or state.running_blocks or state.has_more:
                continue
            state.is_closed = True
            state.summary.seconds = time.monotonic() - state.opened_at
            if state.had_blocks:
                with contextlib.suppress(OSError):  # the next run tries again
                    state.job.sweep()
            state.job.close()
            self._on_job_end(position, state.summary)

    def _assign_blocks(self) -> None:
        if not self._is_started:
            # Before workers are started: what is complete, or in use elsewhere, needs none.
            self._open_until_there_is_work()
            if self._is_stopping() or not any(s.opened_at is not None and s.has_more for s in self._states):
                return
            self._pool.start(self._required_paths)
            self._is_started = True
        busy = {assignment.worker.name for assignment in self._assignments.values()}
        workers = self._pool.workers()
        for worker in workers:
            if worker.name in busy:
                continue
            while not self._is_stopping() and (state := self._choose_job(worker)) is not None:
                if state.opened_at is None:
                    self._open(state)
                if images := self._take_images(state, worker, len(workers)):
                    self._submit(state, images, worker)
                    break
                if state.has_more:  # what is left killed this very worker's process, and others are there
                    break

    def _open_until_there_is_work(self) -> None:
        for state in self._states:
            if self._is_stopping():
                return
            if state.opened_at is None:
                self._open(state)
            if state.images:
                return

    def _open(self, state: _JobState) -> None:
        state.opened_at = time.monotonic()
        try:
            state.images.extend(state.job.open())
        except DiskError as error:
            self.disk_problem = str(error)
            state.is_closed = True  # and not recorded, which would need the disk, too
            state.job.close()
        except StoreError as error:
            state.give_up(str(error))

    def _choose_job(self, worker: Worker) -> _JobState | None:
        candidates = [state for state in self._states if not state.is_closed and state.has_more]
        loaded = self._loaded.get(worker.name)
        if same := [state for state in candidates if state.job.key == loaded]:
            return same[0]
        served = [assignment.state.job.key for assignment in self._assignments.values()]
        if new := [state for state in candidates if state.job.key not in served]:
            return new[0]
        return max(candidates, key=lambda s: s.pixels_left / (1 + served.count(s.job.key)), default=None)

    def _take_images(self, state: _JobState, worker: Worker, workers: int) -> list[JobImage]:
        for image in state.retry_alone:
            if workers == 1 or state.died_on.get(image.path) != worker.name:
                state.retry_alone.remove(image)
                return [image]
        if not state.images:
            return []
        speed = self._pixels_per_second.get(state.job.key)
        budget = BLOCK_SECONDS * speed if speed else None
        # Towards the end blocks become small, so that nobody waits long for the last one.
        share = sum(image.pixels for image in state.images) / (2 * workers) if workers > 1 else None
        taken, pixels = [state.images.popleft()], 0
        while state.images and len(taken) < (MAX_IMAGES if budget else FIRST_IMAGES):
            pixels += taken[-1].pixels
            with_next = pixels + state.images[0].pixels
            if (budget and with_next > budget) or (share and with_next > share):
                break
            taken.append(state.images.popleft())
        return taken

    def _submit(self, state: _JobState, images: list[JobImage], worker: Worker) -> None:
        number = next(self._numbers)
        self._assignments[number] = _Assignment(state, images, worker)
        state.running_blocks += 1
        state.had_blocks = True
        self._loaded[worker.name] = state.job.key
        self._progress.job(state.job.name, len(images), worker.name)
        self._pool.submit(number, state.job.block([image.path for image in images]), worker)

    def _handle_event(self, event: Event) -> None:
        assignment = self._assignments.get(event.number)
        if assignment is None:  # of a block that was taken from its worker
            return
        if isinstance(event, BlockProgress):
            self._advance(assignment, event.status.finished)
            assignment.status, assignment.heard_at = event.status, time.monotonic()
            return
        del self._assignments[event.number]
        assignment.state.running_blocks -= 1
        if isinstance(event, BlockFinished):
            self._after_block(assignment, event)
        elif isinstance(event, WorkerDied):
            self._after_worker_death(assignment, event.deaths)
        elif isinstance(event, BlockRaised):
            raise event.error

    def _advance(self, assignment: _Assignment, finished: int) -> None:
        if finished > assignment.status.finished:
            self._progress.advance(finished - assignment.status.finished, assignment.worker.name)

    def _after_block(self, assignment: _Assignment, event: BlockFinished) -> None:
        result, state, worker = event.result, assignment.state, assignment.worker
        summary = state.summary
        left = set(result.left)
        finished = [image for image in assignment.images if image.path not in left]
        self._advance(assignment, len(finished))
        summary.done += len(finished) - sum(image.path in result.failed for image in finished)
        summary.failed |= result.failed
        summary.fallbacks |= result.fallbacks
        for line in result.notes:
            if line not in self._noted:
                self._noted.add(line)
                self._progress.note(line)
        summary.images_by_worker[worker.name] = summary.images_by_worker.get(worker.name, 0) + len(finished)
        for stage, seconds in result.times.items():
            summary.times[stage] = summary.times.get(stage, 0.0) + seconds
        if finished:
            state.losses_in_a_row = 0
        if finished and result.seconds > 0:
            self._pixels_per_second[state.job.key] = sum(image.pixels for image in finished) / result.seconds
        if result.disk_problem:
            self.disk_problem = self.disk_problem or result.disk_problem
        if result.problem:
            state.give_up(result.problem)
        elif left:
            self._give_back(state, [image for image in assignment.images if image.path in left])

    def _give_back(self, state: _JobState, images: list[JobImage]) -> None:
        if self._is_stopping():
            state.summary.interrupted = True
        elif not state.summary.problem:
            state.images.extendleft(reversed(images))

    def _after_worker_death(self, assignment: _Assignment, deaths: int) -> None:
        """Sort the dead worker's images: complete ones count, suspects are retried alone, the rest is given back."""
        state, images, hung = assignment.state, assignment.images, assignment.hung_image
        self._loaded.pop(assignment.worker.name, None)
        missing = set(state.job.incomplete(i.path for i in images if i.path not in state.summary.failed))
        rest = [image for image in images if image.path in missing and image.path != hung]
        done = sum(image.path not in missing for image in images)
        self._advance(assignment, done)
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
            self._died_alone(state, rest[0], assignment.worker, deaths)
            return
        suspects = [] if hung else rest[:IN_FLIGHT]
        if self._is_stopping() or state.summary.problem:
            state.summary.interrupted |= bool(rest)
            return
        for image in suspects:
            state.deaths[image.path] = state.deaths.get(image.path, 0) + deaths
            state.died_on[image.path] = assignment.worker.name
        state.retry_alone.extend(suspects)
        state.images.extendleft(reversed(rest[len(suspects) :]))

    def _died_alone(self, state: _JobState, image: JobImage, worker: Worker, deaths: int) -> None:
        """Count a death on the only image of a block; retry it, or give it up after too many."""
        total = state.deaths[image.path] = state.deaths.get(image.path, 0) + deaths
        state.died_on[image.path] = worker.name
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

    def _list_failure(self, state: _JobState, path: str, reason: str) -> None:
        state.summary.failed[path] = reason
        self._progress.advance()

    def _kill_hung_workers(self) -> None:
        now = time.monotonic()
        for number, assignment in list(self._assignments.items()):
            silence = now - assignment.heard_at
            if assignment.is_killed:
                continue
            if assignment.status.image is not None and assignment.status.age + silence > self._image_timeout:
                assignment.hung_image = assignment.status.image
            elif silence <= max(SILENCE_SECONDS, self._image_timeout):
                continue
            assignment.is_killed = True
            self._pool.kill(number)
