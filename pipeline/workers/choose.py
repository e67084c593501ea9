"""Chooses the worker pool from the options of a command."""

from __future__ import annotations

import os

import torch

from ...errors import ManifestError
from ..runtime.device import device_name, resolve_devices
from .dask_pool import THREADS_EACH
from .external_cluster import ExternalCluster
from .in_process import InProcessPool
from .local_cluster import LocalCluster
from .protocol import Workers


def choose_workers(
    device: str,
    *,
    workers: int | None,
    scheduler: str | None,
    image_timeout: float,
    patience: float,
    needs_gpu: bool = True,
) -> Workers:
    """Choose the worker pool that the options ask for.

    Args:
        device: see `resolve_devices`; for a running cluster ``auto``, ``cpu`` or ``cuda``.
        workers: processes on the CPU; 0 to work in this process; None for one per GPU, or one.
        scheduler: address (``tcp://host:port``) or scheduler file of a running cluster; None to start one here.
        image_timeout: see `Workers`.
        patience: seconds to wait while a running cluster has no worker.
        needs_gpu: the work is faster on a GPU; if it is not, there is one worker for every few CPU threads.

    Raises:
        ManifestError: the options contradict one another, or what they name is not there.
        StoreError: the scheduler cannot be reached, has no workers, or they are of another version.
    """
    if scheduler is not None:
        if workers is not None:
            raise ManifestError("--workers: a running cluster has its own; leave it out, or leave --scheduler out")
        cluster = ExternalCluster(scheduler, device, patience)
        return Workers(cluster, torch.device(cluster.device), None, image_timeout)
    devices = resolve_devices(device)
    if devices[0].type == "cuda" and needs_gpu:
        if workers not in (None, 0, len(devices)):
            raise ManifestError(
                f"--workers {workers}: there is one worker per GPU; name them, as in --device cuda:0,2, or use "
                "--device cpu"
            )
        if workers == 0:
            return Workers(InProcessPool(str(devices[0])), devices[0], None, image_timeout)
        cluster = LocalCluster([_visible_gpu(one) for one in devices], None)
        return Workers(cluster, torch.device("cuda"), None, image_timeout)
    cpu = torch.device("cpu")
    if workers == 0:
        return Workers(InProcessPool(device_name(cpu)), cpu, None, image_timeout)
    count = workers or (1 if needs_gpu else max(1, torch.get_num_threads() // THREADS_EACH))
    threads = max(1, torch.get_num_threads() // count)
    names = ["cpu"] if count == 1 else [f"cpu{number}" for number in range(count)]
    return Workers(LocalCluster([(name, "") for name in names], threads), cpu, threads, image_timeout)


def _visible_gpu(device: torch.device) -> tuple[str, str]:
    """Name a GPU, and give the CUDA_VISIBLE_DEVICES of a process that should see only it."""
    index = device.index or 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return f"gpu{index}", named[index] if index < len(named) else str(index)
