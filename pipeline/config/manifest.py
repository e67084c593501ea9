"""The manifest: which models run on which images, how, and where the results go.

A manifest is a YAML file (see ``manifests/bravo.yaml``). `load_manifest` reads it, checks it and resolves its paths;
an error names everything that is wrong in one line, with the file, the line and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from ...datasets.class_set import ClassSet
from ...datasets.layout.find_images import LAYOUTS
from ...errors import ManifestError, describe_value, nearest
from ..storage.output_folder import store_path
from .calibration_field import PredictionSets
from .class_set_field import DEFAULT, ClassSetField, check_member_classes, class_set_of
from .frozen_model import FrozenModel
from .member import Member
from .member_inference import InferenceOptions
from .path_variables import resolved_path
from .value_types import InputPath, Name, OutputPath, Text, at_least_one, check_mapping, check_masks, one_of
from .yaml_document import FieldError

Encoding = Literal["lossless", "small", "compact"]
Orientation = Literal["stored", "exif"]
Label = Literal["mean-softmax", "max-softmax", "min-softmax", "mean-logit"]
Confidence = Literal[
    "mean-softmax",
    "mean-logit",
    "min-softmax",
    "margin",
    "entropy",
    "expected-entropy",
    "mutual-information",
    "variation-ratio",
    "disagreement",
    "max-logit",
    "standardised-max-logit",
    "energy",
    "rba",
]

Entry = TypeVar("Entry", Member, "DatasetEntry")


def _check_version(value: object) -> object:
    if type(value) is not int or value != 1:
        raise ValueError(f"this release reads version 1, not {describe_value(value)}")
    return value


Version = Annotated[Literal[1], BeforeValidator(_check_version)]


class StoreSettings(FrozenModel):
    """How logits are written."""

    encoding: Encoding = Field(
        default="lossless",
        description=(
            "lossless: float16 as computed; plain zarr-python can read it. small: the same values in half the space, "
            "slower to write and read; other readers need pcodec. compact: multiples of 1/64, about a fifth of the "
            "raw size; probabilities change by at most 0.004, and readers need this package."
        ),
    )


class FusionFunctions(FrozenModel):
    """How the logits of all models become one class map and one confidence map."""

    label: Label = Field(
        default="mean-softmax",
        description=("Argmax over classes of the models' mean, maximum or minimum softmax, or of their mean logits."),
    )
    confidence: Confidence = Field(
        default="mean-softmax",
        description=(
            "Maximum over classes of the models' mean softmax, of the softmax of their mean logits, or of their "
            "minimum softmax; margin: the mean softmax's highest minus its second highest class; 1 - the normalised "
            "entropy of the mean softmax, the models' mean entropy, or the root of the mutual information between "
            "class and model; variation-ratio: the share of models that say the commonest class; disagreement: the "
            "share of pairs of models that say the same; highest logit, energy or RbA of the mean logits; "
            "standardised-max-logit: mean of the models' logits of the label, each standardised by its `max_logits`."
        ),
    )


class DatasetEntry(FrozenModel):
    """One dataset to run the models on."""

    name: Name = Field(description="Unique name, ignoring case; also the folder of its stores and predictions.")
    type: Annotated[Text, one_of(LAYOUTS)] = Field(
        description="Layout of its files on disk; folder is any tree of images."
    )
    root: InputPath = Field(
        description="Folder of its images, relative to the manifest. ${NAME} is expanded.",
    )
    split: Text | None = Field(default=None, description="Name of a split, if the type has splits.")
    orientation: Orientation = Field(
        default="stored",
        description="stored: pixels as the file stores them, which match the labels. exif (type folder only): "
        "photographs are rotated as their EXIF tag says, as viewers show them.",
    )

    @model_validator(mode="after")
    def _turns_folders_alone(self) -> DatasetEntry:
        if self.exif and self.type != "folder":
            message = f"labels of type {self.type!r} fit the stored pixels; remove this, or use type 'folder'"
            raise FieldError(message, "orientation")
        return self

    @property
    def exif(self) -> bool:
        """True if its photographs are turned as their EXIF tag says."""
        return self.orientation == "exif"

    mapping: Text | None = Field(
        default=None, description="Mapping of its ids to the 19 classes, if 'datasets list' names several."
    )
    masks: InputPath | None = Field(
        default=None,
        description="Folder of its labels, if the type is folder: PNG files of the classes' ids, 255 where nothing "
        "is known, with the name and subfolder of its image; outside root. ${NAME} is expanded.",
    )
    without_masks: tuple[Text, ...] = Field(
        default=(), description="Images without a mask to leave out of scores, by their paths below the root."
    )
    allow_unlabelled: bool = Field(
        default=False, description="Leave all images without a mask out of scores; they are counted and named."
    )

    left_out: ClassVar[frozenset[str]] = frozenset({"masks"})

    @model_validator(mode="after")
    def _knows_the_mapping(self) -> DatasetEntry:
        check_mapping(self.type, self.mapping)
        check_masks(self.type, self.root, self.masks)
        if self.masks is not None and self.exif:
            raise FieldError("masks fit the stored pixels; remove this, or 'masks'", "orientation")
        return self

    def masks_path(self) -> Path | None:
        """Return the absolute path of the masks' folder; `ManifestError` if a variable in it is not set."""
        return (
            None if self.masks is None else resolved_path(self.masks, f"dataset '{self.name}': masks {self.masks}: ")
        )

    def root_path(self) -> Path:
        """Return the absolute path of the dataset's folder, which need not exist.

        BRAVO names the images of ACDC from the folder ``rgb_anon``, which is found in ACDC as its authors pack it;
        ManifestError if an environment variable in it is not set.
        """
        root = resolved_path(self.root, f"dataset '{self.name}': root {self.root}: ")
        if self.type != "bravo":
            return root
        inner = (root / name for name in ("rgb_anon", "rgb_anon_trainvaltest/rgb_anon"))
        return next((folder for folder in inner if folder.is_dir()), root)


class Manifest(FrozenModel):
    """Which models run on which images, how, and where the results go."""

    version: Version = Field(description="Version of this format: 1.")
    output: OutputPath = Field(
        description="Folder of all results, relative to where the command runs, or a URL such as s3://bucket/run. "
        "${NAME} is expanded."
    )
    classes: ClassSetField = Field(
        default=DEFAULT,
        description="The classes of logits, predictions and labels: a shipped set, or a YAML file with a list of "
        "{name, color}, relative to the manifest, or such a list. ${NAME} is expanded.",
    )
    inference: InferenceOptions = Field(default=InferenceOptions(), description="How every model processes an image.")
    store: StoreSettings = Field(default=StoreSettings(), description="How logits are written.")
    ensemble: FusionFunctions = Field(default=FusionFunctions(), description="How the models' logits are fused.")
    sets: PredictionSets | None = Field(
        default=None, description="Thresholds of prediction sets, see `calibrate --sets`."
    )
    models: Annotated[tuple[Member, ...], at_least_one] = Field(description="The members of the ensemble.")
    datasets: Annotated[tuple[DatasetEntry, ...], at_least_one] = Field(description="The datasets to run on.")

    left_out: ClassVar[frozenset[str]] = frozenset({"classes", "sets"})

    @property
    def class_set(self) -> ClassSet:
        """The classes of logits, predictions and labels."""
        return class_set_of(self.classes)

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        for i, member in enumerate(self.models):
            try:
                check_member_classes(member.classes, self.class_set)
            except FieldError as error:
                raise FieldError(str(error), "models", i, "classes", *error.place) from error
            for j, calibration in enumerate(member.calibration):
                try:
                    calibration.check_classes(len(self.class_set))
                except FieldError as error:
                    raise FieldError(str(error), "models", i, "calibration", j, *error.place) from error
            if member.max_logits is not None:
                try:
                    member.max_logits.check_classes(len(self.class_set))
                except FieldError as error:
                    raise FieldError(str(error), "models", i, "max_logits", *error.place) from error
        if self.sets is not None:
            try:
                self.sets.check_classes(len(self.class_set))
            except FieldError as error:
                raise FieldError(str(error), "sets", *error.place) from error
        if not self.class_set.is_default:
            for i, dataset in enumerate(self.datasets):
                if dataset.mapping is not None:
                    message = f"leads to the classes of {DEFAULT}, but the manifest's are {self.class_set}; remove it"
                    raise FieldError(message, "datasets", i, "mapping")
        _check_unique("models", self.models)
        _check_unique("datasets", self.datasets)
        if not any(member.weight for member in self.models):
            raise FieldError("all weights are 0, which leaves no model", "models", 0, "weight")
        fusion = self.ensemble
        extremes = [
            f"{key} {name}"
            for key, name in (("label", fusion.label), ("confidence", fusion.confidence))
            if name in ("max-softmax", "min-softmax")
        ]
        for i, member in enumerate(self.models):
            if extremes and member.weight != 1:
                message = f"{member.weight:g} means nothing to ensemble.{extremes[0]}; use a mean, or weight 1.0"
                raise FieldError(message, "models", i, "weight")
        return self

    def member(self, name: str) -> Member:
        """Find the model of that name; `ManifestError` if there is none."""
        return select("model", self.models, [name])[0]

    def dataset(self, name: str) -> DatasetEntry:
        """Find the dataset of that name; `ManifestError` if there is none."""
        return select("dataset", self.datasets, [name])[0]

    def stores(self) -> list[tuple[str, str, Path]]:
        """List the store of each model for each dataset: (dataset, model, folder of the store)."""
        return [
            (dataset.name, member.name, store_path(self.output, dataset.name, member.name))
            for dataset in self.datasets
            for member in self.models
        ]


def _check_unique(key: str, entries: Sequence[Member | DatasetEntry]) -> None:
    first: dict[str, int] = {}
    for i, entry in enumerate(entries):
        earlier = first.setdefault(entry.name.lower(), i)
        if earlier != i:
            message = f"{entry.name!r} is also the name of {key}[{earlier}] (case does not count); rename one"
            raise FieldError(message, key, i, "name")


def select(kind: str, entries: Sequence[Entry], names: Iterable[str]) -> tuple[Entry, ...]:
    """Keep the models or datasets of these names, in the manifest's order; ManifestError if there is none of a name.

    Args:
        kind: ``model`` or ``dataset``, for messages.
        entries: all there are.
        names: those to keep.
    """
    known = [entry.name for entry in entries]
    names = list(names)
    for name in names:
        if name not in known:
            raise ManifestError(f"no {kind} {name!r} in the manifest; {nearest(name, known)}")
    return tuple(entry for entry in entries if entry.name in names)
