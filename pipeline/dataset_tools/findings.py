"""Findings of a dataset check: for people, for JSON, and as problems of one line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...datasets.dataset_specs import SEE, TOTAL, DatasetSpec
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...datasets.taxonomy import CLASS_NAMES, IGNORE, NUM_CLASSES
from ...errors import first_few
from ..text import percent, plural

FIGURES = "check.json"
COUNTED = "counted by others, not stated by the authors"
"""Remark on a number in `DatasetSpec.unsure`."""

FEW = 5
"""Problems of one kind that are printed for a split; `FIGURES` holds them all."""

SLOTS: tuple[int, ...] = (*range(NUM_CLASSES), IGNORE)
"""The train ids that are counted, in the order of the counts."""


@dataclass(frozen=True, slots=True)
class PairFindings:
    """Findings of one image and its mask."""

    size: tuple[int, int] | None  # (height, width) of the image; None if it cannot be read
    mask_size: tuple[int, int] | None  # of the mask as it is stored
    unreadable: tuple[str, ...] = ()  # problems of files
    unknown: tuple[int, ...] = ()  # ids in the mask that are not in the dataset's table
    pixels: NDArray[np.int64] | None = None
    """(20,): pixels of each class, and of none, as training sees them; None if it cannot be trained on."""


@dataclass
class SplitFindings:
    """Findings of one split."""

    name: str
    spec: DatasetSpec  # of the dataset that it belongs to
    pairs: int  # images that have a mask
    without_mask: list[str]
    expected: int | None = None  # images that its authors distribute; None where that is not known
    looked_at: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width) -> how many images
    resized: int = 0  # masks of another size than their image, as this dataset is known to have them
    other_size: list[str] = field(default_factory=list)  # the same where it is an error, with both sizes
    unknown: dict[int, list[str]] = field(default_factory=dict)  # id that is not in the table -> masks that hold it
    unreadable: list[str] = field(default_factory=list)  # problems of files
    sound: list[ImageMaskPair] = field(default_factory=list)  # can be trained on
    empty: list[str] = field(default_factory=list)  # sound masks that label nothing
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SLOTS), np.int64))
    """(20,): pixels of each class, and of none, in what can be trained on."""
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SLOTS), np.int64))
    """(20,): images that show each class, and that have pixels of none."""

    @property
    def missing(self) -> int:
        """How many of the images that are distributed are not there."""
        return max(0, (self.expected or 0) - self.pairs - len(self.without_mask))

    @property
    def unsure(self) -> bool:
        """True if `expected` is a number that the authors do not state."""
        return self.name in self.spec.unsure and self.expected == self.spec.counts.get(self.name)

    def add(self, pair: ImageMaskPair, found: PairFindings) -> None:
        """Count one image."""
        self.looked_at += 1
        self.unreadable += found.unreadable
        for number in found.unknown:
            self.unknown.setdefault(number, []).append(pair.mask)
        if found.size is not None:
            self.sizes[found.size] += 1
        if found.pixels is not None:
            self.sound.append(pair)
            if not found.pixels[:NUM_CLASSES].any():
                self.empty.append(pair.mask)
            self.pixels += found.pixels
            self.images += found.pixels > 0
            self.resized += found.size != found.mask_size
        elif found.size and found.mask_size and found.size != found.mask_size and not self.spec.resize_masks:
            self.other_size.append(
                f"{pair.mask}: has {_by(found.mask_size)} pixels, but its image {pair.image} has {_by(found.size)}; "
                "they do not belong together, unpack both again"
            )

    def problems(self) -> Iterator[str]:
        """Yield the problems, one line each, the first few of each kind."""
        if self.missing:
            yield (
                f"{self.name}: {plural(self.missing, 'image')} of the {self.expected} that are distributed"
                f"{f' ({COUNTED})' if self.unsure else ''} {'are' if self.missing > 1 else 'is'} missing; "
                f"unpack {self.spec.archives(self.name)[0]}; {SEE}"
            )
        if self.without_mask:
            total = self.pairs + len(self.without_mask)
            yield (
                f"{self.name}: {len(self.without_mask)} of {total} images have no mask "
                f"({first_few(self.without_mask, FEW)}); unpack {self.spec.archives(self.name)[1]}; {SEE}"
            )
        yield from self._some(self.other_size, "masks have another size than their images")
        for number in sorted(self.unknown)[:FEW]:
            files = self.unknown[number]
            yield (
                f"{self.name}: id {number} is none of {self.spec.title}, but {plural(len(files), 'mask')} "
                f"{'hold' if len(files) > 1 else 'holds'} it, first {files[0]}; is that the right file?"
            )
        if len(self.unknown) > FEW:
            others = sorted(self.unknown)[FEW:]
            yield f"{self.name}: {len(others)} more ids are none of {self.spec.title} ({first_few(others, FEW)})"
        yield from self._some(self.unreadable, "files cannot be read")
        if self.empty and len(self.empty) == len(self.sound):
            masks = f"the {len(self.empty)} masks that were read" if len(self.empty) > 1 else "the mask that was read"
            yield (
                f"{self.name}: none of {masks} labels anything ({first_few(self.empty, FEW)}); nothing can be learnt "
                f"from that or scored on it, unpack {self.spec.archives(self.name)[1]}; {SEE}"
            )

    def _some(self, found: Sequence[str], what: str) -> Iterator[str]:
        different = [*dict.fromkeys(found)]
        for said in different[:FEW]:
            yield f"{self.name}: {said}"
        if len(different) > FEW:
            yield f"{self.name}: {len(different) - FEW} more {what}; {FIGURES} names them"

    def summary(self) -> str:
        """Describe the split in one line."""
        total = self.pairs + len(self.without_mask)
        of = f"{total} of {self.expected} images" if self.expected is not None else plural(total, "image")
        what = f"{of}, {plural(self.pairs, 'mask')}"
        if self.looked_at < self.pairs:
            what += f", the first {self.looked_at} read"
        sizes = [f"{_by(size)} ({number})" for size, number in _by_count(self.sizes)]
        what += f", {len(self.sound)} sound; {first_few(sizes, 3) or 'no size'}"
        if self.resized:
            what += f"; {plural(self.resized, 'mask')} brought to the size of the image"
        if self.empty:
            what += f"; {plural(len(self.empty), 'mask')} that {'label' if len(self.empty) > 1 else 'labels'} nothing"
        return what

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "images": self.pairs + len(self.without_mask),
            "distributed": self.expected,
            "distributed_is_unsure": self.unsure,
            "masks": self.pairs,
            "read": self.looked_at,
            "sound": len(self.sound),
            "sizes": {_by(size): number for size, number in _by_count(self.sizes)},
            "resized_masks": self.resized,
            "images_without_mask": self.without_mask,
            "masks_of_another_size": self.other_size,
            "unknown_ids": {str(number): self.unknown[number] for number in sorted(self.unknown)},
            "unreadable": self.unreadable,
            "masks_that_label_nothing": self.empty,
            **_class_figures(self.pixels, self.images),
        }


@dataclass(frozen=True)
class DatasetFindings:
    """Findings of a dataset.

    Attributes:
        limit: how many images of each split were read; all if None.
        without_image: masks that belong to no image; paths relative to the root.
        all_images: how many images lie in the folders of all splits; None where nobody says how many there must be.
        beside: folders of further parts beside the root, which are read as if they lay in it.
    """

    spec: DatasetSpec
    root: Path
    limit: int | None
    splits: tuple[SplitFindings, ...]
    without_image: tuple[str, ...]
    all_images: int | None = None
    beside: tuple[str, ...] = ()

    @property
    def sound(self) -> int:
        """How many images can be trained on."""
        return sum(len(split.sound) for split in self.splits)

    @property
    def pixels(self) -> NDArray[np.int64]:
        """(20,): as `SplitFindings.pixels`, over all splits."""
        return np.sum([split.pixels for split in self.splits], axis=0)

    @property
    def images(self) -> NDArray[np.int64]:
        """(20,): as `SplitFindings.images`, over all splits."""
        return np.sum([split.images for split in self.splits], axis=0)

    @property
    def problems(self) -> list[str]:
        """All problems, one line each."""
        found = [line for split in self.splits for line in split.problems()]
        if self.all_images is not None and (missing := self.spec.counts[TOTAL] - self.all_images) > 0:
            found.append(
                f"{plural(missing, 'image')} of the {self.spec.counts[TOTAL]} that are distributed "
                f"{'are' if missing > 1 else 'is'} missing; unpack {self.spec.image_archive}; {SEE}"
            )
        if self.without_image:
            found.append(
                f"{plural(len(self.without_image), 'mask')} without an image "
                f"({first_few(self.without_image, FEW)}); unpack {self.spec.image_archive}; {SEE}"
            )
        return found

    def summary(self) -> list[str]:
        """Describe the findings for people, a line each."""
        wide = max(len(split.name) for split in self.splits)
        lines = [f"{self.spec.title}: {self.root}", *(f"  with {self.root.parent / name}" for name in self.beside)]
        lines += [f"  {split.name:{wide}}  {split.summary()}" for split in self.splits]
        lines += [f"  {line}" for line in _table(self.pixels, self.images)]
        lines.append(plural(len(self.problems), "problem") if self.problems else "no problems")
        return lines

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "version": __version__,
            "dataset": self.spec.name,
            "root": str(self.root),
            "limit": self.limit,
            "splits": {split.name: split.figures() for split in self.splits},
            "masks_without_image": list(self.without_image),
            "distributed": self.spec.counts.get(TOTAL),
            "parts_beside": list(self.beside),
            **_class_figures(self.pixels, self.images),
            "problems": self.problems,
        }


def _class_figures(pixels: NDArray[np.int64], images: NDArray[np.int64]) -> dict[str, Any]:
    """Pixels, their share of those that have a class, and images of each class; pixels that have none."""
    labelled = int(pixels[:NUM_CLASSES].sum())
    return {
        "classes": {
            name: {"pixels": int(p), "share": int(p) / labelled if labelled else 0.0, "images": int(i)}
            for name, p, i in zip(CLASS_NAMES, pixels, images, strict=False)
        },
        "ignored_pixels": int(pixels[NUM_CLASSES]),
    }


def _table(pixels: NDArray[np.int64], images: NDArray[np.int64]) -> list[str]:
    """Two columns of classes, with their share of the labelled pixels and the images that show them."""
    labelled = max(1, int(pixels[:NUM_CLASSES].sum()))
    cells = [f"{'class':13}  {'pixels':>9}  {'images':>7}"]
    cells += [
        f"{name:13}  {percent(int(p) / labelled):>9}  {int(i) or '-':>7}"
        for name, p, i in zip(CLASS_NAMES, pixels, images, strict=False)
    ]
    cells.append(
        f"{'(ignored)':13}  {percent(int(pixels[-1]) / max(1, int(pixels.sum()))):>9}  {int(images[-1]) or '-':>7}"
    )
    rows = (len(cells) + 1) // 2
    cells.insert(rows, cells[0])
    return [f"{left}      {right}" for left, right in zip(cells[:rows], cells[rows:], strict=True)]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _by_count(sizes: Counter[tuple[int, int]]) -> list[tuple[tuple[int, int], int]]:
    """The most frequent first, of equally frequent ones the larger."""
    return sorted(sizes.items(), key=lambda entry: (-entry[1], -entry[0][0] * entry[0][1], entry[0]))
