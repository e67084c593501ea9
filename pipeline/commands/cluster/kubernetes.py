"""``hmsa-pipeline cluster kubernetes``."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from ..shared.options import manifest_command, option, path_option
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
    image: Annotated[str, option("--image", "IMAGE", "Container image with hmsa-pipeline, for all pods.")],
    claim: Annotated[str, option("--claim", "NAME", "PersistentVolumeClaim with images, weights and output.")],
    mount: Annotated[Path, path_option("--mount", "PATH", "Where all pods see it; the same as here.")],
    nodes: job_options.Nodes = 1,
    gpus_per_node: job_options.GpusPerNode = None,
    workers_per_node: job_options.WorkersPerNode = None,
    device: job_options.Device = "cuda",
    cpus_per_worker: job_options.Threads = 8,
    memory: Annotated[str | None, option("--memory", "SIZE", "Memory of each worker, such as 32Gi.")] = None,
    name: Annotated[str | None, option("--name", "NAME", "Name of cluster and job; default: the manifest's.")] = None,
    namespace: Annotated[str | None, option("--namespace", "NAME", "Default: kubectl's current one.")] = None,
    retries: Annotated[int, option("--retries", "N", "How often the job starts again after a failure.", min=0)] = 6,
    run: job_options.Run = "dump,ensemble",
) -> None:
    """Write a DaskCluster for the Dask operator, and a Job that runs the commands on it.

    Example: hmsa-pipeline cluster kubernetes --image hmsa:1 --claim data --mount /data --gpus-per-node 4 > run.yaml
    """
    from ...cluster.kubernetes import KubernetesSettings, default_name, kubernetes_resources, require_below
    from ...cluster.stages import manifest_argument

    source = context.params["manifest"]
    job = job_options.make_job(context, manifest, "node")
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
