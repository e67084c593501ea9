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
Device = Annotated[str, option("--device", "NAME", "cuda or cpu.")]
Threads = Annotated[
    int,
    option("--cpus-per-worker", "N", "CPU threads of each worker.", "--cpus-per-gpu", min=1),
]
Setup = Annotated[
    list[str] | None,
    option("--setup", "LINE", "Shell line that runs first: 'module load cuda'; may be repeated."),
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


def make_job(
    context: typer.Context,
    manifest: Manifest,
    *,
    run: str,
    device: str,
    workers: int,
    threads: int,
    folder: Path | None = None,
    setup: list[str] | None = None,
    interface: str | None = None,
    certificates: Path | None = None,
) -> JobSettings:
    """Make the settings that all kinds of clusters share.

    Args:
        context: of the command; has the options that read the manifest.
        manifest: of the job.
        run: value of ``--run``.
        device: ``cuda`` or ``cpu``.
        workers: on each machine.
        threads: CPU threads of each worker.
        folder: value of ``--folder``.
        setup: lines of shell.
        interface: of the network.
        certificates: value of ``--certificates``.

    Raises:
        ManifestError: a value is wrong.
    """
    from ...cluster.settings import JobSettings, certificates_folder, folder_on_disk, require_shell
    from ...cluster.stages import path_variables, plan_stages, require_resolved, split_stages

    given = context.params
    asked = split_stages(run)
    for words in asked:
        _require_options(words)
    require_shell(setup or ())
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
        threads=threads,
        folder=folder_on_disk(folder),
        variables=path_variables(given["data_root"], given["assets"]),
        setup=tuple(setup or ()),
        interface=interface,
        certificates=certificates_folder(certificates),
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
