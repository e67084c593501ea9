"""Worker processes over Dask, on this machine or on others.

A `DaskWorkerPool` gives each worker one block at a time (resource ``GPU: 1``) and turns what Dask reports about
futures, workers and events into the events of `protocol`. Dask never holds more than one task per worker, so its
scheduler stays small, and a task that kills workers takes no others down with it. Every wait has a timeout.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from distributed import Client, Future, get_worker
from distributed.scheduler import KilledWorker

from ... import __version__
from ...errors import StoreError, TryAgainError, first_few, reason
from ..runtime.device import device_name
from ..runtime.progress import say
from ..storage.filesystem import parse_location, remove, size, write_bytes
from .pickled_call import pickle_call, run_pickled_call
from .protocol import Block, BlockResult, BlockStatus, Event, OnEvent, ProgressReporter, WorkerDied

RESOURCE = "GPU"
STATUS_SECONDS = 0.5
WAIT_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
START_SECONDS = 120.0
GONE_SECONDS = 60.0
WAITING_SECONDS = 60.0
THREADS_EACH = 4
QUIET = logging.CRITICAL + 1
_NEAR_LIMIT = 0.6  # Dask ends workers at 0.95; memory may grow fast
_MAX_DEATHS = 5  # of a worker that ends whenever it is asked: its memory limit ends it as soon as torch is imported
_MEMORY_ADVICE = "start workers with --memory-limit 0, since most of what they hold is not Dask's"

_stopped_runs: set[str] = set()


async def _stop_worker(run: str) -> None:  # a plain function would not run: Client.run(wait=False) is for coroutines
    _stopped_runs.add(run)


def _run_block(block: Block, run: str, number: int) -> BlockResult:
    """Dask's task: run a block, with a thread beside it that reports its status."""
    worker = get_worker()
    ended = threading.Event()
    report = ProgressReporter(lambda: run in _stopped_runs)

    def send_status() -> None:
        sent, sent_at = BlockStatus(-1), 0.0
        while not ended.wait(STATUS_SECONDS):
            status, now = report.status(), time.monotonic()
            changed = (status.finished, status.image) != (sent.finished, sent.image)
            if changed or now - sent_at >= HEARTBEAT_SECONDS:
                sent, sent_at = status, now
                worker.log_event(run, [number, status.finished, status.image, status.age])

    thread = threading.Thread(target=send_status, name="status", daemon=True)
    thread.start()
    try:
        return block.run(report)
    finally:
        ended.set()
        thread.join()


def describe_worker(required_paths: Sequence[str], marker: str | None) -> dict[str, Any]:
    """Describe this worker: versions, device, host, the ``required_paths`` that it misses, and if it sees the marker.

    ``marker`` is that of `output_marker`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": device,
        "model": device_name(torch.device(device)),
        "host": socket.gethostname(),
        "missing": [path for path in required_paths if not Path(path).exists()],
        "sees": _sees_marker(marker),
    }


def _sees_marker(marker: str | None) -> bool | str:
    """Return whether this worker sees the run's marker, or why it cannot be read."""
    if marker is None:
        return True
    try:
        return size(parse_location(marker)) is not None
    except (OSError, ValueError) as error:
        return reason(error)


def _memory_limit(worker: dict[str, Any]) -> str:
    return f"{worker['memory_limit'] / 2**20:.0f} MiB"


def no_answer(name: str, error: object, worker: dict[str, Any], where: str) -> str:
    """Say why a worker could not describe itself.

    Args:
        name: of the worker.
        error: came back instead of a description.
        worker: Dask's own description of it.
        where: completes "install it ...".
    """
    said = reason(error)
    if worker.get("memory_limit") and not isinstance(error, ImportError):
        return (
            f"worker {name}: ended before it could answer ({said}); it has a memory limit of "
            f"{_memory_limit(worker)}, at which Dask ends a worker; {_MEMORY_ADVICE}"
        )
    return f"worker {name}: cannot run hmsa-pipeline {__version__} ({said}); install it {where}"


class DaskWorkerPool(ABC):
    """Base of the pool that starts a cluster and of the pool that uses a running one."""

    dashboard: str | None = None

    def __init__(self, first_seconds: float = START_SECONDS, gone_seconds: float = GONE_SECONDS) -> None:
        self._first_seconds, self._gone_seconds = first_seconds, gone_seconds
        self._run = f"hmsa-{uuid.uuid4().hex[:12]}"
        self._client: Client | None = None
        self._events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        self._futures: dict[int, Future] = {}
        self._given: dict[int, str] = {}
        self._known: set[str] = set()
        self._addresses: dict[str, str] = {}
        self._workers: list[str] = []
        self._answered: dict[str, dict[str, Any]] = {}
        self._admitted: set[str] = set()
        self._limited: dict[str, dict[str, Any]] = {}
        self._paused: dict[str, dict[str, Any]] = {}
        self._required_paths: tuple[Path, ...] | None = None
        self._looked_at = self._alive_at = self._noted_at = 0.0

    @abstractmethod
    def describe(self) -> list[str]:
        """One line for people per worker that is there or will be started."""

    @abstractmethod
    def _connect(self) -> Client: ...

    @abstractmethod
    def _kill(self, name: str, address: str | None) -> None: ...

    @abstractmethod
    def _gone(self, seconds: float) -> None:
        """Raise the error that no worker has been there for so long."""

    def _say_waiting(self) -> None:
        """Say once a minute that no worker is there, where that may last."""
        now = time.monotonic()
        if now - self._noted_at > WAITING_SECONDS < self._gone_seconds:
            self._noted_at = now
            what = self._memory() or f"no worker with the resource {RESOURCE}=1 is there"
            say(f"{what}; waiting for one up to {self._gone_seconds:.0f} s")

    def loss_hint(self, worker: str) -> str | None:
        """Say that a worker was close to its memory limit when Dask last heard of it; None if it was not."""
        known = self._limited.get(worker)
        if known is None or known.get("metrics", {}).get("memory", 0) < _NEAR_LIMIT * known["memory_limit"]:
            return None
        return f"it was near its memory limit of {_memory_limit(known)}, at which Dask ends it; {_MEMORY_ADVICE}"

    def _is_one_starting(self) -> bool:
        """Return whether a worker process is being started, however long that takes."""
        return False

    def start(self, required_paths: tuple[Path, ...]) -> None:
        """Connect, and compare every worker with this process; StoreError if one does not fit, or misses a path."""
        client = self._open()
        for address, description in self._describe_workers(required_paths).items():
            if self._is_wanted(address, description):
                if problem := worker_problem(description, required_paths):
                    raise StoreError(problem)
                self._admitted.add(address)
        client.subscribe_topic(self._run, self._on_status)
        if self.dashboard:
            say(f"dashboard: {self.dashboard}")
        self._alive_at = time.monotonic()
        self._required_paths = required_paths

    @property
    def is_reachable(self) -> bool:
        """False while Dask's scheduler does not answer."""
        return self._client is not None and self._client.status == "running"

    def _is_wanted(self, address: str, description: dict[str, Any]) -> bool:
        """Return whether a worker that was there at the start computes on the run's device."""
        return True

    def _may_work(self, address: str, worker: dict[str, Any]) -> bool:
        """Return whether a worker that Dask's scheduler knows was checked, and may have blocks."""
        return True

    def _open(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _describe_workers(self, required_paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
        """Return address -> description of each worker that is there; wait for the first one."""
        client, end = self._open(), time.monotonic() + self._first_seconds
        local = [str(path) for path in required_paths[1:]]
        found: dict[str, dict[str, Any]] = {}
        deaths = Counter[str]()
        with output_marker(required_paths[0] if required_paths else None) as marker:
            while not found:
                known = self._scheduler_workers()
                if not known and time.monotonic() > end and not self._is_one_starting():
                    self._gone(self._first_seconds)
                if not known:
                    self._say_waiting()
                    time.sleep(0.05)
                    continue
                answers: Any = client.run(describe_worker, local, marker, workers=list(known), on_error="return")
                for address, answer in answers.items():
                    if isinstance(answer, dict):
                        found[address] = answer | {"name": str(known[address]["name"])}
                        continue
                    name = str(known[address]["name"])
                    deaths[name] += 1
                    limited = bool(known[address].get("memory_limit")) and not isinstance(answer, ImportError)
                    given_up = time.monotonic() > end or (limited and deaths[name] == _MAX_DEATHS)
                    # One that died in this moment is Dask's to start again, or the run's to miss.
                    if given_up or not (limited or isinstance(answer, OSError)):
                        problem = no_answer(name, answer, known[address], "where it runs")
                        raise TryAgainError(problem) if limited else StoreError(problem)
                    time.sleep(1.0)
        return found

    def _scheduler_workers(self) -> dict[str, dict[str, Any]]:
        """Return address -> what Dask's scheduler knows about each worker with our resource."""
        client: Any = self._client  # whose scheduler_info may list no workers: a timer that asks for none shares it
        if client is None or not self.is_reachable:
            return {}
        with contextlib.suppress(OSError):  # no answer: what it said last holds until the client notices
            self._answered = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=GONE_SECONDS)[
                "workers"
            ]
        fit = {a: w for a, w in self._answered.items() if w.get("resources", {}).get(RESOURCE, 0) >= 1}
        self._limited.update({str(w["name"]): w for w in fit.values() if w.get("memory_limit")})
        self._paused = {str(w["name"]): w for w in fit.values() if w.get("status") == "paused"}
        return {a: w for a, w in fit.items() if w.get("status", "running") == "running"}

    def _memory(self) -> str | None:
        """Say why workers may be missing, if Dask was told how much memory they may take."""
        for name, worker in self._paused.items():
            state = f"is paused: it takes most of its memory limit of {_memory_limit(worker)}"
            return f"worker {name} {state}; {_MEMORY_ADVICE}"
        for name, worker in self._limited.items():
            state = f"was there, and had a memory limit of {_memory_limit(worker)}, at which Dask ends it"
            return f"worker {name} {state}; {_MEMORY_ADVICE}"
        return None

    def workers(self) -> list[str]:
        """List the workers that are alive, looked up once a second."""
        now = time.monotonic()
        if now - self._looked_at > 1.0 or not self._workers:
            self._looked_at = now
            self._known = set(there := self._scheduler_workers())
            known = {a: w for a, w in there.items() if self._may_work(a, w)}
            self._addresses = {str(w["name"]): address for address, w in known.items()}
            self._workers = sorted(self._addresses, key=lambda name: (len(name), name))
        return self._workers

    def submit(self, number: int, block: Block, worker: str) -> None:
        """Give a block to a worker, or to another one if it dies first.

        Args:
            number, block, worker: see `WorkerPool.submit`.
        """
        call = pickle_call(_run_block, block, self._run, number)
        self._given[number] = self._addresses[worker]
        future = self._futures[number] = self._call(f"{number}", self._addresses[worker], call, elsewhere=True)
        future.add_done_callback(lambda ended: self._done(number, ended))

    def _call(self, key: str, address: str, call: bytes, *, elsewhere: bool = False) -> Future:
        """Make a pickled call in a worker that is idle, or ``elsewhere`` if it dies first."""
        return self._open().submit(
            run_pickled_call,
            call,
            key=f"{self._run}-{key}",
            workers=[address],
            allow_other_workers=elsewhere,
            resources={RESOURCE: 1},
            pure=False,
        )

    def _done(self, number: int, future: Future) -> None:
        if future.status == "finished":
            try:
                self._events.put((number, future.result(timeout=GONE_SECONDS)))
            except Exception:  # the worker that held the result died in this moment
                self._events.put((number, WorkerDied()))
        elif future.status == "error":
            error: Any = future.exception(timeout=GONE_SECONDS)
            if isinstance(error, KilledWorker):
                error = WorkerDied(error.allowed_failures + 1)
            self._events.put((number, error or RuntimeError(f"block {number} failed without a reason")))
        elif number in self._futures:  # lost, or cancelled from outside
            self._events.put((number, WorkerDied()))

    def _on_status(self, event: tuple[float, Any]) -> None:
        number, finished, image, age = event[1]
        self._events.put((number, BlockStatus(finished, image, age)))

    def wait(self, is_stopping: Callable[[], bool], on_event: OnEvent) -> None:
        """See `WorkerPool.wait`; no block runs in this process that would ask ``is_stopping``."""
        self._check_workers()
        with contextlib.suppress(queue.Empty):
            number, event = self._events.get(timeout=WAIT_SECONDS)
            while True:
                if not isinstance(event, BlockStatus):
                    self._futures.pop(number, None)
                if isinstance(event, WorkerDied):
                    self._looked_at = 0.0
                on_event(number, event)
                number, event = self._events.get_nowait()

    def _check_workers(self) -> None:
        """Notice when all workers are gone."""
        now = time.monotonic()
        if self.workers() or self._is_one_starting():
            self._alive_at = now
        elif now - self._alive_at > self._gone_seconds:
            self._gone(now - self._alive_at)
        else:
            self._say_waiting()

    def stop(self) -> None:
        """Ask all workers to end their blocks after the images in flight."""
        with contextlib.suppress(Exception):  # a worker that cannot be reached is noticed while waiting for it
            self._open().run(_stop_worker, self._run, on_error="ignore", wait=False)

    def kill(self, number: int) -> None:
        """Kill the process of the worker that has the block; a `WorkerDied` event follows."""
        future = self._futures.pop(number, None)
        if future is None:
            return
        owner = self._owner(future)
        with contextlib.suppress(Exception):
            future.cancel(force=True)
        if owner is not None:
            self._kill(*owner)
        self._looked_at = 0.0
        self._events.put((number, WorkerDied()))

    def _owner(self, future: Future) -> tuple[str, str] | None:
        with contextlib.suppress(Exception):
            keys: Any = self._open().processing()
            for name, address in self._addresses.items():
                if future.key in keys.get(address, ()):
                    return name, address
        return None

    def close(self) -> None:
        """Disconnect from the cluster."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close(timeout=5)
            self._client = None


def worker_problem(found: dict[str, Any], required_paths: Sequence[Path], device: str | None = None) -> str | None:
    """Say why a worker cannot do the run's blocks; None if it can.

    Args:
        found: what `describe_worker` returned, and its ``name``.
        required_paths: folders and files that it must reach, the output folder first.
        device: ``cpu`` or ``cuda``, what it computes on; None for either.
    """
    where = f"worker {found['name']} on {found['host']}"
    for what, label, mine in (("version", "hmsa-pipeline", __version__), ("torch", "torch", torch.__version__)):
        if found[what] != mine:
            return f"{where}: has {label} {found[what]}, this process {mine}; install the same"
    if device == "cuda" and found["device"] != "cuda":
        return f"{where}: has no GPU, and its logits would differ; use it in a run with --device cpu"
    if found["missing"]:
        return f"{where}: does not see {first_few(found['missing'], 2)}; share it with all machines"
    if isinstance(found["sees"], str):
        return f"{where}: cannot read {required_paths[0]} ({found['sees']}); fix that there"
    if not found["sees"]:
        return f"{where}: its {required_paths[0]} is another folder; share one with all machines"
    return None


@contextlib.contextmanager
def output_marker(folder: Path | None) -> Iterator[str | None]:
    """Write a file to the output that every worker has to see: two machines may each have a folder of that name."""
    if folder is None:
        yield None
        return
    path = folder / f".{uuid.uuid4().hex}.partial"
    write_bytes(path, b"here")
    try:
        yield str(path)
    finally:
        remove(path)


def silence_dask() -> None:
    """Silence Dask's log: it reports every lost connection in many lines, and the run says in one what matters."""
    for name in ("distributed", "tornado", "asyncio", *logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(QUIET)
