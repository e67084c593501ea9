"""``hmsa-pipeline dump``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .shared import options
from .shared.job_output import conclude_jobs, print_job, print_notes, print_plan
from .shared.options import manifest_command, refuse_timeout_without_workers

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
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
) -> None:
    """Store every model's logits over every dataset.

    Complete images are skipped, so the same command goes on after an interruption.

    Example: hmsa-pipeline dump --manifest bravo.yaml --data-root /data --assets /data/assets
    """
    from ..inference.dump import dump_table, plan_dump, run_dump
    from ..workers.choose import choose_workers

    refuse_timeout_without_workers(context, workers)
    chosen = choose_workers(device, workers=workers, scheduler=scheduler, image_timeout=image_timeout)
    try:
        plan = plan_dump(manifest, chosen.device, limit=limit, overwrite=overwrite)
        print_notes(plan.notes)
        if dry_run:
            print_plan(say, plan, chosen.pool.describe())
            return
        results = run_dump(plan, chosen, lambda result: print_job(say, result))
    finally:
        chosen.pool.close()
    if sum(bool(r.done or r.failed) for r in results) > 1:
        say.lines(dump_table(results))
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
