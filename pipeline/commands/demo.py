"""``hmsa-pipeline demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared.options import option, path_option


def demo(
    output: Annotated[Path, path_option("--output", "DIR", "Where everything of the demo goes.", "-o")] = Path(
        "demo"
    ),
    seed: Annotated[int, option("--seed", "N", "Of streets and first weights.", min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small part of everything: to see that it works.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train the seven members here: hours, except with --quick.")
    ] = False,
) -> None:
    """Take the whole way on drawn streets, in two minutes.

    Seven small members that come with the package segment a drawn target set; dump, ensemble, evaluate, calibrate,
    submit and report do the rest. After an interruption it resumes.

    Example: hmsa-pipeline demo --output demo
    """
    from ..demo.run import run_demo

    code = run_demo(output, seed, quick=quick, train=train)
    if code:
        raise typer.Exit(code)
