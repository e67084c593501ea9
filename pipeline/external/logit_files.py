"""Files of logits, probabilities, scores or class maps that other programs wrote, one for each photograph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...datasets.decode.arrays import decode_grey
from ...datasets.layout.folder_layout import output_stem
from ...errors import DatasetError, StoreError, cannot_read, reason
from ...models.member_output import KINDS, from_class_map
from ..fusion.prediction_files import CONFIDENCE, LABEL, read_label
from ..store.foreign_arrays import foreign_arrays

_FORMATS = (".npz", ".npy", ".safetensors")
_ENDINGS: Mapping[str, str] = {
    **{f"_{kind}{suffix}": kind for kind in KINDS for suffix in _FORMATS},
    LABEL: "probabilities",
}
_ARRAY_ENDINGS: Mapping[str, str] = {f"_{kind}": kind for kind in KINDS}
"""Endings of arrays in a Zarr group, and the kinds that they name."""


class ForeignOutput(NamedTuple):
    """The output of another program for a photograph.

    Attributes:
        path: of the file or array, for people.
        kind: what its name says it holds.
        read: its content (K, h, w), of the dtype that it has there; StoreError if it cannot be read.
    """

    path: Path
    kind: str
    read: Callable[[], Tensor]


def foreign_outputs(folder: Path, images: Sequence[str], classes: int | None) -> tuple[dict[str, ForeignOutput], int]:
    """Find the outputs of photographs.

    Args:
        folder: a tree of ``<path without suffix>_logits.npz`` or the like, or a Zarr group of such arrays.
        images: the photographs' paths.
        classes: how many there are, for class maps, which do not say it; None if nobody knows.

    Returns:
        Those that are there, by photograph, and how many others are there that belong to no photograph.

    Raises:
        StoreError: there are two for a photograph, or the folder or the Zarr group cannot be read.
    """
    arrays = foreign_arrays(folder)
    endings = _ENDINGS if arrays is None else _ARRAY_ENDINGS
    there = _files_beside(folder, images) if arrays is None else arrays.keys()
    found: dict[str, ForeignOutput] = {}
    for image in images:
        stem = output_stem(image)
        names = [f"{stem}{ending}" for ending in endings if f"{stem}{ending}" in there]
        if len(names) > 1:
            raise StoreError(f"{folder / names[0]}: {names[1]} is there, too; leave one of them")
        for name in names:
            read = (
                partial(_read_file, folder / name, classes) if arrays is None else partial(_read_array, arrays[name])
            )
            found[image] = ForeignOutput(folder / name, endings[name.removeprefix(stem)], read)
    if arrays is None:
        every = (path for ending in endings for path in folder.rglob(f"*{ending}"))
    else:
        every = (folder / name for name in arrays if name.endswith(tuple(endings)))
    expected = {output.path for output in found.values()}
    return found, sum(path not in expected for path in every)


def _files_beside(folder: Path, images: Sequence[str]) -> set[str]:
    """Paths of all files in those folders below ``folder`` that photographs lie in, links followed."""
    parents = {image.rpartition("/")[0] for image in images}
    found = set()
    for parent in parents:
        try:
            names = [path.name for path in (folder / parent).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise StoreError(cannot_read(folder / parent, error)) from error
        found |= {f"{parent}/{name}" if parent else name for name in names}
    return found


def _read_array(read: Callable[[], np.ndarray]) -> Tensor:
    return torch.from_numpy(read())


def _read_file(path: Path, classes: int | None) -> Tensor:
    if path.name.endswith(LABEL):
        return _read_class_map(path, classes)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            arrays = load_file(path)
        elif path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            # Opened here, because numpy leaves a damaged archive open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = {name: torch.from_numpy(content[name]) for name in content.files}
    except FileNotFoundError as error:
        raise StoreError(f"{path}: there is no such file; make it and import again") from error
    except Exception as error:  # numpy, zipfile, zlib and safetensors each raise their own errors for a damaged file
        raise StoreError(f"{path}: is no readable {path.suffix} file ({reason(error)})") from error
    named = [name for name in arrays if name in KINDS] or list(arrays)
    if len(named) != 1:
        raise StoreError(
            f"{path}: holds {len(arrays)} arrays, none of them alone is called {' or '.join(KINDS)}; keep one"
        )
    return arrays[named[0]]


def _read_class_map(path: Path, classes: int | None) -> Tensor:
    """Probabilities (C, H, W) of a class map and of the confidence of 8 or 16 bits beside it."""
    if classes is None:
        raise StoreError(f"{path}: does not say how many classes there are; give 'classes' of the model as a list")
    beside = path.with_name(path.name.removesuffix(LABEL) + CONFIDENCE)
    try:
        label, levels = read_label(path, None), decode_grey(beside.read_bytes(), beside)
    except FileNotFoundError:
        raise StoreError(f"{beside}: there is no such file; a class map needs its confidence") from None
    except OSError as error:
        raise StoreError(cannot_read(beside, error)) from error
    except DatasetError as error:
        raise StoreError(str(error)) from error
    if label.shape != levels.shape:
        raise StoreError(f"{beside}: has the size {levels.shape}, its class map {label.shape}; make both again")
    confidence = torch.from_numpy(levels.astype(np.float32)) / np.iinfo(levels.dtype).max
    return from_class_map(torch.from_numpy(label), confidence, classes)
