"""``hmsa-pipeline submit``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import HmsaError, nearest
from ..text import as_size, plural
from .shared import options
from .shared.options import manifest_command, option, path_option, refuse_without_effect, require_there
from .shared.output import Output, end_command, print_failed

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from ..submission.packing import Packed
    from ..submission.submit_bravo import SubmissionCheck
    from ..submission.submit_dataset import UploadCheck


def check_options(context: typer.Context) -> None:
    """Raise an HmsaError that names the first option that does not go with the others, or changes nothing."""
    from ..submission.benchmark_formats import BRAVO, FORMATS

    given = context.params
    form, output, check, predictions = (given[name] for name in ("form", "output", "check", "predictions"))
    if form not in FORMATS:
        raise HmsaError(f"--format: there is no {form!r}; {nearest(form, FORMATS)}")
    if check is not None and (output is not None or predictions is not None):
        raise HmsaError("--check: nothing is written; leave --output and --predictions out")
    if given["method"] is not None and form != "smiyc":
        raise HmsaError("--method: belongs to --format smiyc; leave it out")
    if form != BRAVO:
        if given["samples"] is not None:
            raise HmsaError(f"--samples: belongs to BRAVO, not to --format {form}; leave it out")
        if check is None and output is None:
            raise HmsaError("--output: name the .zip file or the folder to write")
        return
    if given["datasets"] is not None:
        raise HmsaError(
            "--datasets: the sampling file says what BRAVO takes; leave it out, or name another --format, of "
            f"{', '.join(name for name in FORMATS if name != BRAVO)}"
        )
    if check is not None or predictions is not None:
        why = "beside --check" if check is not None else "beside --predictions"
        refuse_without_effect(context, why, "data_root", "assets")
    if check is None and (output is None or given["samples"] is None):
        raise HmsaError("--samples, --output: name the challenge's sampling file and the tar file to write")
    if check is None and ":/" in str(output):
        place = str(output).replace(":/", "://", 1)  # a path has no two slashes
        raise HmsaError(f"--output: {place} is a URL; name a tar file on a disk, and upload that")


@manifest_command(without=("output", "models", "datasets"), lazy=True)
def submit(
    manifest: Callable[..., Manifest],
    say: Output,
    context: typer.Context,
    output: Annotated[
        Path | None,
        path_option(
            "--output",
            "PLACE",
            "What to write: the tar file of BRAVO; a .zip file or a folder for the others.",
            "-o",
        ),
    ] = None,
    form: Annotated[
        str, option("--format", "NAME", "bravo, cityscapes, acdc, wilddash or smiyc: who is to read it.")
    ] = "bravo",
    datasets: Annotated[
        str | None, option("--datasets", "NAME", "Which dataset of the manifest; for all formats but bravo.")
    ] = None,
    method: Annotated[
        str | None, option("--method", "NAME", "For smiyc: the name of your method; hmsa-pipeline if not given.")
    ] = None,
    samples: options.Samples = None,
    predictions: Annotated[
        Path | None,
        path_option(
            "--predictions",
            "DIR",
            "Predictions of the dataset (of bravo: holds bravo_ACDC/...); the manifest's if left out.",
        ),
    ] = None,
    check: Annotated[
        Path | None, path_option("--check", "PLACE", "Decode this submission instead, and say what is wrong.")
    ] = None,
) -> None:
    """Write predictions as a benchmark takes them, or check what was written.

    bravo: the tar file of the BRAVO challenge, with every image of its sampling file. cityscapes: PNGs of label ids,
    which evalPixelLevelSemanticLabeling reads, too. acdc: PNGs of train ids. wilddash: PNGs of WildDash's label ids.
    smiyc: an HDF5 file of anomaly scores for each image.

    Every image must be predicted, or nothing is written. The same predictions give the same bytes.

    Example: hmsa-pipeline submit --samples bravo_SAMPLING.tar --output submission.tar

    Example: hmsa-pipeline submit --manifest cityscapes --format cityscapes --output results.zip

    Example: hmsa-pipeline submit --manifest cityscapes --format cityscapes --check results.zip
    """
    from ..config.class_set_field import require_default
    from ..storage.output_folder import all_predictions_path
    from ..submission.benchmark_formats import BRAVO, upload_format
    from ..submission.submit_bravo import check_bravo, submit_bravo
    from ..submission.submit_dataset import check_upload, plan_upload, write_upload

    check_options(context)
    require_there("--predictions", predictions)
    plan = None
    if form != BRAVO:
        plan = plan_upload(manifest(datasets=datasets), upload_format(form, method), predictions)
    if check is not None:
        looked = check_bravo(check, samples) if plan is None else check_upload(plan, check)
        if plan is not None:
            held = f"; {plan.dataset} has {len(plan.files)}"
        else:
            held = "" if samples else "; name --samples to hold it against the images that are called for"
        _print_check(say, check.name, looked, held)
    elif plan is not None and output is not None:
        _print_written(say, plan.dataset, output, write_upload(plan, output))
    elif samples is not None and output is not None:
        folder = predictions
        if folder is None:
            read = manifest()
            require_default(read.class_set, f"--format {BRAVO}")
            folder = all_predictions_path(read.output)
        _print_written(say, "submission", output, submit_bravo(folder, samples, output))


def _print_check(say: Output, name: str, looked: SubmissionCheck | UploadCheck, held: str) -> None:
    """Print what is wrong with a submission, and end with the exit code that says it too."""
    missing = looked.missing or []
    print_failed(name, looked.wrong)
    print_failed(name, dict.fromkeys(missing, "is missing"))
    for warning in getattr(looked, "warnings", ()):
        print(f"warning: {name}: {warning}", file=sys.stderr)
    say.figures(asdict(looked))
    sound = plural(looked.images, "image is", "images are")
    say.line(f"{sound} sound, {len(looked.wrong)} wrong, {len(missing)} missing{held}")
    end_command(len(looked.wrong) + len(missing))


def _print_written(say: Output, name: str, output: Path, result: Packed) -> None:
    """Print what was written, or why nothing was, and end with the exit code that says it too."""
    print_failed(name, result.failed)
    say.figures(asdict(result))
    if result.failed:
        say.line(f"{plural(len(result.failed), 'image')} cannot be used, and nothing was written")
    else:
        say.line(f"{plural(result.images, 'image')}, {as_size(result.bytes)}: {output}")
    end_command(len(result.failed))
