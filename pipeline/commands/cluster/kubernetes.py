"""``hmsa-pipeline cluster kubernetes``."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from ..shared.options import manifest_command, path_option
from ..shared.output import print_note
from . import job_options

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ..shared.output import Output


@manifest_command()
def kubernetes(
    manifest: Manifest,
    say: Output,
    context: typer.Context,
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="Container image with hmsa-pipeline, for all pods.")
    ],
    claim: Annotated[
        str, typer.Option("--claim", metavar="NAME", help="PersistentVolumeClaim with images, weights and output.")
    ],
    mount: Annotated[Path, path_option("--mount", metavar="PATH", help="Where all pods see it; the same as here.")],
    nodes: Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Number of nodes.")] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=1, metavar="N", help="GPUs of each node, with a worker each.")
    ] = None,
    workers_per_node: Annotated[
        int | None,
        typer.Option("--workers-per-node", min=1, metavar="N", help="Workers of each node, with --device cpu."),
    ] = None,
    device: job_options.Device = "cuda",
    cpus_per_worker: job_options.Threads = 8,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory of each worker, such as 32Gi.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of cluster and job; default: the manifest's.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", metavar="NAME", help="Default: kubectl's current one.")
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, metavar="N", help="How often the job starts again after a failure.")
    ] = 6,
    run: job_options.Run = "dump,ensemble",
) -> None:
    """Write a DaskCluster for the Dask operator, and a Job that runs the commands on it.

    Example: hmsa-pipeline cluster kubernetes --image hmsa:1 --claim data --mount /data --gpus-per-node 4 > run.yaml
    """
    from ...cluster.kubernetes import KubernetesSettings, default_name, kubernetes_resources, require_below
    from ...cluster.settings import worker_count
    from ...cluster.stages import manifest_argument

    source = context.params["manifest"]
    workers = worker_count(device, gpus_per_node, workers_per_node, "node")
    job = job_options.make_job(context, manifest, run=run, device=device, workers=workers, threads=cpus_per_worker)
    for note in require_below(PurePosixPath(mount), manifest, manifest_argument(source)):
        print_note(note)
    settings = KubernetesSettings(
        name=name or default_name(source),
        image=image,
        nodes=nodes,
        claim=claim,
        mount=PurePosixPath(mount),
        memory=memory,
        namespace=namespace,
        retries=retries,
    )
    text = kubernetes_resources(job, settings)
    say.lines(text.splitlines())
    say.figures({"resources": text})
