"""``hmsa-pipeline cluster``."""

from __future__ import annotations

import typer

from .certificates import certificates
from .kubernetes import kubernetes
from .slurm import slurm
from .ssh import ssh

app = typer.Typer(help="Write what starts a run on a cluster.", rich_markup_mode=None)
for command in (slurm, ssh, kubernetes, certificates):
    app.command()(command)
