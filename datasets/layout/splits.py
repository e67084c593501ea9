"""Which of the images in its folders belong to a split, where the folder alone does not say it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import DatasetError, first_few
from .folder_layout import SUFFIXES, FolderLayout, PlacedImage

FOLDS = 3
"""Parts of the cross validation of Cityscapes; part 0 is the official split."""

LISTS = {"train": "random_split/training.txt", "val": "random_split/validation.txt"}
"""Split -> list of the stems of its images, one a line, where the user has made such lists."""

_ARRAYS = {"train": "trainIds", "val": "valIds", "test": "testIds"}
_SEED = 0


def select_split(root: Path, split: str, layout: FolderLayout, images: Sequence[PlacedImage]) -> list[PlacedImage]:
    """Select the ``images`` that belong to ``split``, in their order.

    Args:
        root: the dataset's folder.
        split: one that ``layout`` names.
        layout: its `members` say which rule holds: ``all``; ``cities`` (cross validation by the name of the
            split); ``ids`` (numbers in split.mat or split.npz); ``lists`` (of the user's, else drawn).
        images: all that lie in the split's folders.

    Raises:
        DatasetError: what says which images belong to it is missing or damaged, or names images that are missing.
    """
    images = [image for image in images if image.stem not in layout.left_out_stems]
    return _RULES[layout.members](root, split, layout, images)


def _all(root: Path, split: str, layout: FolderLayout, images: list[PlacedImage]) -> list[PlacedImage]:
    return images


def _of_cities(root: Path, split: str, layout: FolderLayout, images: list[PlacedImage]) -> list[PlacedImage]:
    """Cross validation: as many cities as the official validation has, from a later place in the list of all."""
    match = re.fullmatch(r"(train|val)_cv(\d+)", split)
    if not match:
        return images
    cities = {(image.split, image.below.partition("/")[0]) for image in images}
    official = sorted(city for city in cities if city[0] == "val")
    every = official + sorted(cities.difference(official))
    start = int(match[2]) * len(every) // FOLDS
    held_out = set(every[start : start + len(official)])
    for_validation = match[1] == "val"
    return [image for image in images if ((image.split, image.below.partition("/")[0]) in held_out) == for_validation]


def _of_ids(root: Path, split: str, layout: FolderLayout, images: list[PlacedImage]) -> list[PlacedImage]:
    wanted = _read_ids(root, split) - {int(stem) for stem in layout.left_out_stems}
    by_id = {int(image.stem): image for image in images if image.stem.isdecimal()}
    missing = sorted(wanted.difference(by_id))
    if missing:
        raise DatasetError(
            f"{root}: {len(missing)} of the {len(wanted)} images of split '{split}' are not there "
            f"({first_few([f'{number:05d}' for number in missing])}); {layout.fix}"
        )
    return [image for number, image in by_id.items() if number in wanted]


def _read_ids(root: Path, split: str) -> set[int]:
    import numpy as np  # not above: listing images or checking a manifest need not wait for it

    matlab, numpy = root / "split.mat", root / "split.npz"
    arrays = _read_matlab(matlab) if matlab.is_file() else None
    if arrays is None:
        if not numpy.is_file():
            raise DatasetError(_no_ids(root, matlab.is_file()))
        arrays = _read_numpy(numpy)
    path, name = (matlab if matlab.is_file() else numpy), _ARRAYS[split]
    values = np.asarray(arrays.get(name, ()))
    if not values.size or not np.issubdtype(values.dtype, np.number) or (values != values.astype(int)).any():
        raise DatasetError(f"{path}: holds no numbers under '{name}'; fetch the file again")
    return set(values.astype(int).ravel().tolist())


def _no_ids(root: Path, has_matlab: bool) -> str:
    if has_matlab:
        return (
            f"{root / 'split.mat'}: to read it needs scipy, which is not installed; "
            "pip install 'hmsa-pipeline[train]' brings it"
        )
    return (
        f"{root}: split.mat is not there, which says which images belong to which split; it comes with "
        "read_mapping.zip of the dataset's authors; see: hmsa-pipeline datasets list"
    )


def _read_matlab(path: Path) -> dict[str, Any] | None:
    """The arrays of a MATLAB file; None without scipy, which only an extra installs."""
    try:
        from scipy.io import loadmat  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        return loadmat(path)
    except Exception as error:  # scipy raises whatever the damage leads to
        raise DatasetError(f"{path}: cannot be read as a MATLAB file; fetch it again") from error


def _read_numpy(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # of NumPy and of zipfile, many kinds
        raise DatasetError(f"{path}: cannot be read as a NumPy archive; make it again from split.mat") from error


def _of_lists(root: Path, split: str, layout: FolderLayout, images: list[PlacedImage]) -> list[PlacedImage]:
    there = {name: (root / path).is_file() for name, path in LISTS.items()}
    if not any(there.values()):
        return _drawn(split, images)
    for name, path in LISTS.items():
        if not there[name]:
            raise DatasetError(f"{root / path}: is not there, but the other list is; make both, or remove that one")
    lists = {name: _read_list(root / path) for name, path in LISTS.items()}
    both = sorted(lists["train"] & lists["val"])
    if both:
        raise DatasetError(
            f"{root / LISTS['val']}: {len(both)} of its images stand in {Path(LISTS['train']).name} as well "
            f"({first_few(both)}); keep each in one list"
        )
    missing = sorted(lists[split].difference(image.stem for image in images))
    if missing:
        raise DatasetError(
            f"{root / LISTS[split]}: {len(missing)} of its {len(lists[split])} images are not there "
            f"({first_few(missing)}); {layout.fix}"
        )
    return [image for image in images if image.stem in lists[split]]


def _read_list(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of names in UTF-8") from error
    names = {line.strip() for line in lines} - {""}
    if not names:
        raise DatasetError(f"{path}: is empty; write the names of images without suffix, one a line")
    return {name[: name.rindex(".")] if name.lower().endswith(SUFFIXES) else name for name in names}


def _drawn(split: str, images: list[PlacedImage]) -> list[PlacedImage]:
    """Every tenth image for validation, at least one; the others for training."""
    # An order by hashes, unlike a generator's permutation, is the same with every version of every library.
    order = sorted(images, key=lambda image: hashlib.sha256(f"{_SEED} {image.stem}".encode()).digest())
    held_out = {image.stem for image in order[: max(1, len(order) // 10)]}
    return [image for image in images if (image.stem in held_out) == (split == "val")]


_RULES: dict[str, Callable[[Path, str, FolderLayout, list[PlacedImage]], list[PlacedImage]]] = {
    "all": _all,
    "cities": _of_cities,
    "ids": _of_ids,
    "lists": _of_lists,
}
