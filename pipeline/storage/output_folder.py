"""Where every output lies below the output folder: one function per path."""

from __future__ import annotations

from pathlib import Path

from .filesystem import is_remote

LOGITS = "logits"
"""Folder of all stores."""
PREDICTIONS = "predictions"
"""Folder of all predictions."""
PHOTOGRAPHS = "photographs"
"""Folder of the notes on how large the images were that predictions were made of."""
DAMAGED = "damaged"
"""Folder of shards that ``verify --repair`` moved away."""


def store_path(output: Path, dataset: str, model: str) -> Path:
    """Return the folder of a store.

    Args:
        output: the folder of all results.
        dataset: name of the dataset.
        model: name of the model.
    """
    return output / LOGITS / dataset / f"{model}.zarr"


def predictions_path(output: Path, dataset: str) -> Path:
    """Return the folder of a dataset's predictions."""
    return output / PREDICTIONS / dataset


def damaged_path(output: Path, dataset: str, model: str) -> Path:
    """Return the folder for damaged shards of a store.

    Args:
        output: the folder of all results.
        dataset: name of the dataset.
        model: name of the model.
    """
    return output / DAMAGED / dataset / model


def image_sizes_path(predictions: Path) -> Path:
    """Return the file that notes the image sizes of the predictions in the folder ``predictions``."""
    return predictions.parent.parent / PHOTOGRAPHS / f"{predictions.name}.json"


def own_folders(output: Path) -> list[Path]:
    """List the folders that hold outputs and never a dataset's images, wherever the dataset's root lies.

    ``output`` itself is not among them, since a user may keep images there. None of an output in an object store:
    datasets lie on disks.
    """
    return [] if is_remote(output) else [output / name for name in (LOGITS, PREDICTIONS, DAMAGED)]
