"""``hmsa-pipeline search``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....errors import HmsaError, StoreError, disk_error
from ..shared import options
from ..shared.options import (
    manifest_command,
    option,
    path_option,
    refuse_without_effect,
    require_average,
    split_names,
    target_file,
)
from ..shared.output import print_error, require_target, write_rows
from .tars import refuse_beside_tars

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ...search.objective import Objective
    from ..shared.output import Output


@manifest_command(lazy=True)
def search(
    manifest: Callable[..., Manifest],
    say: Output,
    context: typer.Context,
    by: Annotated[
        str, option("--by", "METRICS", "What is to be best: miou, ece, nll, ..., or a sum such as miou:1,ece:-1.")
    ] = "miou",
    labels: Annotated[
        str | None, option("--labels", "A,B", "Label functions to try; the manifest's if left out.")
    ] = None,
    confidences: Annotated[
        str | None, option("--confidences", "A,B", "Confidences to try; the manifest's if left out.")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Fit the weights of what is chosen, too.")] = False,
    most: Annotated[int | None, option("--most", "N", "Only combinations of at most N members.", min=1)] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Add one member after the other; always so beyond ten members.")
    ] = False,
    folds: Annotated[int, option("--folds", "K", "Parts of the images, each judges once.", min=2)] = 5,
    bootstrap: Annotated[int, option("--bootstrap", "N", "Resamples behind an interval.", min=100)] = 1000,
    seed: Annotated[int, option("--seed", "N", "Of the folds and of the bootstrap.", min=0)] = 0,
    cost: Annotated[
        str, option("--cost", "NAME", "What a combination costs: members, or seconds of the run record.")
    ] = "members",
    limit: options.Limit = None,
    average: options.Average = "dataset",
    allow_unlabelled: options.Unlabelled = False,
    ground_truth: Annotated[
        Path | None, path_option("--ground-truth", "TAR", "BRAVO's ground truth: search by BRAVO's images instead.")
    ] = None,
    samples: options.Samples = None,
    processes: Annotated[
        int | None, option("--processes", "N", "Processes that read and count.", min=1, max=512)
    ] = None,
    csv_file: Annotated[
        str | None, option("--csv", "FILE", "Write a row for each combination there.", callback=target_file)
    ] = None,
    plot: Annotated[
        Path | None, path_option("--plot", "FILE", "Draw the figure against the cost: .png, .svg or .pdf.")
    ] = None,
    write: Annotated[Path | None, path_option("--write", "FILE", "Write the chosen manifest there.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --write.")] = False,
) -> None:
    """Search for the members and functions that are best together, on labelled images.

    Every subset of the members is scored from the stores, in one pass. The choice is made several times, each time
    without a part of the images, and judged by that part: the printed figures are of images that it did not see.
    docs/search.md explains them.

    With BRAVO's tar files the images are those that have ground truth there, counted by the challenge's protocol:
    --by bravo_index, semantic_hmean, ood_hmean, and all others.

    Example: hmsa-pipeline search --manifest demo/calibrated.yaml --write chosen.yaml

    Example: hmsa-pipeline search --manifest demo/calibrated.yaml --by miou:1,ece:-1 --most 4 --plot pareto.png

    Example: hmsa-pipeline search --by bravo_index --ground-truth gt.tar --samples bravo_SAMPLING.tar
    """
    from ....files import write_text
    from ...config.class_set_field import require_default
    from ...search.objective import read_objective
    from ...search.plan import SearchSettings, plan_search
    from ...search.record import record_search
    from ...search.run import chosen_manifest, search_table
    from ...search.run import search as run

    if write is not None:
        _require_new(write, Path(context.params["manifest"]), overwrite)
    elif overwrite:
        raise HmsaError("--overwrite: changes nothing without --write; leave it out")
    if plot is not None:
        _require_picture(plot)
    objective = read_objective(by)
    tars = _tars(context, objective)
    found = manifest()
    if tars:
        require_default(found.class_set, "--ground-truth")
    functions = found.ensemble
    settings = SearchSettings(
        objective,
        tuple(dict.fromkeys(split_names("--labels", labels) or [functions.label])),
        tuple(dict.fromkeys(split_names("--confidences", confidences) or [functions.confidence])),
        folds=folds,
        seed=seed,
        resamples=bootstrap,
        most=most,
        greedy=greedy,
        weights=weights,
        cost=cost,
    )
    plan = plan_search(
        found,
        settings,
        limit=limit,
        average=require_average(average),
        allow_unlabelled=allow_unlabelled,
        tars=tars,
    )
    for note in plan.notes:
        typer.echo(f"note: {note}", err=True)
    result = run(plan, processes)
    figures = result.as_json()
    say.lines(search_table(result))
    if plot is not None:
        from ...search.plot import draw_pareto

        try:
            draw_pareto(figures, plot)
        except OSError as error:
            raise disk_error(plot, error) from error
        say.line(f"drawn: {plot}")
    if write is not None:
        every = manifest(datasets=None)
        chosen = chosen_manifest(found, result).model_copy(update={"datasets": every.datasets})
        try:
            write_text(write, chosen.to_yaml())
        except OSError as error:
            raise disk_error(write, error) from error
        say.line(f"written: {write}; fuse with it: hmsa-pipeline ensemble --manifest {write} --overwrite")
    say.figures(figures)
    try:
        record_search(found.output, figures)
    except (OSError, StoreError) as error:
        print_error(f"note: not kept for the report: {error}")
    if csv_file:
        write_rows(csv_file, result.candidate_rows(), "--csv")


def _tars(context: typer.Context, objective: Objective) -> tuple[Path, Path] | None:
    """BRAVO's ground truth and samples, None without them; HmsaError if something else does not go with that."""
    from ...scoring.bravo_protocol import MEANS

    ground_truth, samples = (context.params[name] for name in ("ground_truth", "samples"))
    if ground_truth is None:
        if samples is not None:
            raise HmsaError("--samples: belongs to --ground-truth; name both, or leave it out")
        if means := [name for name in MEANS if name in objective.weights]:
            raise HmsaError(
                f"--by {objective.text}: {means[0]} is of BRAVO's images; name its tar files by --ground-truth and "
                "--samples"
            )
        return None
    refuse_beside_tars(context, {})
    refuse_without_effect(context, "beside --ground-truth, which names the datasets", "datasets")
    return ground_truth, samples


def _require_new(write: Path, read: Path, overwrite: bool) -> None:
    """Raise HmsaError if the manifest cannot be written after the work, or would replace something."""
    if write.exists() and read.exists() and write.samefile(read):
        raise HmsaError(f"--write {write}: is the manifest that is read, which would be lost; name another file")
    if write.exists() and not write.is_dir() and not overwrite:
        raise HmsaError(f"--write {write}: is there already; name another file, or pass --overwrite")
    require_target(str(write), "--write")


def _require_picture(plot: Path) -> None:
    """Raise HmsaError if a picture cannot be drawn there."""
    if plot.suffix not in (".png", ".svg", ".pdf"):
        raise HmsaError(f"--plot {plot}: is no kind of picture; let the name end with .png, .svg or .pdf")
    require_target(str(plot), "--plot")
