"""Slurm's part in locks: which job this process belongs to, and whether the job of another process is over."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

_JOB, _RESTART, _CLUSTER = "slurm_job", "slurm_restart", "slurm_cluster"
_SECONDS = 10
_OVER = frozenset(
    {
        "",  # squeue lists only what is not over
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PENDING",  # put back into the queue
        "PREEMPTED",
        "TIMEOUT",
    }
)
_UNKNOWN_JOB = "invalid job id"


def own_slurm_job() -> dict[str, Any]:
    """Describe the Slurm job of this process: its id, how often it was restarted, its cluster; empty outside one."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not job.isdecimal():
        return {}
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
    return {_JOB: job, _RESTART: int(restart) if restart.isdecimal() else 0, _CLUSTER: cluster}


def was_restarted() -> bool:
    """Say whether Slurm has put the job of this process back into the queue and started it again."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def job_is_over(holder: Mapping[str, Any]) -> bool:
    """Say whether the Slurm job that `own_slurm_job` described elsewhere is known to be over.

    False if there is any doubt: it had no job, Slurm cannot be asked, or it is another cluster's.
    """
    job, restart, cluster = holder.get(_JOB), holder.get(_RESTART), holder.get(_CLUSTER)
    if not isinstance(job, str) or not job.isdecimal() or not isinstance(restart, int):
        return False
    own = own_slurm_job()
    if own and (own[_JOB], own[_CLUSTER]) == (job, cluster):
        return restart < own[_RESTART]
    here = own[_CLUSTER] if own else _cluster_name()
    if not cluster or cluster != here:
        return False
    done = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    if done is None:
        return False
    if done.returncode:
        return _UNKNOWN_JOB in done.stderr.lower()
    return set(done.stdout.split() or [""]) <= _OVER


def _cluster_name() -> str | None:
    """Return the name of the cluster whose commands are here; None if that is not known."""
    done = _ask("scontrol", "show", "config")
    if done is None or done.returncode:
        return None
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "ClusterName":
            return value.strip()
    return None


def _ask(program: str, *options: str) -> subprocess.CompletedProcess[str] | None:
    """Run a program of Slurm; None where it is missing or does not answer."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        return subprocess.run([path, *options], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
