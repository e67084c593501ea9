"""Where each type of dataset keeps its images below its root: tables, and the lists that come of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import DatasetError, nearest
from ..dataset_specs import KNOWN_DATASETS, SEE, dataset_spec
from .folder_layout import (
    SUFFIXES,
    FolderLayout,
    Listing,
    PlacedImage,
    check_names,
    located,
    output_stem,
    walk,
)
from .left_out import BESIDE, without_others, without_predictions
from .outlier_sets import FISHYSCAPES, OUTLIER_LAYOUTS, labelled_frames
from .splits import select_split

_PLAIN: Mapping[str, FolderLayout] = {
    "bravo": FolderLayout({None: (".",)}, left_out=frozenset({"labels_masks"})),
    "folder": FolderLayout({None: (".",)}),
    **OUTLIER_LAYOUTS,
}


class _Layouts(Mapping[str, FolderLayout]):
    """The plain layouts and those of `sources`, whose files are read when they are asked for."""

    def __getitem__(self, name: str) -> FolderLayout:
        if name in KNOWN_DATASETS:
            return dataset_spec(name).layout
        return _PLAIN[name]

    def __contains__(self, name: object) -> bool:
        return name in _PLAIN or name in KNOWN_DATASETS

    def __iter__(self) -> Iterator[str]:
        return iter((*_PLAIN, *KNOWN_DATASETS))

    def __len__(self) -> int:
        return len(_PLAIN) + len(KNOWN_DATASETS)


LAYOUTS: Mapping[str, FolderLayout] = _Layouts()
"""Type, as a manifest names it -> layout."""


def list_images(root: Path, layout: str, split: str | None = None, exclude: Sequence[Path] = ()) -> list[PlacedImage]:
    """The images of one dataset, sorted by path as plain strings.

    Hidden files and folders (a leading dot) are left out. Linked folders are followed, save those that lead
    back to a folder they stand in.

    Args:
        root: the dataset's folder.
        layout: its type, a key of `LAYOUTS`.
        split: one of the type's splits; None for the type's default, or everything where it has none.
        exclude: folders below ``root`` to leave out with all they hold, such as our own outputs; they are
            known by their place, links resolved, and need not exist. ``root`` itself is always read.

    Raises:
        DatasetError: unknown type or split; the folder is missing, unreadable, empty or not laid out as its
            type says; what says which images belong to the split is missing or names images that are; names
            that are not UTF-8; two images whose outputs would have the same name.
    """
    return survey_images(root, layout, split, exclude).images


def survey_images(root: Path, layout: str, split: str | None = None, exclude: Sequence[Path] = ()) -> Listing:
    """List the images of a dataset as `list_images` does, and count what was left out.

    Left out are class maps and confidences beside the photographs, and of a folder laid out as ACDC what BRAVO does
    not ask for.

    Args:
        root, layout, split, exclude: as for `list_images`.
    """
    if layout not in LAYOUTS:
        raise DatasetError(f"unknown dataset type '{layout}'; {nearest(layout, LAYOUTS)}")
    table = LAYOUTS[layout]
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "there is no such folder"
        more = f"; how it must look, {SEE}" if layout in KNOWN_DATASETS else ""
        raise DatasetError(f"{root}: {what}; check the dataset's root in the manifest, or --data-root{more}")
    wanted, folders = _folders(root, layout, split)
    images: list[PlacedImage] = []
    for of, folder in folders:
        start = 0 if folder == "." else len(folder) + 1
        ending, part = table.ending(of), part_of(table, of, folder)
        for path, size in walk(root, folder, table, exclude, of):
            name = path.rindex("/") + 1 if "/" in path else 0
            stem = output_stem(path[name:]).removesuffix(ending)
            images.append(PlacedImage(path, size, of, sys.intern(path[start:name]), stem, part))
    if not images:
        ending = f" whose name ends in {table.ending(folders[0][0])} and" if table.stem_ending else ""
        place = root / folders[0][1] if len(folders) == 1 else root
        fix = table.apart.get(wanted or "", table.fix) or "check the folder"
        raise DatasetError(f"{place}: holds no image{ending} of type {' '.join(SUFFIXES)}; {fix}")
    images.sort(key=lambda image: image.path)
    images, beside = without_predictions(images)
    left_out = {BESIDE: beside} if beside else {}
    if layout == "bravo":
        images, others = without_others(images)
        left_out |= others
    if layout == FISHYSCAPES:
        images, others = labelled_frames(root, images)
        left_out |= others
    check_names(root, [image.path for image in images])
    if wanted is None:
        return Listing(images, left_out)
    chosen = select_split(root, wanted, table, images)
    if not chosen:
        raise DatasetError(
            f"{root}: split '{wanted}' is empty: none of the {len(images)} images belongs to it; {table.fix}"
        )
    return Listing(chosen, left_out)


def split_folders(root: Path, table: FolderLayout, split: str | None) -> list[str]:
    """The folders that hold the images of a split, relative to ``root``: those that are there.

    Args:
        root, table: the dataset's folder and layout.
        split: None for a layout without splits.
    """
    first = next((folder for folder in table.splits[split] if located(root, folder).is_dir()), None)
    more = [folder for folder in table.more.get(split or "", ()) if located(root, folder).is_dir()]
    return [*([first] if first is not None else ()), *more]


def part_of(table: FolderLayout, split: str | None, folder: str) -> str:
    """Cut the usual folder of a split off ``folder``: what stands before it, with a slash; empty for other folders.

    Args:
        table, split: as for `split_folders`.
        folder: relative to the dataset's root.
    """
    usual = table.splits[split][0]
    return folder.removesuffix(usual) if folder.endswith(f"/{usual}") else ""


def _folders(root: Path, layout: str, split: str | None) -> tuple[str | None, list[tuple[str | None, str]]]:
    """The split that is meant, and the folders to read, relative to ``root``, each with the split it is of."""
    table = LAYOUTS[layout]
    if split is not None and split not in table.split_names:
        if not table.split_names:
            raise DatasetError(f"type '{layout}' has no splits, but split '{split}' was given; leave it out")
        raise DatasetError(f"type '{layout}' has no split '{split}'; {nearest(split, table.split_names)}")
    wanted = split or table.default
    parts = table.joined.get(wanted, (wanted,)) if wanted else tuple(table.splits)
    found: list[tuple[str | None, str]] = []
    for part in parts:
        there = split_folders(root, table, part)
        found += [(part, folder) for folder in there]
        if not there and wanted and not (table.any_part and wanted in table.joined):
            of_split = f"split '{part}'" + (f", part of '{wanted}'," if part != wanted else "")
            expected = " or ".join(f"{folder}/" for folder in table.splits[part])
            fix = table.apart.get(part or "", table.fix)
            raise DatasetError(_not_there(root, f"type '{layout}', {of_split}", expected, fix))
    if not found:
        expected = " or ".join(f"{folder}/" for part in parts for folder in table.splits[part])
        of_split = f", split '{wanted}'," if wanted else ""
        raise DatasetError(_not_there(root, f"type '{layout}'{of_split}", expected, table.fix))
    return wanted, found


def _not_there(root: Path, what: str, expected: str, fix: str) -> str:
    more = f"; {fix}" if fix else ""
    return f"{root}: {what} keeps its images in {expected}; none is there{more}"
