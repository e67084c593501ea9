"""Batch scripts for Slurm."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import HmsaError, ManifestError, reason
from .settings import JobSettings, render

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_MEMORY = re.compile(r"\d+[KMGT]?")
_IMPOSSIBLE = re.compile(r"allocation failure: (?P<why>.+)")
_SUBMIT_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """Options of ``sbatch`` that the script sets.

    Attributes:
        name: of the job. Jobs of one name run one after the other.
        nodes: number of nodes.
        time: time limit of the job, as Slurm writes it.
        grace: seconds before the time limit at which the run stops.
        max_requeues: times that the job puts itself back into the queue.
        gpu_type: as Slurm calls it; None for any.
        memory: of each node, as Slurm writes it; None for the site's default.
        partition: None for the site's default.
        account: None for the user's default.
        qos: quality of service; None for the default.
        constraint: features that the nodes must have; None for none.
        extra: more options of sbatch.
    """

    name: str
    nodes: int
    time: str
    grace: int = 300
    max_requeues: int = 50
    gpu_type: str | None = None
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: Sequence[str] = ()


def job_name(manifest: str, output: str) -> str:
    """Name a job by its manifest and output, so that two jobs for one output have the same name."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(manifest).stem)
    return f"hmsa-{stem}-{hashlib.sha256(output.encode()).hexdigest()[:6]}"


def slurm_script(job: JobSettings, slurm: SlurmSettings) -> str:
    """Write the batch script.

    Raises:
        ManifestError: a value is none that Slurm would take.
    """
    seconds = _seconds(slurm.time)
    if seconds < slurm.grace + 60:
        raise ManifestError(
            f"--time {slurm.time}: leaves no time before the run is stopped, {slurm.grace} s before the limit; "
            "ask for more, or lower --grace"
        )
    if slurm.memory is not None and not _MEMORY.fullmatch(slurm.memory):
        raise ManifestError(f"--memory {slurm.memory}: is no size; write for example 64G")
    texts = {
        "--job-name": slurm.name,
        "--gpu-type": slurm.gpu_type,
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--qos": slurm.qos,
        "--constraint": slurm.constraint,
    }
    for flag, text in texts.items():
        if text is not None and not re.fullmatch(r"[^\s\"'`$#\\]+", text):
            raise ManifestError(f"{flag} {text!r}: is no name that Slurm could have")
    for option in slurm.extra:
        if not option.startswith("-") or "\n" in option:
            raise ManifestError(f"--sbatch {option!r}: is no option of sbatch; write it as --sbatch=--mail-type=END")
    gpu = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
    is_gpu = job.device == "cuda"
    own = {
        "job-name": slurm.name,
        "dependency": None if any(re.match("--dependency|-d", option) for option in slurm.extra) else "singleton",
        "nodes": slurm.nodes,
        "ntasks-per-node": job.workers,
        "cpus-per-task": job.threads,
        "gpus-per-node": f"{gpu}{job.workers}" if is_gpu else None,
        "mem": slurm.memory,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "output": _pattern(job.folder / f"{slurm.name}-%j.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{slurm.grace}",
    }
    directives = [f"--{name}={value}" for name, value in own.items() if value is not None]
    return render(
        "slurm.sh.j2",
        job,
        directives=[*directives, "--requeue", *slurm.extra],
        gpu=f"{gpu}1",
        max_requeues=slurm.max_requeues,
        stop_seconds=slurm.grace * 2 // 3,
    )


def submit(script: str) -> tuple[str, str | None]:
    """Submit a script.

    Returns:
        the job's id, and why Slurm cannot start the job on the nodes that it has now; None if it can.

    Raises:
        HmsaError: there is no sbatch, or it refuses the script.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise HmsaError("--submit: there is no sbatch here; leave it out, and submit the script where Slurm is")
    # Many sites let a job wait that none of their nodes could run.
    doubt = _IMPOSSIBLE.search(_sbatch(sbatch, "--test-only", script).stderr)
    done = _sbatch(sbatch, "--parsable", script)
    if done.returncode:
        raise HmsaError(f"--submit: {' '.join(done.stderr.split()) or 'sbatch failed'}")
    return done.stdout.strip().partition(";")[0], doubt["why"] if doubt else None


def _sbatch(sbatch: str, option: str, script: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sbatch, option],
            input=script,
            capture_output=True,
            text=True,
            timeout=_SUBMIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HmsaError(f"--submit: sbatch does not answer ({reason(error)}); see 'sinfo'") from error


def _seconds(time: str) -> int:
    """Return the seconds of a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours:..."""
    found = _TIME.fullmatch(time)
    if found is None:
        raise ManifestError(f"--time {time}: is no time limit; write hours:minutes:seconds, such as 8:00:00")
    numbers = [int(number) for number in found["rest"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: (0, *numbers, 0), 2: (0, *numbers), 3: tuple(numbers)}[len(numbers)]
    return ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _pattern(path: Path) -> str:
    """Quote a path for ``#SBATCH --output``, where ``%`` begins a pattern."""
    folder = str(path.parent).replace("%", "%%")
    text = f"{folder}/{path.name}"
    return f'"{text}"' if re.search(r"\s", text) else text
