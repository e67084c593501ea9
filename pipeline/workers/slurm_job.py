"""Refuses the scheduler of another Slurm job."""

from __future__ import annotations

import os

from distributed import Client

from ...errors import ManifestError
from ..storage.slurm import own_slurm_job


def refuse_scheduler_of_another_job(client: Client, scheduler: str) -> None:
    """Raise ManifestError if this process and the scheduler belong to two Slurm jobs.

    Both runs would give work to the same workers, and the job that ends first would take them away from the other.

    Args:
        client: connected to the scheduler.
        scheduler: value of ``--scheduler``.
    """
    own = own_slurm_job().get("slurm_job")
    if own is None:
        return
    other = client.run_on_scheduler(os.getenv, "SLURM_JOB_ID")
    if other and other != own:
        raise ManifestError(
            f"--scheduler {scheduler}: belongs to Slurm job {other}, and this is job {own}; give each job a "
            "scheduler file of its own, as 'hmsa-pipeline cluster slurm' does"
        )
