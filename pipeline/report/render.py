"""The stage ``render``: predictions as pictures for people.

Classes in their colours, alone and over the photograph; confidence as brightness, and uncertainty by any function;
and a sheet on which every member stands beside the ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ...datasets.class_set import ClassSet
from ...datasets.layout.find_images import list_images
from ...datasets.layout.folder_layout import located
from ...errors import disk_error
from ...files import atomic_path
from ..config.manifest import FusionFunctions as Functions
from ..config.manifest import Manifest
from ..fusion.ensemble_record import require_recorded_classes
from ..fusion.fuse import CONFIDENCES
from ..fusion.member_stores import (
    ENSEMBLE,
    MemberStore,
    confidences_from_stores,
    predict_from_stores,
    stores_of,
)
from ..fusion.prediction_files import prediction_names, read_photograph, read_prediction, require_predictions
from ..fusion.prediction_sets import set_sizes, thresholds_of
from ..fusion.uncertainty import as_brightness
from ..pictures.colours import blend_over, class_colours, confidence_as_float, heat_map, set_size_colours
from ..pictures.sheet import member_sheet, reduced
from ..runtime.ordered_threads import usable
from ..storage.output_folder import own_folders, predictions_path

KINDS = ("colour", "overlay", "confidence", "sheet", "sets")
"""Kinds of pictures beside the functions of `fuse.CONFIDENCES`."""
_TILE = 480  # width of a picture on a sheet, at most


@dataclass(frozen=True)
class RenderPlan:
    """The pictures of one dataset, ready to be made.

    Attributes:
        root: the folder of the photographs.
        images: their paths below it.
        predictions: the folder of the predictions.
        target: the folder of the pictures.
        members: with their stores; none where no picture needs them.
        classes: of the manifest.
        exif: whether photographs are turned as EXIF says.
        thresholds: of prediction sets; none where they are not drawn.
        kinds, opacity, width: see `plan_render`; a picture on a sheet is reduced to the width too.
    """

    dataset: str
    root: Path
    images: tuple[str, ...]
    predictions: Path
    target: Path
    kinds: tuple[str, ...]
    opacity: float
    width: int | None
    members: tuple[MemberStore, ...]
    functions: Functions
    classes: ClassSet
    exif: bool = False
    thresholds: tuple[float, ...] = ()


@dataclass
class RenderResult:
    """Pictures that were made, and images that could not be -> reasons."""

    dataset: str
    pictures: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def plan_render(
    manifest: Manifest, target: Path, kinds: Sequence[str], *, opacity: float, width: int | None, limit: int | None
) -> list[RenderPlan]:
    """List what there is to draw.

    Args:
        manifest: whose predictions.
        target: the folder of all pictures.
        kinds: which of `KINDS` and of `fuse.CONFIDENCES`.
        opacity: of the classes over the photograph, 0 to 1.
        width: to which pictures are reduced; None to leave them as they are.
        limit: images per dataset, from the first; None for all.

    Raises:
        DatasetError: a dataset's folder is not as its layout says.
        StoreError: predictions are missing; or, for sheets, sets and functions of confidence, logits.
        ManifestError: sets are to be drawn, and the manifest has no thresholds of its ensemble.
    """
    thresholds = thresholds_of(manifest) if "sets" in kinds else ()
    found = []
    for entry in manifest.datasets:
        root = entry.root_path()
        files = list_images(root, entry.type, entry.split, own_folders(manifest.output))[:limit]
        folder = predictions_path(manifest.output, entry.name)
        names = [name for file in files for name in prediction_names(file.path)]
        fix = "make them with 'hmsa-pipeline ensemble', or take --limit"
        require_predictions(folder, names, f"{len(names)} predictions", fix)
        require_recorded_classes(folder, manifest.class_set)
        images = tuple(file.path for file in files)
        found.append(
            RenderPlan(
                dataset=entry.name,
                root=root,
                images=images,
                predictions=folder,
                target=target / entry.name,
                kinds=tuple(kinds),
                opacity=opacity,
                width=width,
                members=stores_of(manifest, entry.name, images) if {*kinds} & {"sheet", "sets", *CONFIDENCES} else (),
                functions=manifest.ensemble,
                classes=manifest.class_set,
                exif=entry.exif,
                thresholds=thresholds,
            )
        )
    return found


def run_render(plan: RenderPlan) -> RenderResult:
    """Draw one dataset's pictures; an image that cannot be read is listed, the others are drawn.

    DiskError if a picture cannot be written.
    """
    result = RenderResult(plan.dataset)

    def draw(image: str) -> None:
        try:
            _draw(plan, image)
        except OSError as error:
            raise disk_error(plan.target, error) from error

    def count(image: str, _: None) -> None:
        result.pictures += len(plan.kinds)

    result.failed |= usable(plan.dataset, plan.images, draw, count)
    return result


def _draw(plan: RenderPlan, image: str) -> None:
    label_name, confidence_name = prediction_names(image)
    label, confidence = read_prediction(plan.predictions, (label_name, confidence_name), plan.classes)
    functions = [kind for kind in plan.kinds if kind in CONFIDENCES]
    unsure: dict[str, np.ndarray] = {}
    if functions:
        _, unsure = confidences_from_stores(plan.members, image, plan.functions.label, functions)
    for kind in plan.kinds:
        if kind == "sheet":
            picture = _sheet(plan, image, label, confidence)
        else:
            if kind in unsure:
                pixels = heat_map(as_brightness(kind, unsure[kind], len(plan.classes)))
            elif kind == "confidence":
                pixels = heat_map(confidence_as_float(confidence))
            elif kind == "sets":
                sizes = set_sizes(plan.members, image, plan.functions.label, plan.thresholds)
                pixels = set_size_colours(sizes)
            elif kind == "colour":
                pixels = class_colours(label, plan.classes)
            else:
                photograph = read_photograph(located(plan.root, image), label, plan.exif)
                pixels = blend_over(photograph, class_colours(label, plan.classes), plan.opacity)
            picture = reduced(Image.fromarray(pixels), plan.width, exact=kind in ("colour", "sets"))
        with atomic_path(plan.target / f"{label_name.removesuffix('_pred.png')}_{kind}.png") as temporary:
            picture.save(temporary, format="PNG")


def _sheet(plan: RenderPlan, image: str, label: np.ndarray, confidence: np.ndarray) -> Image.Image:
    """The photograph, what each member makes of it, and what they say together."""
    subjects = {member.name: (number,) for number, (member, _) in enumerate(plan.members)}
    alone = predict_from_stores(plan.members, image, subjects, plan.functions)
    tiles = [("photograph", read_photograph(located(plan.root, image), label, plan.exif))]
    tiles += [(name, class_colours(answer[0], plan.classes)) for name, answer in alone.items()]
    tiles += [
        (ENSEMBLE, class_colours(label, plan.classes)),
        ("confidence", heat_map(confidence_as_float(confidence))),
    ]
    return member_sheet(tiles, min(plan.width or _TILE, label.shape[1]), plan.classes)
