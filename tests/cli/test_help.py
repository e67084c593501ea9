"""The names that the command line answers to, and how it explains itself."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys

import pytest
import typer
from hmsa_pipeline import __version__
from hmsa_pipeline.cli import app
from typer.core import TyperGroup

from ..documents import names_that_are_not_there
from .bench import run

COMMON = {"--manifest", "-m", "--output", "-o", "--models", "--datasets", "--data-root", "--assets", "--json"}
CREW = {"--workers", "--scheduler", "--image-timeout", "--patience", "--wait"}
JOB = COMMON | {"--device", "--cpus-per-worker", "--cpus-per-gpu", "--run"}
SCRIPT = {"--setup", "--interface", "--folder", "--certificates"}

SURFACE = {
    "dump": COMMON | CREW | {"--limit", "--device", "--precision", "--overwrite", "--dry-run", "--trust"},
    "ensemble": COMMON | CREW | {"--limit", "--label", "--confidence", "--allow-missing", "--overwrite", "--dry-run"},
    "predict": COMMON
    | CREW
    | {"--limit", "--keep", "--device", "--precision", "--label", "--confidence", "--overwrite", "--dry-run"}
    | {"--trust"},
    "evaluate": COMMON
    | {"--predictions", "--per-model", "--leave-one-out", "--limit", "--processes", "--csv"}
    | {"--average", "--ground-truth", "--samples", "--submission", "--allow-unlabelled"}
    | {"--bootstrap", "--seed", "--compare", "--confidences", "--components", "--ood-datasets", "--aggregate"}
    | {"--figures", "--confusion"},
    "autolabel": COMMON
    | CREW
    | {"--write", "--threshold", "--precision", "--keep", "--fit", "--agree", "--erode", "--format"}
    | {"--respect-coarse", "--allow-empty", "--limit", "--label", "--confidence", "--overwrite", "--dry-run"},
    "calibrate": COMMON
    | {"--write", "--weights", "--pixels", "--seed", "--limit", "--average", "--method", "--per-dataset"}
    | {"--sets", "--common-threshold", "--max-logits"},
    "search": COMMON
    | {"--by", "--labels", "--confidences", "--weights", "--most", "--greedy", "--folds", "--bootstrap", "--seed"}
    | {"--cost", "--limit", "--average", "--allow-unlabelled", "--processes", "--csv", "--plot", "--write"}
    | {"--overwrite", "--ground-truth", "--samples"},
    "render": COMMON | {"--write", "--kinds", "--opacity", "--width", "--limit", "--device"},
    "report": COMMON
    | {
        "--write",
        "--no-members",
        "--ground-truth",
        "--width",
        "--limit",
        "--processes",
        "--average",
        "--confidences",
        "--components",
    },
    "submit": (COMMON - {"--models"}) | {"--samples", "--predictions", "--check", "--format", "--method"},
    "export": (COMMON - {"--datasets", "--output", "-o"}) | {"--write", "--format", "--result", "--overwrite"},
    "status": COMMON | {"SECONDS", "--watch"},
    "verify": COMMON | {"--repair"},
    "import-logits": (COMMON - {"--models", "--datasets"})
    | {"FOLDER", "--model", "--dataset", "--kind", "--limit", "--channels", "--overwrite"},
    "train": (COMMON - {"--models", "--datasets"})
    | {"--dataset", "--root", "--cache", "--limit", "--device", "--gpus", "--resume", "--overwrite", "--dry-run"}
    | {"--init", "--arch", "--epochs", "--global-batch", "--batch-size", "--lr", "--optimizer", "--crop-size"}
    | {"--loss", "--seed", "--precision", "--batch-norm", "--activation-checkpointing", "--compile", "--workers"}
    | {"--set", "--allow-unlabelled"},
    "demo": {"--output", "-o", "--seed", "--quick", "--train"},
    "cluster slurm": JOB
    | SCRIPT
    | {"--nodes", "--gpus-per-node", "--gpu-type", "--workers-per-node", "--memory", "--time", "--grace"}
    | {"--max-requeues", "--partition", "--account", "--qos", "--constraint", "--sbatch", "--job-name", "--submit"},
    "cluster ssh": JOB | SCRIPT | {"--host", "--gpus-per-host", "--workers-per-host"},
    "cluster kubernetes": JOB
    | {"--image", "--claim", "--mount", "--nodes", "--gpus-per-node", "--workers-per-node", "--memory"}
    | {"--name", "--namespace", "--retries"},
    "cluster certificates": {"DIR"},
    "datasets list": {"NAME", "--json"},
    "datasets check": {
        "NAME",
        "--data-root",
        "--root",
        "--split",
        "--limit",
        "--output",
        "-o",
        "--workers",
        "--json",
    },
    "datasets draw": {"NAME", "--output", "-o", "--train", "--val", "--seed", "--size", "--style", "--json"},
    "manifest show": COMMON,
    "manifest check": COMMON | {"--trust"},
    "manifest fields": set(),
}


def surface(group: TyperGroup, prefix: str = "") -> dict[str, set[str]]:
    """The commands of a group and of the groups below it -> the names of their options and arguments."""
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= surface(command, f"{prefix}{name} ")
        else:
            names = [p.opts if p.param_type_name == "option" else [p.metavar or ""] for p in command.params]
            found[prefix + name] = set(itertools.chain(*names))
    return found


def test_commands_and_options_are_these() -> None:
    """Scripts rely on them: one may come, none may go or change its name."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert surface(group) == SURFACE
    assert {name for option in group.params for name in option.opts} == {"--version", "--debug"}


@pytest.mark.parametrize("command", SURFACE)
def test_every_command_explains_itself_and_shows_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert f"Example: hmsa-pipeline {command}" in " ".join(result.out.split())
    for name in SURFACE[command]:
        assert name in result.out


@pytest.mark.parametrize("command", SURFACE)
def test_examples_name_what_the_shipped_manifest_has(command: str) -> None:
    paragraphs = run(*command.split(), "--help").out.split("\n\n")
    examples = [" ".join(one.split()) for one in paragraphs if one.strip().startswith("Example: ")]
    assert examples
    for example in examples:
        words = shlex.split(re.split(r" (?:>|&&) ", example)[0])[2:]
        assert names_that_are_not_there(words) == [], example


def test_without_a_command_it_shows_what_there_is() -> None:
    result = run()
    assert (result.code, result.err) == (0, "")
    assert result.out == run("--help").out
    for command in SURFACE:
        assert command.split()[0] in result.out


def test_the_version() -> None:
    assert run("--version").out == f"hmsa-pipeline {__version__}\n"


def test_help_loads_neither_torch_nor_zarr() -> None:
    """That is what makes it quick."""
    script = (
        "import sys; sys.argv = ['hmsa-pipeline', '--help']\n"
        "from hmsa_pipeline.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'zarr', 'numpy', 'pydantic', 'yaml'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: hmsa-pipeline")
    assert done.stderr == "[]\n"
