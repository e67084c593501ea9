"""``hmsa-pipeline autolabel``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import HmsaError
from .shared import options
from .shared.job_output import cpu_workers
from .shared.options import manifest_command, option, path_option, refuse_without_workers
from .shared.output import end_command, print_failed, require_folder
from .shared.waiting import when_free

if TYPE_CHECKING:
    from ..autolabel.run import AutolabelResult
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(overrides={"ensemble": ("label", "confidence")}, lazy=True)
def autolabel(
    manifest: Callable[..., Manifest],
    say: Output,
    context: typer.Context,
    write: Annotated[Path, path_option("--write", "DIR", "Folder of the labels, one folder in it per dataset.")],
    threshold: Annotated[
        float | None, option("--threshold", "P", "Keep pixels of at least this confidence; 0.9 if nothing is given.")
    ] = None,
    precision: Annotated[
        float | None,
        option("--precision", "P", "Keep of each class what is right in this share of labelled pixels; needs --fit."),
    ] = None,
    keep: Annotated[
        float | None, option("--keep", "SHARE", "Keep this share of each class, the most confident pixels.")
    ] = None,
    fit: Annotated[
        str | None, option("--fit", "NAME", "Labelled dataset of the manifest on which precision is measured.")
    ] = None,
    agree: Annotated[
        int | None, option("--agree", "N", "Keep pixels whose class N members or more vote for.")
    ] = None,
    erode: Annotated[int, option("--erode", "PIXELS", "Leave out pixels this near to another class.")] = 0,
    format: Annotated[
        str, option("--format", "NAME", "train-ids, or cityscapes: label ids in files of its names.")
    ] = "train-ids",
    respect_coarse: Annotated[
        str | None,
        option(
            "--respect-coarse",
            "RULE",
            "Take the dataset's own labels: keep, everywhere; drop, but where they contradict the teacher.",
        ),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept thresholds that keep nothing of a class.")
    ] = False,
    limit: options.Limit = None,
    label: options.Label = None,
    confidence: options.Confidence = None,
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    image_timeout: options.ImageTimeout = 1800.0,
    patience: options.Patience = options.PATIENCE,
    wait: options.Wait = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make class maps for training from stored logits, where the ensemble is sure.

    docs/autolabel.md has the rules by which pixels are kept, and the files that are written.

    Example: hmsa-pipeline autolabel --manifest extra.yaml --precision 0.95 --fit val --write labels
    """
    from ..autolabel.plan import plan_autolabel
    from ..autolabel.record import labels_table
    from ..autolabel.run import run_autolabel
    from ..autolabel.settings import make_settings
    from ..text import plural

    refuse_without_workers(context)
    settings = make_settings(
        threshold=threshold,
        precision=precision,
        keep=keep,
        fit=fit,
        agree=agree,
        erode=erode,
        format=format,
        coarse=respect_coarse,
    )
    require_folder(write, "--write")
    found, every = manifest(), manifest(datasets=None)
    if fit is not None and context.params["datasets"] is None:
        others = tuple(entry for entry in found.datasets if entry.name != fit)
        if not others:
            raise HmsaError(f"--fit {fit}: is the only dataset, and nothing is left to label; name it by --datasets")
        found = found.model_copy(update={"datasets": others})

    def ended(result: AutolabelResult) -> None:
        print_failed(result.dataset, result.failed)
        if result.done or result.failed:
            say.line(
                f"{result.dataset}: {result.done} labelled, {result.skipped} done before, "
                f"{len(result.failed)} failed, {result.seconds:.1f} s"
            )

    def attempt() -> list[AutolabelResult]:
        plan = plan_autolabel(found, every, write, settings, fit=fit, limit=limit, overwrite=overwrite)
        if dry_run:
            for one in plan.datasets:
                where = f"{len(one.tasks)} to label, {one.skipped} done before; {one.folder}"
                say.line(f"{one.entry.name}: {where}")
            if plan.fit is not None:
                say.line(f"precision: {plural(len(plan.fit.pairs), 'labelled image')} of {fit}")
            figures = [{"dataset": p.entry.name, "todo": len(p.tasks), "skipped": p.skipped} for p in plan.datasets]
            say.figures(figures)
            raise typer.Exit
        with cpu_workers(context) as chosen:
            return run_autolabel(plan, chosen, ended, processes=workers, overwrite=overwrite, allow_empty=allow_empty)

    results = when_free(wait, attempt)
    done, failed = sum(r.done for r in results), sum(len(r.failed) for r in results)
    skipped = sum(r.skipped for r in results)
    say.figures([result.as_json() for result in results])
    for result in results:
        if result.labels is not None:
            say.lines(labels_table(result.labels))
    if not done and not failed and skipped:
        say.line(f"nothing to do: all {skipped} images have labels; {write}")
    else:
        say.line(f"{plural(done, 'image')} labelled, {skipped} done before, {failed} failed; {write}")
    end_command(failed, interrupted=any(r.interrupted for r in results))
