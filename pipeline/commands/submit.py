"""``hmsa-pipeline submit``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import HmsaError, nearest
from .shared import options
from .shared.options import manifest_command, path_option, refuse_without_effect
from .shared.output import Output, end_command, print_failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config.manifest import Manifest
    from ..submission.packing import Packed


@dataclass(frozen=True)
class _Options:
    """The command's own options."""

    output: Path | None
    form: str
    datasets: str | None
    method: str | None
    samples: Path | None
    predictions: Path | None
    check: Path | None


def check_options(context: typer.Context, given: _Options) -> None:
    """Refuse options that do not go together, or change nothing.

    Raises:
        HmsaError: names the first of them.
    """
    from ..submission.benchmark_formats import BRAVO, FORMATS

    if given.form not in FORMATS:
        raise HmsaError(f"--format: there is no {given.form!r}; {nearest(given.form, FORMATS)}")
    if given.check is not None and (given.output is not None or given.predictions is not None):
        raise HmsaError("--check: nothing is written; leave --output and --predictions out")
    if given.method is not None and given.form != "smiyc":
        raise HmsaError("--method: belongs to --format smiyc; leave it out")
    if given.form != BRAVO:
        if given.samples is not None:
            raise HmsaError(f"--samples: belongs to BRAVO, not to --format {given.form}; leave it out")
        if given.check is None and given.output is None:
            raise HmsaError("--output: name the .zip file or the folder to write")
        return
    if given.datasets is not None:
        raise HmsaError(
            "--datasets: the sampling file says what BRAVO takes; leave it out, or name another --format, of "
            f"{', '.join(name for name in FORMATS if name != BRAVO)}"
        )
    if given.check is not None or given.predictions is not None:
        why = "beside --check" if given.check is not None else "beside --predictions"
        refuse_without_effect(context, why, "data_root", "assets")
    if given.check is None and (given.output is None or given.samples is None):
        raise HmsaError("--samples, --output: name the challenge's sampling file and the tar file to write")
    if given.check is None and ":/" in str(given.output):
        place = str(given.output).replace(":/", "://", 1)  # a path has no two slashes
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
            "-o",
            metavar="PLACE",
            help="What to write: the tar file of BRAVO; a .zip file or a folder for the others.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="NAME", help="bravo, cityscapes, acdc, wilddash or smiyc: who is to read it."
        ),
    ] = "bravo",
    datasets: Annotated[
        str | None,
        typer.Option("--datasets", metavar="NAME", help="Which dataset of the manifest; for all formats but bravo."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="NAME", help="For smiyc: the name of your method; hmsa-pipeline if not given."
        ),
    ] = None,
    samples: options.Samples = None,
    predictions: Annotated[
        Path | None,
        path_option(
            "--predictions",
            metavar="DIR",
            help="Predictions of the dataset (of bravo: holds bravo_ACDC/...); the manifest's if left out.",
        ),
    ] = None,
    check: Annotated[
        Path | None,
        path_option("--check", metavar="PLACE", help="Decode this submission instead, and say what is wrong."),
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
    from ..submission.benchmark_formats import BRAVO

    given = _Options(output, form, datasets, method, samples, predictions, check)
    check_options(context, given)
    if form == BRAVO:
        _submit_bravo(manifest, say, given)
    else:
        _submit_dataset(manifest(datasets=datasets), say, given)


def _submit_bravo(manifest: Callable[..., Manifest], say: Output, given: _Options) -> None:
    from ..storage.output_folder import all_predictions_path
    from ..submission.submit_bravo import check_bravo, submit_bravo

    if given.check is not None:
        looked = check_bravo(given.check, given.samples)
        missing = looked.missing or []
        _print_faults(given.check.name, looked.wrong, missing)
        for warning in looked.warnings:
            print(f"warning: {given.check.name}: {warning}", file=sys.stderr)
        held = "" if given.samples else "; name --samples to hold it against the images that are called for"
        say.figures(asdict(looked))
        say.line(f"{looked.images} images are sound, {len(looked.wrong)} wrong, {len(missing)} missing{held}")
        end_command(len(looked.wrong) + len(missing))
    elif given.samples is not None and given.output is not None:
        folder = given.predictions or all_predictions_path(manifest().output)
        result = submit_bravo(folder, given.samples, given.output)
        _print_written(say, "submission", given.output, result)


def _submit_dataset(manifest: Manifest, say: Output, given: _Options) -> None:
    from ..submission.benchmark_formats import upload_format
    from ..submission.submit_dataset import check_upload, plan_upload, write_upload

    plan = plan_upload(manifest, upload_format(given.form, given.method), given.predictions)
    if given.check is not None:
        looked = check_upload(plan, given.check)
        _print_faults(given.check.name, looked.wrong, looked.missing)
        say.figures(asdict(looked))
        say.line(
            f"{looked.images} images are sound, {len(looked.wrong)} wrong, {len(looked.missing)} missing; "
            f"{plan.dataset} has {len(plan.files)}"
        )
        end_command(len(looked.wrong) + len(looked.missing))
    elif given.output is not None:
        result = write_upload(plan, given.output)
        _print_written(say, plan.dataset, given.output, result)


def _print_faults(name: str, wrong: dict[str, str], missing: Sequence[str]) -> None:
    print_failed(name, wrong)
    print_failed(name, dict.fromkeys(missing, "is missing"))


def _print_written(say: Output, name: str, output: Path, result: Packed) -> None:
    """Print what was written, or why nothing was, and end with the exit code that says it too."""
    from ..text import as_size

    print_failed(name, result.failed)
    say.figures(asdict(result))
    if result.failed:
        say.line(f"{len(result.failed)} images cannot be used, and nothing was written")
    else:
        say.line(f"{result.images} images, {as_size(result.bytes)}: {output}")
    end_command(len(result.failed))
