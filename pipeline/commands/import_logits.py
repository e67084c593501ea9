"""``hmsa-pipeline import-logits``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import options
from .shared.options import manifest_command, option, path_reader
from .shared.output import end_command, print_failed

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(without=("models", "datasets"))
def import_logits(
    manifest: Manifest,
    say: Output,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=path_reader("FOLDER"), help="Tree of <image path>_logits.npz files."),
    ],
    model: Annotated[str, option("--model", "NAME", "The member (arch: external) to fill.")],
    dataset: Annotated[str, option("--dataset", "NAME", "The dataset they were made of.")],
    limit: options.Limit = None,
    channels: Annotated[
        str | None, option("--channels", "LIST", "Which channels are the classes, such as 0-18.")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Fill a member's store with logits made elsewhere.

    FOLDER holds <image path without suffix>_logits.npz, each with float16 logits (C, H, W).

    Example: hmsa-pipeline import-logits --manifest my.yaml --model segformer --dataset bravo_ACDC logits/
    """
    from ..inference.import_logits import import_logits as fill
    from ..inference.import_logits import parse_channels
    from ..text import plural

    result = fill(
        manifest,
        model,
        dataset,
        folder,
        channels=None if channels is None else parse_channels(channels),
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
    say.figures({"done": result.done, "skipped": result.skipped, "failed": result.failed})
    end_command(len(result.failed), interrupted=result.interrupted)
