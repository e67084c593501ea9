"""What a manifest's datasets hold: the photographs, their sizes, and the stores they belong to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..datasets.headers import read_size
from ..datasets.layouts import list_images
from ..errors import DatasetError, StoreError
from .manifest import DatasetEntry, Manifest
from .places import is_remote
from .store import LogitStore, Photograph

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


def photographs(manifest: Manifest, dataset: DatasetEntry, *, afresh: bool = False) -> list[Photograph]:
    """All photographs of a dataset, sorted by path, with the sizes that their headers tell.

    Headers are read only of files that no store of the dataset knows yet; of all if ``afresh``.

    Raises:
        DatasetError: the folder is missing, empty, or not as its layout says.
        ManifestError: the root holds an environment variable that is not set.
    """
    root = dataset.root_path()
    files = list_images(root, dataset.type, dataset.split, own_folders(manifest.output))
    known = {} if afresh else _known_sizes(manifest, dataset)
    with ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda f: known.get((f.path, f.bytes)) or _size(root / f.path), files)
        return [Photograph(f.path, f.bytes, size) for f, size in zip(files, sizes, strict=True)]


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return read_size(path)
    except DatasetError:
        return None


def _known_sizes(manifest: Manifest, dataset: DatasetEntry) -> Mapping[tuple[str, int], tuple[int, int]]:
    for member in manifest.models:
        path = store_path(manifest.output, dataset.name, member.name)
        # A store that cannot be read is for those to report who need it; sizes come from the files then.
        with contextlib.suppress(StoreError):
            images = LogitStore.open(path).images
            return {(e.path, e.bytes): (e.height, e.width) for e in images if e.height and e.width}
    return {}
