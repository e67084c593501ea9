"""The training recipe: what a network is trained on, how, and from where.

A recipe is a YAML file (see ``manifests/train/gta5.yaml``), read and checked like a manifest. `load_recipe` replaces
settings by those of the command line; an error names everything that is wrong in one line, with the file, the line
and the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, Strict, model_validator

from ...datasets.class_set import ClassSet
from ...errors import ManifestError
from ...models.registry import ARCHITECTURES
from .class_set_field import DEFAULT, ClassSetField, class_set_of
from .frozen_model import FrozenModel
from .load_manifest import SHIPPED
from .manifest import Version
from .path_variables import resolved_path
from .recipe_data import NONE, Data, DataSection, check_sources
from .value_types import (
    Count,
    InputPath,
    LocalOutputPath,
    Natural,
    NotNegative,
    Positive,
    Precision,
    Scales,
    Share,
    Text,
    one_of,
)
from .yaml_document import FieldError

RECIPES = SHIPPED / "train"
RANDOM = "random"
"""Value of ``--init`` for random weights."""
_MAX_FACTOR = 100


def _as_list(value: object) -> object:
    """Turn a single file into a list of one."""
    return [value] if isinstance(value, (str, Path)) else value


def _check_two(value: object) -> object:
    if isinstance(value, (list, tuple)) and len(value) != 2:
        raise ValueError(f"a list of two is needed, not of {len(value)}")
    return value


def _check_factors(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"the smaller one comes first, not {limits[0]:g} before {limits[1]:g}")
    if limits[0] < 1 / _MAX_FACTOR or limits[1] > _MAX_FACTOR:
        raise ValueError(
            f"both must lie within {1 / _MAX_FACTOR:g} to {_MAX_FACTOR}, not {limits[0]:g} and {limits[1]:g}"
        )
    return limits


def _at_most(limit: float, why: str = "", effect: str = "") -> AfterValidator:
    """Make a check that a number is not above ``limit``."""

    def check(number: float) -> float:
        if number > limit:
            shown = f"{number:g}" if isinstance(number, float) else number
            raise ValueError(f"{limit:g} at most{why}, not {shown}{effect}")
        return number

    return AfterValidator(check)


_single = _at_most(3e38, ", with which networks can compute")  # what float32 holds


class Init(FrozenModel):
    """The initial weights: random, unless a checkpoint is named."""

    checkpoint: Annotated[tuple[InputPath, ...], BeforeValidator(_as_list)] = Field(
        default=(), description="File of weights, or several names that it may have; the first that is there is read."
    )
    fresh: tuple[Text, ...] = Field(
        default=(),
        description="Layers of the network that start from random weights; the file must hold all others.",
    )
    unused: tuple[Text, ...] = Field(default=(), description="Layers of the file that the network does not have.")
    prefix: Text = Field(
        default="", description="Put before every key of the file, as 'backbone.' for a trunk saved alone."
    )

    @model_validator(mode="after")
    def _has_a_file(self) -> Init:
        for key in ("fresh", "unused", "prefix"):
            if getattr(self, key) and not self.checkpoint:
                raise FieldError("says nothing without a checkpoint: all layers are fresh then; remove it", key)
        return self

    def path(self) -> Path | None:
        """Return the first of the files that exists; None if the weights are to be random.

        ManifestError if none exists, or an environment variable is not set.
        """
        paths = [resolved_path(p, f"init.checkpoint {p}: ") for p in self.checkpoint]
        found = next((path for path in paths if path.exists()), None)
        if paths and found is None:
            raise ManifestError(
                f"init.checkpoint: there is no {' nor '.join(map(str, paths))}; put it there, correct --assets, "
                f"or give --init FILE, or --init {RANDOM} to start from nothing"
            )
        return found


class RandAugment(FrozenModel):
    """Some of the photometric operations of RandAugment (arXiv 1909.13719), drawn again for every image."""

    operations: Count = Field(default=2, description="How many, one after the other.")
    magnitude: Annotated[Natural, _at_most(30)] = Field(default=9, description="How strong, 0 to 30.")


class Augmentation(FrozenModel):
    """Random changes of an image before the network sees it."""

    crop: Annotated[tuple[Count, Count], BeforeValidator(_check_two)] = Field(
        description="Height and width of what the network sees, in pixels."
    )
    scale: Annotated[tuple[Positive, Positive], BeforeValidator(_check_two), AfterValidator(_check_factors)] = Field(
        default=(0.5, 2.0), description="Least and largest factor of the random resizing."
    )
    long_edge: Count | None = Field(
        default=None, description="Longer side that every image is brought to first, at validation too."
    )
    flip: Share = Field(default=0.5, description="How many of the images are mirrored.")
    color_jitter: Annotated[Share, _at_most(0.5, effect=": the hue turns half round at that")] = Field(
        default=0.25, description="How far brightness, contrast, saturation and hue may go, at most 0.5."
    )
    gaussian_blur: Annotated[bool, Strict()] = Field(
        default=False, description="Blur every image by a random amount, sigma 0.15 to 1.3 pixels."
    )
    rand_augment: RandAugment | None = Field(default=None, description="Further random changes of the colours.")


class Sampling(FrozenModel):
    """Which images make an epoch (class-uniform sampling: Zhu et al., arXiv 1812.01593, section 3.3)."""

    class_uniform: Share = Field(
        default=0.5, description="Share of an epoch that shows every class equally often; the rest is random."
    )
    tile: Count = Field(default=1024, description="Side of the tiles in which a class is looked for, in pixels.")


class Distillation(FrozenModel):
    """Teachers whose probabilities are learnt, beside labels, from stored logits."""

    stores: InputPath = Field(
        description="The output of a run of 'hmsa-pipeline dump', whose logits are learnt from. ${NAME} is expanded, "
        "relative to the recipe."
    )
    dataset: Text | None = Field(
        default=None, description="Name of the dataset in that run; the one that lists the photographs if null."
    )
    models: tuple[Text, ...] = Field(default=(), description="Names of the networks; all that have stores if empty.")
    target: Literal["mean", "distribution"] = Field(
        default="mean",
        description="mean: the mean of the networks' softmax (arXiv 1503.02531). distribution: how far they differ, "
        "too; logits become those of a Dirichlet distribution (arXiv 1905.00076).",
    )
    temperature: Annotated[Positive, _at_most(1000)] = Field(
        default=1.0, description="Logits of teacher and student are divided by it; above 1 it softens both."
    )
    weight: Annotated[Positive, _single] = Field(
        default=1.0,
        description="Against the other terms: of temperature ** 2 times the divergence from the mean, or of the "
        "distribution's negative log-likelihood.",
    )

    @model_validator(mode="after")
    def _is_a_set(self) -> Distillation:
        for i, name in enumerate(self.models):
            if name in self.models[:i]:
                raise FieldError(f"{name} stands twice; remove one", "models", i)
        return self

    @property
    def is_of_distribution(self) -> bool:
        """True if what is learnt is how far the networks differ, too."""
        return self.target == "distribution"

    def stores_path(self) -> Path:
        """Return the absolute path of the stores' run; `ManifestError` if a variable in it is not set."""
        return resolved_path(self.stores, f"loss.distillation.stores {self.stores}: ")


class Loss(FrozenModel):
    """The loss that training minimises."""

    criterion: Literal["rmi", "cross_entropy", "image_weighted"] = Field(
        default="rmi", description="Region mutual information (arXiv 1910.12037), or a cross entropy."
    )
    auxiliary: Annotated[NotNegative, _single] = Field(
        default=0.4, description="Weight of the scores that define OCR's regions."
    )
    scales: Annotated[NotNegative, _single] = Field(default=0.05, description="Weight of what each scale says alone.")
    border_relaxation: Annotated[Natural, _at_most(16)] = Field(
        default=0,
        description="Pixels from a border of classes within which each class there counts as right; 0 for none "
        "(arXiv 1812.01593, section 3.3).",
    )
    distillation: Distillation | None = Field(default=None, description="A teacher that is learnt from, too.")

    @model_validator(mode="after")
    def _relaxes_a_softmax(self) -> Loss:
        if self.border_relaxation and self.criterion == "rmi":
            raise FieldError(
                "sums probabilities of classes that exclude each other, as rmi has none; take it with criterion "
                "cross_entropy or image_weighted, or leave it out",
                "border_relaxation",
            )
        return self


class Optimizer(FrozenModel):
    """The optimiser."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd (with momentum) or adamw.")
    lr: Annotated[Positive, _single] = Field(
        description="Learning rate of the first epoch; never scaled with the batch."
    )
    momentum: Share = Field(default=0.9, description="Of SGD; for AdamW the decay of the first moment.")
    weight_decay: Annotated[NotNegative, _single] = Field(
        default=1e-4, description="Of all parameters, norms and biases too."
    )

    @model_validator(mode="after")
    def _forgets(self) -> Optimizer:
        if self.momentum == 1:
            raise FieldError("must be below 1, or no gradient is ever forgotten", "momentum")
        return self


class Schedule(FrozenModel):
    """How the learning rate falls, once an epoch."""

    name: Literal["poly", "poly2"] = Field(
        default="poly", description="lr * (1 - epoch / epochs) ** exponent; poly2 doubles the exponent from step on."
    )
    exponent: Positive = Field(default=2.0, description="How fast it falls.")
    step: Natural = Field(default=110, description="poly2: the epoch from which the exponent is doubled.")

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor of the first epoch's learning rate in epoch ``epoch``, counted from 0."""
        doubled = self.name == "poly2" and epoch >= self.step
        return (1 - epoch / epochs) ** (2 * self.exponent if doubled else self.exponent)


class Validation(FrozenModel):
    """How the network is scored between epochs."""

    every: Count = Field(default=1, description="Epochs from one validation to the next; the last one has one.")
    scales: Scales = Field(default=(0.5, 1.0, 2.0), description="Sizes at which an image is seen.")
    flip: Annotated[bool, Strict()] = Field(default=False, description="Average with the mirrored image.")


class Checkpoints(FrozenModel):
    """The checkpoints that are kept during training, beside the last and the best."""

    every: Count | None = Field(default=None, description="Keep one every so many epochs for good; none if null.")
    minutes: Positive = Field(default=15.0, description="Minutes after which the last one is renewed in an epoch.")


class Recipe(FrozenModel):
    """How a network is trained."""

    version: Version = Field(description="Version of this format: 1.")
    output: LocalOutputPath = Field(
        description="Folder of all results. ${NAME} is expanded, relative to where the command runs."
    )
    arch: Annotated[Text, one_of(ARCHITECTURES)] = Field(default="hrnet_ocr_mscale", description="Architecture.")
    classes: ClassSetField = Field(
        default=DEFAULT,
        description="The classes that are learnt: a shipped set, or a YAML file with a list of {name, color}, "
        "relative to the recipe, or such a list. ${NAME} is expanded.",
    )
    data: DataSection = Field(
        description="What is learnt from, and what is scored on: a dataset, or a list of them, the first of which is "
        "scored. An epoch has as many images as the first."
    )
    init: Init = Field(default=Init(), description="What the network starts from.")
    epochs: Count = Field(description="How often the training split is gone through.")
    # Above, the list of an epoch's images is larger than the images.
    global_batch: Annotated[Count, _at_most(65_536)] = Field(
        description="Images per step of the optimiser, over all GPUs; made up by accumulation where they are fewer."
    )
    batch_size: Count = Field(description="Images on a GPU at once.")
    seed: Natural = Field(default=0, description="Of the random weights, the sampling and the augmentation.")
    precision: Precision = Field(
        default="fp16", description="Arithmetic of the forward pass; on a CPU fp16 means fp32."
    )
    batch_norm: Literal["sync", "local", "frozen"] = Field(
        default="sync",
        description="Statistics over all GPUs, over each GPU's own images, or those of the initial weights.",
    )
    dropout: Share = Field(default=0.05, description="Share of OCR's output channels dropped.")
    activation_checkpointing: Annotated[bool, Strict()] = Field(
        default=False, description="Compute the trunk twice instead of keeping it: less memory, more time."
    )
    compile: Annotated[bool, Strict()] = Field(default=False, description="torch.compile; needs a C++ compiler.")
    workers: Natural = Field(
        default=8, description="Processes that read images, per GPU; at most as many as there are cores. 0: none."
    )
    augmentation: Augmentation = Field(description="How an image is changed before the network sees it.")
    sampling: Sampling = Field(default=Sampling(), description="Which images make an epoch.")
    loss: Loss = Field(default=Loss(), description="What is minimised.")
    optimizer: Optimizer = Field(description="How a gradient becomes a step.")
    schedule: Schedule = Field(default=Schedule(), description="How the learning rate falls.")
    validation: Validation = Field(default=Validation(), description="How the network is scored between epochs.")
    checkpoints: Checkpoints = Field(default=Checkpoints(), description="What is kept on the way.")

    _notes: tuple[str, ...] = PrivateAttr(default=())
    left_out: ClassVar[frozenset[str]] = frozenset({"classes"})

    @property
    def class_set(self) -> ClassSet:
        """The classes that are learnt."""
        return class_set_of(self.classes)

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.global_batch % self.batch_size:
            raise FieldError(
                f"{self.global_batch} images per step cannot be had {self.batch_size} at a time; "
                "let --batch-size divide --global-batch",
                "batch_size",
            )
        if self.loss.criterion == "rmi" and min(self.augmentation.crop) < 8:
            raise FieldError("8 pixels at least on each side for the loss rmi", "augmentation", "crop")
        check_sources(self.sources, self.sampling.class_uniform)
        for i, source in enumerate(self.sources):
            if source.labels == NONE and self.loss.distillation is None:
                place = ("data",) if isinstance(self.data, Data) else ("data", i)
                raise FieldError(
                    "without labels there is only a teacher to learn from; give loss.distillation", *place, "labels"
                )
            if source.weight_by_confidence and self.loss.criterion == "rmi":
                place = ("data",) if isinstance(self.data, Data) else ("data", i)
                raise FieldError(
                    "weighs the loss of single pixels, and rmi is one of regions; take criterion cross_entropy or "
                    "image_weighted, or leave it out",
                    *place,
                    "weight_by_confidence",
                )
        return self

    @property
    def sources(self) -> tuple[Data, ...]:
        """All that is learnt from."""
        return (self.data,) if isinstance(self.data, Data) else self.data

    @property
    def scored(self) -> Data:
        """The source that is scored: the first."""
        return self.sources[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about how the recipe was read, a line each."""
        return self._notes

    def cache_path(self) -> Path:
        """Return the folder for what is made of the masks once, such as centroids; `ManifestError` as `root_path`."""
        if self.scored.cache is None:
            return self.output / "cache"
        return resolved_path(self.scored.cache, f"data.cache {self.scored.cache}: ")
