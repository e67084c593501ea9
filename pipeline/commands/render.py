"""``hmsa-pipeline render``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import HmsaError
from .shared import options
from .shared.confidences import require_confidences
from .shared.options import manifest_command, option, path_option, refuse_without_effect, split_names
from .shared.output import end_command, print_failed, print_note, require_folder

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from ..multiscale.render_scales import ScalesResult
    from .shared.output import Output


@manifest_command(without=("models",), lazy=True)
def render(
    manifest: Callable[[], Manifest],
    say: Output,
    context: typer.Context,
    write: Annotated[Path, path_option("--write", "DIR", "Where the pictures go.")],
    kinds: Annotated[
        str,
        option("--kinds", "A,B", "colour, overlay, confidence, sheet, sets, attention, scales; or entropy, ..."),
    ] = "colour,overlay,confidence",
    opacity: Annotated[
        float, option("--opacity", "X", "Opacity of the classes over the photograph.", min=0.0, max=1.0)
    ] = 0.5,
    width: Annotated[int | None, option("--width", "PIXELS", "Reduce pictures to this width.", min=1)] = None,
    limit: options.Limit = None,
    models: Annotated[
        str | None, option("--models", "A,B", "For attention, scales: only these models, comma separated.")
    ] = None,
    device: Annotated[str, option("--device", "NAME", "For attention, scales: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw predictions for people: classes in colour, over the photograph, and the confidence.

    A sheet has the photograph, what each member says, the ensemble and its confidence; it needs the logits.
    A function of confidence, such as mutual-information, shows where the ensemble is unsure, from the logits, too.
    sets shows how many classes the prediction set of each pixel holds, by the thresholds of calibrate --sets.
    attention shows how far each member trusts each of its scales, and scales what each scale says alone; they need
    no predictions, but the checkpoints: the networks run again.

    Example: hmsa-pipeline render --manifest bravo.yaml --datasets bravo_ACDC --limit 20 --write slides

    Example: hmsa-pipeline render --kinds overlay,entropy,mutual-information,disagreement --write slides
    """
    from ..fusion.fuse import CONFIDENCES, nearest_function
    from ..multiscale import SCALE_KINDS
    from ..report.render import KINDS, RenderResult, plan_render, run_render
    from ..runtime.device import resolve_device
    from ..text import plural

    known = (*KINDS, *CONFIDENCES, *SCALE_KINDS)
    wanted = split_names("--kinds", kinds) or []
    if unknown := [kind for kind in wanted if kind not in known]:
        raise HmsaError(f"--kinds {unknown[0]}: is no kind of picture; {nearest_function(unknown[0], known)}")
    of_scales = [kind for kind in wanted if kind in SCALE_KINDS]
    stored = [kind for kind in wanted if kind not in SCALE_KINDS]
    if not of_scales:
        refuse_without_effect(context, "without --kinds attention or scales", "models", "device")
    require_folder(write, "--write")
    found = manifest()
    require_confidences(found, "--kinds", [kind for kind in stored if kind in CONFIDENCES])
    plans = plan_render(found, write, stored, opacity=opacity, width=width, limit=limit) if stored else []
    results: list[RenderResult | ScalesResult] = []
    if of_scales:
        from ..multiscale.render_scales import plan_scales, run_scales

        names = split_names("--models", models)
        where = resolve_device(device)
        scales = plan_scales(found, write, of_scales, where, models=names, width=width, limit=limit)
        for note in scales.checked.notes:
            print_note(note)
        results += run_scales(scales)
    results = [*map(run_render, plans), *results]
    for result in results:
        name = result.dataset if isinstance(result, RenderResult) else f"{result.dataset}/{result.model}"
        print_failed(name, result.failed)
        if not isinstance(result, RenderResult) and result.shares:
            shares = ", ".join(f"{scale} {100 * share:.1f} %" for scale, share in result.shares.items())
            say.line(f"{name}: share of each scale: {shares}")
    say.figures([vars(result) for result in results])
    failed = sum(len(result.failed) for result in results)
    pictures = plural(sum(result.pictures for result in results), "picture")
    say.line(f"{pictures}, {plural(failed, 'image')} failed; {write}")
    end_command(failed)
