"""``hmsa-pipeline render``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ...errors import HmsaError, nearest
from .shared import options
from .shared.options import manifest_command, option, path_option, split_names
from .shared.output import end_command, print_failed, require_folder

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(without=("models",), lazy=True)
def render(
    manifest: Callable[[], Manifest],
    say: Output,
    write: Annotated[Path, path_option("--write", "DIR", "Where the pictures go.")],
    kinds: Annotated[
        str, option("--kinds", "A,B", "Of colour, overlay, confidence and sheet.")
    ] = "colour,overlay,confidence",
    opacity: Annotated[
        float, option("--opacity", "X", "Of the classes over the photograph.", min=0.0, max=1.0)
    ] = 0.5,
    width: Annotated[int | None, option("--width", "PIXELS", "Reduce pictures to this width.", min=1)] = None,
    limit: options.Limit = None,
) -> None:
    """Draw predictions for people: classes in colour, over the photograph, and the confidence.

    A sheet has the photograph, what each member says, the ensemble and its confidence; it needs the logits.

    Example: hmsa-pipeline render --manifest bravo.yaml --datasets bravo_ACDC --limit 20 --write slides
    """
    from ..report.render import KINDS, plan_render, run_render
    from ..text import plural

    wanted = split_names("--kinds", kinds) or []
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise HmsaError(f"--kinds {unknown[0]}: is no kind of picture; {nearest(unknown[0], KINDS)}")
    require_folder(write, "--write")
    plans = plan_render(manifest(), write, wanted, opacity=opacity, width=width, limit=limit)
    results = [run_render(plan) for plan in plans]
    for result in results:
        print_failed(result.dataset, result.failed)
    say.figures([vars(result) for result in results])
    failed = sum(len(result.failed) for result in results)
    pictures = plural(sum(result.pictures for result in results), "picture")
    say.line(f"{pictures}, {plural(failed, 'image')} failed; {write}")
    end_command(failed)
