"""``hmsa-pipeline report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import options
from .shared.confidences import require_confidences
from .shared.options import (
    manifest_command,
    option,
    path_option,
    refuse_without_effect,
    require_average,
    require_track,
    split_names,
)
from .shared.output import end_command, print_failed, require_folder

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(lazy=True)
def report(
    manifest: Callable[[], Manifest],
    say: Output,
    context: typer.Context,
    write: Annotated[Path, path_option("--write", "DIR", "Where the report goes.")],
    no_members: Annotated[
        bool, typer.Option("--no-members", help="Look at the predictions only, not at every member's logits.")
    ] = False,
    width: Annotated[int, option("--width", "PIXELS", "Pictures are reduced to this width.", min=64)] = 1024,
    limit: options.Limit = None,
    processes: Annotated[
        int | None, option("--processes", "N", "Processes that read and draw.", min=1, max=512)
    ] = None,
    ground_truth: Annotated[
        Path | None, path_option("--ground-truth", "TAR", "BRAVO's ground truth, for its datasets.")
    ] = None,
    average: options.Average = "dataset",
    confidences: Annotated[
        str | None, option("--confidences", "A,B", "Show where the ensemble is unsure by these functions, too.")
    ] = None,
    components: Annotated[
        str,
        option("--components", "TRACK", "Sizes of components out of distribution: anomaly, obstacle, or auto."),
    ] = "auto",
) -> None:
    """Make a folder of pages that shows how good the ensemble is; open its index.html.

    It opens with one photograph as every member and the ensemble see it. A summary, plots, the worst images of each
    class and a gallery follow. Run it again and only what changed is made again.

    Example: hmsa-pipeline report --manifest cityscapes --write report
    """
    from ..report.build_report import plan_report, run_report
    from ..report.page import PAGE
    from ..text import plural

    if no_members:
        refuse_without_effect(context, "beside --no-members", "models", "confidences")
    track = require_track(components)
    require_folder(write, "--write")
    found = manifest()
    pages = plan_report(
        found,
        write,
        members=not no_members,
        width=width,
        limit=limit,
        ground_truth=ground_truth,
        average=require_average(average),
        confidences=require_confidences(found, "--confidences", split_names("--confidences", confidences) or []),
        components=track,
    )
    results = run_report(pages, found, processes)
    for result in results:
        print_failed(result.dataset, result.failed)
    say.figures([result.as_json() for result in results])
    failed = sum(len(result.failed) for result in results)
    say.line(f"{plural(sum(len(result.gallery) for result in results), 'image')}, {failed} failed; {write / PAGE}")
    end_command(failed)
