"""One model of the ensemble, as a manifest describes it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr, Strict, model_validator

from ...errors import ManifestError
from ...models.registry import ADAPTERS, GRAPHS, KNOWN
from .calibration_field import CalibrationField, MaxLogits, calibration_of
from .class_set_field import ClassesField
from .frozen_model import FrozenModel
from .member_inference import (
    InferenceOptions,
    MemberInference,
    Sample,
    SampledView,
    ViewField,
    ViewOptions,
    check_samples,
)
from .path_variables import resolved_path
from .value_types import (
    Count,
    InputPath,
    Name,
    NamesOf,
    Natural,
    NotNegative,
    Positive,
    Sha256,
    Text,
    at_least_one,
    one_of,
)
from .yaml_document import FieldError

Kind = Literal["logits", "probabilities", "scores"]

EXTERNAL = "external"


FIELD_OWNERS: dict[str, tuple[str, ...]] = {
    "view": ADAPTERS,
    "mean": ("smp", "timm_linear", *GRAPHS),
    "std": ("smp", "timm_linear", *GRAPHS),
    "backbone": ("timm_linear",),
    "layers": ("timm_linear",),
    "norm": ("timm_linear",),
    "kind": GRAPHS,
    "postprocess": ("transformers",),
}
"""Field of a manifest's model -> the architectures that it means something to."""


def _layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    for i, (before, layer) in enumerate(itertools.pairwise(layers)):
        if layer <= before:
            raise FieldError(f"{layer} follows {before}; name each layer once, ascending", i + 1)
    return layers


LayersField = Annotated[tuple[Natural, ...], AfterValidator(_layers), at_least_one] | None


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
    calibration: CalibrationField = Field(
        default=(),
        description="What else is done to its logits, see `calibrate --method`: one entry for all datasets, or one "
        "for each.",
    )
    max_logits: MaxLogits | None = Field(
        default=None, description="What standardises its highest logits, see `calibrate --max-logits`."
    )
    view: ViewField = Field(
        default=None,
        description="What a network of another library sees of an image at a time: `whole`, `{window: [h, w], "
        "stride: [h, w]}` or `{longest: n}`. null means whole, or windows of its size if it takes only one.",
    )
    classes: ClassesField = Field(
        default=None,
        description="Classes of its network, or of its imported logits, if they are not the manifest's. A list names "
        "each channel by one of the manifest's classes or `other`; a table gives its names, or channel numbers in "
        "quotes, one of these; `auto` does without those that it does not know by name; the name of a shipped table, "
        "see members.md, stands for its classes. null means that it has all of the manifest's.",
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

    left_out: ClassVar[frozenset[str]] = frozenset({"calibration", "max_logits"})

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

    def on(self, dataset: str) -> Member:
        """Return this model as it is calibrated on a dataset: with the entry for it alone, and its temperature."""
        found = calibration_of(self.calibration, dataset)
        if found is None:
            return self.model_copy(update={"calibration": ()}) if self.calibration else self
        heat = self.temperature if found.temperature is None else found.temperature
        only = found.model_copy(update={"dataset": None, "temperature": None})
        kept = () if found.method == "temperature" else (only,)
        return self.model_copy(update={"temperature": heat, "calibration": kept})

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
