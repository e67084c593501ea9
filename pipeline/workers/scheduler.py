"""Gives blocks of images to workers and makes sure that every image is done or listed as failed.

The worker pool starts the workers and notices when one is lost; the scheduler decides which block goes next and how
large it is. A worker keeps its network as long as images of it are left, then takes over from the job with the most
left. What follows when a worker dies or hangs, `retries` decides.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import DiskError, StoreError
from ..runtime.progress import Progress, say
from ..runtime.stop_signal import StopSignal
from ..storage.writer_lock import LockHeldError
from .job_state import Assignment, JobState
from .jobs import Job, JobImage, JobSummary
from .protocol import BlockResult, BlockStatus, Event, WorkerDied, Workers
from .retries import Retries

BLOCK_SECONDS = 120.0
FIRST_IMAGES = 8
MAX_IMAGES = 512


def run_jobs(
    jobs: Sequence[Job[Any]],
    workers: Workers,
    progress: Progress,
    on_job_end: Callable[[int, JobSummary], None],
    required_paths: tuple[Path, ...],
) -> bool:
    """Run all jobs; return whether the run was told to stop (by Ctrl-C or SIGTERM) before everything was done.

    Args:
        jobs: in the order in which they are begun.
        workers: started when the first image is to be done.
        progress: shows the progress of each worker.
        on_job_end: called with a job's position and its counts, as soon as it ends.
        required_paths: folders and files that every worker must reach, the output folder first.

    Raises:
        DiskError: the disk cannot be written, or is nearly full; complete images are kept.
        LockHeldError: another run holds a target of the first jobs, and nothing was begun.
        HmsaError: the workers are gone for good.
        KeyboardInterrupt: told to stop a second time: at once.
    """
    with StopSignal() as stop_signal:
        scheduler = _Scheduler(jobs, workers, progress, on_job_end, required_paths, stop_signal)
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
        jobs: Sequence[Job[Any]],
        workers: Workers,
        progress: Progress,
        on_job_end: Callable[[int, JobSummary], None],
        required_paths: tuple[Path, ...],
        stop_signal: StopSignal,
    ) -> None:
        self._states = [JobState(job) for job in jobs]
        self._pool, self._progress, self._on_job_end = workers.pool, progress, on_job_end
        self._retries = Retries(progress, workers.image_timeout, self._is_stopping)
        self._noted: set[str] = set()
        self._required_paths, self._stop_signal = required_paths, stop_signal
        self._assignments: dict[int, Assignment] = {}
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
            self._pool.wait(self._is_stopping, self._handle_event)
            for number in self._retries.hung_workers(self._assignments):
                self._pool.kill(number)
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
                say("interrupted: the images in flight are being finished")
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
            for state in self._states:
                if self._is_stopping() or any(one.images for one in self._states):
                    break
                if state.opened_at is None:
                    self._open(state)
            if self._is_stopping() or not any(s.opened_at is not None and s.has_more for s in self._states):
                return
            self._pool.start(self._required_paths)
            self._is_started = True
        busy = {assignment.worker for assignment in self._assignments.values()}
        workers = self._pool.workers()
        had = {assignment.worker: assignment for assignment in self._assignments.values()}
        for worker in self._loaded.keys() - {*workers}:
            self._lose(worker, had.get(worker))
        for worker in workers:
            if worker in busy:
                continue
            while not self._is_stopping() and (state := self._choose_job(worker, len(workers))) is not None:
                if state.opened_at is None:
                    self._open(state)
                if images := self._take_images(state, worker, len(workers)):
                    self._submit(state, images, worker)
                    break

    def _open(self, state: JobState) -> None:
        state.opened_at = time.monotonic()
        if state.summary.problem:  # its networks were given up
            return
        try:
            state.images.extend(state.job.open())
        except DiskError as error:
            self.disk_problem = str(error)
            state.is_closed = True  # and not recorded, which would need the disk, too
            state.job.close()
        except StoreError as error:
            if isinstance(error, LockHeldError) and not self._is_started:
                raise  # another run has begun the same since the plan was made
            state.give_up(str(error))

    def _choose_job(self, worker: str, workers: int) -> JobState | None:
        candidates = [
            state for state in self._states if not state.is_closed and self._has_for(state, worker, workers)
        ]
        loaded = self._loaded.get(worker)
        if same := [state for state in candidates if state.job.key == loaded]:
            return same[0]
        served = [assignment.state.job.key for assignment in self._assignments.values()]
        if new := [state for state in candidates if state.job.key not in served]:
            return new[0]

        def left_for_each(state: JobState) -> float:
            pixels = state.images.pixels + sum(image.pixels for image in state.retry_alone)
            return pixels / (1 + served.count(state.job.key))

        return max(candidates, key=left_for_each, default=None)

    def _has_for(self, state: JobState, worker: str, workers: int) -> bool:
        """Return whether a job has images for this worker: suspects that it died on are for others."""
        if state.opened_at is None or state.images:
            return True
        return self._retries.suspect_for(state, worker, workers) is not None

    def _take_images(self, state: JobState, worker: str, workers: int) -> list[JobImage]:
        if suspect := self._retries.take_alone(state, worker, workers):
            return [suspect]
        if not state.images:
            return []
        speed = self._pixels_per_second.get(state.job.key)
        budget = BLOCK_SECONDS * speed if speed else None
        # Towards the end blocks become small, so that nobody waits long for the last one.
        share = state.images.pixels / (2 * workers) if workers > 1 else None
        taken, pixels = [state.images.take()], 0
        while state.images and len(taken) < (MAX_IMAGES if budget else FIRST_IMAGES):
            pixels += taken[-1].pixels
            with_next = pixels + state.images.first.pixels
            if (budget and with_next > budget) or (share and with_next > share):
                break
            taken.append(state.images.take())
        return taken

    def _submit(self, state: JobState, images: list[JobImage], worker: str) -> None:
        number = next(self._numbers)
        self._assignments[number] = Assignment(state, images, worker)
        state.running_blocks += 1
        state.had_blocks = True
        self._loaded[worker] = state.job.key
        self._progress.job(state.job.name, len(images), worker)
        self._pool.submit(number, state.job.block([image.path for image in images]), worker)

    def _handle_event(self, number: int, event: Event) -> None:
        assignment = self._assignments.get(number)
        if assignment is None:  # of a block that was taken from its worker
            return
        if isinstance(event, BlockStatus):
            assignment.show(self._progress, event.finished)
            assignment.status, assignment.heard_at = event, time.monotonic()
            return
        del self._assignments[number]
        assignment.state.running_blocks -= 1
        if isinstance(event, BlockResult):
            self._after_block(assignment, event)
        elif isinstance(event, WorkerDied):
            self._lose(assignment.worker, assignment)
            self._retries.after_death(assignment, event.deaths)
        else:
            raise event

    def _lose(self, worker: str, assignment: Assignment | None = None) -> None:
        """Say once that a worker is gone, when, and what it was working on."""
        if self._loaded.pop(worker, None) is None:
            return
        self._progress.drop(worker)
        if not self._pool.is_reachable or (assignment is not None and assignment.is_killed):
            return  # it may live, since its cluster does not answer; or it was ended on purpose
        at = datetime.now().astimezone().isoformat(timespec="seconds")
        had = "it had no image in work" if assignment is None else assignment.in_work()
        hint = self._pool.loss_hint(worker)
        say(f"worker {worker} was lost at {at}: {had}" + (f"; {hint}" if hint else ""))

    def _after_block(self, assignment: Assignment, result: BlockResult) -> None:
        state, worker = assignment.state, assignment.worker
        summary = state.summary
        left = set(result.left)
        finished = [image for image in assignment.images if image.path not in left]
        assignment.show(self._progress, len(finished))
        summary.done += len(finished) - sum(image.path in result.failed for image in finished)
        summary.failed |= result.failed
        summary.fallbacks |= result.fallbacks
        summary.others |= result.others
        for line in result.notes:
            if line not in self._noted:
                self._noted.add(line)
                say(line)
        summary.images_by_worker[worker] = summary.images_by_worker.get(worker, 0) + len(finished)
        for stage, seconds in result.times.items():
            summary.times[stage] = summary.times.get(stage, 0.0) + seconds
        if finished:
            state.losses_in_a_row = 0
        if finished and result.seconds > 0:
            self._pixels_per_second[state.job.key] = sum(image.pixels for image in finished) / result.seconds
        if result.disk_problem:
            self.disk_problem = self.disk_problem or result.disk_problem
        if result.network_problem:
            for one in self._states:
                if one.job.key == state.job.key and not one.is_closed:
                    one.give_up(result.network_problem)
        elif result.problem:
            state.give_up(result.problem)
        elif left and self._is_stopping():
            state.summary.interrupted = True
        elif left and not state.summary.problem:
            state.images.put_back(image for image in assignment.images if image.path in left)
