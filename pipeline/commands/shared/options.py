"""Options that several commands have, each declared once, and the decorator for commands that read a manifest."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ....errors import HmsaError
from .output import Output, require_target

if TYPE_CHECKING:
    from ...config.manifest import Manifest


def path_reader(flag: str, kind: type = Path) -> Callable[[str | Path], Any]:
    """Return the parser of an option that names a folder or a file, or, as a text, also a URL."""

    def parsed(text: str | Path) -> Any:
        # A variable of the shell that is not set would else mean the current folder.
        if not str(text).strip():
            raise HmsaError(f"{flag}: an empty name names nothing; give one, or leave the option out")
        return kind(text)

    return parsed


def option(flag: str, metavar: str, help: str, *others: str, **more: Any) -> Any:
    """Declare an option that takes a value.

    Args:
        flag: its name.
        metavar: its value in the help.
        help: what it is for.
        others: further names, such as ``-o``.
        more: what else `typer.Option` takes.
    """
    return typer.Option(flag, *others, metavar=metavar, help=help, **more)


def path_option(flag: str, metavar: str, help: str, *others: str) -> Any:
    """Declare an option that names a folder or a file; an empty name is an error.

    Args:
        flag, metavar, help, others: as of `option`.
    """
    return option(flag, metavar, help, *others, parser=path_reader(flag))


def target_file(parameter: typer.CallbackParam, target: str | None) -> str | None:
    """Refuse an output file that cannot be written before the command begins."""
    if target is not None:
        require_target(target, parameter.opts[0])
    return target


UNLABELLED = "--allow-unlabelled"
Unlabelled = Annotated[bool, typer.Option(UNLABELLED, help="Leave out images that have no mask, and name them.")]
Limit = Annotated[int | None, option("--limit", "N", "Only the first N images of each dataset.", min=1)]
SplitLimit = Annotated[int | None, option("--limit", "N", "Only the first N images of each split.", min=1)]
Average = Annotated[
    str,
    option(
        "--average",
        "NAME",
        "What mIoU is the mean of: dataset (the classes of its table), labelled-or-predicted, labelled.",
    ),
]
Precision = Annotated[str | None, option("--precision", "NAME", "fp16, bf16 or fp32; wins over the manifest.")]
Label = Annotated[str | None, option("--label", "NAME", "mean-softmax, max-softmax, min-softmax or mean-logit.")]
Confidence = Annotated[
    str | None,
    option(
        "--confidence",
        "NAME",
        "mean-softmax, mean-logit, min-softmax, margin, entropy, expected-entropy, mutual-information, "
        "variation-ratio, disagreement, max-logit, standardised-max-logit, energy or rba.",
    ),
]
Devices = Annotated[str, option("--device", "NAME", "auto, cpu, cuda (all GPUs), or some of them: cuda:0,2.")]
Workers = Annotated[
    int | None,
    option("--workers", "N", "Worker processes on a CPU; 0: in this process. GPUs have one each.", min=0, max=512),
]
Scheduler = Annotated[
    str | None,
    option("--scheduler", "WHERE", "Use a running Dask cluster: tcp://host:port, or its scheduler file."),
]
ImageTimeout = Annotated[
    float, option("--image-timeout", "SECONDS", "An image in work for longer is given up and listed.", min=1.0)
]
Patience = Annotated[
    float,
    option("--patience", "SECONDS", "With --scheduler: how long to wait while no worker is there.", min=1.0),
]
PATIENCE = 3600.0
Samples = Annotated[Path | None, path_option("--samples", "TAR", "BRAVO's sampling file, bravo_SAMPLING.tar.")]
OutputFolder = Annotated[
    str | None,
    option(
        "--output",
        "DIR",
        "Folder of all results, or a URL such as s3://bucket/run (not to train); wins over the manifest.",
        "-o",
        parser=path_reader("--output", str),
    ),
]
DataRoot = Annotated[Path | None, path_option("--data-root", "DIR", "Wins over the variable HMSA_DATA_ROOT.")]
Root = Annotated[Path | None, path_option("--root", "DIR", "The dataset's own folder, over --data-root.")]
Assets = Annotated[Path | None, path_option("--assets", "DIR", "Wins over the variable HMSA_ASSETS.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Start over: all results that lie there are removed first.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, stop.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load models that are code, too: arch torchscript and exported.")
]
Wait = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        help="Wait while another run holds the output; default: only in a Slurm job that was requeued.",
    ),
]
Json = Annotated[
    str | None, option("--json", "FILE", "Write the figures there; - is standard output.", callback=target_file)
]


def split_names(flag: str, text: str | None) -> list[str] | None:
    """Split a comma-separated list of names; None where the option was not given, HmsaError if it names nothing."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise HmsaError(f"{flag}: names nothing; leave it out for all")
    return names


def refuse_without_effect(context: typer.Context, why: str, *names: str) -> None:
    """Raise HmsaError if one of the parameters ``names`` was given on the command line, which changes nothing here.

    Args:
        context: of the command.
        why: follows "changes nothing" in the message.
        names: parameters of the command.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise HmsaError(f"{parameter.opts[0]}: changes nothing {why}; leave it out")


def refuse_without_workers(context: typer.Context) -> None:
    """Refuse ``--image-timeout`` where the work is done in this process, ``--patience`` without a running cluster."""
    if context.params["scheduler"] is None:
        refuse_without_effect(context, "without --scheduler", "patience")
    if context.params["workers"] == 0:
        why = "with --workers 0: nobody is there to end a process that hangs"
        refuse_without_effect(context, why, "image_timeout")


def require_there(flag: str, folder: Path | None) -> None:
    """Raise HmsaError, which names the option, if it names a folder that is not there."""
    if folder is not None and not folder.exists():
        raise HmsaError(f"{flag} {folder}: there is no such folder; name another, or leave the option out")


def trusted(manifest: Manifest, trust: bool) -> Manifest:
    """Return the manifest as ``--trust`` says; HmsaError if that changes nothing."""
    from ...config.load_manifest import trust_models

    return trust_models(manifest) if trust else manifest


def require_average(name: str) -> str:
    """Return ``name`` if it is one of `averages.AVERAGES`; HmsaError if not."""
    from ....errors import nearest
    from ...scoring.averages import AVERAGES

    if name not in AVERAGES:
        raise HmsaError(f"--average {name}: is no average; {nearest(name, AVERAGES)}")
    return name


TRACKS = ("auto", "anomaly", "obstacle")
"""Values of ``--components``."""


def require_track(name: str) -> str:
    """Return ``name`` if it is one of `TRACKS`; HmsaError if not."""
    from ....errors import nearest

    if name not in TRACKS:
        raise HmsaError(f"--components {name}: is no track; {nearest(name, TRACKS)}")
    return name


SHARED: dict[str, Any] = {
    "manifest": Annotated[str, option("--manifest", "FILE", "A manifest, or the bare name of a shipped one.", "-m")],
    "output": OutputFolder,
    "models": Annotated[str | None, option("--models", "A,B", "Only these models, by name, comma separated.")],
    "datasets": Annotated[str | None, option("--datasets", "A,B", "Only these datasets, by name, comma separated.")],
    "data_root": DataRoot,
    "assets": Assets,
    "json_file": Json,
}
"""The options of every command that reads a manifest: parameter -> annotation."""
_DEFAULTS = {"manifest": "bravo.yaml"}
_LAST = ("data_root", "assets", "json_file")


def manifest_command(
    *, without: Sequence[str] = (), overrides: Mapping[str, Sequence[str]] | None = None, lazy: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that read a manifest.

    The decorated function takes the manifest, an `Output`, and its own options by name; Typer sees all of them.

    Args:
        without: shared options that the command leaves out or declares itself.
        overrides: section of the manifest -> those of the command's own options that win over it.
        lazy: hand over a function that reads the manifest, for commands that do not always need one.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        # The types of the first two parameters are not needed, and their modules take a second to load.
        unloaded = {"Manifest": object, "Output": object}
        hints = get_type_hints(function, localns=unloaded, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[2:]
        shared = [name for name in SHARED if name not in without]
        parameters = [
            *(_parameter(name, SHARED[name], _DEFAULTS.get(name)) for name in shared if name not in _LAST),
            *(_parameter(one.name, hints[one.name], one.default) for one in own),
            *(_parameter(name, SHARED[name], None) for name in shared if name in _LAST),
        ]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            read = {name: given.pop(name) for name in shared if name != "json_file"}
            winning = {section: {name: given[name] for name in names} for section, names in (overrides or {}).items()}
            load = functools.partial(_read_manifest, read.pop("manifest"), overrides=winning, **read)
            function(load if lazy else load(), Output(given.pop("json_file")), **given)

        command.__dict__["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    # By keyword only, so that options without a default may follow those that have one.
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read_manifest(source: str, *, models: str | None = None, datasets: str | None = None, **given: Any) -> Manifest:
    from ...config.load_manifest import load_manifest
    from ...storage.filesystem import require_no_file

    names = {"models": split_names("--models", models), "datasets": split_names("--datasets", datasets)}
    found = load_manifest(source, **names, **given)
    require_no_file(found.output)
    return found
