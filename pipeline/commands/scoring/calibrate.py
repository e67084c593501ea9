"""``hmsa-pipeline calibrate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....errors import HmsaError, disk_error
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
) -> None:
    """Fit a temperature to each member, from stored logits and labels.

    Half of the labelled images are fitted to, the others show the gain. Writes the manifest again, with
    the numbers in it, and all datasets of it: --datasets selects only what is fitted to.

    Example: hmsa-pipeline calibrate --manifest cityscapes --write calibrated.yaml
    """
    from ....files import write_text
    from ...scoring.calibrate import calibrate as fit
    from ...scoring.calibrate import calibrated_manifest, calibration_table, plan_calibration

    require_target(str(write), "--write")
    read = Path(context.params["manifest"])
    if write.exists() and read.exists() and write.samefile(read):
        raise HmsaError(f"--write {write}: is the manifest that is read, which would be lost; name another file")
    found, every = manifest(), manifest(datasets=None)
    images = plan_calibration(found, limit=limit, average=require_average(average))
    result = fit(found, images, pixels=pixels, seed=seed, weights=weights)
    try:
        kept = found.model_copy(update={"datasets": every.datasets})
        write_text(write, calibrated_manifest(kept, result).to_yaml())
    except OSError as error:
        raise disk_error(write, error) from error
    say.lines(calibration_table(result, write))
    say.figures(result.as_json())
