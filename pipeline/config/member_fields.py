"""Fields of a manifest's models that only networks of other libraries have: what they see, and their classes."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from ...datasets.taxonomy import CLASS_NAMES
from ...errors import describe_value, nearest
from ...models.registry import ADAPTERS, CLASS_TABLES, GRAPHS
from .value_types import Count, Natural, at_least_one
from .yaml_document import FieldError

FIELD_OWNERS: dict[str, tuple[str, ...]] = {
    "view": ADAPTERS,
    "classes": ADAPTERS,
    "mean": ("smp", "timm_linear", *GRAPHS),
    "std": ("smp", "timm_linear", *GRAPHS),
    "backbone": ("timm_linear",),
    "layers": ("timm_linear",),
    "norm": ("timm_linear",),
    "kind": GRAPHS,
    "postprocess": ("transformers",),
}
"""Field of a manifest's model -> the architectures that it means something to."""

WHOLE, AUTO, OTHER = "whole", "auto", "other"


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


def _view(value: object) -> object:
    if value == WHOLE:
        return {}
    if value is None or isinstance(value, dict | ViewOptions):
        if value == {}:
            raise ValueError(f"an empty mapping says nothing; write {WHOLE}, {{window: [h, w]}} or {{longest: n}}")
        return value
    raise ValueError(f"{WHOLE}, {{window: [h, w]}} or {{longest: n}} is needed, not {describe_value(value)}")


ViewField = Annotated[
    ViewOptions | None,
    BeforeValidator(_view),
    PlainSerializer(lambda view: None if view is None else view.shortest()),
]
_CLASS_WORDS = (AUTO, *CLASS_TABLES)
Classes = str | tuple[str, ...] | dict[str, str] | None


def _class(value: object, *place: str | int) -> str:
    if not isinstance(value, str):
        raise FieldError(f"the name of a class is needed, not {describe_value(value)}", *place)
    if value not in (*CLASS_NAMES, OTHER):
        raise FieldError(f"{value!r} is none of our classes; {nearest(value, (*CLASS_NAMES, OTHER))}", *place)
    return value


def _classes(value: object) -> Classes:
    if value is None or (isinstance(value, str) and value in _CLASS_WORDS):
        return value
    if isinstance(value, list | tuple) and value:
        return tuple(_class(name, i) for i, name in enumerate(value))
    if isinstance(value, dict) and value:
        for key, name in value.items():
            _class(name, key)
        return value
    known = (AUTO, *CLASS_TABLES)
    close = f"; {nearest(value, known)}" if isinstance(value, str) else ""
    raise ValueError(
        f"{AUTO}, a shipped table, a list of names or a table is needed, not {describe_value(value)}{close}"
    )


ClassesField = Annotated[
    Any,
    BeforeValidator(_classes),
    PlainSerializer(lambda classes: list(classes) if isinstance(classes, tuple) else classes),
    WithJsonSchema(
        {"anyOf": [{"enum": [AUTO, *CLASS_TABLES]}, {"type": "array"}, {"type": "object"}, {"type": "null"}]}
    ),
]


def _layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    for i, (before, layer) in enumerate(itertools.pairwise(layers)):
        if layer <= before:
            raise FieldError(f"{layer} follows {before}; name each layer once, ascending", i + 1)
    return layers


LayersField = Annotated[tuple[Natural, ...], AfterValidator(_layers), at_least_one] | None
