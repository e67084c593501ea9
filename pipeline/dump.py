"""The stage ``dump``: photographs through models into stores, block by block (see `dump_block`)."""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import StoreError, disk_error
from ..files import PARTIAL
from .crew import Crew
from .dump_block import DumpBlock
from .figures import as_size
from .foreman import Item, Tally, run_works
from .lock import writer_lock
from .manifest import Manifest, Member
from .network_block import Setting
from .places import free_bytes, make_folder, remove, remove_partials, write_bytes
from .progress import Progress, say
from .record import record_gone, record_run
from .store import Identity, LogitStore, Photograph

_COMPRESSED = 1.5  # times smaller than raw, see docs/decisions.md


@dataclass(frozen=True)
class Job:
    """One model over one dataset.

    Attributes:
        member: whose network runs.
        dataset: the dataset's name.
        root: the folder that the photographs' paths are relative to.
        store: where the logits go.
        identity: what they are made with.
        photographs: the whole dataset, sorted; they make the table of images.
        limit: how many of them are dumped, from the first; None for all.
    """

    member: Member
    dataset: str
    root: Path
    store: Path
    identity: Identity
    photographs: tuple[Photograph, ...]
    limit: int | None = None

    @property
    def name(self) -> str:
        """``<dataset>/<model>``."""
        return f"{self.dataset}/{self.member.name}"

    @property
    def wanted(self) -> tuple[Photograph, ...]:
        """The photographs that are to be complete afterwards."""
        return self.photographs[: self.limit]


@dataclass(frozen=True)
class Plan:
    """Jobs in the order in which they are begun, the number of images complete in each, and on what.

    With ``overwrite`` the stores that are there are removed before the first job runs.
    """

    manifest: Manifest
    jobs: tuple[Job, ...]
    complete: tuple[int, ...]
    device: torch.device
    precision: str
    notes: tuple[str, ...]
    overwrite: bool = False

    @property
    def todo(self) -> int:
        """Images still to be made, over all jobs."""
        return sum(len(job.wanted) for job in self.jobs) - sum(self.complete)

    @property
    def bytes(self) -> int:
        """Bytes of raw logits still to be made, an upper bound of what will be written."""
        share = (1 - done / max(1, len(job.wanted)) for job, done in zip(self.jobs, self.complete, strict=True))
        return int(sum(s * _raw_bytes(job) for s, job in zip(share, self.jobs, strict=True)))

    def lines(self, workers: Sequence[str]) -> list[str]:
        """The plan for people.

        Args:
            workers: who would do it.
        """
        output = self.manifest.output
        free = free_bytes(output)
        room = "" if free is None else f", {as_size(free)} free there"
        return [
            *(
                f"{job.name}: {len(job.wanted) - done} to do, {done} complete"
                for job, done in zip(self.jobs, self.complete, strict=True)
            ),
            *(f"worker {worker}" for worker in workers),
            f"{self.todo} images to do on {self.device} in {self.precision}, at most {as_size(self.bytes)} to write "
            f"below {output}{room}",
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Job by job."""
        rows = zip(self.jobs, self.complete, strict=True)
        return [{"job": job.name, "images": len(job.wanted), "complete": done} for job, done in rows]


def _raw_bytes(job: Job) -> int:
    classes = len(job.identity.classes)
    return sum(2 * classes * p.size[0] * p.size[1] for p in job.wanted if p.size)


@dataclass
class JobResult:
    """What became of a job's photographs.

    Attributes:
        failed: path -> reason.
        fallbacks: path -> how an image was made that did not fit into the device's memory at first.
        settled: paths that are complete now.
        gone: paths that the store lists and the dataset no longer holds.
        problem: why the job could not be done at all; None if it was.
        hands: worker -> images that it settled.
        times: where the workers' time went: read, forward, write -> seconds.
    """

    job: Job
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    gone: frozenset[str] = frozenset()
    problem: str | None = None
    seconds: float = 0.0
    interrupted: bool = False
    hands: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its figures by name."""
        return {
            "job": self.job.name,
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "fallbacks": self.fallbacks,
            "problem": self.problem,
            "seconds": self.seconds,
            "times": self.times,
        }


def table(results: Sequence[JobResult]) -> list[str]:
    """What became of the jobs, a line each."""
    wide = max(len(result.job.name) for result in results)
    lines = [f"{'job':{wide}}  {'done':>7} {'before':>7} {'failed':>7} {'seconds':>9} {'images/s':>9}"]
    for r in results:
        rate = f"{r.done / r.seconds:9.2f}" if r.done and r.seconds else f"{'-':>9}"
        lines.append(
            f"{r.job.name:{wide}}  {r.done:7} {r.skipped:7} {len(r.failed):7} {r.seconds:9.1f} {rate}"
            + (f"  {r.problem}" if r.problem else "")
        )
    hands: Counter[str] = Counter()
    for r in results:
        hands.update(r.hands)
    if len(hands) > 1:
        lines.append("images by worker: " + ", ".join(f"{name} {count}" for name, count in sorted(hands.items())))
    return lines


_PARTS = {"read": "reading", "forward": "the forward pass", "write": "writing"}


def limited_by(times: Iterable[Mapping[str, float]]) -> str | None:
    """What kept the workers from being faster, in a line; None where nothing was done.

    Args:
        times: of any number of results.
    """
    total: Counter[str] = Counter()
    for one in times:
        total.update(one)
    whole = sum(total.values())
    if not whole:
        return None
    most = max(_PARTS, key=lambda part: total[part])
    shares = ", ".join(f"{name} {total[part] / whole:.0%}" for part, name in _PARTS.items())
    return f"limited by {_PARTS[most]} ({shares} of the workers' time)"


# ------------------------------------------------------------------ the run's side


def run_dump(
    plan: Plan, crew: Crew, ended: Callable[[JobResult], None], *, patience: float, threads: int | None = None
) -> list[JobResult]:
    """Run the plan's jobs with the crew, and keep what became of each in ``run.json``.

    A job whose store cannot be used has a ``problem``, and the others go on. After an interrupt the
    jobs that were not begun are left out and a result says ``interrupted``.

    Args:
        plan: the jobs.
        crew: who does them.
        ended: called with each job's result when it ends.
        patience: seconds after which an image that is still in work is given up.
        threads: of the CPU that each worker computes with; None for as many as it is set up for.

    Raises:
        DiskError: the disk cannot be written, or is nearly full; what is complete is kept.
        HmsaError: the workers are gone for good.
    """
    manifest = plan.manifest
    require_writable(manifest.output)
    if plan.overwrite:
        # All of them now: else the same command without the flag could not go on after an interruption.
        for job in plan.jobs:
            set_aside(job.store)
    setting = Setting.of(manifest.inference, plan.device, plan.precision, threads)
    works = [StoreWork(job, setting) for job in plan.jobs]
    results: list[JobResult] = []

    def ended_work(position: int, tally: Tally) -> None:
        result = works[position].result(tally)
        results.append(result)
        _record(plan, result)
        with progress.aside():
            ended(result)

    places = (manifest.output, *dict.fromkeys(job.root for job in plan.jobs), *_checkpoints(plan))
    if plan.todo and (short := _too_much(plan)):
        say(short)
    with Progress(plan.todo) as progress:
        interrupted = run_works(works, crew, progress, ended_work, places=places, patience=patience)
    if interrupted and not any(result.interrupted for result in results):
        results.append(JobResult(plan.jobs[-1], interrupted=True))
    return results


def require_writable(output: Path) -> None:
    """Raise StoreError unless files can be made in ``output``, which is made where it is missing."""
    try:
        make_folder(output)
        probe = output / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            write_bytes(probe, b"x")
        finally:
            remove(probe)
    except OSError as error:
        raise StoreError(
            f"{output}: cannot be written ({error.strerror or error}); choose another --output, or free it"
        ) from error


def _too_much(plan: Plan) -> str | None:
    """A word of warning where not all will fit on the disk, even compressed as logits usually are."""
    free = free_bytes(plan.manifest.output)
    if free is None or plan.bytes / _COMPRESSED <= free:
        return None
    return (
        f"{plan.manifest.output}: {as_size(free)} are free, about {as_size(plan.bytes / _COMPRESSED)} are needed; "
        "the run will stop before the disk is full, and go on by the same command once there is room"
    )


def _checkpoints(plan: Plan) -> list[Path]:
    return list(dict.fromkeys(job.member.checkpoint_path() for job in plan.jobs))


def _record(plan: Plan, result: JobResult) -> None:
    job, output = result.job, plan.manifest.output
    record_gone(output, job.dataset, result.gone, {photo.path for photo in job.photographs})
    record_run(
        output,
        "dump",
        job.name,
        plan.manifest.resolved(),
        failed=result.failed,
        looked_at=result.settled | result.gone | result.failed.keys(),
        idle=not result.done and not result.failed and not result.problem,
        images=len(job.wanted),
        done=result.done,
        skipped=result.skipped,
        problem=result.problem,
        interrupted=result.interrupted,
        seconds=round(result.seconds, 3),
        device=str(plan.device),
        precision=plan.precision,
        fallbacks=result.fallbacks,
        workers=result.hands,
        times={part: round(seconds, 3) for part, seconds in result.times.items()},
    )


def set_aside(store: Path) -> None:
    """Put a store out of the way, to be started over; StoreError if somebody works there."""
    try:
        with writer_lock(store):
            LogitStore.set_aside(store)
    except OSError as error:
        raise disk_error(store, error) from error


class StoreWork:
    """One job as the foreman sees it: the lock, the template, and blocks of the rows that are missing."""

    def __init__(self, job: Job, setting: Setting) -> None:
        self._job, self._setting = job, setting
        self._store: LogitStore | None = None
        self._held = contextlib.ExitStack()
        self._todo: list[str] = []
        self._skipped: set[str] = set()
        self._gone: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self._job.name

    @property
    def key(self) -> str:
        return self._job.member.name

    @property
    def gone(self) -> frozenset[str]:
        """Images that the opened store lists and the dataset no longer holds."""
        return self._gone

    def open(self) -> list[Item]:
        job = self._job
        self._token = self._held.enter_context(writer_lock(job.store))
        try:
            versions = {"package_version": __version__, "torch_version": torch.__version__}
            store = LogitStore.for_writing(job.store, job.identity, versions)
            store.register(job.photographs)
            complete = store.complete()
        except OSError as error:
            raise disk_error(job.store, error) from error
        self._store, self._writer = store, store.writer()
        self._gone = frozenset(store.index.keys() - {photo.path for photo in job.photographs})
        wanted = [store.index[photo.path] for photo in job.wanted]
        self._skipped = {store.images[i].path for i in wanted if complete[i]}
        todo = [store.images[i] for i in wanted if not complete[i]]
        self._todo = [entry.path for entry in todo]
        return [Item(entry.path, max(1, (entry.height or 0) * (entry.width or 0))) for entry in todo]

    def block(self, paths: Sequence[str]) -> DumpBlock:
        assert self._store is not None
        entries = tuple(self._store.images[self._store.index[path]] for path in paths)
        return DumpBlock(
            self._job.member,
            self._job.identity.sha256,
            self._job.root,
            self._writer,
            self._token,
            entries,
            self._setting,
            self._job.identity.exif,
        )

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        assert self._store is not None
        entries = [self._store.images[self._store.index[path]] for path in paths]
        return [entry.path for entry in self._writer.incomplete(entries)]

    def sweep(self) -> None:
        remove_partials(self._job.store)

    def close(self) -> None:
        self._held.close()

    def result(self, tally: Tally) -> JobResult:
        left = set(self.incomplete(self._todo)) if self._store is not None else set()
        return JobResult(
            self._job,
            done=tally.done,
            skipped=len(self._skipped),
            failed=tally.failed,
            fallbacks=tally.fallbacks,
            settled=self._skipped | (set(self._todo) - left),
            gone=self._gone,
            problem=tally.problem,
            seconds=tally.seconds,
            interrupted=tally.interrupted,
            hands=tally.hands,
            times=tally.times,
        )
