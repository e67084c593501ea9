"""Where every output lies below the output folder: one function per path."""

from __future__ import annotations

from pathlib import Path

from .filesystem import is_remote

_LOGITS, _PREDICTIONS, _PHOTOGRAPHS, _DAMAGED = "logits", "predictions", "photographs", "damaged"
_OTHER = "other"


def store_path(output: Path, dataset: str, model: str) -> Path:
    """Return the folder of a store.

    Args:
        output: the folder of all results.
        dataset: name of the dataset.
        model: name of the model.
    """
    return output / _LOGITS / dataset / f"{model}.zarr"


def logits_path(output: Path) -> Path:
    """Return the folder that holds the stores of all datasets."""
    return output / _LOGITS


def all_predictions_path(output: Path) -> Path:
    """Return the folder that holds the predictions of all datasets."""
    return output / _PREDICTIONS


def predictions_path(output: Path, dataset: str) -> Path:
    """Return the folder of a dataset's predictions."""
    return output / _PREDICTIONS / dataset


def damaged_path(output: Path, dataset: str, model: str) -> Path:
    """Return the folder for damaged shards of a store.

    Args:
        output: the folder of all results.
        dataset: name of the dataset.
        model: name of the model.
    """
    return output / _DAMAGED / dataset / model


def image_sizes_path(predictions: Path) -> Path:
    """Return the file with the sizes in bytes of the image files that a dataset's predictions were made of.

    Args:
        predictions: the folder of the dataset's predictions.
    """
    return predictions.parent.parent / _PHOTOGRAPHS / f"{predictions.name}.json"


def other_shares_path(store: Path) -> Path:
    """Return the file with the share of probability of each image that a store's member gave to other classes.

    Args:
        store: its folder.
    """
    return store.parents[2] / _OTHER / store.parent.name / f"{store.name.removesuffix('.zarr')}.json"


def own_folders(output: Path) -> list[Path]:
    """List the folders that hold outputs and never a dataset's images, wherever the dataset's root lies.

    ``output`` itself is not among them, since a user may keep images there. None of an output in an object store:
    datasets lie on disks.
    """
    return [] if is_remote(output) else [output / name for name in (_LOGITS, _PREDICTIONS, _DAMAGED)]
