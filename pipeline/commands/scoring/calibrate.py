"""``hmsa-pipeline calibrate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....errors import HmsaError, disk_error, nearest
from ..shared import options
from ..shared.options import manifest_command, option, path_option, require_average
from ..shared.output import require_target

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ..shared.output import Output


@manifest_command(lazy=True)
def calibrate(
    manifest: Callable[..., Manifest],
    say: Output,
    context: typer.Context,
    write: Annotated[Path, path_option("--write", "FILE", "The manifest to write.")],
    weights: Annotated[bool, typer.Option("--weights", help="Fit the members' weights, too.")] = False,
    pixels: Annotated[int, option("--pixels", "N", "Labelled pixels to look at, over all images.", min=1)] = 400_000,
    seed: Annotated[int, option("--seed", "N", "Of the pixels and of the halves.", min=0)] = 0,
    limit: options.Limit = None,
    average: options.Average = "dataset",
    method: Annotated[
        str, option("--method", "NAME", "temperature, vector, class-conditional or dirichlet.")
    ] = "temperature",
    per_dataset: Annotated[bool, typer.Option("--per-dataset", help="Fit numbers to each dataset alone.")] = False,
) -> None:
    """Fit a temperature to each member, from stored logits and labels, and what else --method says.

    Half of the labelled images are fitted to, the others show the gain. A method that gains nothing there over
    temperatures is not kept. Writes the manifest again, with the numbers in it, and all datasets of it:
    --datasets selects only what is fitted to.

    Example: hmsa-pipeline calibrate --manifest cityscapes --write calibrated.yaml
    """
    from ....files import write_text
    from ...scoring.calibration.calibrate import METHODS, calibrated_manifest, calibration_table
    from ...scoring.calibration.calibrate import calibrate as fit
    from ...scoring.calibration.labelled_pixels import by_dataset, plan_calibration, require_room

    if method not in METHODS:
        raise HmsaError(f"--method {method}: is no method; {nearest(method, METHODS)}")
    if per_dataset and weights:
        raise HmsaError("--weights: a member has one weight for all datasets; leave --per-dataset or --weights out")
    require_target(str(write), "--write")
    read = Path(context.params["manifest"])
    if write.exists() and read.exists() and write.samefile(read):
        raise HmsaError(f"--write {write}: is the manifest that is read, which would be lost; name another file")
    found, every = manifest(), manifest(datasets=None)
    images = plan_calibration(found, limit=limit, average=require_average(average))
    require_room(found, method, len({image.dataset for image in images}) if per_dataset else 1)
    parts = by_dataset(images) if per_dataset else {None: images}
    results = [
        fit(found, some, method=method, dataset=dataset, pixels=pixels, seed=seed, weights=weights)
        for dataset, some in parts.items()
    ]
    try:
        kept = found.model_copy(update={"datasets": every.datasets})
        write_text(write, calibrated_manifest(kept, results).to_yaml())
    except OSError as error:
        raise disk_error(write, error) from error
    for result in results:
        say.lines(calibration_table(result))
    say.line(f"written: {write}")
    by_name = {result.dataset: result.as_json() for result in results}
    say.figures({"datasets": by_name} if per_dataset else by_name[None])
