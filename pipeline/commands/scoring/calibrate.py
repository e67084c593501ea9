"""``hmsa-pipeline calibrate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....errors import HmsaError, disk_error, nearest
from ..shared import options
from ..shared.options import manifest_command, option, path_option, refuse_without_effect, require_average
from ..shared.output import require_target

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ...scoring.calibration.labelled_pixels import CalibrationImage
    from ..shared.output import Output


@manifest_command(lazy=True)
def calibrate(
    manifest: Callable[..., Manifest],
    say: Output,
    context: typer.Context,
    write: Annotated[Path, path_option("--write", "FILE", "The manifest to write.")],
    weights: Annotated[bool, typer.Option("--weights", help="Fit the members' weights, too.")] = False,
    pixels: Annotated[int, option("--pixels", "N", "Labelled pixels to look at, over all images.", min=1)] = 400_000,
    seed: Annotated[int, option("--seed", "N", "Seed of the pixels and of the halves.", min=0)] = 0,
    limit: options.Limit = None,
    average: options.Average = "dataset",
    method: Annotated[
        str, option("--method", "NAME", "temperature, vector, class-conditional or dirichlet.")
    ] = "temperature",
    sets: Annotated[
        float | None,
        option(
            "--sets", "SHARE", "Fit thresholds of prediction sets that hold this share of pixels.", min=0.0, max=1.0
        ),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common-threshold", help="Of --sets: one threshold, not one for each class.")
    ] = False,
    per_dataset: Annotated[bool, typer.Option("--per-dataset", help="Fit numbers to each dataset alone.")] = False,
    max_logits: Annotated[
        bool,
        typer.Option("--max-logits", help="Fit what standardises max logits instead; needs no labels."),
    ] = False,
) -> None:
    """Fit a temperature to each member, from stored logits and labels, and what else --method says.

    Half of the labelled images are fitted to, the others show the gain. A method that gains nothing there over
    temperatures is not kept. Writes the manifest again, with the numbers in it, and all datasets of it:
    --datasets selects only what is fitted to.

    With --sets 0.9 temperatures stay. It fits the least probabilities of each class for which sets of likely
    classes hold the class of 9 pixels in 10, and shows coverage and size of the sets on the other images.

    With --max-logits temperatures stay, too. It fits mean and deviation of the highest logits of each class that a
    member says, over all pixels of the chosen datasets, for the confidence standardised-max-logit. Choose datasets
    like those that the members were trained on.

    Example: hmsa-pipeline calibrate --manifest cityscapes --write calibrated.yaml

    Example: hmsa-pipeline calibrate --manifest calibrated.yaml --sets 0.9 --write sets.yaml

    Example: hmsa-pipeline calibrate --max-logits --manifest demo/calibrated.yaml --datasets idd_val --write sml.yaml
    """
    from ...scoring.calibration.calibrate import METHODS, calibrated_manifest, calibration_table
    from ...scoring.calibration.calibrate import calibrate as fit
    from ...scoring.calibration.labelled_pixels import by_dataset, plan_calibration, require_room

    if method not in METHODS:
        raise HmsaError(f"--method {method}: is no method; {nearest(method, METHODS)}")
    if max_logits:
        others = ("weights", "pixels", "seed", "average", "method", "sets", "common", "per_dataset")
        refuse_without_effect(context, "with --max-logits, which looks at all pixels and no labels", *others)
    if per_dataset and weights:
        raise HmsaError("--weights: a member has one weight for all datasets; leave --per-dataset or --weights out")
    if sets is None:
        refuse_without_effect(context, "without --sets", "common")
    elif not 0 < sets < 1:
        raise HmsaError(f"--sets {sets:g}: must lie between 0 and 1, such as 0.9")
    else:
        refuse_without_effect(context, "with --sets, which keeps temperatures", *("weights", "method", "per_dataset"))
        refuse_without_effect(context, "with --sets, which prints no mIoU", "average")
    require_target(str(write), "--write")
    read = Path(context.params["manifest"])
    if write.exists() and read.exists() and write.samefile(read):
        raise HmsaError(f"--write {write}: is the manifest that is read, which would be lost; name another file")
    found, every = manifest(), manifest(datasets=None)
    if max_logits:
        _fit_max_logits(found, every, say, write, limit)
        return
    images = plan_calibration(found, limit=limit, average=require_average(average))
    if sets is not None:
        _fit_sets(
            found, every, images, say, write, {"coverage": sets, "common": common, "pixels": pixels, "seed": seed}
        )
        return
    require_room(found, method, len({image.dataset for image in images}) if per_dataset else 1)
    parts = by_dataset(images) if per_dataset else {None: images}
    results = [
        fit(found, some, method=method, dataset=dataset, pixels=pixels, seed=seed, weights=weights)
        for dataset, some in parts.items()
    ]
    _write(calibrated_manifest(found, results), every, write)
    for result in results:
        say.lines(calibration_table(result))
    say.line(f"written: {write}")
    by_name = {result.dataset: result.as_json() for result in results}
    say.figures({"datasets": by_name} if per_dataset else by_name[None])


def _fit_sets(
    found: Manifest,
    every: Manifest,
    images: Sequence[CalibrationImage],
    say: Output,
    write: Path,
    given: Mapping[str, Any],
) -> None:
    from ...scoring.calibration.conformal import fit_sets, sets_table

    result = fit_sets(found, images, **given)
    _write(found.model_copy(update={"sets": result.sets}), every, write)
    say.lines([*sets_table(result), f"written: {write}"])
    say.figures(result.as_json())


def _fit_max_logits(found: Manifest, every: Manifest, say: Output, write: Path, limit: int | None) -> None:
    from ...scoring.calibration.max_logit_fit import fit_max_logits, max_logit_table, with_max_logits

    fit = fit_max_logits(found, limit=limit)
    _write(with_max_logits(found, fit), every, write)
    say.lines([*max_logit_table(fit), f"written: {write}; use it with --confidence standardised-max-logit"])
    say.figures(fit.as_json())


def _write(manifest: Manifest, every: Manifest, write: Path) -> None:
    """Write the manifest with all its datasets."""
    from ....files import write_text

    try:
        write_text(write, manifest.model_copy(update={"datasets": every.datasets}).to_yaml())
    except OSError as error:
        raise disk_error(write, error) from error
