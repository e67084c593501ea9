"""Workers in processes of their own, here or on other machines: the only file that knows Dask.

A `DaskCrew` gives each worker one block at a time (resource ``GPU: 1``) and turns what Dask says of futures,
workers and events into the events of `crew`. Dask never holds more than one task a worker, so its scheduler
stays small, and one task that kills workers takes no others down with it. Every wait has a timeout.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import signal
import socket
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from dask import config as dask_config
from distributed import Client, Future, Nanny, Scheduler, SpecCluster, Status, get_worker
from distributed.scheduler import KilledWorker
from distributed.utils import LoopRunner

from .. import __version__
from ..errors import HmsaError, ManifestError, StoreError, first_few
from .block import Block, News, Outcome, Report
from .crew import Alone, Crew, Died, Ended, Event, Hand, Heard, Raised
from .device import device_name, resolve_devices
from .parcel import opened, packed
from .places import place, remove, size, write_bytes
from .progress import say

RESOURCE = "GPU"
NEWS_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
START_SECONDS = 120.0
CONNECT_SECONDS = 30.0
LOST_SECONDS = 10.0
GONE_SECONDS = 60.0
STARTS = 8
"""So many processes that a worker begins one after another, of which none gets ready, are no slow start any more."""
THREADS_EACH = 4
_QUIET = logging.CRITICAL + 1

# Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of a job: the run tells its workers.
_STOPS = {signal.SIGINT, signal.SIGTERM}
_DEAF = "import signal\nfor s in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(s, signal.SIG_IGN)\n"


def hire(
    device: str = "auto", *, workers: int | None = None, scheduler: str | None = None, needs_gpu: bool = True
) -> tuple[Crew, torch.device, int | None]:
    """The crew that the command line asks for, not started yet unless it is a running cluster's.

    Args:
        device: see `resolve_devices`; for a running cluster ``auto``, ``cpu`` or ``cuda``.
        workers: processes on the CPU; 0 to work in this process; None for one per GPU, or one.
        scheduler: address (``tcp://host:port``) or scheduler file of a running cluster; None for one of our own.
        needs_gpu: whether the work gains by a GPU; without one workers are counted by CPU threads.

    Returns:
        the crew, the device as its workers see it, and the CPU threads of each (None to leave them alone).

    Raises:
        ManifestError: the options contradict one another, or what they name is not there.
        StoreError: the scheduler cannot be reached, has no workers, or they are of another version.
    """
    if scheduler is not None:
        if workers is not None:
            raise ManifestError("--workers: a running cluster has its own; leave it out, or leave --scheduler out")
        crew = _Running(scheduler, device)
        return crew, torch.device(crew.device), None
    devices = resolve_devices(device)
    if devices[0].type == "cuda" and needs_gpu:
        if workers not in (None, 0, len(devices)):
            raise ManifestError(
                f"--workers {workers}: there is one worker per GPU; name them, as in --device cuda:0,2, or use "
                "--device cpu"
            )
        if workers == 0:
            return Alone(str(devices[0])), devices[0], None
        return _Local([_visible(one) for one in devices], None), torch.device("cuda"), None
    cpu = torch.device("cpu")
    if workers == 0:
        return Alone(device_name(cpu)), cpu, None
    count = workers or (1 if needs_gpu else max(1, torch.get_num_threads() // THREADS_EACH))
    threads = max(1, torch.get_num_threads() // count)
    return _Local([("cpu" if count == 1 else f"cpu{n}", "") for n in range(count)], threads), cpu, threads


def _visible(device: torch.device) -> tuple[str, str]:
    """A GPU's name here, and what CUDA_VISIBLE_DEVICES has to be for a process that is to see only it."""
    index = device.index or 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return f"gpu{index}", named[index] if index < len(named) else str(index)


# ------------------------------------------------------------------ the worker's side

_stopped: set[str] = set()


def _stop_here(run: str) -> None:
    _stopped.add(run)


def _do(block: Block, run: str, number: int) -> Outcome:
    """The task: a block, with a thread beside it that says how far it is."""
    worker = get_worker()
    ended = threading.Event()
    report = Report(lambda: run in _stopped)

    def tell() -> None:
        said, at = News(-1), 0.0
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


def _who(places: Sequence[str], marker: str | None) -> dict[str, Any]:
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
        "sees": _sees(marker),
    }


def _sees(marker: str | None) -> bool | str:
    """Whether the run's marker is there for this worker, or why it cannot tell."""
    if marker is None:
        return True
    try:
        return size(place(marker)) is not None
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "strerror", None) or error).split())


# ------------------------------------------------------------------ the run's side

_LIFT = "start workers with --memory-limit 0, since most of what they hold is not Dask's"


def _limit(worker: dict[str, Any]) -> str:
    return f"{worker['memory_limit'] / 2**20:.0f} MiB"


def _no_answer(name: str, reason: object, worker: dict[str, Any], where: str) -> str:
    """What is wrong with a worker that could not say what it is."""
    said = " ".join(str(reason).split()) or type(reason).__name__
    if worker.get("memory_limit") and not isinstance(reason, ImportError):
        return (
            f"worker {name}: ended before it could answer ({said}); it has a memory limit of {_limit(worker)}, at "
            f"which Dask ends a worker; {_LIFT}"
        )
    return f"worker {name}: cannot run hmsa-pipeline {__version__} ({said}); install it {where}"


class DaskCrew(ABC):
    """What a cluster of our own and a running one have in common."""

    dashboard: str | None = None

    def __init__(self) -> None:
        self._run = f"hmsa-{uuid.uuid4().hex[:12]}"
        self._client: Client | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[int, Future] = {}
        self._addresses: dict[str, str] = {}
        self._hands: list[Hand] = []
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
            if problem := _problem(found, places):
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
        with _marker(places[0] if places else None) as marker:
            while not found:
                known = self._scheduler_workers()
                if not known and time.monotonic() > end and not self._is_one_starting():
                    self._gone(START_SECONDS)
                if not known:
                    time.sleep(0.05)
                    continue
                answers: Any = client.run(_who, local, marker, workers=list(known), on_error="return")
                for address, answer in answers.items():
                    if isinstance(answer, dict):
                        found[address] = answer | {"name": str(known[address]["name"])}
                    # One that died in this moment is Dask's to start again, or the run's to miss.
                    elif not isinstance(answer, OSError) or time.monotonic() > end:
                        raise StoreError(
                            _no_answer(str(known[address]["name"]), answer, known[address], "where it runs")
                        )
        return found

    def _scheduler_workers(self) -> dict[str, dict[str, Any]]:
        """Address -> what the scheduler knows of each worker that may do our work."""
        if self._client is None or self._client.status != "running":
            return {}
        known = self._client.scheduler_info(n_workers=-1)["workers"]
        fit = {a: w for a, w in known.items() if _fits(w)}
        self._limited.update({str(w["name"]): w for w in fit.values() if w.get("memory_limit")})
        self._paused = {str(w["name"]): w for w in fit.values() if w.get("status") == "paused"}
        return {a: w for a, w in fit.items() if w.get("status", "running") == "running"}

    def _memory(self) -> str | None:
        """Why workers may be missing, if Dask was told how much memory they may take."""
        if self._paused:
            name, worker = next(iter(self._paused.items()))
            return f"worker {name} is paused: it takes most of its memory limit of {_limit(worker)}; {_LIFT}"
        if self._limited:
            name, worker = next(iter(self._limited.items()))
            return (
                f"worker {name} was there, and had a memory limit of {_limit(worker)}, at which Dask ends it; {_LIFT}"
            )
        return None

    def hands(self) -> list[Hand]:
        """The workers that live now, looked up once a second."""
        now = time.monotonic()
        if now - self._looked > 1.0 or not self._hands:
            self._looked = now
            known = {a: w for a, w in self._scheduler_workers().items() if self._may_work(a, w)}
            self._addresses = {str(w["name"]): address for address, w in known.items()}
            self._hands = [Hand(str(w["name"]), host=str(w.get("host", ""))) for w in known.values()]
            self._hands.sort(key=lambda hand: (len(hand.name), hand.name))
        return self._hands

    def submit(self, number: int, block: Block, hand: Hand) -> None:
        """Give the block to a worker, or, should it die first, to another."""
        future = self._open().submit(
            opened,
            packed(_do, block, self._run, number),
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
                self._events.put(Ended(number, future.result(timeout=GONE_SECONDS)))
            except Exception:  # the worker that held the result died in this moment
                self._events.put(Died(number, 1))
        elif future.status == "error":
            error: Any = future.exception(timeout=GONE_SECONDS)
            if isinstance(error, KilledWorker):
                self._events.put(Died(number, error.allowed_failures + 1))
            else:
                self._events.put(Raised(number, error or RuntimeError(f"block {number} failed without a reason")))
        elif number in self._futures:  # lost, or cancelled by somebody else
            self._events.put(Died(number, 1))

    def _heard(self, event: tuple[float, Any]) -> None:
        number, hand, settled, image, age = event[1]
        self._events.put(Heard(number, hand, News(settled, image, age)))

    def wait(self, timeout: float, stop: Callable[[], bool], sink: Callable[[Event], None]) -> None:
        """See `Crew.wait`."""
        self._look_around()
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return
        while True:
            if isinstance(event, Ended | Raised | Died):
                self._futures.pop(event.number, None)
                self._looked = 0.0 if isinstance(event, Died) else self._looked
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
            self._open().run(_stop_here, self._run, on_error="ignore", wait=False)

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
        self._events.put(Died(number, 1))

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


def _problem(found: dict[str, Any], places: Sequence[Path], device: str | None = None) -> str | None:
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


def _fits(worker: dict[str, Any]) -> bool:
    return worker.get("resources", {}).get(RESOURCE, 0) >= 1


@contextlib.contextmanager
def _marker(folder: Path | None) -> Iterator[str | None]:
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


def _begun(scheduler: dict[str, Any], workers: dict[str, Any], runner: LoopRunner) -> SpecCluster:
    """The cluster with all its workers; one that was killed while it started is started again."""
    for last in (False, False, True):
        try:
            return SpecCluster(scheduler=scheduler, workers=workers, loop=runner.loop)
        except (RuntimeError, OSError, TimeoutError) as error:
            if last:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise HmsaError(f"worker processes cannot be started ({reason}); --workers 0 needs none") from error
    raise AssertionError


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


def _silence() -> None:
    """Dask tells of every lost connection in many lines; what matters of it the run says in one."""
    for name in ("distributed", "tornado", "asyncio", *logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(_QUIET)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Python's helper process, begun in here, says nothing of what killed workers left behind."""
    before = os.environ.get("PYTHONWARNINGS")
    silent = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ["PYTHONWARNINGS"] = f"{before},{silent}" if before else silent
    try:
        resource_tracker.ensure_running()
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


class _Local(DaskCrew):
    """A cluster of our own on this machine: one process per device, gone with this process."""

    def __init__(self, devices: Sequence[tuple[str, str]], threads: int | None) -> None:
        super().__init__()
        self._devices, self._threads = devices, threads
        self._cluster: SpecCluster | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._settings = contextlib.ExitStack()
        self._begun: dict[str, set[Any]] = {}
        self._missing: dict[str, float] = {}

    def describe(self) -> list[str]:
        """Name, device and threads of each, although none is started."""
        if self._threads is not None:
            return [f"{name}: CPU, {self._threads} threads" for name, _ in self._devices]
        return [
            f"{name}: {device_name(torch.device('cuda', int(name.removeprefix('gpu'))))}" for name, _ in self._devices
        ]

    def _connect(self) -> Client:
        self._scratch = tempfile.TemporaryDirectory(prefix="hmsa-", ignore_cleanup_errors=True)
        _silence()
        has_dashboard = importlib.util.find_spec("bokeh") is not None
        number = self._threads or max(1, torch.get_num_threads() // len(self._devices))
        plain = {name: str(number) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        workers = {
            name: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "resources": {RESOURCE: 1},
                    # What Dask would kill a worker for is not what Dask holds.
                    "memory_limit": 0,
                    "local_directory": self._scratch.name,
                    "silence_logs": _QUIET,
                    "preload": [_DEAF],
                    "env": plain | {"CUDA_VISIBLE_DEVICES": visible, "PYTHONSAFEPATH": "1"},
                },
            }
            for name, visible in self._devices
        }
        options = {
            "host": "127.0.0.1",
            "dashboard": has_dashboard,
            "dashboard_address": "127.0.0.1:0",
            # We know better than Dask which image to try again.
            "allowed_failures": 0,
        }
        quick = {
            "distributed.admin.low-level-log-length": 100,
            # It keeps an hour of call stacks in every worker, 0.2 MiB a second.
            "distributed.worker.profile.enabled": False,
            # Dask's own MALLOC_TRIM_THRESHOLD_ gives memory back after every layer: 2.6 times slower on a CPU.
            "distributed.nanny.pre-spawn-environ": plain,
        }
        # Else Dask closes for good the worker whose next process is not ready 15 s after the death of the last one.
        # It looks when that happens, so the setting holds as long as the crew.
        self._settings.enter_context(dask_config.set({"distributed.deploy.lost-worker-timeout": "3650 days"}))
        with dask_config.set(quick), _without_warnings():
            runner = LoopRunner()
            with _blocking_stops():
                runner.start()
            self._settings.callback(runner.stop)
            self._cluster = _begun({"cls": Scheduler, "options": options}, workers, runner)
            self.dashboard = self._cluster.dashboard_link if has_dashboard else None
            return Client(self._cluster, timeout=START_SECONDS, set_as_default=False)

    def _kill(self, name: str, address: str | None) -> None:
        # The process may not answer; its nanny starts another one.
        nanny: Any = self._cluster.workers.get(name) if self._cluster else None
        if nanny is not None and nanny.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nanny.pid, 9)

    def _look_around(self) -> None:
        ready = {hand.name for hand in self.hands()}
        for name in ready:
            self._begun.pop(name, None)
        self._begin_again(ready)
        super()._look_around()

    def _begin_again(self, ready: set[str]) -> None:
        """A nanny that could not start its process gives up; another one tries again, a few times."""
        cluster = self._cluster
        if cluster is None:
            return
        ended = [
            (name, nanny)
            for name, nanny in list(cluster.workers.items())
            if name not in ready and nanny.status in (Status.closed, Status.failed)
        ]
        for name, nanny in ended:
            begun = self._begun.setdefault(str(name), set())
            if len(begun) < STARTS:
                begun.add(nanny)  # itself: the number of one that is gone is given to the next
                del cluster.workers[name]
        if any(name not in cluster.workers for name, _ in ended):
            cluster.scale(len(cluster.worker_spec))  # it makes those that are missing

    def _is_one_starting(self) -> bool:
        cluster = self._cluster
        if cluster is None:
            return False
        for name in cluster.worker_spec:
            nanny: Any = cluster.workers.get(name)
            begun = self._begun.setdefault(str(name), set())
            process = None if nanny is None else nanny.process
            if process is not None and process.status == Status.starting:
                begun.add(process.pid)
                starting = True
            elif nanny is None:
                starting = time.monotonic() - self._missing.setdefault(str(name), time.monotonic()) < START_SECONDS
            else:
                starting = False
            if nanny is not None:
                self._missing.pop(str(name), None)
            if starting and len(begun) < STARTS:
                return True
        return False

    def _gone(self, seconds: float) -> None:
        raise HmsaError(
            f"no worker process is left or could be started for {seconds:.0f} s; look for a lack of memory, or see "
            "what happens with --workers 0"
        )

    def close(self) -> None:
        """Let the workers go."""
        super().close()
        if self._cluster is not None:
            with contextlib.suppress(Exception):
                self._cluster.close(timeout=5)
            self._cluster = None
        self._settings.close()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


class _Running(DaskCrew):
    """A cluster that somebody else started: a batch system, Kubernetes, or ``dask worker`` by hand."""

    def __init__(self, scheduler: str, device: str) -> None:
        super().__init__()
        self._address = scheduler
        self._answered = time.monotonic()
        self._asked: set[str] = set()
        self._questions: dict[str, Future] = {}
        self._places: tuple[Path, ...] | None = None
        self._client = self._connect()
        found = {answer["name"]: answer for answer in self._ask(()).values()}
        kinds = {name: answer["device"] for name, answer in found.items()}
        if device not in ("auto", "cpu", "cuda"):
            raise ManifestError(
                f"--device {device}: on a running cluster each worker has its own; use auto, cpu or cuda"
            )
        self.device = device if device != "auto" else ("cuda" if set(kinds.values()) == {"cuda"} else "cpu")
        without = [name for name, kind in kinds.items() if kind != "cuda"]
        if device == "auto" and "cuda" in kinds.values() and without:
            raise ManifestError(
                f"--device auto: some workers have a GPU and some have none ({first_few(without, 3)}), and their "
                "logits would differ; stop those, or use --device cpu"
            )
        if self.device == "cuda" and without:
            raise ManifestError(f"--device cuda: workers {first_few(without, 3)} have none; use --device cpu")
        self.found = found

    def start(self, places: tuple[Path, ...]) -> None:
        """See `DaskCrew.start`; of workers that come later those that do not fit are left out, and said so."""
        super().start(places)
        self._places = places

    def _may_work(self, address: str, worker: dict[str, Any]) -> bool:
        if self._places is None or address in self._admitted:
            return True
        if address not in self._asked:
            self._asked.add(address)
            self._question(address, str(worker["name"]))
        return False

    def _question(self, address: str, name: str) -> None:
        """Ask a worker that has just come what it is, without waiting for it."""
        assert self._places is not None
        places = self._places
        marked = contextlib.ExitStack()
        marker = marked.enter_context(_marker(places[0] if places else None))

        def answered(future: Future) -> None:
            with contextlib.suppress(OSError):
                marked.close()
            self._questions.pop(address, None)
            if future.status == "finished":
                problem = _problem(future.result(timeout=GONE_SECONDS) | {"name": name}, places, self.device)
            elif future.status == "error":
                reason = future.exception(timeout=GONE_SECONDS)
                problem = _no_answer(name, reason, self._limited.get(name, {}), "there")
            else:  # it is gone, and will be asked again if it comes back
                self._asked.discard(address)
                return
            if problem is None:
                self._admitted.add(address)
            else:
                say(f"left out: {problem}")

        future = self._open().submit(
            opened,
            packed(_who, [str(path) for path in places[1:]], marker),
            workers=[address],
            resources={RESOURCE: 1},
            key=f"{self._run}-who-{uuid.uuid4().hex[:8]}",
            pure=False,
        )
        self._questions[address] = future
        future.add_done_callback(answered)

    def describe(self) -> list[str]:
        """Name, host and device of each that is there."""
        return [f"{name} on {answer['host']}: {answer['model']}" for name, answer in sorted(self.found.items())]

    def _connect(self) -> Client:
        _silence()
        address, path = self._address, Path(self._address)
        if "://" not in address:
            try:
                address = json.loads(path.read_text())["address"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ManifestError(
                    f"--scheduler {self._address}: is neither an address (tcp://host:8786) nor a readable scheduler "
                    f"file ({getattr(error, 'strerror', None) or 'it holds no address'})"
                ) from error
        try:
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise StoreError(
                f"--scheduler {self._address}: nobody answers there ({' '.join(str(error).split())}); start it with "
                "'dask scheduler'"
            ) from error
        self.dashboard = client.dashboard_link
        return client

    def _kill(self, name: str, address: str | None) -> None:
        if self._client is not None and address is not None:
            with contextlib.suppress(Exception):
                self._client.restart_workers([address], timeout=GONE_SECONDS, raise_for_error=False)

    def _gone(self, seconds: float) -> None:
        if memory := self._memory():
            raise StoreError(
                f"--scheduler {self._address}: no worker took work for {seconds:.0f} s: {memory}, and run the same "
                "command again"
            )
        raise StoreError(
            f"--scheduler {self._address}: no worker with the resource {RESOURCE}=1 was there for {seconds:.0f} s; "
            "start one with 'dask worker ... --nthreads 1 --resources GPU=1', and run the same command again"
        )

    def _look_around(self) -> None:
        now = time.monotonic()
        if self._client is None or self._client.status != "running":
            if now - self._answered > LOST_SECONDS:
                raise StoreError(
                    f"--scheduler {self._address}: is gone; start it again, and run the same command again: what is "
                    "complete is kept"
                )
            return
        self._answered = now
        if not self.hands() and now - self._said > 30:
            self._said = now
            say(f"{self._address}: {self._memory() or 'no worker is there'}; waiting for one")
        super()._look_around()
