"""``hmsa-pipeline predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .shared import options
from .shared.job_output import conclude_jobs, print_job, print_notes, print_plan
from .shared.options import manifest_command, refuse_timeout_without_workers, split_names

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(overrides={"inference": ("precision",), "ensemble": ("label", "confidence")})
def predict(
    manifest: Manifest,
    say: Output,
    context: typer.Context,
    limit: options.Limit = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="A,B", help="Store the logits of these models, too.")
    ] = None,
    device: options.Devices = "auto",
    precision: options.Precision = None,
    label: options.Label = None,
    confidence: options.Confidence = None,
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    image_timeout: options.ImageTimeout = 1800.0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
) -> None:
    """Predict class maps and confidences at once, without logits on the disk.

    The result is that of dump and ensemble, and complete images are skipped too; but to fuse in another way, to
    calibrate or to score the members, the networks have to run again.

    Example: hmsa-pipeline predict --manifest bravo.yaml --keep cityscapes
    """
    from ..inference.predict import plan_predict, run_predict
    from ..workers.choose import choose_workers

    refuse_timeout_without_workers(context, workers)
    chosen = choose_workers(device, workers=workers, scheduler=scheduler, image_timeout=image_timeout)
    try:
        kept = split_names("--keep", keep) or ()
        plan = plan_predict(manifest, chosen.device, limit=limit, overwrite=overwrite, keep=kept)
        print_notes(plan.notes)
        if dry_run:
            print_plan(say, plan, chosen.pool.describe())
            return
        results = run_predict(plan, chosen, lambda result: print_job(say, result))
    finally:
        chosen.pool.close()
    conclude_jobs(
        say,
        results,
        plan.todo,
        nothing="predictions are there",
        done="predicted",
        before="done before",
        where=f"{manifest.output}/predictions",
        jobs=f"{len(plan.jobs)} datasets",
    )
