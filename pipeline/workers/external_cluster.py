"""Worker pool over a Dask cluster that runs already."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

from distributed import Client, Future

from ...errors import ManifestError, StoreError, first_few, reason
from ..runtime.progress import say
from .certificates import refuse_without_certificates
from .dask_pool import (
    GONE_SECONDS,
    RESOURCE,
    DaskWorkerPool,
    describe_worker,
    no_answer,
    output_marker,
    silence_dask,
    worker_problem,
)
from .pickled_call import pickle_call
from .slurm_job import refuse_scheduler_of_another_job

CONNECT_SECONDS = 30.0
LOST_SECONDS = 10.0


class ExternalCluster(DaskWorkerPool):
    """Uses a Dask cluster that a batch system, Kubernetes or a user has started; connects at once.

    ``scheduler`` is its address (``tcp://host:port``) or its scheduler file, ``device`` is auto, cpu or cuda.

    Raises:
        ManifestError: ``scheduler`` is neither, or the workers do not have the device.
        StoreError: the scheduler or its workers do not answer.
    """

    def __init__(self, scheduler: str, device: str) -> None:
        super().__init__()
        self._address = scheduler
        self._answered_at = time.monotonic()
        self._asked: set[str] = set()
        self._questions: dict[str, Future] = {}
        self._client = self._connect()
        refuse_scheduler_of_another_job(self._client, scheduler)
        self._found = {found["name"]: found for found in self._describe_workers(()).values()}
        kinds = {name: found["device"] for name, found in self._found.items()}
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
            raise StoreError(
                f"--scheduler {self._address}: no worker took work for {seconds:.0f} s: {memory}, and run the same "
                "command again"
            )
        raise StoreError(
            f"--scheduler {self._address}: no worker with the resource {RESOURCE}=1 was there for {seconds:.0f} s; "
            "start one with 'dask worker ... --nthreads 1 --resources GPU=1', and run the same command again"
        )

    def _check_workers(self) -> None:
        now = time.monotonic()
        if self._client is None or self._client.status != "running":
            if now - self._answered_at > LOST_SECONDS:
                raise StoreError(
                    f"--scheduler {self._address}: is gone; start it again, and run the same command again: what is "
                    "complete is kept"
                )
            return
        self._answered_at = now
        if not self.workers() and now - self._noted_at > 30:
            self._noted_at = now
            say(f"{self._address}: {self._memory() or 'no worker is there'}; waiting for one")
        super()._check_workers()
