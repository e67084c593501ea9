"""``hmsa-pipeline import-logits``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..shared import options
from ..shared.options import manifest_command, option, path_reader
from ..shared.output import end_command, print_failed

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ..shared.output import Output


@manifest_command(without=("models", "datasets"))
def import_logits(
    manifest: Manifest,
    say: Output,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", parser=path_reader("FOLDER"), help="Tree of <image path>_logits.npz files or the like."
        ),
    ],
    model: Annotated[str, option("--model", "NAME", "The member (arch: external) to fill.")],
    dataset: Annotated[str, option("--dataset", "NAME", "The dataset they were made of.")],
    kind: Annotated[
        str | None, option("--kind", "NAME", "What the files hold: logits, probabilities or scores.")
    ] = None,
    limit: options.Limit = None,
    channels: Annotated[
        str | None, option("--channels", "LIST", "Which channels are the classes, such as 0-18.")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Fill a member's store with what a network made elsewhere.

    FOLDER holds a file for each photograph, <image path without suffix>_logits.npz, of numbers (C, H, W). Instead of
    _logits it may end in _probabilities or _scores, and be .npy or .safetensors; it may be a class map _pred.png with
    a confidence _conf.png; and FOLDER may be a Zarr group of such arrays. All may be 2, 4, 8, 16 or 32 times smaller
    than the photographs. docs/extending.md says how each is turned into logits.

    Example: hmsa-pipeline import-logits --manifest my.yaml --model segformer --dataset bravo_ACDC logits/
    """
    from ...external.import_logits import import_logits as fill
    from ...text import plural

    result = fill(
        manifest,
        model,
        dataset,
        folder,
        kind=kind,
        channels=channels,
        limit=limit,
        overwrite=overwrite,
    )
    print_failed(f"{dataset}/{model}", result.failed)
    if result.extra:
        extra = plural(result.extra, "file belongs", "files belong")
        print(f"{folder}: {extra} to no photograph of {dataset}", file=sys.stderr)
    if not result.done and not result.failed:
        say.line(f"nothing to do: all {result.skipped} images are complete")
    else:
        made = plural(result.done, "image")
        say.line(f"{made} imported, {result.skipped} complete before, {len(result.failed)} failed")
    if result.uniform:
        say.line(f"{plural(result.uniform, 'pixel', 'pixels')} had no score for any class and became uniform")
    other = sum(result.others.values()) / max(1, len(result.others))
    if result.others:
        say.line(f"{100 * other:.2f} % of the probability was of channels that were not taken")
    say.figures(
        {
            "done": result.done,
            "skipped": result.skipped,
            "failed": result.failed,
            "uniform_pixels": result.uniform,
            "other": other if result.others else None,
        }
    )
    end_command(len(result.failed), interrupted=result.interrupted)
