"""``hmsa-pipeline export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import HmsaError, nearest
from .shared.options import manifest_command, option, path_option
from .shared.output import require_target

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command(without=("datasets", "output"))
def export(
    manifest: Manifest,
    say: Output,
    write: Annotated[Path, path_option("--write", "FILE", "The file to write.")],
    format: Annotated[
        str | None,
        option("--format", "NAME", "onnx (.onnx), exported (.pt2) or openvino (.xml); as FILE ends."),
    ] = None,
    result: Annotated[str, option("--result", "NAME", "logits, or prediction: class map and confidence.")] = "logits",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over FILE if it is there.")] = False,
) -> None:
    """Write a model's network as one graph that other programs run: images of bytes in, logits out.

    The graph takes an image (1, 3, height, width) of any size, RGB, 0 to 255. Pixels are scaled inside, and the
    manifest's scales and flip are part of it. The file is run on three sizes and compared with the network.
    Computes in float32.

    Example: hmsa-pipeline export --manifest bravo.yaml --models gta5 --write gta5.onnx

    Example: hmsa-pipeline export --manifest bravo.yaml --models gta5 --result prediction --write gta5.pt2
    """
    from ..exporting.export import LOGITS, RESULTS, member_lines, plan_export
    from ..exporting.export import export as run
    from ..text import as_size

    if result not in RESULTS:
        raise HmsaError(f"--result {result}: is none; {nearest(result, RESULTS)}")
    require_target(str(write), "--write")
    if write.exists() and not overwrite:
        raise HmsaError(f"--write {write}: is there already; name another file, or add --overwrite")
    plan = plan_export(manifest, write, kind=format, result=result, overwrite=overwrite)
    found = run(plan)
    say.line(
        f"{found.file}: {as_size(found.bytes)}; the same class as the network's on {100 * found.same:.2f} % of the "
        f"pixels, at most {found.difference:.1g} apart"
    )
    if result == LOGITS and (lines := member_lines(plan)):
        say.line("A model of a manifest that runs it:")
        say.lines(lines)
    say.figures(found.as_json())
