"""Where each type of dataset keeps its images below its root: tables, and the one walk that reads them."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError, first_few, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""What an image file's name ends with, in capitals or not."""

# File systems take 255 bytes, and outputs put an ending such as _logits.npz in place of the suffix.
_LONGEST_NAME = 240


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one type of dataset keeps its images."""

    splits: Mapping[str | None, tuple[str, ...]]
    """Split -> folders below the root that may hold it; the first one that is there does. The folders under
    None belong to no split: they are read when the manifest names none."""
    default: str | None = None
    """The split that is read when the manifest names none; if None, everything that is there."""
    stem_ending: str = ""
    """What the name of an image ends with, before its suffix; files without it are no images."""
    left_out: frozenset[str] = field(default_factory=frozenset)
    """Names of folders that hold no images, at any depth."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that a manifest can name."""
        return tuple(split for split in self.splits if split is not None)


LAYOUTS: Mapping[str, Layout] = {
    "bravo": Layout({None: (".",)}, left_out=frozenset({"labels_masks"})),
    "folder": Layout({None: (".",)}),
    "cityscapes": Layout(
        {
            split: (f"leftImg8bit_trainvaltest/leftImg8bit/{split}", f"leftImg8bit/{split}")
            for split in ("train", "val", "test")
        },
        default="val",
        stem_ending="_leftImg8bit",
    ),
    # The second folder of each track is spelled as the BRAVO archive spells it.
    "smiyc": Layout(
        {
            "anomaly": ("dataset_AnomalyTrack/images", "RoadAnomaly21/images"),
            "obstacle": ("dataset_ObstacleTrack/images", "RoadObsticle21/images"),
            None: ("images",),
        },
    ),
}
"""Type, as a manifest names it -> layout."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a dataset."""

    path: str
    """Relative to the dataset's root, with forward slashes."""
    bytes: int
    """Size of the file."""


def output_stem(path: str) -> str:
    """``path`` without its last suffix: what the names of the image's outputs begin with."""
    return os.path.splitext(path)[0]  # noqa: PTH122  a Path is ten times slower, and there are many


def list_images(root: Path, layout: str, split: str | None = None, exclude: Sequence[Path] = ()) -> list[ImageFile]:
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
            type says; names that are not UTF-8; two images whose outputs would have the same name.
    """
    if layout not in LAYOUTS:
        raise DatasetError(f"unknown dataset type '{layout}'; {nearest(layout, LAYOUTS)}")
    table = LAYOUTS[layout]
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "there is no such folder"
        raise DatasetError(f"{root}: {what}; check the dataset's root in the manifest, or --data-root")
    images: list[ImageFile] = []
    for folder in _folders(root, layout, split):
        images.extend(_walk(root, folder, table, exclude))
    if not images:
        ending = f" whose name ends in {table.stem_ending} and" if table.stem_ending else ""
        raise DatasetError(f"{root}: holds no image{ending} of type {' '.join(SUFFIXES)}; check the folder")
    images.sort(key=lambda image: image.path)
    _check_names(root, [image.path for image in images])
    return images


def _folders(root: Path, layout: str, split: str | None) -> list[str]:
    """The folders to read, relative to ``root``."""
    table = LAYOUTS[layout]
    if split is not None and split not in table.split_names:
        if not table.split_names:
            raise DatasetError(f"type '{layout}' has no splits, but split '{split}' was given; leave it out")
        raise DatasetError(f"type '{layout}' has no split '{split}'; {nearest(split, table.split_names)}")
    wanted = split or table.default
    groups = [table.splits[wanted]] if wanted else list(table.splits.values())
    there = [next((folder for folder in alternatives if (root / folder).is_dir()), None) for alternatives in groups]
    found = [folder for folder in there if folder is not None]
    if not found:
        expected = " or ".join(f"{folder}/" for alternatives in groups for folder in alternatives)
        of_split = f", split '{wanted}'" if wanted else ""
        raise DatasetError(f"{root}: type '{layout}'{of_split} keeps its images in {expected}; none is there")
    return found


def _walk(root: Path, start: str, table: Layout, exclude: Iterable[Path]) -> Iterator[ImageFile]:
    """Every image below ``root / start``, in no order."""
    top = os.path.realpath(root)
    excluded = [place for place in map(os.path.realpath, exclude) if not _is_within(top, place)]
    ending, left_out = table.stem_ending, table.left_out
    # Per folder: its path relative to root with a slash at the end, where it really lies, and where the links
    # that led here really stand. A link to a folder that holds one of these is a loop.
    stack: list[tuple[str, str, tuple[str, ...]]] = [
        ("" if start == "." else f"{start}/", os.path.realpath(root / start), ())
    ]
    while stack:
        prefix, real, links = stack.pop()
        # Tested here and not where a folder is found: a link may lead into the middle of our outputs.
        if any(_is_within(real, place) for place in excluded):
            continue
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":
                        continue
                    if entry.is_dir():
                        if name in left_out:
                            continue
                        if not entry.is_symlink():
                            stack.append((f"{prefix}{name}/", f"{real}/{name}", links))
                            continue
                        target = os.path.realpath(entry.path)
                        if not any(_is_within(place, target) for place in (real, *links)):
                            stack.append((f"{prefix}{name}/", target, (*links, real)))
                        continue
                    stem, suffix = os.path.splitext(name)  # noqa: PTH122
                    if suffix.lower() not in SUFFIXES or not stem.endswith(ending):
                        continue
                    status = entry.stat()
                    # A pipe or a device that happens to be called .png would block whoever opens it.
                    if stat.S_ISREG(status.st_mode):
                        yield ImageFile(prefix + name, status.st_size)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{error.filename}: is a link to a file that is not there; mend or remove it"
            ) from error
        except OSError as error:
            raise DatasetError(f"{error.filename or real}: cannot be read ({error.strerror})") from error


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _check_names(root: Path, paths: list[str]) -> None:
    odd = [ascii(path) for path in paths if not _is_utf8(path)]
    if odd:
        raise DatasetError(
            f"{root}: {len(odd)} file names are not UTF-8: {first_few(odd)}; rename them, since stores "
            "and reports cannot hold such names"
        )
    long = [path for path in paths if len(os.path.basename(path).encode()) > _LONGEST_NAME]  # noqa: PTH119
    if long:
        raise DatasetError(
            f"{root}: {len(long)} file names have more than {_LONGEST_NAME} bytes, too many for the names of "
            f"their outputs: {first_few(long, 1)}; shorten them"
        )
    counts = Counter(map(output_stem, paths))
    if len(counts) < len(paths):
        stems = {stem for stem, count in counts.items() if count > 1}
        twins = [path for path in paths if output_stem(path) in stems]
        raise DatasetError(
            f"{root}: {len(twins)} images differ in their suffix alone, so their outputs would have the same "
            f"names: {first_few(twins)}; keep one of each"
        )


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
