"""``hmsa-pipeline datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import options
from .shared.options import option, path_option
from .shared.output import Output, end_command, print_error

app = typer.Typer(help="List, check or draw datasets to train on.", rich_markup_mode=None)


@app.command("list")
def list_datasets(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which ones; all if none is named.")
    ] = None,
    json_file: options.Json = None,
) -> None:
    """Say where to get each dataset and how its folder must look.

    Example: hmsa-pipeline datasets list gta5
    """
    from ..dataset_tools import guide

    say = Output(json_file)
    found = guide.known_sources(names or [])
    for facts in found:
        say.line("\n".join([*guide.dataset_guide(facts), ""]))
    say.figures([guide.guide_figures(facts) for facts in found])


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which dataset; 'datasets list' knows them.")],
    data_root: options.DataRoot = None,
    root: options.Root = None,
    split: Annotated[str | None, option("--split", "NAME", "Only this split; else all that have masks.")] = None,
    limit: options.SplitLimit = None,
    output: Annotated[Path | None, path_option("--output", "DIR", "Where figures and pictures go.", "-o")] = None,
    workers: Annotated[
        int | None, option("--workers", "N", "Processes that read; one per core if not given.", min=1)
    ] = None,
    json_file: options.Json = None,
) -> None:
    """Read a dataset once and say what is wrong with it.

    Counts images, masks, sizes and classes. Writes check.json, classes.png and contact_sheet.png into the output
    (runs/datasets/NAME). The exit code is 1 if there are problems.

    Example: hmsa-pipeline datasets check gta5 --data-root /data
    """
    from ..dataset_tools.check import plan_check, run_check

    say = Output(json_file)
    plan = plan_check(name, data_root=data_root, root=root, split=split, limit=limit, output=output, workers=workers)
    findings = run_check(plan)
    say.lines(findings.summary())
    for problem in findings.problems:
        print_error(f"problem: {problem}")
    say.line(f"written: {plan.output}")
    say.figures(findings.figures())
    end_command(len(findings.problems))


@app.command()
def draw(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which ones; all seven if none is named.")
    ] = None,
    output: Annotated[
        Path | None, path_option("--output", "DIR", "The data root to draw into; 'drawn' if not given.", "-o")
    ] = None,
    train: Annotated[int, option("--train", "N", "Frames to learn from, of each.", min=1)] = 8,
    val: Annotated[int, option("--val", "N", "Frames to score on, of each.", min=1)] = 4,
    seed: Annotated[int, option("--seed", "N", "Seed of the streets.", min=0)] = 0,
    size: Annotated[str | None, option("--size", "HxW", "Size of the frames in pixels; small if not given.")] = None,
    style: Annotated[str | None, option("--style", "NAME", "One look for all, such as fog, night or tinted.")] = None,
    json_file: options.Json = None,
) -> None:
    """Draw small datasets in the layouts of the real ones.

    With these you can try training before you download anything.

    Example: hmsa-pipeline datasets draw gta5 --output drawn
    """
    from ..config.load_recipe import parse_size
    from ..dataset_tools.draw import draw_datasets

    say = Output(json_file)
    drawn = []
    frames = None if size is None else parse_size(size, "--size", "128x256")
    for one in draw_datasets(names or [], output, train=train, val=val, seed=seed, size=frames, style=style):
        say.line(f"drawn: {one.folder}")
        drawn.append(one)
    say.lines(["", "to train on them, some seconds each on a CPU:", *(one.command for one in drawn)])
    say.figures([{"dataset": d.name, "folder": str(d.folder), "command": d.command} for d in drawn])
