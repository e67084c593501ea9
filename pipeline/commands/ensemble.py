"""``hmsa-pipeline ensemble``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import options
from .shared.job_output import cpu_workers
from .shared.options import manifest_command, refuse_without_workers
from .shared.output import end_command, print_failed, print_note
from .shared.waiting import when_free

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from ..fusion.ensemble import EnsembleResult
    from .shared.output import Output


@manifest_command(overrides={"ensemble": ("label", "confidence")})
def ensemble(
    manifest: Manifest,
    say: Output,
    context: typer.Context,
    limit: options.Limit = None,
    label: options.Label = None,
    confidence: options.Confidence = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Fuse images that some members lack from the others.")
    ] = False,
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    image_timeout: options.ImageTimeout = 1800.0,
    patience: options.Patience = options.PATIENCE,
    wait: options.Wait = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
) -> None:
    """Fuse stored logits into class maps and confidences.

    Example: hmsa-pipeline ensemble --manifest bravo.yaml --confidence entropy --output runs/entropy
    """
    from ..fusion.ensemble import plan_ensemble, run_ensemble
    from ..fusion.kernel.library import library
    from ..text import plural

    refuse_without_workers(context)

    def ended(result: EnsembleResult) -> None:
        print_failed(result.dataset, result.failed)
        if result.partial:
            what = plural(result.partial, "image is", "images are")
            print(f"{result.dataset}: {what} fused from fewer than all members", file=sys.stderr)
        if result.done or result.failed:
            say.line(
                f"{result.dataset}: {result.done} fused, {result.skipped} done before, "
                f"{len(result.failed)} failed, {result.seconds:.1f} s"
            )

    def attempt() -> list[EnsembleResult]:
        plans = plan_ensemble(manifest, limit=limit, overwrite=overwrite, allow_missing=allow_missing)
        if dry_run:
            for plan in plans:
                todo = f"{len(plan.tasks)} to fuse, {plan.skipped} done before, {len(plan.absent)} in no store"
                say.line(f"{plan.dataset}: {todo}")
            say.figures([{"dataset": p.dataset, "todo": len(p.tasks), "skipped": p.skipped} for p in plans])
            raise typer.Exit
        if library() is None and any(plan.tasks for plan in plans):
            print_note("fusing has no compiled library here and takes longer; docs/performance.md says how to get it")
        with cpu_workers(context) as chosen:
            return run_ensemble(manifest, plans, chosen, ended, overwrite=overwrite)

    results = when_free(wait, attempt)
    done, failed = sum(r.done for r in results), sum(len(r.failed) for r in results)
    skipped = sum(r.skipped for r in results)
    say.figures([result.as_json() for result in results])
    if not done and not failed and skipped:
        say.line(f"nothing to do: all {skipped} predictions are there")
    else:
        made = plural(done, "image")
        say.line(f"{made} fused, {skipped} done before, {failed} failed; {manifest.output}/predictions")
    end_command(failed, interrupted=any(r.interrupted for r in results))
