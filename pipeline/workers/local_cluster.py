"""Worker pool over a Dask cluster that is started on this machine: one process per device."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import torch
from dask import config as dask_config
from distributed import Client, Nanny, Scheduler, SpecCluster, Status
from distributed.utils import LoopRunner

from ...errors import HmsaError, reason
from ..runtime.device import device_name
from .dask_pool import QUIET, RESOURCE, START_SECONDS, DaskWorkerPool, silence_dask

MAX_STARTS = 8
"""Processes that a worker may start one after another before it counts as dead if none gets ready."""

# Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of a job: the run tells its workers.
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_IGNORE_SIGNALS = "import signal\nfor s in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(s, signal.SIG_IGN)\n"


def _start_cluster(scheduler: dict[str, Any], workers: dict[str, Any], runner: LoopRunner) -> SpecCluster:
    """Start the cluster with all its workers, again if a worker was killed while it started."""
    for last in (False, False, True):
        try:
            return SpecCluster(scheduler=scheduler, workers=workers, loop=runner.loop)
        except (RuntimeError, OSError, TimeoutError) as error:
            if last:
                raise HmsaError(
                    f"worker processes cannot be started ({reason(error)}); --workers 0 needs none"
                ) from error
    raise AssertionError


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep Python's resource tracker, which is started here, from warning about what killed workers left behind."""
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


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in threads that start here, and in the processes that those start.

    A worker imports for seconds before it runs `_IGNORE_SIGNALS`, and would end with a traceback of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class LocalCluster(DaskWorkerPool):
    """Starts one process per device on this machine; they end with this process.

    ``devices`` are name and CUDA_VISIBLE_DEVICES of each worker, ``threads`` its CPU threads; None for those on GPUs.
    """

    def __init__(self, devices: Sequence[tuple[str, str]], threads: int | None) -> None:
        super().__init__()
        self._devices, self._threads = devices, threads
        self._cluster: SpecCluster | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._settings = contextlib.ExitStack()
        self._starts: dict[str, set[Any]] = {}
        self._missing_since: dict[str, float] = {}

    def describe(self) -> list[str]:
        """Name, device and threads of each worker, although none is started."""
        if self._threads is not None:
            return [f"{name}: CPU, {self._threads} threads" for name, _ in self._devices]
        return [
            f"{name}: {device_name(torch.device('cuda', int(name.removeprefix('gpu'))))}" for name, _ in self._devices
        ]

    def _connect(self) -> Client:
        self._scratch = tempfile.TemporaryDirectory(prefix="hmsa-", ignore_cleanup_errors=True)
        silence_dask()
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
                    "silence_logs": QUIET,
                    "preload": [_IGNORE_SIGNALS],
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
        # Otherwise Dask gives up the worker whose next process is not ready 15 s after the death of the last one.
        # It reads the setting at that moment, so it is set as long as the pool lives.
        self._settings.enter_context(dask_config.set({"distributed.deploy.lost-worker-timeout": "3650 days"}))
        with dask_config.set(quick), _without_warnings():
            runner = LoopRunner()
            with _blocked_signals():
                runner.start()
            self._settings.callback(runner.stop)
            self._cluster = _start_cluster({"cls": Scheduler, "options": options}, workers, runner)
            self.dashboard = self._cluster.dashboard_link if has_dashboard else None
            return Client(self._cluster, timeout=START_SECONDS, set_as_default=False)

    def _kill(self, name: str, address: str | None) -> None:
        # The process may not answer; its nanny starts another one.
        nanny: Any = self._cluster.workers.get(name) if self._cluster else None
        if nanny is not None and nanny.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nanny.pid, 9)

    def _check_workers(self) -> None:
        ready = set(self.workers())
        for name in ready:
            self._starts.pop(name, None)
        self._restart_nannies(ready)
        super()._check_workers()

    def _restart_nannies(self, ready: set[str]) -> None:
        """Replace nannies that gave up because they could not start their process, a few times each."""
        cluster = self._cluster
        if cluster is None:
            return
        ended = [
            (name, nanny)
            for name, nanny in list(cluster.workers.items())
            if name not in ready and nanny.status in (Status.closed, Status.failed)
        ]
        for name, nanny in ended:
            starts = self._starts.setdefault(str(name), set())
            if len(starts) < MAX_STARTS:
                starts.add(nanny)  # itself: the number of one that is gone is given to the next
                del cluster.workers[name]
        if any(name not in cluster.workers for name, _ in ended):
            cluster.scale(len(cluster.worker_spec))  # it makes those that are missing

    def _is_one_starting(self) -> bool:
        cluster = self._cluster
        if cluster is None:
            return False
        for name in cluster.worker_spec:
            nanny: Any = cluster.workers.get(name)
            starts, now, starting = self._starts.setdefault(str(name), set()), time.monotonic(), False
            if nanny is None:
                starting = now - self._missing_since.setdefault(str(name), now) < START_SECONDS
            else:
                self._missing_since.pop(str(name), None)
                if nanny.process is not None and nanny.process.status == Status.starting:
                    starts.add(nanny.process.pid)
                    starting = True
            if starting and len(starts) < MAX_STARTS:
                return True
        return False

    def _gone(self, seconds: float) -> None:
        raise HmsaError(
            f"no worker process is left or could be started for {seconds:.0f} s; look for a lack of memory, or see "
            "what happens with --workers 0"
        )

    def close(self) -> None:
        """Shut the workers down."""
        super().close()
        if self._cluster is not None:
            with contextlib.suppress(Exception):
                self._cluster.close(timeout=5)
            self._cluster = None
        self._settings.close()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
