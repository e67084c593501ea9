"""The entry point: registers the commands, and turns errors and signals into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .errors import HmsaError, TryAgainError, one_line
from .files import tell_limits
from .pipeline.commands import (
    autolabel,
    cluster,
    datasets,
    demo,
    dump,
    ensemble,
    export,
    manifest,
    predict,
    render,
    report,
    status,
    submit,
    train,
)
from .pipeline.commands.scoring import calibrate, evaluate, search
from .pipeline.commands.shared.output import INTERRUPTED, print_note
from .pipeline.commands.stores import import_logits, verify
from .pipeline.runtime import output_streams

if TYPE_CHECKING:
    from collections.abc import Sequence

RESUMABLE = {"autolabel", "demo", "dump", "ensemble", "import-logits", "predict", "report", "train"}
"""Commands that skip what is complete when they are run again."""
TRY_AGAIN = 75
"""Exit code of a run that may succeed later, EX_TEMPFAIL of sysexits.h."""

app = typer.Typer(
    name="hmsa-pipeline",
    help="Robust segmentation with an ensemble of HMSA models: dump logits, fuse, score and report them.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(manifest.app, name="manifest")
app.add_typer(datasets.app, name="datasets")
app.add_typer(cluster.app, name="cluster")
for command in (
    dump.dump,
    predict.predict,
    ensemble.ensemble,
    evaluate.evaluate,
    calibrate.calibrate,
    search.search,
    autolabel.autolabel,
    render.render,
    report.report,
    submit.submit,
    status.status,
    verify.verify,
    import_logits.import_logits,
    export.export,
    train.train,
    demo.demo,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Robust segmentation with an ensemble of HMSA models: dump logits, fuse, score and report them."""
    if version:
        print(f"hmsa-pipeline {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _how_to_resume(words: Sequence[str]) -> str:
    """Say what becomes of a command that was interrupted."""
    if not {*words[:1]} & RESUMABLE:
        return "run the same command again"
    again = "again without --overwrite" if "--overwrite" in words else "again"
    if words[0] == "train":
        again = again.replace("again", "with --resume", 1).replace("resume without", "resume and without")
    return f"what is complete is kept; run the same command {again} to go on"


def main() -> None:
    """Run the command line; errors in one line, exit codes 0, 1, 2, 75 and 130 as the README says."""
    output_streams.prepare()
    tell_limits(print_note)
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    try:
        code = typer.main.get_command(app).main(prog_name="hmsa-pipeline", standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()  # what cannot be written is an error like any other, here where it can be said
        sys.exit(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one would put a traceback in place of the line
            signal.signal(number, signal.SIG_IGN)
        print(f"interrupted: {_how_to_resume(sys.argv[1:])}", file=sys.stderr)
        output_streams.flush()
        # Threads that still hold the disk or the device would delay the end; every file is atomic.
        os._exit(INTERRUPTED)
    except HmsaError as error:
        if debug:
            raise
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(TRY_AGAIN if isinstance(error, TryAgainError) else 2)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {one_line(place + (error.strerror or str(error)))}; fix that and run again", file=sys.stderr)
        sys.exit(2)
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        print(f"error: {message.rstrip('.')}; see --help", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
