"""``hmsa-pipeline cluster ssh``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..shared.options import manifest_command, option
from . import job_options

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ..shared.output import Output


@manifest_command()
def ssh(
    manifest: Manifest,
    say: Output,
    context: typer.Context,
    host: Annotated[
        list[str],
        option("--host", "NAME", "As for ssh; may be repeated; localhost: this one."),
    ],
    gpus_per_host: Annotated[
        int | None, option("--gpus-per-host", "N", "GPUs of each host, with a worker each.", min=1)
    ] = None,
    workers_per_host: Annotated[
        int | None,
        option("--workers-per-host", "N", "Workers of each host, with --device cpu.", min=1),
    ] = None,
    device: job_options.Device = "cuda",
    cpus_per_worker: job_options.Threads = 8,
    run: job_options.Run = "dump,ensemble",
    setup: job_options.Setup = None,
    interface: job_options.Interface = None,
    folder: job_options.Folder = None,
    certificates: job_options.Certificates = None,
) -> None:
    """Write a script that starts workers on several machines over ssh, runs the commands, and ends the workers.

    Example: hmsa-pipeline cluster ssh --host localhost --host second --gpus-per-host 4 > run.sh
    """
    from ...cluster.ssh import ssh_script

    job = job_options.make_job(context, manifest, "host")
    script = ssh_script(job, host)
    say.lines(script.splitlines())
    say.figures({"script": script})
