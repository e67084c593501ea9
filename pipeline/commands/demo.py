"""``hmsa-pipeline demo``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from .shared.options import option, path_option
from .shared.output import INTERRUPTED


def demo(
    context: typer.Context,
    output: Annotated[Path, path_option("--output", "DIR", "Folder of all that the demo writes.", "-o")] = Path(
        "demo"
    ),
    seed: Annotated[int, option("--seed", "N", "Seed of the streets and the initial weights.", min=0)] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do a small part of every step, to see that it works.")
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train the seven members here: hours, except with --quick.")
    ] = False,
) -> None:
    """Run every step on drawn streets, in two minutes.

    Seven small members that come with the package segment a drawn target set; dump, ensemble, evaluate, calibrate,
    submit and report do the rest. After an interruption it resumes.

    Example: hmsa-pipeline demo --output demo
    """
    from ..demo.run import run_demo

    if code := run_demo(output, seed, runner(context), quick=quick, train=train):
        raise typer.Exit(code)


def runner(context: typer.Context) -> Callable[[Sequence[str]], int]:
    """Return what runs another command line in this process, raises its errors, and returns its exit code."""
    program = context.find_root().command

    def run(words: Sequence[str]) -> int:
        own = sys.argv
        sys.argv = [own[0], *words]
        try:
            code = program.main(list(words), prog_name="hmsa-pipeline", standalone_mode=False)
        finally:
            sys.argv = own
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code or 0

    return run
