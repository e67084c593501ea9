"""``hmsa-pipeline predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .shared import options
from .shared.job_output import conclude_jobs, run_jobs
from .shared.options import manifest_command, option, split_names

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(overrides={"inference": ("precision",), "ensemble": ("label", "confidence")})
def predict(
    manifest: Manifest,
    say: Output,
    context: typer.Context,
    limit: options.Limit = None,
    keep: Annotated[str | None, option("--keep", "A,B", "Store the logits of these models, too.")] = None,
    device: options.Devices = "auto",
    precision: options.Precision = None,
    label: options.Label = None,
    confidence: options.Confidence = None,
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    image_timeout: options.ImageTimeout = 1800.0,
    patience: options.Patience = options.PATIENCE,
    wait: options.Wait = None,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    dry_run: options.DryRun = False,
) -> None:
    """Predict class maps and confidences at once, without logits on the disk.

    The result is that of dump and ensemble, and complete images are skipped too; but to fuse in another way, to
    calibrate or to score the members, the networks have to run again.

    Example: hmsa-pipeline predict --manifest bravo.yaml --keep cityscapes
    """
    from ..inference.predict import plan_predict, run_predict

    kept = split_names("--keep", keep) or ()
    manifest = options.trusted(manifest, trust)
    plan, results = run_jobs(
        say,
        context,
        lambda where: plan_predict(manifest, where, limit=limit, overwrite=overwrite, keep=kept),
        run_predict,
    )
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
