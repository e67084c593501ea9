"""Processes that train one network together: who they are, what they agree on, and how they are started."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ...errors import ManifestError, TrainingError

T = TypeVar("T")

# One that builds an index of masks or scores the larger images keeps the others waiting.
_PATIENCE = timedelta(hours=3)


@dataclass(frozen=True)
class TrainingProcess:
    """This process among those that train together."""

    rank: int = 0
    local_rank: int = 0  # the number on this machine
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> TrainingProcess | None:
        """Read torchrun's environment variables; None without them.

        ManifestError if one is missing, or they contradict one another.
        """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if not os.environ.get("WORLD_SIZE"):
            return None
        try:
            values = [os.environ[name] for name in names]
            rank, local_rank, world_size = map(int, values[:3])
            agree = 0 <= local_rank <= rank < world_size
        except (KeyError, ValueError):
            agree, rank, local_rank, world_size = False, 0, 0, 0
        if not agree:
            raise ManifestError(
                f"the environment variables {', '.join(names)}: one is missing, or they do not agree; start by "
                "torchrun or --gpus, or unset WORLD_SIZE to train in one process"
            )
        return cls(rank, local_rank, world_size)

    @property
    def is_first(self) -> bool:
        """True for the process that prints and writes."""
        return self.rank == 0

    @contextlib.contextmanager
    def process_group(self, device: torch.device) -> Iterator[None]:
        """While the block runs, the processes can hear one another: by gloo, and by NCCL between GPUs."""
        if self.world_size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def sum(self, values: Sequence[int]) -> list[int]:
        """The sums over all processes of whole numbers that each has; they travel between CPUs."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """Collect every process' value, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    @contextlib.contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """A block that the first process runs before all others, which then find what it made."""
        if not self.is_first:
            dist.barrier()
        yield
        if self.is_first and self.world_size > 1:
            dist.barrier()


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run the command line ``arguments`` in several processes by torch's own launcher; the exit code of the first
    that ends badly, else 0.

    When one process ends badly, the others are ended too. An interrupt is passed on to all of them. TrainingError if
    a process was killed, so that it could not say why.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What went wrong has been said by the process to which it happened; its launcher says it in 30 lines.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=uuid.uuid4().hex,  # else it warns that it made one up
        monitor_interval=0.2,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = ["-P", "-m", "hmsa_pipeline.cli", *arguments]
    assert threading.current_thread() is threading.main_thread()  # the launcher handles signals
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        said = next((code for code in codes.values() if code > 0), None)
        if said is None:
            rank, code = next(iter(codes.items()))
            raise TrainingError(
                f"process {rank} of {processes} was killed by signal {-code}, as it happens where memory runs out; "
                "--resume goes on with what is saved"
            ) from error
        return said
    except SignalException:
        return 130
    return 0
