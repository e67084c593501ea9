"""``hmsa-pipeline dump``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .shared import options
from .shared.job_output import conclude_jobs, run_jobs
from .shared.options import manifest_command

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(overrides={"inference": ("precision",)})
def dump(
    manifest: Manifest,
    say: Output,
    context: typer.Context,
    limit: options.Limit = None,
    device: options.Devices = "auto",
    precision: options.Precision = None,
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    image_timeout: options.ImageTimeout = 1800.0,
    patience: options.Patience = options.PATIENCE,
    wait: options.Wait = None,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    dry_run: options.DryRun = False,
) -> None:
    """Store every model's logits over every dataset.

    Complete images are skipped, so the same command goes on after an interruption.

    Example: hmsa-pipeline dump --manifest bravo.yaml --data-root /data --assets /data/assets
    """
    from ..inference.dump import dump_table, plan_dump, run_dump

    manifest = options.trusted(manifest, trust)
    plan, results = run_jobs(
        say, context, lambda where: plan_dump(manifest, where, limit=limit, overwrite=overwrite), run_dump
    )
    if len(worked := [result for result in results if not result.is_idle]) > 1:
        say.lines(dump_table(worked))
    conclude_jobs(
        say,
        results,
        plan.todo,
        nothing="images are complete",
        done="dumped",
        before="complete before",
        where=f"stores: {manifest.output}/logits",
        jobs=f"{len(plan.jobs)} jobs",
    )
