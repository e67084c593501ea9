"""The manifest: which models run on which images, how, and where the results go.

A manifest is a YAML file (see ``manifests/bravo.yaml``). `load_manifest` reads it, checks it and resolves its paths;
an error names everything that is wrong in one line, with the file, the line and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, Strict, model_validator

from ...datasets.layout.find_images import LAYOUTS
from ...errors import ManifestError, describe_value, nearest
from ...models.registry import ADAPTERS, GRAPHS, KNOWN
from ..storage.output_folder import store_path
from .frozen_model import FrozenModel
from .member_fields import FIELD_OWNERS, ClassesField, LayersField, ViewField, ViewOptions
from .member_inference import MemberInference, Sample, SampledView, check_samples
from .path_variables import resolved_path
from .value_types import (
    Count,
    InputPath,
    Name,
    NamesOf,
    Natural,
    NotNegative,
    OutputPath,
    Positive,
    Precision,
    Scales,
    Sha256,
    Text,
    at_least_one,
    check_mapping,
    one_of,
)
from .yaml_document import FieldError

Compile = Literal["off", "default", "max-autotune-no-cudagraphs"]
Encoding = Literal["lossless", "compact"]
Orientation = Literal["stored", "exif"]
Label = Literal["mean-softmax", "max-softmax", "min-softmax", "mean-logit"]
Confidence = Literal["mean-softmax", "mean-logit", "min-softmax", "entropy", "energy", "rba"]

Kind = Literal["logits", "probabilities", "scores"]

EXTERNAL = "external"

Entry = TypeVar("Entry", "Member", "DatasetEntry")


def _check_version(value: object) -> object:
    if type(value) is not int or value != 1:
        raise ValueError(f"this release reads version 1, not {describe_value(value)}")
    return value


Version = Annotated[Literal[1], BeforeValidator(_check_version)]


class Tile(FrozenModel):
    """Overlapping tiles of an image that does not fit into the device's memory as a whole."""

    size: tuple[Count, Count] = Field(description="Height and width of a tile in pixels.")
    overlap: Natural = Field(
        default=128, description="Overlap of neighbouring tiles in pixels; they are blended there."
    )

    @model_validator(mode="after")
    def _overlaps_less(self) -> Tile:
        if self.overlap >= min(self.size):
            message = f"must be below both sides of the tile, not {self.overlap}; give a smaller one"
            raise FieldError(message, "overlap")
        return self


class InferenceOptions(FrozenModel):
    """How every model processes an image."""

    scales: Scales = Field(
        default=(0.5, 1.0, 2.0),
        description="Scale factors at which an image is processed; must contain 1.0.",
    )
    flip: Annotated[bool, Strict()] = Field(
        default=False, description="Average with the mirrored image; takes twice the time."
    )
    precision: Precision = Field(
        default="fp16",
        description="Precision of the forward pass on a GPU; on a CPU fp16 means fp32.",
    )
    tile: Tile | None = Field(
        default=None,
        description="Tiles for images that do not fit into the GPU's memory in any other way; without tiles, such an "
        "image fails.",
    )
    cuda_graphs: Annotated[bool, Strict()] = Field(
        default=False,
        description="On a GPU, launch all kernels at once from the second image of a size on. Logits are the same to "
        "the bit; the memory of one forward pass stays allocated.",
    )
    compile: Compile = Field(
        default="off",
        description="Mode of torch.compile on a GPU. Compiling takes minutes for each image size and needs a C++ "
        "compiler. The last digits of logits change, so stores record the mode.",
    )


class StoreSettings(FrozenModel):
    """How logits are written."""

    encoding: Encoding = Field(
        default="lossless",
        description=(
            "lossless: float16 as computed; plain zarr-python can read it. compact: multiples of 1/64, about a fifth "
            "of the raw size; probabilities change by at most 0.004, and readers need this package."
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
            "minimum softmax; 1 - normalised entropy of the mean softmax; energy or RbA of the mean logits."
        ),
    )


class Member(FrozenModel):
    """One model of the ensemble."""

    name: Name = Field(description="Unique name, ignoring case; also the name of its logit store.")
    source: Text | None = Field(default=None, description="The dataset it was trained on; shown in reports.")
    arch: Annotated[Text, one_of(NamesOf(KNOWN, (EXTERNAL,)))] = Field(
        description="Architecture from this or an installed package; 'external' if import-logits brings its logits."
    )
    checkpoint: InputPath | None = Field(
        default=None,
        description="File of weights, or the folder in which another library saved a network, relative to the "
        "manifest; required unless external. ${NAME} is expanded.",
    )
    sha256: Sha256 | None = Field(
        default=None,
        description="SHA-256 that the checkpoint must have, 64 hexadecimal digits; of a folder see members.md.",
    )
    weight: NotNegative = Field(default=1.0, description="Weight in means; 0 leaves the model out.")
    temperature: Positive = Field(
        default=1.0, description="Logits are divided by this before fusion; above 1 lowers the confidence."
    )
    view: ViewField = Field(
        default=None,
        description="What a network of another library sees of an image at a time: `whole`, `{window: [h, w], "
        "stride: [h, w]}` or `{longest: n}`. null means whole, or windows of its size if it takes only one.",
    )
    classes: ClassesField = Field(
        default=None,
        description="Classes of a network of another library. A list names each of its channels by one of the 19 "
        "classes or `other`; a table gives its names, or channel numbers in quotes, one of these; `auto` does "
        "without those that it does not know by name; the name of a shipped table, see members.md, stands for its "
        "classes. null means that it names all 19.",
    )
    mean: tuple[NotNegative, NotNegative, NotNegative] | None = Field(
        default=None,
        description="Mean of the pixels that a network was trained with where its files do not hold it, red, green, "
        "blue, 0 to 1.",
    )
    std: tuple[Positive, Positive, Positive] | None = Field(
        default=None, description="Their standard deviation, 0 to 1."
    )
    backbone: Text | None = Field(
        default=None, description="Name of the backbone in timm, with its tag, of arch timm_linear."
    )
    layers: LayersField = Field(
        default=None,
        description="Places of the backbone's layers whose maps a linear head takes, from 0, ascending. null means "
        "the last ones, as many as fit the head.",
    )
    norm: Annotated[bool, Strict()] | None = Field(
        default=None,
        description="Whether the backbone's final normalisation is applied to these maps. null means yes if its "
        "weights are there.",
    )
    _trusted: bool = PrivateAttr(default=False)
    kind: Kind | None = Field(
        default=None,
        description="What a network that was saved as a graph puts out. null means logits, which are refused if none "
        "is below zero.",
    )
    postprocess: Literal["library"] | None = Field(
        default=None,
        description="library: masks of a Mask2Former are resized to 384x384 on their way, as transformers does it.",
    )
    inference: MemberInference | None = Field(
        default=None, description="What this model does otherwise than `inference` of the manifest says."
    )
    views: tuple[SampledView, ...] | None = Field(
        default=None,
        description="Makes further members of this network that see the image otherwise: `[flip, {scale: 0.75}]` "
        "makes NAME-flip and NAME-scale0.75. Their weight and temperature are this model's.",
    )
    dropout: Count | None = Field(
        default=None,
        description="Makes so many further members, NAME-dropout1 and so on, each a pass with the dropout of "
        "training. The same image drops the same features every time.",
    )
    sample: Sample | None = Field(
        default=None,
        description="Which of a network's members this one is: `manifest show` writes it instead of `views` and "
        "`dropout`.",
    )

    @model_validator(mode="after")
    def _fits_arch(self) -> Member:
        adapted = self.arch in ADAPTERS
        if not self.external and self.checkpoint is None:
            needed = "the folder in which a network was saved" if adapted else "a file of weights"
            raise FieldError(f"is missing; {self.arch!r} needs {needed}", "checkpoint")
        for key, owners in FIELD_OWNERS.items():
            if self.arch not in owners and getattr(self, key) is not None:
                message = f"means nothing to {self.arch!r}, only to {', '.join(owners)}; remove this"
                raise FieldError(message, key)
        if self.arch == "timm_linear" and self.backbone is None:
            raise FieldError("is missing; give the backbone's name in timm", "backbone")
        if self.arch in GRAPHS and self.mean is None and self.std is None:
            raise FieldError(
                "is missing; give 'mean' and 'std', [0, 0, 0] and [1, 1, 1] if the graph scales pixels itself", "mean"
            )
        if (self.mean is None) != (self.std is None):
            raise FieldError("is missing; 'mean' and 'std' go together", "std" if self.std is None else "mean")
        if self.inference is not None and self.inference.view is not None:
            if self.arch not in ADAPTERS:
                message = f"means nothing to {self.arch!r}, only to {', '.join(ADAPTERS)}; remove this"
                raise FieldError(message, "inference", "view")
            if self.view is not None:
                raise FieldError("stands in 'inference', too; remove one", "view")
        check_samples(self)
        for key in ("checkpoint", "sha256", "inference", "views", "dropout", "sample"):
            if self.external and getattr(self, key) is not None:
                raise FieldError("an external model has none: its logits are imported; remove this", key)
        return self

    def options(self, options: InferenceOptions) -> InferenceOptions:
        """Return the manifest's options with what this model does otherwise."""
        own = {} if self.inference is None else self.inference.model_dump(exclude_none=True, exclude={"view"})
        if self.sample is not None and self.sample.dropout is not None:
            own |= {"cuda_graphs": False, "compile": "off"}  # which draw other random numbers, or the same ones again
        return options.model_copy(update=own)

    @property
    def trusted(self) -> bool:
        """True if the command line says that code in its checkpoint may run; a manifest cannot."""
        return self._trusted

    def trusting(self) -> Member:
        """Return the same model as `trusted`."""
        copied = self.model_copy()
        copied._trusted = True
        return copied

    @property
    def sees(self) -> ViewOptions | None:
        """Its ``view``, from wherever it is given."""
        return self.view if self.inference is None else self.view or self.inference.view

    @property
    def external(self) -> bool:
        """True if its logits are imported, so that there is no checkpoint to run."""
        return self.arch == EXTERNAL

    def checkpoint_path(self) -> Path:
        """Return the absolute path of the checkpoint, which need not exist.

        ManifestError if an environment variable in it is not set, or the model is external.
        """
        if self.checkpoint is None:
            raise ManifestError(f"model '{self.name}' is external: fill its store with import-logits")
        return resolved_path(self.checkpoint, f"model '{self.name}': checkpoint {self.checkpoint}: ")


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
    without_masks: tuple[Text, ...] = Field(
        default=(), description="Images without a mask to leave out of scores, by their paths below the root."
    )
    allow_unlabelled: bool = Field(
        default=False, description="Leave all images without a mask out of scores; they are counted and named."
    )

    @model_validator(mode="after")
    def _knows_the_mapping(self) -> DatasetEntry:
        check_mapping(self.type, self.mapping)
        return self

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
    inference: InferenceOptions = Field(default=InferenceOptions(), description="How every model processes an image.")
    store: StoreSettings = Field(default=StoreSettings(), description="How logits are written.")
    ensemble: FusionFunctions = Field(default=FusionFunctions(), description="How the models' logits are fused.")
    models: Annotated[tuple[Member, ...], at_least_one] = Field(description="The members of the ensemble.")
    datasets: Annotated[tuple[DatasetEntry, ...], at_least_one] = Field(description="The datasets to run on.")

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
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
