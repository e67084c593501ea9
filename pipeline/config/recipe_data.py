"""The part of a recipe that says what is learnt from: one dataset, or a list of sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from ...datasets.class_set_labels import FOLDER
from ...datasets.dataset_specs import KNOWN_DATASETS
from .frozen_model import FrozenModel
from .path_variables import resolved_path
from .value_types import (
    Count,
    InputPath,
    NamesOf,
    Positive,
    Share,
    Text,
    at_least_one,
    check_mapping,
    check_masks,
    expand_input,
    one_of,
)
from .yaml_document import ONE, SEVERAL, FieldError

OWN, NONE, AUTOLABEL = "own", "none", "autolabel"
_LARGEST_BOOST = 100
_ROUNDING = 1e-6  # shares are written with a few digits


def _labels(value: object, info: ValidationInfo) -> str:
    """Check where labels come from, and expand the folder of auto-labels."""
    word, _, folder = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if word == AUTOLABEL and folder.strip():
        return f"{AUTOLABEL} {expand_input(folder.strip(), info)}"
    if value in (OWN, NONE):
        return str(value)
    raise ValueError(f"write {OWN}, {NONE}, or {AUTOLABEL} and the folder that 'hmsa-pipeline autolabel' wrote")


class Boost(FrozenModel):
    """The classes that class-uniform sampling looks for in a source."""

    classes: Annotated[tuple[Text, ...], at_least_one] = Field(
        description="Names of the classes; places of others in this source are left to chance."
    )
    factor: Count = Field(default=1, description="How often each place counts, against once in other sources.")

    @model_validator(mode="after")
    def _is_a_set(self) -> Boost:
        for i, name in enumerate(self.classes):
            if name in self.classes[:i]:
                raise FieldError(f"{name} stands twice; remove one", "classes", i)
        if self.factor > _LARGEST_BOOST:
            raise FieldError(f"{_LARGEST_BOOST} at most, not {self.factor}", "factor")
        return self


class Data(FrozenModel):
    """A dataset that is learnt from; the first one is scored on, too."""

    type: Annotated[Text, one_of(NamesOf(KNOWN_DATASETS, (FOLDER,)))] = Field(
        description="One of the datasets of 'hmsa-pipeline datasets list', or folder: any tree of images, with masks."
    )
    root: InputPath = Field(description="Its folder. ${NAME} is expanded, relative to the recipe.")
    train: Text = Field(
        default="train", description="The split that is learnt from; of type folder a folder in root."
    )
    validation: Text = Field(default="val", description="The split that is scored; of the first source alone.")
    limit: Count | None = Field(default=None, description="Only the first images of each split; all if null.")
    mapping: Text | None = Field(
        default=None, description="Which mapping of its ids to the 19 classes, where 'datasets list' names several."
    )
    masks: InputPath | None = Field(
        default=None,
        description="Folder of the masks, if the type is folder: PNG files of the classes' ids, 255 where nothing is "
        "known, with the name and subfolder of its image; outside root. ${NAME} is expanded.",
    )
    without_masks: tuple[Text, ...] = Field(
        default=(),
        description="Images of either split that have no mask and are left out, by their paths below root.",
    )
    allow_unlabelled: bool = Field(
        default=False, description="Leave every image out that has no mask; they are counted and named."
    )
    cache: InputPath | None = Field(
        default=None,
        description="Folder for what is made of the masks once (centroids, drawn polygons); <output>/cache if null. "
        "That of the first source serves all.",
    )
    labels: Annotated[str, BeforeValidator(_labels)] = Field(
        default=OWN,
        description="own: the dataset's masks. autolabel DIR: what 'hmsa-pipeline autolabel' wrote there, of one "
        "dataset. none: no labels, for distillation alone.",
    )
    share: Share | None = Field(
        default=None,
        description="Share of an epoch's random images that come from here; by the numbers of images if null.",
    )
    threshold: Positive | None = Field(
        default=None, description="Auto-labels: ignore pixels of a lower confidence, beside those ignored already."
    )
    weight_by_confidence: bool = Field(
        default=False, description="Auto-labels: multiply the loss of a pixel by its confidence."
    )
    boost: Boost | None = Field(
        default=None, description="What class-uniform sampling looks for here; all classes, once, if null."
    )
    until_epoch: Count | None = Field(
        default=None, description="The last epoch, from 1, that learns from here; the last of all if null."
    )

    left_out: ClassVar[frozenset[str]] = frozenset({"masks"})

    @model_validator(mode="after")
    def _knows_the_mapping(self) -> Data:
        check_mapping(self.type, self.mapping)
        check_masks(self.type, self.root, self.masks)
        if self.type == FOLDER and self.masks is None and self.labels == OWN:
            raise FieldError("is missing; name the folder of the masks", "masks")
        if not self.labels.startswith(AUTOLABEL):
            for key in ("threshold", "weight_by_confidence"):
                if getattr(self, key):
                    raise FieldError(f"is of auto-labels, and labels is '{self.labels}'; remove it", key)
        if self.threshold is not None and self.threshold >= 1:
            raise FieldError(f"must be below 1, not {self.threshold:g}", "threshold")
        if self.labels == NONE and self.boost is not None:
            raise FieldError("looks for classes, and without labels there are none; remove it", "boost")
        return self

    def root_path(self) -> Path:
        """Return the absolute path of the dataset's folder; `ManifestError` if a variable in it is not set."""
        return resolved_path(self.root, f"data.root {self.root}: ")

    def masks_path(self) -> Path | None:
        """Return the absolute path of the masks' folder; `ManifestError` as `root_path`."""
        return None if self.masks is None else resolved_path(self.masks, f"data.masks {self.masks}: ")

    def labels_path(self) -> Path | None:
        """Return the folder of auto-labels, None if there are none; `ManifestError` as `root_path`."""
        word, _, folder = self.labels.partition(" ")
        return resolved_path(folder, f"data.labels {folder}: ") if word == AUTOLABEL else None


def _form(value: Any) -> str:
    return SEVERAL if isinstance(value, (list, tuple)) else ONE


DataSection = Annotated[
    Annotated[Data, Tag(ONE)] | Annotated[tuple[Data, ...], Tag(SEVERAL)],
    Discriminator(_form),
]
"""One source as a mapping, or several as a list."""


def check_sources(sources: Sequence[Data], class_uniform: float) -> None:
    """Check that sources go together; `FieldError`, its place from the section on, if they do not.

    Args:
        sources: all of them, the first is scored.
        class_uniform: share of an epoch that is class-uniform.
    """
    if not sources:
        raise FieldError("at least one source is needed", "data")
    places: list[tuple[str | int, ...]] = (
        [("data",)] if len(sources) == 1 else [("data", i) for i in range(len(sources))]
    )
    shares = [source.share for source in sources]
    if any(share is None for share in shares):
        if given := [i for i, share in enumerate(shares) if share is not None]:
            raise FieldError("give every source a share, or none", *places[given[0]], "share")
    elif abs(sum(share or 0 for share in shares) - 1) > _ROUNDING:
        said = " + ".join(f"{share:g}" for share in shares)
        raise FieldError(f"the shares add up to {sum(share or 0 for share in shares):g} ({said}), not to 1", "data")
    for source, place in zip(sources, places, strict=True):
        if source.boost is not None and not class_uniform:
            raise FieldError("is of class-uniform sampling, and sampling.class_uniform is 0", *place, "boost")
        if source.share == 0 and (not class_uniform or source.labels == NONE):
            raise FieldError(
                "no image is ever drawn from here; remove the source or give it a share", *place, "share"
            )
    if not any(source.until_epoch is None and source.share != 0 for source in sources):
        raise FieldError(
            "one source at least needs a share and no until_epoch, or nothing is left to learn from", "data"
        )
