"""Checks of the options beside BRAVO's tar files, which `evaluate` and `search` have."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from ....errors import HmsaError
from ..shared.options import UNLABELLED


def refuse_beside_tars(context: typer.Context, others: Mapping[str, str]) -> None:
    """Raise HmsaError that names an option which does not go with BRAVO's tar files, or the tar file that lacks.

    Args:
        context: of the command.
        others: options, beside those of all such commands, that do not go with them -> parameter.
    """
    given = context.params
    if wrong := [
        flag for flag, name in {"--limit": "limit", UNLABELLED: "allow_unlabelled", **others}.items() if given[name]
    ]:
        raise HmsaError(f"{wrong[0]}: does not go with BRAVO's tar files; leave it out")
    if given["average"] != "dataset":
        average = given["average"]
        raise HmsaError(f"--average {average}: BRAVO's figures have the challenge's own average; leave it out")
    if given["ground_truth"] is None or given["samples"] is None:
        raise HmsaError("--ground-truth and --samples: BRAVO's figures need both tar files; name them")
