"""Draws synthetic datasets in the layouts of real ones."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...datasets.dataset_specs import EVALUATED, NAMES
from ...errors import DatasetError, ManifestError, StoreError, reason
from .guide import known_sources

DRAWN = Path("drawn")
"""The data root that datasets are drawn into, below the current folder."""

TINY = "hrnet_tiny_ocr_mscale"
_CROP, _LONG_EDGE = (96, 192), 240


@dataclass(frozen=True, slots=True)
class DrawnDataset:
    """A dataset that was drawn, and the command that trains on it."""

    name: str
    folder: Path
    command: str


def draw_datasets(
    names: Sequence[str],
    folder: Path | None,
    *,
    train: int,
    val: int,
    seed: int,
    size: tuple[int, int] | None,
    style: str | None,
) -> Iterator[DrawnDataset]:
    """Draw small datasets, one after the other, each yielded when it lies there.

    Args:
        names: which of the seven; all if empty.
        folder: the data root to draw into; None for `DRAWN`.
        train: how many frames of each are for training, at least 1.
        val: how many are for validation, at least 1.
        seed: of the streets, not negative.
        size: (height, width) of the frames; None for small ones with the aspect of the real ones.
        style: the look of all frames; None for those that go with the dataset.

    Raises:
        DatasetError: an unknown name; the folder of one holds what was not drawn, or drawn otherwise; scipy is
            missing, which gta5 needs.
        ManifestError: frames of that size, or so few, cannot be drawn.
        StoreError: the folder cannot be written.
    """
    from ...datasets.synthetic.write_datasets import write_source

    folder = folder or DRAWN
    for spec in known_sources(names or NAMES):
        if spec.name in EVALUATED:
            raise DatasetError(f"{spec.name}: cannot be drawn; those that can: {', '.join(NAMES)}")
        try:
            written = write_source(folder, spec.name, train=train, val=val, seed=seed, size=size, style=style)
        except ValueError as error:
            raise ManifestError(f"{spec.name}: {error}") from error
        except OSError as error:
            raise StoreError(
                f"{folder / spec.folder}: cannot be written ({reason(error)}); choose another --output"
            ) from error
        yield DrawnDataset(spec.name, written, _training(spec.name, folder, size))


def _training(name: str, folder: Path, size: tuple[int, int] | None) -> str:
    """A training that takes a CPU some seconds; the recipe's own sizes are for real photographs."""
    from ..config.load_recipe import load_recipe, recipe_of

    crop = "x".join(str(min(pair)) for pair in zip(_CROP, size or _CROP, strict=True))
    words = ["hmsa-pipeline", "train", "--dataset", name, "--data-root", str(folder), "--arch", TINY]
    # Of one small image BatchNorm can tell no variance.
    words += ["--crop-size", crop, "--batch-size", "2", "--epochs", "2"]
    if load_recipe(recipe_of(name)).augmentation.long_edge is not None:
        words += ["--set", f"augmentation.long_edge={max(size or (_LONG_EDGE,))}"]
    return shlex.join(words)
