"""``hmsa-pipeline cluster certificates``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..shared.options import path_reader


def certificates(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=path_reader("DIR"), help="Folder for them, which is made.")
    ],
) -> None:
    """Make a key and a certificate, with which scheduler, workers and runs encrypt and let in nobody else.

    Example: hmsa-pipeline cluster certificates ~/.dask-certificates
    """
    from ...workers.certificates import write_certificates

    files = write_certificates(folder)
    for path in files:
        print(path)
    print(f"to use them, where 'dask scheduler --protocol tls', 'dask worker' and runs start: source {files[-1]}")
