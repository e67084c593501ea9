"""Options of the commands that write a job, and the job's settings from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....errors import ManifestError
from ..dump import dump
from ..ensemble import ensemble
from ..predict import predict
from ..shared.options import option, path_option

if TYPE_CHECKING:
    from ...cluster.settings import JobSettings
    from ...config.manifest import Manifest

Run = Annotated[
    str,
    option("--run", "STAGES", "Commands with options, comma separated, such as 'predict --keep cityscapes'."),
]
Nodes = Annotated[int, option("--nodes", "N", "Number of nodes.", min=1)]
GpusPerNode = Annotated[int | None, option("--gpus-per-node", "N", "GPUs of each node, with a worker each.", min=1)]
WorkersPerNode = Annotated[
    int | None, option("--workers-per-node", "N", "Workers of each node, with --device cpu.", min=1)
]
Device = Annotated[str, option("--device", "NAME", "cuda or cpu.")]
Threads = Annotated[
    int,
    option("--cpus-per-worker", "N", "CPU threads of each worker.", "--cpus-per-gpu", min=1),
]
Setup = Annotated[
    list[str] | None,
    option(
        "--setup",
        "LINE",
        "Shell line that runs first: 'module load cuda'; ends the job if it fails; may be repeated.",
    ),
]
Interface = Annotated[
    str | None,
    option("--interface", "NAME", "Network interface that the machines share, such as ib0."),
]
Folder = Annotated[
    Path | None,
    path_option("--folder", "DIR", "For log and scheduler's file, on a shared disk; default: here."),
]
Certificates = Annotated[
    Path | None,
    path_option("--certificates", "DIR", "Encrypt with what 'cluster certificates DIR' made."),
]


def make_job(context: typer.Context, manifest: Manifest, place: str) -> JobSettings:
    """Make the settings that all kinds of clusters share.

    Args:
        context: of the command; has its options, of which it may lack those from ``--setup`` on.
        manifest: of the job.
        place: what the command calls a machine, ``node`` or ``host``.

    Raises:
        ManifestError: a value is wrong.
    """
    from ...cluster.settings import (
        JobSettings,
        certificates_folder,
        folder_on_disk,
        require_shell,
        worker_count,
    )
    from ...cluster.stages import path_variables, plan_stages, require_resolved, split_stages

    given = context.params
    device, setup = given["device"], given.get("setup") or ()
    workers = worker_count(device, given[f"gpus_per_{place}"], given[f"workers_per_{place}"], place)
    asked = split_stages(given["run"])
    for words in asked:
        _require_options(words)
    require_shell(setup)
    require_resolved(manifest)
    return JobSettings(
        stages=plan_stages(
            asked,
            manifest,
            source=given["manifest"],
            device=device,
            selection={"--models": given["models"], "--datasets": given["datasets"]},
        ),
        device=device,
        workers=workers,
        threads=given["cpus_per_worker"],
        folder=folder_on_disk(given.get("folder")),
        variables=path_variables(given["data_root"], given["assets"]),
        setup=tuple(setup),
        interface=given.get("interface"),
        certificates=certificates_folder(given.get("certificates")),
    )


def _require_options(words: list[str]) -> None:
    """Refuse a command that its own parser would refuse on the cluster."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    for command in (dump, ensemble, predict):
        app.command()(command)
    group = typer.main.get_command(app)
    found = group.get_command(typer.Context(group), words[0])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        found.make_context(words[0], list(words[1:]))
    except typer.TyperException as error:
        raise ManifestError(f"--run {words[0]}: {' '.join(error.format_message().split()).rstrip('.')}") from None
