"""Chooses the workers that the command line asks for."""

from __future__ import annotations

import os

import torch

from ...errors import ManifestError
from ..runtime.device import device_name, resolve_devices
from .dask_pool import THREADS_EACH
from .external_cluster import ExternalCluster
from .in_process import InProcessPool
from .local_cluster import LocalCluster
from .protocol import WorkerPool


def choose_workers(
    device: str = "auto", *, workers: int | None = None, scheduler: str | None = None, needs_gpu: bool = True
) -> tuple[WorkerPool, torch.device, int | None]:
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
        crew = ExternalCluster(scheduler, device)
        return crew, torch.device(crew.device), None
    devices = resolve_devices(device)
    if devices[0].type == "cuda" and needs_gpu:
        if workers not in (None, 0, len(devices)):
            raise ManifestError(
                f"--workers {workers}: there is one worker per GPU; name them, as in --device cuda:0,2, or use "
                "--device cpu"
            )
        if workers == 0:
            return InProcessPool(str(devices[0])), devices[0], None
        return LocalCluster([_visible(one) for one in devices], None), torch.device("cuda"), None
    cpu = torch.device("cpu")
    if workers == 0:
        return InProcessPool(device_name(cpu)), cpu, None
    count = workers or (1 if needs_gpu else max(1, torch.get_num_threads() // THREADS_EACH))
    threads = max(1, torch.get_num_threads() // count)
    return LocalCluster([("cpu" if count == 1 else f"cpu{n}", "") for n in range(count)], threads), cpu, threads


def _visible(device: torch.device) -> tuple[str, str]:
    """A GPU's name here, and what CUDA_VISIBLE_DEVICES has to be for a process that is to see only it."""
    index = device.index or 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return f"gpu{index}", named[index] if index < len(named) else str(index)
