"""Workers in processes of their own, here or on other machines: the only file that knows Dask.

A `DaskCrew` gives each worker one block at a time (resource ``GPU: 1``) and turns what Dask says of futures,
workers and events into the events of `crew`. Dask never holds more than one task a worker, so its scheduler
stays small, and one task that kills workers takes no others down with it. Every wait has a timeout.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from distributed import Client, Future, get_worker
from distributed.scheduler import KilledWorker

from ... import __version__
from ...errors import StoreError, first_few
from ..runtime.device import device_name
from ..runtime.progress import say
from ..storage.filesystem import parse_location, remove, size, write_bytes
from .pickled_call import pickle_call, run_pickled_call
from .protocol import (
    Block,
    BlockFinished,
    BlockProgress,
    BlockRaised,
    BlockResult,
    BlockStatus,
    Event,
    ProgressReporter,
    Worker,
    WorkerDied,
)

RESOURCE = "GPU"
NEWS_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
START_SECONDS = 120.0
GONE_SECONDS = 60.0
THREADS_EACH = 4
QUIET = logging.CRITICAL + 1

# Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of a job: the run tells its workers.
_STOPS = {signal.SIGINT, signal.SIGTERM}


_stopped: set[str] = set()


def _stop_worker(run: str) -> None:
    _stopped.add(run)


def _run_block(block: Block, run: str, number: int) -> BlockResult:
    """The task: a block, with a thread beside it that says how far it is."""
    worker = get_worker()
    ended = threading.Event()
    report = ProgressReporter(lambda: run in _stopped)

    def tell() -> None:
        said, at = BlockStatus(-1), 0.0
        while not ended.wait(NEWS_SECONDS):
            news, now = report.news(), time.monotonic()
            if (news.settled, news.image) != (said.settled, said.image) or now - at >= HEARTBEAT_SECONDS:
                said, at = news, now
                worker.log_event(run, [number, worker.name, news.settled, news.image, news.age])

    thread = threading.Thread(target=tell, name="news", daemon=True)
    thread.start()
    try:
        return block.run(report)
    finally:
        ended.set()
        thread.join()


def describe_worker(places: Sequence[str], marker: str | None) -> dict[str, Any]:
    """What a worker is, and which of the places that the run needs it does not reach."""
    cuda = torch.cuda.is_available()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": "cuda" if cuda else "cpu",
        "model": device_name(torch.device("cuda" if cuda else "cpu")),
        "bf16": cuda and torch.cuda.is_bf16_supported(),
        "host": socket.gethostname(),
        "missing": [place for place in places if not Path(place).exists()],
        "sees": _sees_marker(marker),
    }


def _sees_marker(marker: str | None) -> bool | str:
    """Whether the run's marker is there for this worker, or why it cannot tell."""
    if marker is None:
        return True
    try:
        return size(parse_location(marker)) is not None
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "strerror", None) or error).split())


_MEMORY_ADVICE = "start workers with --memory-limit 0, since most of what they hold is not Dask's"


def _memory_limit(worker: dict[str, Any]) -> str:
    return f"{worker['memory_limit'] / 2**20:.0f} MiB"


def no_answer(name: str, reason: object, worker: dict[str, Any], where: str) -> str:
    """What is wrong with a worker that could not say what it is."""
    said = " ".join(str(reason).split()) or type(reason).__name__
    if worker.get("memory_limit") and not isinstance(reason, ImportError):
        return (
            f"worker {name}: ended before it could answer ({said}); it has a memory limit of "
            f"{_memory_limit(worker)}, at which Dask ends a worker; {_MEMORY_ADVICE}"
        )
    return f"worker {name}: cannot run hmsa-pipeline {__version__} ({said}); install it {where}"


class DaskWorkerPool(ABC):
    """What a cluster of our own and a running one have in common."""

    dashboard: str | None = None

    def __init__(self) -> None:
        self._run = f"hmsa-{uuid.uuid4().hex[:12]}"
        self._client: Client | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[int, Future] = {}
        self._addresses: dict[str, str] = {}
        self._hands: list[Worker] = []
        self._admitted: set[str] = set()
        self._limited: dict[str, dict[str, Any]] = {}
        self._paused: dict[str, dict[str, Any]] = {}
        self._looked = self._alive = 0.0
        self._said = 0.0

    # what differs

    @abstractmethod
    def describe(self) -> list[str]:
        """The workers there are or will be, a line each, for people."""

    @abstractmethod
    def _connect(self) -> Client: ...

    @abstractmethod
    def _kill(self, name: str, address: str | None) -> None: ...

    @abstractmethod
    def _gone(self, seconds: float) -> None:
        """Raise what says that nobody has been there for so long."""

    def _is_one_starting(self) -> bool:
        """Whether a worker is known to be on its way, however long it takes."""
        return False

    # the crew

    def start(self, places: tuple[Path, ...]) -> None:
        """Connect, see who is there, and hold every worker against this process.

        Raises:
            StoreError: a worker does not reach ``places``, or is of another version.
        """
        client = self._open()
        for address, found in self._ask(places).items():
            if problem := worker_problem(found, places):
                raise StoreError(problem)
            self._admitted.add(address)
        client.subscribe_topic(self._run, self._heard)
        if self.dashboard:
            say(f"dashboard: {self.dashboard}")
        self._alive = time.monotonic()

    def _may_work(self, address: str, worker: dict[str, Any]) -> bool:
        """Whether a worker that the scheduler knows is known to be what it has to be."""
        return True

    def _open(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _ask(self, places: Sequence[Path]) -> dict[str, dict[str, Any]]:
        """What each worker that is there says of itself, by address."""
        client, end = self._open(), time.monotonic() + START_SECONDS
        local = [str(path) for path in places[1:]]
        found: dict[str, dict[str, Any]] = {}
        with output_marker(places[0] if places else None) as marker:
            while not found:
                known = self._scheduler_workers()
                if not known and time.monotonic() > end and not self._is_one_starting():
                    self._gone(START_SECONDS)
                if not known:
                    time.sleep(0.05)
                    continue
                answers: Any = client.run(describe_worker, local, marker, workers=list(known), on_error="return")
                for address, answer in answers.items():
                    if isinstance(answer, dict):
                        found[address] = answer | {"name": str(known[address]["name"])}
                    # One that died in this moment is Dask's to start again, or the run's to miss.
                    elif not isinstance(answer, OSError) or time.monotonic() > end:
                        raise StoreError(
                            no_answer(str(known[address]["name"]), answer, known[address], "where it runs")
                        )
        return found

    def _scheduler_workers(self) -> dict[str, dict[str, Any]]:
        """Address -> what the scheduler knows of each worker that may do our work."""
        if self._client is None or self._client.status != "running":
            return {}
        known = self._client.scheduler_info(n_workers=-1)["workers"]
        fit = {a: w for a, w in known.items() if _has_resource(w)}
        self._limited.update({str(w["name"]): w for w in fit.values() if w.get("memory_limit")})
        self._paused = {str(w["name"]): w for w in fit.values() if w.get("status") == "paused"}
        return {a: w for a, w in fit.items() if w.get("status", "running") == "running"}

    def _memory(self) -> str | None:
        """Why workers may be missing, if Dask was told how much memory they may take."""
        if self._paused:
            name, worker = next(iter(self._paused.items()))
            return (
                f"worker {name} is paused: it takes most of its memory limit of {_memory_limit(worker)}; "
                f"{_MEMORY_ADVICE}"
            )
        if self._limited:
            name, worker = next(iter(self._limited.items()))
            return (
                f"worker {name} was there, and had a memory limit of {_memory_limit(worker)}, at which Dask ends it; "
                f"{_MEMORY_ADVICE}"
            )
        return None

    def hands(self) -> list[Worker]:
        """The workers that live now, looked up once a second."""
        now = time.monotonic()
        if now - self._looked > 1.0 or not self._hands:
            self._looked = now
            known = {a: w for a, w in self._scheduler_workers().items() if self._may_work(a, w)}
            self._addresses = {str(w["name"]): address for address, w in known.items()}
            self._hands = [Worker(str(w["name"]), host=str(w.get("host", ""))) for w in known.values()]
            self._hands.sort(key=lambda hand: (len(hand.name), hand.name))
        return self._hands

    def submit(self, number: int, block: Block, hand: Worker) -> None:
        """Give the block to a worker, or, should it die first, to another."""
        future = self._open().submit(
            run_pickled_call,
            pickle_call(_run_block, block, self._run, number),
            key=f"{self._run}-{number}",
            workers=[self._addresses[hand.name]],
            allow_other_workers=True,
            resources={RESOURCE: 1},
            pure=False,
        )
        self._futures[number] = future
        future.add_done_callback(lambda ended: self._done(number, ended))

    def _done(self, number: int, future: Future) -> None:
        if future.status == "finished":
            try:
                self._events.put(BlockFinished(number, future.result(timeout=GONE_SECONDS)))
            except Exception:  # the worker that held the result died in this moment
                self._events.put(WorkerDied(number, 1))
        elif future.status == "error":
            error: Any = future.exception(timeout=GONE_SECONDS)
            if isinstance(error, KilledWorker):
                self._events.put(WorkerDied(number, error.allowed_failures + 1))
            else:
                self._events.put(
                    BlockRaised(number, error or RuntimeError(f"block {number} failed without a reason"))
                )
        elif number in self._futures:  # lost, or cancelled by somebody else
            self._events.put(WorkerDied(number, 1))

    def _heard(self, event: tuple[float, Any]) -> None:
        number, hand, settled, image, age = event[1]
        self._events.put(BlockProgress(number, hand, BlockStatus(settled, image, age)))

    def wait(self, timeout: float, stop: Callable[[], bool], sink: Callable[[Event], None]) -> None:
        """See `Crew.wait`."""
        self._look_around()
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return
        while True:
            if isinstance(event, BlockFinished | BlockRaised | WorkerDied):
                self._futures.pop(event.number, None)
                self._looked = 0.0 if isinstance(event, WorkerDied) else self._looked
            sink(event)
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return

    def _look_around(self) -> None:
        now = time.monotonic()
        if self.hands() or self._is_one_starting():
            self._alive = now
        elif now - self._alive > GONE_SECONDS:
            self._gone(now - self._alive)

    def stop(self) -> None:
        """Ask all workers to end their blocks after the images in flight."""
        with contextlib.suppress(Exception):  # a worker that cannot be told is found by those who wait for it
            self._open().run(_stop_worker, self._run, on_error="ignore", wait=False)

    def kill(self, number: int) -> None:
        """End the worker's process; the block is said to have died."""
        future = self._futures.pop(number, None)
        if future is None:
            return
        owner = self._owner(future)
        with contextlib.suppress(Exception):
            future.cancel(force=True)
        if owner is not None:
            self._kill(*owner)
        self._looked = 0.0
        self._events.put(WorkerDied(number, 1))

    def _owner(self, future: Future) -> tuple[str, str] | None:
        with contextlib.suppress(Exception):
            at_work: Any = self._open().processing()
            for name, address in self._addresses.items():
                if future.key in at_work.get(address, ()):
                    return name, address
        return None

    def close(self) -> None:
        """Let the workers go."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close(timeout=5)
            self._client = None


def worker_problem(found: dict[str, Any], places: Sequence[Path], device: str | None = None) -> str | None:
    """Why a worker, as `_who` found it, cannot do the run's work; None if it can."""
    where = f"worker {found['name']} on {found['host']}"
    for what, label, mine in (("version", "hmsa-pipeline", __version__), ("torch", "torch", torch.__version__)):
        if found[what] != mine:
            return f"{where}: has {label} {found[what]}, this process {mine}; install the same"
    if device == "cuda" and found["device"] != "cuda":
        return f"{where}: has no GPU, and its logits would differ; use it in a run with --device cpu"
    if found["missing"]:
        return f"{where}: does not see {first_few(found['missing'], 2)}; share it with all machines"
    if isinstance(found["sees"], str):
        return f"{where}: cannot read {places[0]} ({found['sees']}); fix that there"
    if not found["sees"]:
        return f"{where}: its {places[0]} is another folder; share one with all machines"
    return None


def _has_resource(worker: dict[str, Any]) -> bool:
    return worker.get("resources", {}).get(RESOURCE, 0) >= 1


@contextlib.contextmanager
def output_marker(folder: Path | None) -> Iterator[str | None]:
    """A file in the output that every worker has to see: two machines may have a folder of one name each."""
    if folder is None:
        yield None
        return
    path = folder / f".{uuid.uuid4().hex}.partial"
    write_bytes(path, b"here")
    try:
        yield str(path)
    finally:
        remove(path)


@contextlib.contextmanager
def _blocking_stops() -> Iterator[None]:
    """Threads begun in here, and the processes that they begin, are not reached by Ctrl-C and SIGTERM.

    A worker imports for seconds before `_DEAF` is run in it, and would end with a traceback of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def silence_dask() -> None:
    """Dask tells of every lost connection in many lines; what matters of it the run says in one."""
    for name in ("distributed", "tornado", "asyncio", *logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(QUIET)
