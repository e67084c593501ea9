"""Settings that jobs on all kinds of clusters share, and the scripts' common parts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from ... import __version__
from ...errors import ManifestError
from ..workers.certificates import CERTIFICATE, ENVIRONMENT, KEY
from .stages import Stage

_TEMPLATES = Path(__file__).with_name("template")


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """A job on any kind of cluster.

    Attributes:
        stages: the commands, in their order.
        device: ``cuda`` or ``cpu``.
        workers: per machine; on ``cuda`` there is one for each GPU.
        threads: CPU threads of each worker.
        folder: absolute; the scheduler's file and the log lie there.
        variables: environment variables of the manifest's paths.
        setup: lines of shell that run first, on every machine.
        interface: network interface of scheduler and workers; None for the default.
        certificates: folder of ``cluster certificates``; None for connections without encryption.
    """

    stages: tuple[Stage, ...]
    device: str
    workers: int
    threads: int
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()
    interface: str | None = None
    certificates: Path | None = None


def worker_count(device: str, gpus: int | None, processes: int | None, place: str) -> int:
    """Return the number of workers of one machine.

    Args:
        device: ``cuda`` or ``cpu``.
        gpus: GPUs of each machine, None if not given.
        processes: CPU workers of each machine, None if not given.
        place: ``node`` or ``host``, as in the options' names.

    Raises:
        ManifestError: the options do not belong together, or the one that is needed is missing.
    """
    if device not in ("cuda", "cpu"):
        raise ManifestError(f"--device {device}: a job runs on cuda or on cpu; leave the numbers of GPUs out")
    needed, given, wrong, extra = (
        (f"--gpus-per-{place}", gpus, f"--workers-per-{place}", processes)
        if device == "cuda"
        else (f"--workers-per-{place}", processes, f"--gpus-per-{place}", gpus)
    )
    if extra is not None:
        other = "cpu" if device == "cuda" else "cuda"
        raise ManifestError(f"{wrong}: belongs to --device {other}, and this is --device {device}")
    if given is None:
        raise ManifestError(f"--device {device}: give {needed} N, the number of workers of each {place}")
    return given


def require_shell(lines: Sequence[str]) -> None:
    """Raise ManifestError if bash cannot read one of the lines of ``--setup``, which would spoil all that follow."""
    for line in lines:
        try:
            done = subprocess.run(["bash", "-n"], input=line, capture_output=True, text=True, check=False)
        except OSError:  # no bash on this machine
            return
        if done.returncode:
            why = done.stderr.splitlines()[0].partition(": ")[2] if done.stderr else "it is no shell"
            raise ManifestError(f"--setup {line!r}: {why}")


def folder_on_disk(folder: Path | None, flag: str = "--folder") -> Path:
    """Return an existing folder as an absolute path, the current one for None; ManifestError if it is none."""
    path = Path.cwd() / (folder or "")
    if not path.is_dir():
        raise ManifestError(f"{flag} {folder}: there is no such folder; make it, on a disk that all machines share")
    return path


def certificates_folder(folder: Path | None) -> Path | None:
    """Return the folder of ``cluster certificates`` as an absolute path; ManifestError if it is none."""
    if folder is None:
        return None
    path = Path.cwd() / folder
    for name in (KEY, CERTIFICATE, ENVIRONMENT):
        if not (path / name).is_file():
            raise ManifestError(f"--certificates {folder}: has no {name}; make it: 'cluster certificates {folder}'")
    return path


def program(name: str, module: str) -> str:
    """Return the shell words that run a program of this environment, by its full path.

    Args:
        name: of the program beside the Python that runs now.
        module: for ``python -m``, where there is no such program.
    """
    folder = Path(sys.executable).parent
    if (folder / name).is_file():
        return shlex.quote(str(folder / name))
    return f"{shlex.quote(sys.executable)} -m {module}"


def render(template: str, job: JobSettings, **more: Any) -> str:
    """Fill in a template.

    Args:
        template: its name in the folder ``template``.
        job: settings of all kinds of clusters.
        more: what the template needs besides.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        comment_start_string="{##",  # "{#" is shell
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.get_template(template).render(
        version=__version__,
        job=job,
        bin=Path(sys.executable).parent,
        dask=program("dask", "dask"),
        hmsa=program("hmsa-pipeline", "hmsa_pipeline.cli"),
        **more,
    )
