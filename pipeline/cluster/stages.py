"""Commands that a cluster's job runs, in their order, with absolute paths."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ManifestError, nearest
from ..config.load_manifest import SHIPPED, find_manifest
from ..config.manifest import Manifest
from ..config.path_variables import FLAGS, PathContext

STAGES = ("dump", "ensemble", "predict")
"""Commands that a job can run: they give work to the workers of a cluster."""
_RESERVED = {
    "--scheduler": "the job has a scheduler of its own",
    "--workers": "the job starts the workers",
    "--device": "give --device to 'cluster' itself",
    "--overwrite": "each time the job is put back into the queue, it would remove what is complete; run that first",
    "--dry-run": "it does nothing; run it here",
    **dict.fromkeys(
        ("--manifest", "-m", "--output", "-o", "--models", "--datasets", "--data-root", "--assets"),
        "give it to 'cluster' itself",
    ),
}


@dataclass(frozen=True)
class Stage:
    """One command of a job.

    Attributes:
        words: the command and its options.
        follows_failures: also runs if some images failed in the stage before it.
    """

    words: tuple[str, ...]
    follows_failures: bool = False


def split_stages(text: str) -> list[list[str]]:
    """Split the value of ``--run`` into commands with their options, such as ``dump --limit 5, ensemble``.

    Raises:
        ManifestError: a command is unknown, or has an option that the job decides.
    """
    parts = re.split(rf",\s*(?=(?:{'|'.join(STAGES)})\b)", text.strip())
    stages = []
    for part in parts:
        try:
            words = shlex.split(part)
        except ValueError as error:
            raise ManifestError(f"--run {part}: {error}; close the quotation") from None
        if not words or words[0] not in STAGES:
            name = words[0] if words else "''"
            raise ManifestError(f"--run: {name} is no command that a job runs; {nearest(name, STAGES)}")
        for word in words[1:]:
            flag = word.partition("=")[0]
            if flag in _RESERVED:
                raise ManifestError(f"--run {words[0]}: leave {flag} out: {_RESERVED[flag]}")
        stages.append(words)
    return stages


def plan_stages(
    asked: Sequence[Sequence[str]],
    manifest: Manifest,
    *,
    source: str,
    device: str,
    selection: Mapping[str, str | None],
) -> tuple[Stage, ...]:
    """Complete each command with what all of them share.

    Args:
        asked: the commands, as `split_stages` returns them.
        manifest: gives the output.
        source: value of ``--manifest``.
        device: ``cuda`` or ``cpu``.
        selection: ``--models`` and ``--datasets`` -> their values; None where not given.
    """
    shared = ["--manifest", manifest_argument(source), "--output", str(manifest.output)]
    for flag, value in selection.items():
        shared += [flag, value] if value is not None else []
    stages = []
    for name, *options in asked:
        on_device = ["--device", device] if name != "ensemble" else []
        stages.append(Stage((name, *shared, *on_device, *options), follows_failures="--allow-missing" in options))
    return tuple(stages)


def manifest_argument(source: str) -> str:
    """Return the value of ``--manifest`` that means the same from every folder."""
    path = find_manifest(source)
    return path.stem if path.parent == SHIPPED else str(path)


def path_variables(data_root: Path | None, assets: Path | None) -> dict[str, str]:
    """Return the variables by which paths of a manifest are expanded, as far as they are set.

    Args:
        data_root: value of ``--data-root``, None if not given.
        assets: value of ``--assets``, None if not given.
    """
    variables = PathContext.of(Path("manifest.yaml"), data_root, assets).variables
    return {name: variables[name] for name in FLAGS if name in variables}


def require_resolved(manifest: Manifest) -> None:
    """Raise ManifestError if a path that a job needs has a variable that is not set, or is not on a disk here."""
    for member in manifest.models:
        if not member.external and not (path := member.checkpoint_path()).exists():
            raise ManifestError(f"model '{member.name}': {path}: there is no such checkpoint; see 'manifest check'")
    for dataset in manifest.datasets:
        if not (root := dataset.root_path()).is_dir():
            raise ManifestError(f"dataset '{dataset.name}': {root}: there is no such folder; see 'manifest check'")
