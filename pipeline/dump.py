"""The stage ``dump``: photographs through models into stores, block by block.

Within a block reading, forward pass and writing overlap: a few decoded photographs wait for the network, a
few logits for the disk, both counted in bytes, because one 4000 x 6000 photograph is 0.9 GB of logits.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..datasets.images import decode_image
from ..errors import CheckpointError, DatasetError, DiskError, StoreError, disk_error
from ..files import PARTIAL, sha256
from .block import Outcome, Report
from .crew import Crew
from .device import is_out_of_memory
from .figures import as_size
from .foreman import Item, Tally, run_works
from .lock import require_held, writer_lock
from .manifest import Manifest, Member, Tile
from .places import free_bytes, make_folder, remove, write_bytes
from .predictor import Predictor
from .progress import Progress, say
from .record import record_gone, record_run
from .store import Identity, ImageEntry, LogitStore, Photograph, ShardWriter

READ_BYTES = 256 * 2**20
WRITE_BYTES = 2**30
READERS = 2
WRITERS = 2
# Together with the one in the network fewer than `foreman.IN_FLIGHT`.
_DECODED = 4 * READERS
_WRITING = 8 * WRITERS
RESERVE_BYTES = 16 * 2**20
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
            _set_aside(job.store)
    setting = Setting(
        device=plan.device.type if plan.device.index is None else str(plan.device),
        precision=plan.precision,
        scales=manifest.inference.scales,
        flip=manifest.inference.flip,
        tile=manifest.inference.tile,
        threads=threads,
    )
    works = [_StoreWork(job, setting) for job in plan.jobs]
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
    )


def _set_aside(store: Path) -> None:
    try:
        with writer_lock(store):
            LogitStore.set_aside(store)
    except OSError as error:
        raise disk_error(store, error) from error


class _StoreWork:
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
        )

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        assert self._store is not None
        entries = [self._store.images[self._store.index[path]] for path in paths]
        return [entry.path for entry in self._writer.incomplete(entries)]

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
        )


# ------------------------------------------------------------------ the worker's side


@dataclass(frozen=True)
class Setting:
    """How a worker computes.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``, as the worker numbers its devices.
        precision: fp16, bf16 or fp32.
        scales: inference scales.
        flip: whether mirrored images are averaged in.
        tile: tiles for images that do not fit into the device's memory otherwise; None to give them up.
        threads: of the CPU, None to leave them as they are.
    """

    device: str
    precision: str
    scales: tuple[float, ...]
    flip: bool
    tile: Tile | None = None
    threads: int | None = None


class _Kept:
    """The network that this process used last: blocks of one model follow one another."""

    key: tuple[Setting, str | None] | None = None
    predictor: Predictor | None = None


def _predictor(setting: Setting, member: Member, digest: str | None) -> Predictor:
    """The network of ``member`` on the device; CheckpointError if its file is not what the run began with."""
    key = setting, digest
    if _Kept.key != key or _Kept.predictor is None:
        _Kept.key = _Kept.predictor = None  # before the next one needs the memory
        path = member.checkpoint_path()
        if not path.is_file() or sha256(path) != digest:
            raise CheckpointError(
                f"{path}: is not the file that the run began with, on this machine; all machines need the same one"
            )
        _Kept.predictor = Predictor(
            torch.device(setting.device), setting.precision, setting.scales, setting.flip, setting.tile
        )
        _Kept.key = key
    _Kept.predictor.load(member)
    return _Kept.predictor


class ByteBudget:
    """Bounds the bytes and the items that wait in a queue; one item larger than the bound may pass alone."""

    def __init__(self, limit: int, items: int = _WRITING) -> None:
        self._limit, self._used = limit, 0
        self._items, self._held = items, 0
        self._freed = threading.Condition()

    def acquire(self, count: int) -> None:
        """Wait until ``count`` bytes fit."""
        with self._freed:
            self._freed.wait_for(
                lambda: self._held == 0 or (self._used + count <= self._limit and self._held < self._items)
            )
            self._used += count
            self._held += 1

    def release(self, count: int) -> None:
        """Give ``count`` bytes back."""
        with self._freed:
            self._used -= count
            self._held -= 1
            self._freed.notify_all()


@dataclass(frozen=True)
class DumpBlock:
    """Some images of one job.

    Attributes:
        member: whose network runs.
        digest: sha256 of its checkpoint.
        root: the folder that the photographs' paths are relative to.
        writer: writes into the store, whose template stands.
        token: of the run's lock on the store.
        entries: the images.
        setting: how they are computed.
    """

    member: Member
    digest: str | None
    root: Path
    writer: ShardWriter
    token: str
    entries: tuple[ImageEntry, ...]
    setting: Setting

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.entries)

    def run(self, report: Report) -> Outcome:
        """Make every image complete that is not; one that fails is tried once more, then listed."""
        begun = time.monotonic()
        if self.setting.threads is not None:
            torch.set_num_threads(self.setting.threads)
        todo = self.writer.incomplete(self.entries)
        for _ in range(len(self.entries) - len(todo)):
            report.settle()
        outcome = Outcome()
        try:
            if todo:
                with report.at_work(self.member.name):
                    predictor = _predictor(self.setting, self.member, self.digest)
                for _ in ("first try", "second"):
                    failed = self._make(todo, predictor, report, outcome)
                    todo = [entry for entry in todo if entry.path in failed]
                    outcome.failed = failed
                    if not todo or report.stopping:
                        break
            for _ in outcome.failed:
                report.settle()
        except _LostError as error:
            outcome.problem = str(error)
        except DiskError as error:
            outcome.disk = str(error)
        outcome.left = tuple(
            entry.path for entry in self.writer.incomplete([e for e in self.entries if e.path not in outcome.failed])
        )
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _make(
        self, todo: Sequence[ImageEntry], predictor: Predictor, report: Report, outcome: Outcome
    ) -> dict[str, str]:
        """Make the images, as far as the run is not told to stop; path -> reason of those that failed."""
        budget = ByteBudget(WRITE_BYTES, _WRITING)
        writes: dict[Future[None], str] = {}
        failed: dict[str, str] = {}

        def collect(finished: Iterable[Future[None]]) -> None:
            for future in finished:
                path = writes.pop(future)
                try:
                    future.result()
                except (_LostError, DiskError):
                    raise
                except StoreError as error:
                    failed[path] = str(error)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failed[path] = "its logits do not fit into memory"
                except OSError as error:
                    raise disk_error(self.writer.path, error) from error
                else:
                    report.settle()

        def write(entry: ImageEntry, logits: Tensor) -> None:
            try:
                with report.at_work(entry.path):
                    self._write(entry, logits)
            finally:
                budget.release(logits.nbytes)

        with ThreadPoolExecutor(READERS, "read") as readers, ThreadPoolExecutor(WRITERS, "write") as writers:
            try:
                for entry, image in self._decoded(todo, readers, report):
                    if report.stopping:
                        break
                    if isinstance(image, DatasetError):
                        failed[entry.path] = str(image)
                        continue
                    try:
                        with report.at_work(entry.path):
                            logits, fallback = predictor(image)
                    except (RuntimeError, MemoryError) as error:
                        if not is_out_of_memory(error):
                            raise
                        failed[entry.path] = f"{entry.height}x{entry.width} does not fit into the device's memory"
                        continue
                    if fallback is not None:
                        outcome.fallbacks[entry.path] = fallback
                    budget.acquire(logits.nbytes)
                    writes[writers.submit(write, entry, logits)] = entry.path
                    collect([future for future in writes if future.done()])
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
                while writes:
                    collect(wait(writes, return_when=FIRST_COMPLETED).done)
        return failed

    def _write(self, entry: ImageEntry, logits: Tensor) -> None:
        free = free_bytes(self.writer.path)
        # Others may write at the same time, as many bytes each.
        needed = RESERVE_BYTES + 4 * WRITERS * logits.nbytes
        if free is not None and free < needed:
            raise DiskError(
                f"{self.writer.path}: only {as_size(free)} are free on its disk, too few to go on safely; "
                "free some space and run the same command again, what is complete is kept"
            )
        try:
            require_held(self.writer.path, self.token)
        except StoreError as error:
            raise _LostError(str(error)) from error
        self.writer.write(entry, logits.cpu().numpy())

    def _decoded(
        self, todo: Sequence[ImageEntry], readers: ThreadPoolExecutor, report: Report
    ) -> Iterator[tuple[ImageEntry, Tensor | DatasetError]]:
        """The images in order, decoded ahead of the network as far as the memory for it goes."""
        waiting: deque[tuple[ImageEntry, int, Future[Tensor | DatasetError]]] = deque()
        held = 0
        for entry in todo:
            size = 3 * (entry.height or 0) * (entry.width or 0)
            while waiting and (held + size > READ_BYTES or len(waiting) >= _DECODED):
                first, first_size, future = waiting.popleft()
                yield first, future.result()
                held -= first_size
            held += size
            waiting.append((entry, size, readers.submit(self._decode, entry, report)))
        for entry, _, future in waiting:
            yield entry, future.result()

    def _decode(self, entry: ImageEntry, report: Report) -> Tensor | DatasetError:
        path = self.root / entry.path
        try:
            with report.at_work(entry.path):
                image = decode_image(path)
        except DatasetError as error:
            return error
        except MemoryError:
            return DatasetError(f"{path}: does not fit into memory")
        if tuple(image.shape[1:]) != (entry.height, entry.width):
            return DatasetError(
                f"{path}: is {image.shape[1]}x{image.shape[2]} and was {entry.height}x{entry.width} "
                "when the store was begun; put the old file back, or start afresh with --overwrite"
            )
        return image


class _LostError(StoreError):
    """The lock of the store is no longer the run's: nothing more may be written there."""
