"""``hmsa-pipeline manifest``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .shared import options
from .shared.options import manifest_command
from .shared.output import STANDARD_OUTPUT

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output

app = typer.Typer(help="Show or check a manifest.", rich_markup_mode=None)


@app.command()
@manifest_command()
def show(manifest: Manifest, say: Output) -> None:
    """Print it with every default and path filled in.

    Example: hmsa-pipeline manifest show --manifest bravo.yaml
    """
    if say.target != STANDARD_OUTPUT:
        print(manifest.to_yaml(), end="")
    say.figures(manifest.resolved())


@app.command()
@manifest_command()
def check(manifest: Manifest, say: Output, trust: options.Trust = False) -> None:
    """Say which checkpoints and images are there and can be used.

    The exit code is 2 if one is missing or wrong.

    Example: hmsa-pipeline manifest check --data-root /data --assets /data/assets
    """
    from ..inference.inputs import check_inputs

    found = []
    for row in check_inputs(options.trusted(manifest, trust)):
        say.line(f"{row.state:7} {row.kind:8} {row.name}: {row.description}")
        found.append(row)
    say.figures([vars(row) for row in found])
    counts = {state.lower(): sum(row.state == state for row in found) for state in ("MISSING", "WRONG")}
    if any(counts.values()):
        say.line(", ".join(f"{count} of {len(found)} are {state}" for state, count in counts.items() if count))
        raise typer.Exit(2)


@app.command()
def fields() -> None:
    """Print what a manifest can say: every field, what it takes, and what it means, as Markdown.

    Example: hmsa-pipeline manifest fields
    """
    from ..config.field_reference import manifest_fields

    print(manifest_fields(), end="")
