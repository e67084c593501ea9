"""Worker pool over a Dask cluster that runs already."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

from distributed import Client, Future

from ...errors import ManifestError, StoreError, TryAgainError, first_few, reason
from ..runtime.progress import say
from .certificates import refuse_without_certificates
from .dask_pool import (
    GONE_SECONDS,
    RESOURCE,
    WAITING_SECONDS,
    DaskWorkerPool,
    describe_worker,
    no_answer,
    output_marker,
    silence_dask,
    worker_problem,
)
from .pickled_call import pickle_call
from .protocol import WorkerDied
from .slurm_job import refuse_scheduler_of_another_job

CONNECT_SECONDS = 30.0
LOST_SECONDS = 10.0
ORPHAN_SECONDS = 2.0
SETTLE_SECONDS = 10.0
"""How long ``auto`` waits for a worker with a GPU after the last worker that has none came."""


class ExternalCluster(DaskWorkerPool):
    """Uses a Dask cluster that a batch system, Kubernetes or a user has started; connects at once.

    ``scheduler`` is its address (``tcp://host:port``) or its scheduler file, ``device`` is auto, cpu or cuda, and
    ``patience`` is how many seconds a run waits while no worker is there.

    Raises:
        ManifestError: ``scheduler`` is neither, or the workers do not have the device.
        StoreError: the scheduler or its workers do not answer.
        TryAgainError: no worker came in time.
    """

    def __init__(self, scheduler: str, device: str, patience: float) -> None:
        super().__init__(patience, patience)
        self._address = scheduler
        self._answered_at = time.monotonic()
        self._noted_at = self._answered_at - WAITING_SECONDS + SETTLE_SECONDS
        self._orphans: set[int] = set()
        self._orphans_at = 0.0
        self._is_told_to_stop = False
        self._asked: set[str] = set()
        self._questions: dict[str, Future] = {}
        self._client = self._connect()
        refuse_scheduler_of_another_job(self._client, scheduler)
        if device not in ("auto", "cpu", "cuda"):
            raise ManifestError(
                f"--device {device}: on a running cluster each worker has its own; use auto, cpu or cuda"
            )
        found = self._first_workers(device)
        with_gpu = [one for one in found if one["device"] == "cuda"]
        self.device = device if device != "auto" else ("cuda" if with_gpu else "cpu")
        if device == "cuda" and not with_gpu:
            names = first_few([one["name"] for one in found], 3)
            raise ManifestError(f"--device cuda: no worker has a GPU ({names}); use --device cpu")
        self._found = {one["name"]: one for one in (with_gpu if self.device == "cuda" else found)}

    def _first_workers(self, device: str) -> list[dict[str, Any]]:
        """Describe the workers that are there; unless GPUs are not wanted, wait a moment for one that has a GPU."""
        settled, known = 0.0, 0
        while True:
            found = list(self._describe_workers(()).values())
            if device == "cpu" or any(one["device"] == "cuda" for one in found):
                return found
            if len(found) > known:
                settled, known = time.monotonic() + SETTLE_SECONDS, len(found)
            if time.monotonic() > settled:
                return found
            time.sleep(0.5)

    def _is_wanted(self, address: str, description: dict[str, Any]) -> bool:
        """Leave out a worker without a GPU where the run computes on GPUs: its logits would differ."""
        if self.device != "cuda" or description["device"] == "cuda":
            return True
        self._asked.add(address)
        say(f"left out: {worker_problem(description, (), self.device)}")
        return False

    def _may_work(self, address: str, worker: dict[str, Any]) -> bool:
        if self._required_paths is None or address in self._admitted:
            return True
        if address not in self._asked:
            self._asked.add(address)
            self._check_newcomer(address, str(worker["name"]))
        return False

    def _check_newcomer(self, address: str, name: str) -> None:
        """Ask a worker that has just joined for its description; one that does not fit is left out, with a note."""
        assert self._required_paths is not None
        required_paths = self._required_paths
        marked = contextlib.ExitStack()
        marker = marked.enter_context(output_marker(required_paths[0] if required_paths else None))

        def on_answer(future: Future) -> None:
            with contextlib.suppress(OSError):
                marked.close()
            self._questions.pop(address, None)
            if future.status == "finished":
                description = future.result(timeout=GONE_SECONDS) | {"name": name}
                problem = worker_problem(description, required_paths, self.device)
            elif future.status == "error":
                error = future.exception(timeout=GONE_SECONDS)
                problem = no_answer(name, error, self._limited.get(name, {}), "there")
            else:  # it is gone, and will be asked again if it comes back
                self._asked.discard(address)
                return
            if problem is None:
                self._admitted.add(address)
            else:
                say(f"left out: {problem}")

        call = pickle_call(describe_worker, [str(path) for path in required_paths[1:]], marker)
        future = self._questions[address] = self._call(f"who-{uuid.uuid4().hex[:8]}", address, call)
        future.add_done_callback(on_answer)

    def describe(self) -> list[str]:
        """Name, host and device of each worker that is there."""
        return [f"{name} on {found['host']}: {found['model']}" for name, found in sorted(self._found.items())]

    def _connect(self) -> Client:
        silence_dask()
        address, path = self._address, Path(self._address)
        if "://" not in address:
            try:
                address = json.loads(path.read_text())["address"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ManifestError(
                    f"--scheduler {self._address}: is neither an address (tcp://host:8786) nor a readable scheduler "
                    f"file ({getattr(error, 'strerror', None) or 'it holds no address'})"
                ) from error
        refuse_without_certificates(address, self._address)
        try:
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise StoreError(
                f"--scheduler {self._address}: nobody answers there ({reason(error)}); start it with 'dask scheduler'"
            ) from error
        self.dashboard = client.dashboard_link
        return client

    def _kill(self, name: str, address: str | None) -> None:
        if self._client is not None and address is not None:
            with contextlib.suppress(Exception):
                self._client.restart_workers([address], timeout=GONE_SECONDS, raise_for_error=False)

    def _gone(self, seconds: float) -> None:
        if memory := self._memory():
            raise TryAgainError(
                f"--scheduler {self._address}: no worker took work for {seconds:.0f} s: {memory}, and run the same "
                "command again"
            )
        raise TryAgainError(
            f"--scheduler {self._address}: no worker with the resource {RESOURCE}=1 was there for {seconds:.0f} s; "
            "start one with 'dask worker ... --nthreads 1 --resources GPU=1', and run the same command again "
            "(--patience waits longer)"
        )

    def _check_workers(self) -> None:
        now = time.monotonic()
        if self._client is None or self._client.status != "running":
            if now - self._answered_at > LOST_SECONDS:
                raise TryAgainError(
                    f"--scheduler {self._address}: is gone; start it again, and run the same command again: what is "
                    "complete is kept"
                )
            return
        self._answered_at = now
        for address, future in list(self._questions.items()):
            if address not in self._known and future.status == "pending":  # it is gone, and will never answer
                with contextlib.suppress(Exception):
                    future.cancel()
        if now - self._orphans_at >= ORPHAN_SECONDS:
            self._orphans_at = now
            self._end_orphans()
        super()._check_workers()

    def stop(self) -> None:
        """Ask all workers to end their blocks after the images in flight."""
        self._is_told_to_stop = True
        super().stop()

    def _end_orphans(self) -> None:
        """End the blocks of workers that are gone which no other worker has got.

        If the last worker goes, Dask keeps its block for the same address, also when another one comes. A run that
        was told to stop waits for no other one.
        """
        before, self._orphans = self._orphans, set()
        pending = {number: future for number, future in self._futures.items() if future.status == "pending"}
        is_awaited = not self._known and not self._is_told_to_stop
        if is_awaited or all(self._given[number] in self._known for number in pending):
            return
        with contextlib.suppress(Exception):  # a scheduler that does not answer is noticed elsewhere
            at_work: Any = self._open().processing()
            keys = {key for found in at_work.values() for key in found}
            self._orphans = {number for number, future in pending.items() if future.key not in keys}
        # Seen twice: the result of a block that has just ended may be on its way.
        for number in self._orphans & before:
            with contextlib.suppress(Exception):
                self._futures.pop(number).cancel(force=True)
            self._looked_at = 0.0
            self._events.put((number, WorkerDied()))
