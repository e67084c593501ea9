"""Which mask belongs to which image."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DatasetError, first_few
from ..dataset_specs import SEE, DatasetSpec, MaskRule, dataset_spec
from ..labels.mapillary_versions import encoding_of
from .find_images import list_images
from .folder_layout import PlacedImage, located, names_in, replaced


@dataclass(frozen=True, slots=True)
class ImageMaskPair:
    """An image and its mask; both paths are relative to the dataset's root, with forward slashes."""

    image: str
    mask: str
    encoding: str
    """How the mask says what a pixel shows: one of `dataset_specs.ENCODINGS`."""


def panoptic_json(mask: str) -> str:
    """The file that says what the colours of a panoptic mask mean; both paths relative to the root."""
    return f"{os.path.dirname(mask)}.json"  # noqa: PTH120  the path is a text


def find_pairs(root: Path, name: str, split: str | None = None) -> tuple[list[ImageMaskPair], list[str]]:
    """The images of a split with their masks, and those without.

    Args:
        root: the dataset's folder.
        name: which dataset, of `dataset_specs.NAMES`.
        split: which of its splits; None for its default.

    Returns:
        Pairs, sorted by image; and the paths of images that no mask was found for, sorted.

    Raises:
        DatasetError: unknown name or split; the folders of images are missing or empty, and whatever else
            `find_images.list_images` refuses.
    """
    facts = dataset_spec(name)
    pairs, alone = _matched(root, facts, list_images(root, name, split))
    return pairs, [image.path for image in alone]


def list_pairs(root: Path, name: str, split: str | None = None) -> list[ImageMaskPair]:
    """The images of a split with their masks, sorted by image: as `find_pairs`, but every image must have one.

    Args:
        root, name, split: as for `find_pairs`.

    Raises:
        DatasetError: as `labelled_pairs`.
    """
    return labelled_pairs(root, name, split)[0]


_HOW_TO_LEAVE_OUT = (
    "; allow_unlabelled: true of the dataset, or --allow-unlabelled of evaluate and train, leaves them out"
)


def labelled_pairs(
    root: Path,
    name: str,
    split: str | None = None,
    *,
    leave_out: Collection[str] = (),
    allow_unlabelled: bool = False,
    all_there: bool = True,
    facts: DatasetSpec | None = None,
) -> tuple[list[ImageMaskPair], list[str]]:
    """The images of a split with their masks, and those that are left out because they have none.

    Args:
        root, name, split: as for `find_pairs`.
        leave_out: images to leave out, by their paths relative to the root.
        allow_unlabelled: leave out whatever has no mask.
        all_there: whether ``leave_out`` may name no others than images of this split.
        facts: how its labels are described, see `class_set_labels`; None for as its file does. Of a folder with
            masks, a split is a folder in it.

    Returns:
        Pairs, sorted by image; and the paths of images that are left out, sorted.

    Raises:
        DatasetError: as `find_pairs`; the masks of the split are not published; images have no mask and are not to be
            left out, or none has one; ``leave_out`` names images that are not there; there is nothing that says what
            the colours of panoptic masks mean.
    """
    facts = facts or dataset_spec(name)
    split = split or facts.layout.default
    if split in facts.unlabelled:
        raise DatasetError(
            f"{root}: the masks of split '{split}' of {facts.title} are not published; "
            f"choose one of {', '.join(facts.labelled)}"
        )
    images = list_images(root, name, split) if facts.masks_folder is None else _folder_images(root, facts, split)
    pairs, alone = _matched(root, facts, images)
    wanted = set(leave_out)
    if all_there and wanted:
        refuse_absent(root, split, wanted - {pair.image for pair in pairs} - {image.path for image in alone})
    left_out = sorted(
        {pair.image for pair in pairs} & wanted | {i.path for i in alone if allow_unlabelled or i.path in wanted}
    )
    pairs = [pair for pair in pairs if pair.image not in wanted]
    alone = [image for image in alone if image.path not in set(left_out)] if pairs else alone
    fix = (
        f"unpack {facts.archives(split)[1]}; {SEE}"
        if facts.masks_folder is None
        else "put masks there, or correct 'masks'"
    )
    if alone:
        images = first_few([image.path for image in alone], 3)
        places = " or ".join(path for path, _ in _places(facts, alone[0]))
        of = f" of split '{split}'" if split else ""
        raise DatasetError(
            f"{root}: {len(alone)} of the {len(pairs) + len(alone)} images{of} have no mask "
            f"({images}); for the first that would be {places}; {fix}{_HOW_TO_LEAVE_OUT if pairs else ''}"
        )
    for beside in sorted({panoptic_json(pair.mask) for pair in pairs if pair.encoding == "panoptic"}):
        if not (root / beside).is_file():
            raise DatasetError(
                f"{root / beside}: there is no such file, which says what the colours of masks mean; {fix}"
            )
    return pairs, left_out


def _folder_images(root: Path, facts: DatasetSpec, below: str | None) -> list[PlacedImage]:
    """List the images of a folder, or of one of its folders, without the masks."""
    assert facts.masks_folder is not None
    images = list_images(root, facts.name, None, [facts.masks_folder])
    found = [image._replace(split="") for image in images if not below or image.path.startswith(f"{below}/")]
    if not found:
        raise DatasetError(f"{root}: holds no image in {below}/; name a folder in it, or correct its path")
    return found


def without_masks(name: str, left_out: Sequence[str]) -> str:
    """Message on images that are left out because they have no mask, in one line."""
    one = len(left_out) == 1
    return (
        f"{name}: {len(left_out)} image{' has' if one else 's have'} no mask and {'is' if one else 'are'} left out "
        + (f"({first_few(left_out, 5)})")
    )


def refuse_absent(root: Path, split: str | None, names: Collection[str]) -> None:
    """Raise a DatasetError if images to leave out were not found.

    Args:
        root, split: where they were looked for.
        names: of those that are not there.
    """
    if names:
        raise DatasetError(
            f"{root}: without_masks names {len(names)} images that split '{split}' does not hold "
            f"({first_few(sorted(names), 3)}); write their paths relative to that folder, as 'datasets check' does"
        )


def _matched(
    root: Path, facts: DatasetSpec, images: Sequence[PlacedImage]
) -> tuple[list[ImageMaskPair], list[PlacedImage]]:
    """Images with the first mask that is there, and images without any."""
    names: dict[str, frozenset[str]] = {}
    encodings: dict[MaskRule, str] = {}
    pairs: list[ImageMaskPair] = []
    alone: list[PlacedImage] = []
    for image in images:
        for path, rule in _places(facts, image):
            folder, _, name = path.rpartition("/")
            # Listing a folder once is far cheaper than asking for each file, on network disks above all.
            if folder not in names:
                names[folder] = names_in(located(root, folder))
            if name in names[folder]:
                if rule not in encodings:
                    encodings[rule] = encoding_of(root, facts, rule, folder)
                pairs.append(ImageMaskPair(image.path, path, encodings[rule]))
                break
        else:
            alone.append(image)
    return pairs, alone


def _places(facts: DatasetSpec, image: PlacedImage) -> list[tuple[str, MaskRule]]:
    assert image.split is not None, "every folder of these datasets belongs to a split"
    return mask_places(facts, image.split, image.part, image.below, image.stem)


def mask_places(facts: DatasetSpec, split: str, part: str, below: str, stem: str) -> list[tuple[str, MaskRule]]:
    """Where a mask may lie, in the order of preference, and the rule that says so.

    Args:
        facts: of which dataset.
        split, part, below, stem: of the image, as of `PlacedImage`.
    """
    changes = facts.layout.variants.get(split, {})
    called = facts.split_folders[split]
    return [
        (path.format(part=part, split=called, below=below, stem=stem), rule)
        for rule in facts.masks
        if (split in rule.splits if rule.splits else split not in facts.apart)
        for path in replaced(rule.path, changes)
    ]
