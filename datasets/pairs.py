"""Which mask belongs to which image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError, first_few
from .layouts import find_images
from .sources import SEE, Source, source
from .walk import PlacedImage, names_in


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask; both paths are relative to the dataset's root, with forward slashes."""

    image: str
    mask: str
    encoding: str
    """How the mask says what a pixel shows: one of `sources.ENCODINGS`."""


def panoptic_json(mask: str) -> str:
    """The file that says what the colours of a panoptic mask mean; both paths relative to the root."""
    return f"{os.path.dirname(mask)}.json"  # noqa: PTH120  the path is a text


def find_pairs(root: Path, name: str, split: str | None = None) -> tuple[list[Pair], list[str]]:
    """The images of a split with their masks, and those without.

    Args:
        root: the dataset's folder.
        name: which dataset, of `sources.NAMES`.
        split: which of its splits; None for its default.

    Returns:
        Pairs, sorted by image; and the paths of images that no mask was found for, sorted.

    Raises:
        DatasetError: unknown name or split; the folders of images are missing or empty, and whatever else
            `layouts.list_images` refuses.
    """
    facts = source(name)
    pairs, alone = _matched(root, facts, find_images(root, name, split))
    return pairs, [image.path for image in alone]


def list_pairs(root: Path, name: str, split: str | None = None) -> list[Pair]:
    """The images of a split with their masks, sorted by image: as `find_pairs`, but every image must have one.

    Raises:
        DatasetError: as `find_pairs`; the masks of the split are not published; images have no mask; there is
            nothing that says what the colours of panoptic masks mean.
    """
    facts = source(name)
    split = split or facts.layout.default
    if split in facts.unlabelled:
        raise DatasetError(
            f"{root}: the masks of split '{split}' of {facts.title} are not published; "
            f"choose one of {', '.join(facts.labelled)}"
        )
    pairs, alone = _matched(root, facts, find_images(root, name, split))
    mend = f"unpack {facts.mask_archive}; {SEE}"
    if alone:
        images = first_few([image.path for image in alone], 3)
        places = " or ".join(path for path, _ in _places(facts, alone[0]))
        raise DatasetError(
            f"{root}: {len(alone)} of the {len(pairs) + len(alone)} images of split '{split}' have no mask "
            f"({images}); for the first that would be {places}; {mend}"
        )
    for beside in sorted({panoptic_json(pair.mask) for pair in pairs if pair.encoding == "panoptic"}):
        if not (root / beside).is_file():
            raise DatasetError(
                f"{root / beside}: there is no such file, which says what the colours of masks mean; {mend}"
            )
    return pairs


def _matched(root: Path, facts: Source, images: Sequence[PlacedImage]) -> tuple[list[Pair], list[PlacedImage]]:
    """Images with the first mask that is there, and images without any."""
    names: dict[str, frozenset[str]] = {}
    pairs: list[Pair] = []
    alone: list[PlacedImage] = []
    for image in images:
        for path, encoding in _places(facts, image):
            folder, _, name = path.rpartition("/")
            # Listing a folder once is far cheaper than asking for each file, on network disks above all.
            if folder not in names:
                names[folder] = names_in(root / folder)
            if name in names[folder]:
                pairs.append(Pair(image.path, path, encoding))
                break
        else:
            alone.append(image)
    return pairs, alone


def _places(facts: Source, image: PlacedImage) -> list[tuple[str, str]]:
    """Where the mask of ``image`` may lie, and its encoding there, in the order of preference."""
    assert image.split is not None, "every folder of these datasets belongs to a split"
    split = facts.split_folders[image.split]
    return [
        (rule.path.format(split=split, below=image.below, stem=image.stem), rule.encoding) for rule in facts.masks
    ]
