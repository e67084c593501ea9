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


def path_reader(flag: str) -> Callable[[str | Path], Path]:
    """Return the parser of an option that names a folder or a file."""

    def parsed(text: str | Path) -> Path:
        # A variable of the shell that is not set would else mean the current folder.
        if not str(text).strip():
            raise HmsaError(f"{flag}: an empty name names nothing; give one, or leave the option out")
        return Path(text)

    return parsed


def _location_reader(flag: str) -> Callable[[str | Path], str]:
    """Return the parser of an option that names a folder or a URL, which as a path would lose a slash."""

    def parsed(text: str | Path) -> str:
        path_reader(flag)(text)
        return str(text)

    return parsed


def path_option(*flags: str, metavar: str, help: str) -> Any:
    """Declare an option that names a folder or a file; an empty name is an error that names the first flag.

    Args:
        flags: names of the option.
        metavar: its value in the help.
        help: what it is for.
    """
    return typer.Option(*flags, metavar=metavar, parser=path_reader(flags[0]), help=help)


def target_file(parameter: typer.CallbackParam, target: str | None) -> str | None:
    """Refuse an output file that cannot be written before the command begins."""
    if target is not None:
        require_target(target, parameter.opts[0])
    return target


ManifestFile = Annotated[
    str,
    typer.Option("--manifest", "-m", metavar="FILE", help="A manifest, or the bare name of a shipped one."),
]
OutputFolder = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        parser=_location_reader("--output"),
        help="Folder of all results, or a URL such as s3://bucket/run (not to train); wins over the manifest.",
    ),
]
Models = Annotated[
    str | None, typer.Option("--models", metavar="A,B", help="Only these models, by name, comma separated.")
]
Datasets = Annotated[
    str | None, typer.Option("--datasets", metavar="A,B", help="Only these datasets, by name, comma separated.")
]
UNLABELLED = "--allow-unlabelled"
Unlabelled = Annotated[bool, typer.Option(UNLABELLED, help="Leave out images that have no mask, and name them.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N images of each dataset.")
]
SplitLimit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N images of each split.")
]
Average = Annotated[
    str,
    typer.Option(
        "--average",
        metavar="NAME",
        help="What mIoU is the mean of: dataset (the classes of its table), labelled-or-predicted, labelled.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAME", help="fp16, bf16 or fp32; wins over the manifest."),
]
Label = Annotated[
    str | None,
    typer.Option("--label", metavar="NAME", help="mean-softmax, max-softmax, min-softmax or mean-logit."),
]
Confidence = Annotated[
    str | None,
    typer.Option(
        "--confidence", metavar="NAME", help="mean-softmax, mean-logit, min-softmax, entropy, energy or rba."
    ),
]
Devices = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda (all GPUs), or some of them: cuda:0,2."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        max=512,
        metavar="N",
        help="Worker processes on a CPU; 0: in this process. GPUs have one each.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="WHERE", help="Use a running Dask cluster: tcp://host:port, or its scheduler file."
    ),
]
ImageTimeout = Annotated[
    float,
    typer.Option(
        "--image-timeout", min=1.0, metavar="SECONDS", help="An image in work for longer is given up and listed."
    ),
]
Samples = Annotated[
    Path | None, path_option("--samples", metavar="TAR", help="BRAVO's sampling file, bravo_SAMPLING.tar.")
]
DataRoot = Annotated[
    Path | None, path_option("--data-root", metavar="DIR", help="Wins over the variable HMSA_DATA_ROOT.")
]
Root = Annotated[
    Path | None, path_option("--root", metavar="DIR", help="The dataset's own folder, over --data-root.")
]
Assets = Annotated[Path | None, path_option("--assets", metavar="DIR", help="Wins over the variable HMSA_ASSETS.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Start over: all results that lie there are removed first.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, stop.")]
Json = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", callback=target_file, help="Write the figures there; - is standard output."
    ),
]


def split_names(flag: str, text: str | None) -> list[str] | None:
    """Split a comma-separated list of names; None where the option was not given.

    Raises:
        HmsaError: the list names nothing.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise HmsaError(f"{flag}: names nothing; leave it out for all")
    return names


def refuse_without_effect(context: typer.Context, why: str, *names: str) -> None:
    """Refuse options that change nothing here.

    Args:
        context: of the command.
        why: follows "changes nothing" in the message.
        names: parameters of the command.

    Raises:
        HmsaError: one of them was given on the command line.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise HmsaError(f"{parameter.opts[0]}: changes nothing {why}; leave it out")


def refuse_timeout_without_workers(context: typer.Context, workers: int | None) -> None:
    """Refuse ``--image-timeout`` where the work is done in this process."""
    if workers == 0:
        refuse_without_effect(
            context, "with --workers 0: nobody is there to end a process that hangs", "image_timeout"
        )


def require_average(name: str) -> str:
    """Return ``name`` if it is one of `averages.AVERAGES`; HmsaError if not."""
    from ....errors import nearest
    from ...scoring.averages import AVERAGES

    if name not in AVERAGES:
        raise HmsaError(f"--average {name}: is no average; {nearest(name, AVERAGES)}")
    return name


SHARED: dict[str, tuple[Any, Any]] = {
    "manifest": (ManifestFile, "bravo.yaml"),
    "output": (OutputFolder, None),
    "models": (Models, None),
    "datasets": (Datasets, None),
    "data_root": (DataRoot, None),
    "assets": (Assets, None),
    "json_file": (Json, None),
}
"""The options of every command that reads a manifest: parameter -> (annotation, default)."""
_LAST = ("data_root", "assets", "json_file")


def manifest_command(
    *, without: Sequence[str] = (), overrides: Mapping[str, Sequence[str]] | None = None, lazy: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that read a manifest.

    The decorated function takes the manifest, an `Output`, and its own options by name. Typer sees one function
    with the shared options and its own.

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
            *(_parameter(name, *SHARED[name]) for name in shared if name not in _LAST),
            *(_parameter(one.name, hints[one.name], one.default) for one in own),
            *(_parameter(name, *SHARED[name]) for name in shared if name in _LAST),
        ]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            read = {name: given.pop(name) for name in shared if name != "json_file"}
            for section, names in (overrides or {}).items():
                read[section] = {name: given[name] for name in names}
            load = functools.partial(read_manifest, **read)
            function(load if lazy else load(), Output(given.pop("json_file")), **given)

        command.__dict__["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    # By keyword only, so that options without a default may follow those that have one.
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def read_manifest(
    manifest: str,
    *,
    output: str | None = None,
    models: str | None = None,
    datasets: str | None = None,
    data_root: Path | None = None,
    assets: Path | None = None,
    **overrides: Any,
) -> Manifest:
    """Read the manifest that the command line asks for.

    Args:
        manifest: a file, or the bare name of a shipped one.
        output: wins over the manifest's.
        models: comma-separated names; None for all.
        datasets: comma-separated names; None for all.
        data_root: wins over the variable HMSA_DATA_ROOT.
        assets: wins over the variable HMSA_ASSETS.
        overrides: section -> settings that win over the manifest's; None changes nothing.

    Raises:
        HmsaError: an option or the manifest is wrong.
    """
    from ...config.load_manifest import load_manifest
    from ...storage.filesystem import require_no_file

    found = load_manifest(
        manifest,
        output=output,
        data_root=data_root,
        assets=assets,
        models=split_names("--models", models),
        datasets=split_names("--datasets", datasets),
        overrides=overrides,
    )
    require_no_file(found.output)
    return found
