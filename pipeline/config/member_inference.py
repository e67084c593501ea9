"""How members process images: settings of all, of one alone, and several members of one network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    WithJsonSchema,
    model_validator,
)

from ...errors import describe_value
from .frozen_model import FrozenModel
from .value_types import Count, Natural, Positive, Precision, Scales
from .yaml_document import FieldError

if TYPE_CHECKING:
    from .manifest import Manifest
    from .member import Member

FLIP, WHOLE = "flip", "whole"
MOST_PASSES = 100
Compile = Literal["off", "default", "max-autotune-no-cudagraphs"]


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


class ViewOptions(BaseModel):
    """The part of an image that a network of another library sees at a time; ``whole`` is the image as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: tuple[Count, Count] | None = Field(
        default=None, description="Height and width of overlapping windows in pixels; probabilities are blended."
    )
    stride: tuple[Count, Count] | None = Field(
        default=None,
        description="Rows and columns from one window to the next, at most; null means three quarters of the window.",
    )
    longest: Count | None = Field(
        default=None, description="The image is resized until its longer side has this many pixels."
    )

    @model_validator(mode="after")
    def _is_one_of_them(self) -> ViewOptions:
        if self.stride is not None and self.window is None:
            raise FieldError("means nothing without 'window'; give both", "stride")
        if self.longest is not None and self.window is not None:
            raise FieldError("cannot be combined with 'window'; remove one", "longest")
        if self.stride is not None and self.window is not None:
            for i, (step, side) in enumerate(zip(self.stride, self.window, strict=True)):
                if step > side:
                    raise FieldError(
                        f"{step} leaves pixels out between windows of {side}; give {side} or less", "stride", i
                    )
        return self

    def shortest(self) -> str | dict[str, Any]:
        """Return it as people write it: ``whole``, or what is given."""
        return self.model_dump(exclude_none=True, mode="json") or WHOLE


def _seen(value: object) -> object:
    if value == WHOLE:
        return {}
    if value is None or isinstance(value, dict | ViewOptions):
        if value == {}:
            raise ValueError(f"an empty mapping says nothing; write {WHOLE}, {{window: [h, w]}} or {{longest: n}}")
        return value
    raise ValueError(f"{WHOLE}, {{window: [h, w]}} or {{longest: n}} is needed, not {describe_value(value)}")


ViewField = Annotated[
    ViewOptions | None,
    BeforeValidator(_seen),
    PlainSerializer(lambda view: None if view is None else view.shortest()),
]


class MemberInference(FrozenModel):
    """How this model processes an image; what is left out is as ``inference`` of the manifest says."""

    scales: Scales | None = Field(default=None, description="Scale factors, as in `inference`.")
    flip: Annotated[bool, Strict()] | None = Field(default=None, description="Average with the mirrored image.")
    precision: Precision | None = Field(
        default=None, description="Precision of its forward pass on a GPU; on a CPU fp16 means fp32."
    )
    view: ViewField = Field(
        default=None, description="The same as `view` of the model; give it here or there, not in both places."
    )


class Sample(FrozenModel):
    """The difference between a member and the others of the same network."""

    flip: Annotated[bool, Strict()] = Field(default=False, description="The network sees the mirrored image.")
    scale: Positive = Field(default=1.0, description="It sees the image at this scale.")
    dropout: Count | None = Field(
        default=None, description="Number of the pass with dropout: another one drops other features."
    )

    @property
    def ending(self) -> str:
        """The end of the member's name."""
        if self.dropout is not None:
            return f"-dropout{self.dropout}"
        return (f"-scale{self.scale:g}" if self.scale != 1 else "") + ("-flip" if self.flip else "")

    def as_json(self) -> dict[str, Any]:
        """Return what is not left out, for a store."""
        return self.model_dump(exclude_defaults=True, mode="json")


def _view(value: object) -> object:
    if value == FLIP:
        return Sample(flip=True)
    if isinstance(value, Sample):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{FLIP} or {{scale: 0.75}} is needed, not {describe_value(value)}")
    if unknown := [key for key in value if key not in (FLIP, "scale")]:
        raise FieldError(f"a view has '{FLIP}' and 'scale'; remove this", str(unknown[0]))
    return value


def _shortest(sample: Sample) -> object:
    said = sample.as_json()
    return FLIP if said == {FLIP: True} else said


SampledView = Annotated[
    Sample,
    BeforeValidator(_view),
    PlainSerializer(_shortest),
    WithJsonSchema({"anyOf": [{"enum": [FLIP]}, {"type": "object"}]}),
]


def check_samples(member: Member) -> None:
    """Raise FieldError if ``views``, ``dropout`` and ``sample`` of a model do not go together."""
    views = member.views or ()
    if member.sample is not None and (member.views is not None or member.dropout is not None):
        raise FieldError("is one of several members already; remove this, or 'views' and 'dropout'", "sample")
    if member.dropout is not None and member.dropout > MOST_PASSES:
        raise FieldError(f"makes {member.dropout} members; give {MOST_PASSES} or fewer", "dropout")
    for i, view in enumerate(views):
        if not view.ending:
            raise FieldError("is the model itself, which stands beside its views; remove this", "views", i)
        if view in views[:i]:
            raise FieldError("stands twice; remove one", "views", i)


def with_samples(manifest: Manifest) -> tuple[Member, ...]:
    """List the manifest's models, each followed by the members that its ``views`` and ``dropout`` make.

    Raises:
        FieldError: such a member has the name of another one, or would be the same as its model.
    """
    found: list[Member] = []
    taken = {model.name.lower() for model in manifest.models}
    for i, member in enumerate(manifest.models):
        plain = member.model_copy(update={"views": None, "dropout": None})
        found.append(plain)
        for j, view in enumerate(member.views or ()):
            if view.flip and view.scale == 1 and member.options(manifest.inference).flip:
                message = "is the same as the model itself, whose 'flip' averages both; remove one of them"
                raise FieldError(message, "models", i, "views", j)
        for sample in (*(member.views or ()), *(Sample(dropout=n + 1) for n in range(member.dropout or 0))):
            name = plain.name + sample.ending
            if name.lower() in taken:
                message = f"one of its 'views' or 'dropout' makes {name!r}, which another model is called; rename one"
                raise FieldError(message, "models", i, "name")
            taken.add(name.lower())
            found.append(plain.model_copy(update={"name": name, "sample": sample}))
    return tuple(found)
