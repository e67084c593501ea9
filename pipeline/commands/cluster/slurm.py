"""``hmsa-pipeline cluster slurm``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..shared.options import manifest_command, option
from ..shared.output import print_note
from . import job_options

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ..shared.output import Output


@manifest_command()
def slurm(
    manifest: Manifest,
    say: Output,
    context: typer.Context,
    nodes: job_options.Nodes = 1,
    gpus_per_node: job_options.GpusPerNode = None,
    gpu_type: Annotated[
        str | None,
        option("--gpu-type", "NAME", "Kind of GPU, as the site names it, such as a100."),
    ] = None,
    workers_per_node: job_options.WorkersPerNode = None,
    device: job_options.Device = "cuda",
    cpus_per_worker: job_options.Threads = 8,
    memory: Annotated[
        str | None, option("--memory", "SIZE", "Memory of each node, such as 200G; default: the site's.")
    ] = None,
    time: Annotated[str, option("--time", "H:MM:SS", "Time limit of one start.")] = "8:00:00",
    grace: Annotated[
        int,
        option("--grace", "SECONDS", "The run stops so long before the limit.", min=60, max=3600),
    ] = 300,
    max_requeues: Annotated[
        int,
        option("--max-requeues", "N", "How often the job goes back into the queue.", min=0),
    ] = 50,
    partition: Annotated[str | None, option("--partition", "NAME", "As in sbatch.")] = None,
    account: Annotated[str | None, option("--account", "NAME", "As in sbatch.")] = None,
    qos: Annotated[str | None, option("--qos", "NAME", "As in sbatch.")] = None,
    constraint: Annotated[str | None, option("--constraint", "LIST", "As in sbatch.")] = None,
    sbatch: Annotated[
        list[str] | None,
        option("--sbatch", "OPTION", "Another option of sbatch: --sbatch=--exclusive; may be repeated."),
    ] = None,
    name: Annotated[
        str | None,
        option("--job-name", "NAME", "Jobs of one name run one after the other; default: from manifest and output."),
    ] = None,
    run: job_options.Run = "dump,ensemble",
    setup: job_options.Setup = None,
    interface: job_options.Interface = None,
    folder: job_options.Folder = None,
    certificates: job_options.Certificates = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit the job; print its number and log.")] = False,
) -> None:
    """Write a batch script for Slurm, or submit it.

    The job starts a scheduler and a worker per GPU, runs the commands, and is requeued until all is done.

    Example: hmsa-pipeline cluster slurm --nodes 2 --gpus-per-node 4 --partition gpu --time 8:00:00 > run.sbatch
    """
    from ...cluster.slurm import SlurmSettings, job_name, slurm_script
    from ...cluster.slurm import submit as submit_script

    job = job_options.make_job(context, manifest, "node")
    settings = SlurmSettings(
        name=name or job_name(context.params["manifest"], str(manifest.output)),
        nodes=nodes,
        time=time,
        grace=grace,
        max_requeues=max_requeues,
        gpu_type=gpu_type,
        memory=memory,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        extra=tuple(sbatch or ()),
    )
    script = slurm_script(job, settings)
    if not submit:
        say.lines(script.splitlines())
        say.figures({"script": script})
        return
    number, doubt = submit_script(script)
    log = Path(job.folder, f"{settings.name}-{number}.log")
    say.line(f"submitted as job {number}; it writes to {log}")
    say.figures({"script": script, "job": number, "log": str(log)})
    if doubt:
        print_note(
            f"job {number} cannot start, says Slurm: {doubt}; if its nodes will not change, 'scancel {number}' and "
            "ask for less: later jobs for this output wait behind it"
        )
