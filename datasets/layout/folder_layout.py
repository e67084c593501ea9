"""One walk over a folder of images, led by what its layout says."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import DatasetError, cannot_read, first_few

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of image files, in capitals or not."""

# What macOS puts into archives: for every file one more that is called alike and holds no picture.
_NEVER = frozenset({"__MACOSX"})

PARTS_BESIDE = ("idd20kII",)
"""Names of parts of datasets whose archives bring a folder of their own, which then lies beside that of the first
part: part II of IDD."""

# File systems take 255 bytes, and outputs put an ending such as _logits.npz in place of the suffix.
_LONGEST_NAME = 240


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """Where one type of dataset keeps its images."""

    splits: Mapping[str | None, tuple[str, ...]]
    """Split -> folders below the root that may hold it; the first one that is there does. The folders under
    None belong to no split: they are read when the manifest names none."""
    default: str | None = None
    """The split that is read when the manifest names none; if None, everything that is there."""
    stem_ending: str = ""
    """Ending of an image's name, before its suffix; files without it are no images."""
    left_out: frozenset[str] = field(default_factory=frozenset)
    """Names of folders that hold no images, at any depth."""
    left_out_ending: str = ""
    """Ending of the names of further such folders."""
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split that has no folder of its own -> the splits that it takes images from."""
    any_part: bool = False
    """True if a split of `joined` is read where only some of its parts are there."""
    members: str = "all"
    """Which images of its folders belong to a split: a rule of `splits`."""
    left_out_stems: frozenset[str] = field(default_factory=frozenset)
    """Names of images, without their suffix, that belong to no split."""
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> folders that are read as well where they are there, such as those of a second part; a part of
    `PARTS_BESIDE` may lie beside the root, too."""
    variants: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Split that lies as another one does -> what stands in its paths in place of what, with alternatives: another
    camera or another part of the same dataset."""
    fix: str = ""
    """How to fix missing folders, for the end of an error."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Split that comes in archives of its own, and may be missing where the others are there -> its ``fix``."""

    def ending(self, split: str | None) -> str:
        """Ending of an image's name in a split, before its suffix."""
        return replaced(self.stem_ending, self.variants.get(split or "", {}))[0]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that a manifest can name."""
        return (*(split for split in self.splits if split is not None), *self.joined)


def replaced(path: str, changes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The paths that ``path`` becomes by the changes of a variant, one for each alternative."""
    paths = (path,)
    for old, new in changes.items():
        if old in path:
            paths = tuple(each.replace(old, into) for each in paths for into in new)
    return paths


class PlacedImage(NamedTuple):
    """One image of a dataset, and what its place says."""

    path: str
    """Relative to the dataset's root, with forward slashes."""
    bytes: int
    """Size of the file."""
    split: str | None
    """The split whose folder it lies in, which need not be the one it belongs to."""
    below: str
    """Folders between that folder and the image, each with a slash."""
    stem: str
    """Its name without its suffix and without its layout's ending."""
    part: str = ""
    """Path before the split's folder, with a slash, where the dataset comes in parts with folders of their own."""


class Listing(NamedTuple):
    """The images of a dataset, and what lies among them and is none of them."""

    images: list[PlacedImage]
    """Sorted by path."""
    left_out: dict[str, int]
    """Kind of file that was left out, for people -> how many files."""


def located(root: Path, path: str) -> Path:
    """Where a file of a dataset lies: below its root, or in a part that was unpacked beside the root.

    Names are the same in both places, so that stores, predictions and caches stay good when a part is moved.
    """
    return root.parent / path if path.partition("/")[0] in parts_beside(root) else root / path


def locator(root: Path) -> Callable[[str], str]:
    """Return `located` for many files: where the parts lie is looked up once, and places are strings."""
    beside, inside, outside = parts_beside(root), str(root), str(root.parent)

    def place(path: str) -> str:
        return f"{outside if path.partition('/')[0] in beside else inside}/{path}"

    return place


def parts_beside(root: Path) -> tuple[str, ...]:
    """The parts of a dataset that lie beside its folder, and not in it."""
    # The root may be the part itself, which is then not read a second time.
    return tuple(
        part
        for part in PARTS_BESIDE
        if root.name != part and not (root / part).is_dir() and (root.parent / part).is_dir()
    )


def output_stem(path: str) -> str:
    """``path`` without its last suffix: what the names of the image's outputs begin with."""
    return os.path.splitext(path)[0]  # noqa: PTH122  a Path is ten times slower, and there are many


def walk(
    root: Path, start: str, layout: FolderLayout, exclude: Iterable[Path], split: str | None = None
) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of every image below ``root / start``, in no order.

    Args:
        root: the dataset's folder.
        start: a folder below it; its images' paths begin with it.
        layout: says how images are called and which folders hold none.
        exclude: folders to leave out, known by their place, links resolved.
        split: whose images they are, where names differ by split.

    Raises:
        DatasetError: a folder cannot be read; a link leads nowhere.
    """
    top = os.path.realpath(root)
    ending, left_out = layout.ending(split), layout.left_out | _NEVER
    excluded = [place for place in map(os.path.realpath, exclude) if not _is_within(top, place)]
    # Per folder: its path relative to root with a slash at the end, where it really lies, and where the links
    # that led here really stand. A link to a folder that holds one of these is a loop.
    stack: list[tuple[str, str, tuple[str, ...]]] = [
        ("" if start == "." else f"{start}/", os.path.realpath(located(root, start)), ())
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
                        if name in left_out or (layout.left_out_ending and name.endswith(layout.left_out_ending)):
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
                    # A pipe or a device that happens to be called .png would block its reader.
                    if stat.S_ISREG(status.st_mode):
                        yield prefix + name, status.st_size
        except FileNotFoundError as error:
            raise DatasetError(
                f"{error.filename}: is a link to a file that is not there; fix or remove it"
            ) from error
        except OSError as error:
            raise DatasetError(cannot_read(error.filename or real, error)) from error


def names_in(folder: Path) -> frozenset[str]:
    """The names of what lies in ``folder``; none if it is not there; DatasetError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise DatasetError(cannot_read(folder, error)) from error


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def check_names(root: Path, paths: list[str]) -> None:
    """Refuse names that outputs cannot take.

    Raises:
        DatasetError: names that are not UTF-8 or too long; two images whose outputs would have the same name.
    """
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
    twins = _twins(paths)
    if twins:
        raise DatasetError(
            f"{root}: {len(twins)} images differ in their suffix alone, so their outputs would have the same "
            f"names: {first_few(twins)}; keep one of each"
        )


def _twins(paths: list[str]) -> list[str]:
    """The paths whose stems are not theirs alone."""
    import numpy as np  # not above: checking a manifest need not wait for it

    # Of millions of paths the stems would take ten times the memory of their hashes.
    hashes = np.fromiter((hash(output_stem(path)) for path in paths), np.int64, len(paths))
    found, counts = np.unique(hashes, return_counts=True)
    if len(found) == len(paths):
        return []
    suspects = [paths[i] for i in np.flatnonzero(np.isin(hashes, found[counts > 1])).tolist()]
    stems = Counter(map(output_stem, suspects))
    return [path for path in suspects if stems[output_stem(path)] > 1]


def _is_utf8(text: str) -> bool:
    # Bytes that are not UTF-8 are lone surrogates in the name.
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
