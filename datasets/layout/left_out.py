"""Files that lie among the images of a dataset and are called like them, but are none."""

from __future__ import annotations

from collections.abc import Sequence

from .folder_layout import PlacedImage, output_stem

BESIDE = "class maps and confidences beside their photographs"
NOT_ASKED = "of train, val and the reference frames of ACDC, which the challenge does not ask for"

_ENDINGS = ("_pred.png", "_conf.png")
_CONDITIONS = frozenset({"fog", "night", "rain", "snow"})
_SPLITS = frozenset({"train", "val", "train_ref", "val_ref", "test_ref"})


def without_predictions(images: Sequence[PlacedImage]) -> tuple[list[PlacedImage], int]:
    """Images without the files ``x_pred.png`` and ``x_conf.png`` that have an image ``x`` beside them.

    Returns:
        those that are left, in their order; and how many are not.
    """
    if not any(image.path.endswith(_ENDINGS) for image in images):
        return list(images), 0
    stems = {output_stem(image.path) for image in images}
    kept = [
        image for image in images if not (image.path.endswith(_ENDINGS) and image.path[: -len(_ENDINGS[0])] in stems)
    ]
    return kept, len(images) - len(kept)


def without_others(images: Sequence[PlacedImage]) -> tuple[list[PlacedImage], dict[str, int]]:
    """Images that the BRAVO challenge asks for, where ACDC lies in its folder as its authors distribute it.

    The challenge takes the images below ``<condition>/test``. Where such a folder is there, those beside it are left
    out. Another tree is left as it is.

    Returns:
        those that are left, in their order; and for people what is left out -> how many.
    """
    places = [_place(image.path) for image in images]
    if not any(split == "test" for split in places):
        return list(images), {}
    kept = [image for image, split in zip(images, places, strict=True) if split not in _SPLITS]
    return kept, {NOT_ASKED: len(images) - len(kept)} if len(kept) < len(images) else {}


def _place(path: str) -> str | None:
    """The split of an image that lies in ``<condition>/<split>/``."""
    folders = path.split("/")
    return folders[1] if len(folders) > 2 and folders[0] in _CONDITIONS else None
