"""Hands blocks of images to workers, and sees to it that every image is done or listed, whatever happens to them.

What runs where, and when a worker is lost, is Dask's business (see `schedule`); here is decided which block
goes next, how large it is, and what becomes of images whose worker died or hangs:

* a worker keeps its model as long as images of it are left, then takes over from the largest rest;
* the images that a worker had in flight when it died are done again one by one, so that the one that kills
  workers is found, and only that one is given up, after its fourth worker;
* a worker that is in work on one image for too long is killed, and that image is listed.
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
MOST_IMAGES = 512
RESCHEDULED = 3
IN_FLIGHT = 32
"""At most so many images of a block are begun and not complete (see `dump`): the suspects when a worker dies."""
SILENCE_SECONDS = 300.0


@dataclass
class _JobState:
    work: Job
    tally: JobSummary = field(default_factory=JobSummary)
    opened: float | None = None
    ended: bool = False
    items: deque[JobImage] = field(default_factory=deque)
    singles: deque[JobImage] = field(default_factory=deque)
    deaths: dict[str, int] = field(default_factory=dict)
    died_on: dict[str, str] = field(default_factory=dict)
    given_up: int = 0
    running: int = 0
    was_given: bool = False

    @property
    def left(self) -> int:
        return sum(item.pixels for item in (*self.items, *self.singles))

    @property
    def has_more(self) -> bool:
        return self.opened is None or bool(self.items or self.singles)

    def give_up(self, problem: str) -> None:
        self.tally.problem = self.tally.problem or problem
        self.items.clear()
        self.singles.clear()


@dataclass
class _Assignment:
    job: _JobState
    items: list[JobImage]
    hand: Worker
    news: BlockStatus = field(default_factory=lambda: BlockStatus(0))
    heard: float = field(default_factory=time.monotonic)
    culprit: str | None = None
    killed: bool = False


def run_jobs(
    works: Sequence[Job],
    crew: WorkerPool,
    progress: Progress,
    ended: Callable[[int, JobSummary], None],
    *,
    places: tuple[Path, ...],
    patience: float,
) -> bool:
    """Do all works with the crew, which is started when the first image is to be done.

    Args:
        works: in the order in which they are begun.
        crew: who does them.
        progress: shows how far each worker is.
        ended: called with a work's position and what became of it, as soon as it ends.
        places: folders and files that every worker must reach.
        patience: seconds after which an image that is still in work is given up.

    Returns:
        whether the run was told to stop (by Ctrl-C or SIGTERM) before everything was done.

    Raises:
        DiskError: nothing more can be written; what is complete is kept.
        HmsaError: the crew is gone for good.
        KeyboardInterrupt: told to stop a second time, and at once.
    """
    with StopSignal() as stopping:
        foreman = _Scheduler(works, crew, progress, ended, places, patience, stopping)
        try:
            foreman.run()
        finally:
            foreman.close()
    if foreman.disk:
        raise DiskError(foreman.disk)
    return foreman.interrupted


class _Scheduler:
    def __init__(
        self,
        works: Sequence[Job],
        crew: WorkerPool,
        progress: Progress,
        ended: Callable[[int, JobSummary], None],
        places: tuple[Path, ...],
        patience: float,
        stopping: StopSignal,
    ) -> None:
        self._jobs = [_JobState(work) for work in works]
        self._crew, self._progress, self._ended = crew, progress, ended
        self._said: set[str] = set()
        self._places, self._patience, self._stopping = places, patience, stopping
        self._tickets: dict[int, _Assignment] = {}
        self._numbers = itertools.count()
        self._loaded: dict[str, str] = {}
        self._speed: dict[str, float] = {}
        self._started = self._told = False
        self.disk: str | None = None
        self.interrupted = False

    def run(self) -> None:
        while True:
            if self._halting():
                self._halt()
            else:
                self._hand_out()
            self._end_jobs()
            if not self._tickets and (self._halting() or all(job.ended for job in self._jobs)):
                break
            self._crew.wait(1.0, self._halting, self._hear)
            self._look_for_hangs()
        self.interrupted = self._stopping.requested and (
            any(job.tally.interrupted for job in self._jobs) or not all(job.ended for job in self._jobs)
        )

    def close(self) -> None:
        """Give back every lock, also after an exception."""
        for job in self._jobs:
            if job.opened is not None and not job.ended:
                job.work.close()

    def _halting(self) -> bool:
        return self._stopping.requested or self.disk is not None

    def _halt(self) -> None:
        for job in self._jobs:
            if job.opened is not None and job.has_more:
                job.tally.interrupted = True
                job.items.clear()
                job.singles.clear()
        if not self._told:
            self._told = True
            if self._stopping.requested:
                self._progress.note("interrupted: the images in flight are being finished")
            if self._tickets:
                self._crew.stop()

    def _end_jobs(self) -> None:
        for position, job in enumerate(self._jobs):
            if job.opened is None or job.ended or job.running or job.has_more:
                continue
            job.ended = True
            job.tally.seconds = time.monotonic() - job.opened
            if job.was_given:
                with contextlib.suppress(OSError):  # whoever opens it next tries again
                    job.work.sweep()
            job.work.close()
            self._ended(position, job.tally)

    def _hand_out(self) -> None:
        if not self._started:
            # Before anybody is started: what is complete, or in use elsewhere, needs no worker.
            self._open_until_there_is_work()
            if self._halting() or not any(job.opened is not None and job.has_more for job in self._jobs):
                return
            self._crew.start(self._places)
            self._started = True
        busy = {ticket.hand.name for ticket in self._tickets.values()}
        hands = self._crew.hands()
        for hand in hands:
            if hand.name in busy:
                continue
            while not self._halting() and (job := self._choose(hand)) is not None:
                if job.opened is None:
                    self._open(job)
                if items := self._take(job, hand, len(hands)):
                    self._submit(job, items, hand)
                    break
                if job.has_more:  # what is left killed this very worker's process, and others are there
                    break

    def _open_until_there_is_work(self) -> None:
        for job in self._jobs:
            if self._halting():
                return
            if job.opened is None:
                self._open(job)
            if job.items:
                return

    def _open(self, job: _JobState) -> None:
        job.opened = time.monotonic()
        try:
            job.items.extend(job.work.open())
        except DiskError as error:
            self.disk = str(error)
            job.ended = True  # and nothing is recorded of it, which would need the disk too
            job.work.close()
        except StoreError as error:
            job.give_up(str(error))

    def _choose(self, hand: Worker) -> _JobState | None:
        open_jobs = [job for job in self._jobs if not job.ended and job.has_more]
        loaded = self._loaded.get(hand.name)
        if same := [job for job in open_jobs if job.work.key == loaded]:
            return same[0]
        served = [ticket.job.work.key for ticket in self._tickets.values()]
        if new := [job for job in open_jobs if job.work.key not in served]:
            return new[0]
        return max(open_jobs, key=lambda job: job.left / (1 + served.count(job.work.key)), default=None)

    def _take(self, job: _JobState, hand: Worker, hands: int) -> list[JobImage]:
        for item in job.singles:
            if hands == 1 or job.died_on.get(item.path) != hand.name:
                job.singles.remove(item)
                return [item]
        if not job.items:
            return []
        speed = self._speed.get(job.work.key)
        budget = BLOCK_SECONDS * speed if speed else None
        # Towards the end blocks become small, so that nobody waits long for the last one.
        share = sum(item.pixels for item in job.items) / (2 * hands) if hands > 1 else None
        taken, pixels = [job.items.popleft()], 0
        while job.items and len(taken) < (MOST_IMAGES if budget else FIRST_IMAGES):
            pixels += taken[-1].pixels
            ahead = pixels + job.items[0].pixels
            if (budget and ahead > budget) or (share and ahead > share):
                break
            taken.append(job.items.popleft())
        return taken

    def _submit(self, job: _JobState, items: list[JobImage], hand: Worker) -> None:
        number = next(self._numbers)
        self._tickets[number] = _Assignment(job, items, hand)
        job.running += 1
        job.was_given = True
        self._loaded[hand.name] = job.work.key
        self._progress.job(job.work.name, len(items), hand.name)
        self._crew.submit(number, job.work.block([item.path for item in items]), hand)

    def _hear(self, event: Event) -> None:
        ticket = self._tickets.get(event.number)
        if ticket is None:  # of a block that was taken from its worker
            return
        if isinstance(event, BlockProgress):
            self._advance(ticket, event.news.settled)
            ticket.news, ticket.heard = event.news, time.monotonic()
            return
        del self._tickets[event.number]
        ticket.job.running -= 1
        if isinstance(event, BlockFinished):
            self._end_block(ticket, event)
        elif isinstance(event, WorkerDied):
            self._bury(ticket, event.times)
        elif isinstance(event, BlockRaised):
            raise event.error

    def _advance(self, ticket: _Assignment, settled: int) -> None:
        if settled > ticket.news.settled:
            self._progress.advance(settled - ticket.news.settled, ticket.hand.name)

    def _end_block(self, ticket: _Assignment, event: BlockFinished) -> None:
        outcome, job = event.outcome, ticket.job
        tally = job.tally
        left = set(outcome.left)
        settled = [item for item in ticket.items if item.path not in left]
        self._advance(ticket, len(settled))
        tally.done += len(settled) - sum(item.path in outcome.failed for item in settled)
        tally.failed |= outcome.failed
        tally.fallbacks |= outcome.fallbacks
        for line in outcome.notes:
            if line not in self._said:
                self._said.add(line)
                self._progress.note(line)
        tally.hands[ticket.hand.name] = tally.hands.get(ticket.hand.name, 0) + len(settled)
        for part, seconds in outcome.times.items():
            tally.times[part] = tally.times.get(part, 0.0) + seconds
        if settled:
            job.given_up = 0
        if settled and outcome.seconds > 0:
            self._speed[job.work.key] = sum(item.pixels for item in settled) / outcome.seconds
        if outcome.disk:
            self.disk = self.disk or outcome.disk
        if outcome.problem:
            job.give_up(outcome.problem)
        elif left:
            self._give_back(job, [item for item in ticket.items if item.path in left])

    def _give_back(self, job: _JobState, items: list[JobImage]) -> None:
        if self._halting():
            job.tally.interrupted = True
        elif not job.tally.problem:
            job.items.extendleft(reversed(items))

    def _bury(self, ticket: _Assignment, times: int) -> None:
        """What a dead worker left: complete images count, suspects are done one by one, the rest goes back."""
        job = ticket.job
        self._loaded.pop(ticket.hand.name, None)
        missing = set(job.work.incomplete(item.path for item in ticket.items if item.path not in job.tally.failed))
        rest = [item for item in ticket.items if item.path in missing and item.path != ticket.culprit]
        done = sum(item.path not in missing for item in ticket.items)
        self._advance(ticket, done)
        job.tally.done += done
        if done:
            job.given_up = 0
        if ticket.culprit in missing:
            self._list(
                job,
                str(ticket.culprit),
                f"was still in work after {self._patience:g} s, its worker was stopped; if it is only slow, raise "
                "--image-timeout",
            )
        elif len(rest) == 1 and len(ticket.items) == 1:
            self._died_alone(job, rest[0], ticket.hand, times)
            return
        suspects = [] if ticket.culprit else rest[:IN_FLIGHT]
        if self._halting() or job.tally.problem:
            job.tally.interrupted |= bool(rest)
            return
        for item in suspects:
            job.deaths[item.path] = job.deaths.get(item.path, 0) + times
            job.died_on[item.path] = ticket.hand.name
        job.singles.extend(suspects)
        job.items.extendleft(reversed(rest[len(suspects) :]))

    def _died_alone(self, job: _JobState, item: JobImage, hand: Worker, times: int) -> None:
        deaths = job.deaths[item.path] = job.deaths.get(item.path, 0) + times
        job.died_on[item.path] = hand.name
        if deaths <= RESCHEDULED:
            if self._halting():
                job.tally.interrupted = True
            else:
                job.singles.appendleft(item)
            return
        self._list(job, item.path, f"{deaths} workers died while it was made; is there enough memory for it?")
        job.given_up += 1
        if job.given_up >= RESCHEDULED and (job.items or job.singles):
            job.give_up(f"{job.work.name}: workers die whatever image they work on; look for a lack of memory there")

    def _list(self, job: _JobState, path: str, reason: str) -> None:
        job.tally.failed[path] = reason
        self._progress.advance()

    def _look_for_hangs(self) -> None:
        now = time.monotonic()
        for number, ticket in list(self._tickets.items()):
            silent = now - ticket.heard
            if ticket.killed:
                continue
            if ticket.news.image is not None and ticket.news.age + silent > self._patience:
                ticket.culprit = ticket.news.image
            elif silent <= max(SILENCE_SECONDS, self._patience):
                continue
            ticket.killed = True
            self._crew.kill(number)
