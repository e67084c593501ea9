"""Resources for Kubernetes with the Dask operator: a DaskCluster and a Job that runs the commands.

The operator names the scheduler's service after the cluster, and gives each worker its name in the variable
DASK_WORKER_NAME and the scheduler's address in DASK_SCHEDULER_ADDRESS (https://kubernetes.dask.org).
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ... import __version__
from ...errors import ManifestError
from ..config.manifest import Manifest
from ..storage.filesystem import is_remote
from .settings import JobSettings

PORT, DASHBOARD_PORT = 8786, 8787
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_MEMORY = re.compile(r"\d+(\.\d+)?([KMGT]i?)?")
_WAIT = """\
run=
trap '[ -z "$run" ] || kill -TERM "$run"' TERM
stage() {{
    hmsa-pipeline "$@" --scheduler {address} &
    run=$!
    wait "$run" || wait "$run"
}}
until python -c 'import socket; socket.create_connection(("{host}", {port}), 5)' 2> /dev/null; do sleep 5; done
"""


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings:
    """Settings of the resources.

    Attributes:
        name: of the cluster and the job.
        image: container image with hmsa-pipeline.
        nodes: number of machines.
        claim: the PersistentVolumeClaim (ReadWriteMany) with images, checkpoints and output.
        mount: absolute path at which all pods see it.
        memory: of each worker, such as ``32Gi``; None for no limit.
        namespace: None for the current one.
        retries: times that the job is started again after a failure.
    """

    name: str
    image: str
    nodes: int
    claim: str
    mount: PurePosixPath
    memory: str | None = None
    namespace: str | None = None
    retries: int = 6


def require_below(mount: PurePosixPath, manifest: Manifest, source: str) -> list[str]:
    """Check that the pods can reach what the job needs.

    Args:
        mount: path of the volume in the pods.
        manifest: of the job.
        source: absolute path of the manifest, or the bare name of a shipped one.

    Returns:
        notes about images and checkpoints that lie elsewhere, where only the container image could have them.

    Raises:
        ManifestError: the manifest or the output lies elsewhere.
    """
    if not mount.is_absolute():
        raise ManifestError(f"--mount {mount}: is no absolute path")
    needed = {"the manifest": source} if source.startswith("/") else {}
    if not is_remote(manifest.output):
        needed["the output"] = str(manifest.output)
    for what, path in needed.items():
        if not PurePosixPath(path).is_relative_to(mount):
            raise ManifestError(f"--mount {mount}: {what} {path} is not below it, and no pod would see it")
    inputs = [member.checkpoint_path() for member in manifest.models if not member.external]
    inputs += [dataset.root_path() for dataset in manifest.datasets]
    return [
        f"{path}: is not below --mount {mount}; the container image has to hold it"
        for path in inputs
        if not PurePosixPath(path).is_relative_to(mount)
    ]


def kubernetes_resources(job: JobSettings, settings: KubernetesSettings) -> str:
    """Write the resources as YAML.

    Raises:
        ManifestError: a value is none that Kubernetes would take.
    """
    for flag, text, pattern in (
        ("--name", settings.name, _NAME),
        ("--claim", settings.claim, re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")),
        ("--namespace", settings.namespace, _NAME),
        ("--image", settings.image, re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")),
        ("--memory", settings.memory, _MEMORY),
    ):
        if text is not None and not pattern.fullmatch(text):
            raise ManifestError(f"{flag} {text!r}: is nothing that Kubernetes takes there")
    head = f"# hmsa-pipeline {__version__}, 'cluster kubernetes': kubectl apply -f; kubectl delete -f at the end\n"
    return head + yaml.safe_dump_all([_cluster(job, settings), _job(job, settings)], sort_keys=False, width=1000)


def _cluster(job: JobSettings, settings: KubernetesSettings) -> dict[str, Any]:
    environment = {
        "OMP_NUM_THREADS": job.threads,
        "MALLOC_TRIM_THRESHOLD_": 134217728,
        "MALLOC_MMAP_THRESHOLD_": 33554432,
    }
    limits: dict[str, Any] = {"nvidia.com/gpu": 1} if job.device == "cuda" else {}
    if settings.memory:
        limits["memory"] = settings.memory
    worker = _container(
        "worker",
        settings,
        command=_worker_words(),
        env=_variables(
            {
                "PYTHONSAFEPATH": "1",
                "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": json.dumps(environment),
                "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
            }
        ),
        resources={"requests": {"cpu": job.threads, **limits}, "limits": limits},
    )
    scheduler = _container(
        "scheduler",
        settings,
        command=["dask", "scheduler"],
        ports=[
            {"name": "tcp-comm", "containerPort": PORT, "protocol": "TCP"},
            {"name": "http-dashboard", "containerPort": DASHBOARD_PORT, "protocol": "TCP"},
        ],
        readinessProbe={"httpGet": {"port": "http-dashboard", "path": "/health"}, "periodSeconds": 10},
        livenessProbe={
            "httpGet": {"port": "http-dashboard", "path": "/health"},
            "initialDelaySeconds": 30,
            "periodSeconds": 30,
        },
    )
    service = {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": settings.name, "dask.org/component": "scheduler"},
        "ports": [
            {"name": "tcp-comm", "protocol": "TCP", "port": PORT, "targetPort": "tcp-comm"},
            {"name": "http-dashboard", "protocol": "TCP", "port": DASHBOARD_PORT, "targetPort": "http-dashboard"},
        ],
    }
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": _metadata(settings),
        "spec": {
            "worker": {"replicas": settings.nodes * job.workers, "spec": _pod(settings, worker)},
            "scheduler": {"spec": _pod(settings, scheduler), "service": service},
        },
    }


def _worker_words() -> list[str]:
    options = ["--nthreads", "1", "--resources", "GPU=1", "--memory-limit", "0", "--no-dashboard"]
    return ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", *options]


def _job(job: JobSettings, settings: KubernetesSettings) -> dict[str, Any]:
    host = f"{settings.name}-scheduler"
    lines = [_WAIT.format(address=f"tcp://{host}:{PORT}", host=host, port=PORT), "failed=0"]
    for stage, after in zip(job.stages, [*job.stages[1:], None], strict=True):
        lines.append(f"stage {shlex.join(stage.words)}; code=$?")
        if after is not None and after.follows_failures:
            lines += ['[ "$code" -le 1 ] || exit "$code"', '[ "$code" -eq 0 ] || failed=1']
        else:
            lines.append('[ "$code" -eq 0 ] || exit "$code"')
    run = _container(
        "run",
        settings,
        command=["bash", "-c", "\n".join([*lines, 'exit "$failed"'])],
        env=_variables({"PYTHONSAFEPATH": "1", **job.variables}),
    )
    pod = _pod(settings, run) | {"restartPolicy": "Never", "terminationGracePeriodSeconds": 300}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(settings),
        "spec": {"backoffLimit": settings.retries, "template": {"spec": pod}},
    }


def _metadata(settings: KubernetesSettings) -> dict[str, Any]:
    return {"name": settings.name} | ({"namespace": settings.namespace} if settings.namespace else {})


def _container(name: str, settings: KubernetesSettings, **more: Any) -> dict[str, Any]:
    mount = {"name": "data", "mountPath": str(settings.mount)}
    return {"name": name, "image": settings.image, **more, "volumeMounts": [mount]}


def _pod(settings: KubernetesSettings, container: dict[str, Any]) -> dict[str, Any]:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": settings.claim}}
    return {"containers": [container], "volumes": [volume]}


def _variables(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def default_name(manifest: str) -> str:
    """Make a name that Kubernetes takes from a manifest's file name."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(manifest).stem.lower()).strip("-")
    return f"hmsa-{name}"[:40].strip("-")
