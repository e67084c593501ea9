"""The stage ``render``: predictions as pictures for people.

Classes in the Cityscapes palette, alone and over the photograph; confidence as brightness; and a sheet on which every
member stands beside the ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.layouts import list_images
from ..datasets.walk import located
from ..errors import disk_error
from ..files import atomic_path
from .colours import coloured, heated, laid_over, sureness
from .contact_sheet import arrange
from .manifest import Fusion as Functions
from .manifest import Manifest
from .members import ENSEMBLE, Placed, answers, placed
from .packing import usable
from .predictions import prediction_names, read_photograph, read_prediction, require_predictions
from .survey import PREDICTIONS, own_folders

KINDS = ("colour", "overlay", "confidence", "sheet")
_TILE = 480  # width of a picture on a sheet, at most


@dataclass(frozen=True)
class Rendering:
    """The pictures of one dataset, ready to be made.

    Attributes:
        dataset: its name.
        root: the folder of the photographs.
        images: their paths below it.
        predictions: the folder of the predictions.
        target: the folder of the pictures.
        kinds: which of `KINDS`.
        opacity: of the classes over the photograph, 0 to 1.
        width: to which pictures, and those on a sheet, are reduced; None to leave them as they are.
        members: with their stores; none without sheets.
        functions: of members' labels and confidences.
        exif: whether photographs are turned as EXIF says.
    """

    dataset: str
    root: Path
    images: tuple[str, ...]
    predictions: Path
    target: Path
    kinds: tuple[str, ...]
    opacity: float
    width: int | None
    members: tuple[Placed, ...]
    functions: Functions
    exif: bool = False


@dataclass
class Rendered:
    """Pictures that were made, and images that could not be -> reasons."""

    dataset: str
    pictures: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return vars(self)


def plan_rendering(
    manifest: Manifest, target: Path, kinds: Sequence[str], *, opacity: float, width: int | None, limit: int | None
) -> list[Rendering]:
    """List what there is to draw.

    Args:
        manifest: whose predictions.
        target: the folder of all pictures.
        kinds: which of `KINDS`.
        opacity: of the classes over the photograph, 0 to 1.
        width: to which pictures are reduced; None to leave them as they are.
        limit: images per dataset, from the first; None for all.

    Raises:
        DatasetError: a dataset's folder is not as its layout says.
        StoreError: predictions are missing; or, for sheets, logits.
    """
    found = []
    for entry in manifest.datasets:
        root = entry.root_path()
        files = list_images(root, entry.type, entry.split, own_folders(manifest.output))[:limit]
        folder = manifest.output / PREDICTIONS / entry.name
        names = [name for file in files for name in prediction_names(file.path)]
        mend = "make them with 'hmsa-pipeline ensemble', or take --limit"
        require_predictions(folder, names, f"{len(names)} predictions", mend)
        images = tuple(file.path for file in files)
        place = target / entry.name
        members = placed(manifest, entry.name, images) if "sheet" in kinds else ()
        functions = manifest.ensemble
        found.append(
            Rendering(
                entry.name, root, images, folder, place, tuple(kinds), opacity, width, members, functions, entry.exif
            )
        )
    return found


def render(plan: Rendering) -> Rendered:
    """Draw one dataset's pictures; an image that cannot be read is listed, the others are drawn.

    Raises:
        DiskError: a picture cannot be written.
    """
    result = Rendered(plan.dataset)

    def draw(image: str) -> None:
        try:
            _draw(plan, image)
        except OSError as error:
            raise disk_error(plan.target, error) from error

    def count(image: str, _: None) -> None:
        result.pictures += len(plan.kinds)

    result.failed |= usable(plan.dataset, plan.images, draw, count)
    return result


def _draw(plan: Rendering, image: str) -> None:
    label_name, confidence_name = prediction_names(image)
    label, confidence = read_prediction(plan.predictions, (label_name, confidence_name))
    for kind in plan.kinds:
        if kind == "sheet":
            picture = _sheet(plan, image, label, confidence)
        else:
            if kind == "confidence":
                pixels = heated(sureness(confidence))
            elif kind == "colour":
                pixels = coloured(label)
            else:
                pixels = laid_over(
                    read_photograph(located(plan.root, image), label, plan.exif), coloured(label), plan.opacity
                )
            picture = _reduced(Image.fromarray(pixels), plan.width, exact=kind == "colour")
        with atomic_path(plan.target / f"{label_name.removesuffix('_pred.png')}_{kind}.png") as temporary:
            picture.save(temporary, format="PNG")


def _reduced(picture: Image.Image, width: int | None, *, exact: bool) -> Image.Image:
    """A picture at a width, unless it is smaller; ``exact`` mixes no colours."""
    if width is None or width >= picture.width:
        return picture
    size = (width, max(1, round(picture.height * width / picture.width)))
    return picture.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)


def _sheet(plan: Rendering, image: str, label: np.ndarray, confidence: np.ndarray) -> Image.Image:
    """The photograph, what each member makes of it, and what they say together."""
    subjects = {member.name: (number,) for number, (member, _) in enumerate(plan.members)}
    alone = answers(plan.members, image, subjects, plan.functions)
    tiles = [("photograph", read_photograph(located(plan.root, image), label, plan.exif))]
    tiles += [(name, coloured(answer[0])) for name, answer in alone.items()]
    tiles += [(ENSEMBLE, coloured(label)), ("confidence", heated(sureness(confidence)))]
    return arrange(tiles, min(plan.width or _TILE, label.shape[1]))
