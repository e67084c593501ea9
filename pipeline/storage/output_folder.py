"""Where every output lies below the output folder."""

from __future__ import annotations

from pathlib import Path

from .filesystem import is_remote

PHOTOGRAPHS = "photographs"
"""The folder beside that of all predictions in which it is noted how large the photographs were."""

LOGITS = "logits"
PREDICTIONS = "predictions"
DAMAGED = "damaged"


def store_path(output: Path, dataset: str, model: str) -> Path:
    """Where the logits of ``model`` over ``dataset`` lie."""
    return output / LOGITS / dataset / f"{model}.zarr"


def own_folders(output: Path) -> list[Path]:
    """The folders that hold our own outputs and no photographs, wherever a dataset's root lies.

    Not ``output`` itself: somebody may keep photographs there. None of a remote output: photographs lie on disks.
    """
    return [] if is_remote(output) else [output / name for name in (LOGITS, PREDICTIONS, DAMAGED)]
