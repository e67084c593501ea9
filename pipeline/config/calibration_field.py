"""Fields that hold what was fitted to stored logits: ``calibration``, ``max_logits`` and ``sets``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from .frozen_model import FrozenModel
from .value_types import Name, Number, Positive, Sha256, Share
from .yaml_document import FieldError

Method = Literal["temperature", "vector", "class-conditional", "dirichlet"]

NUMBERS: dict[str, tuple[str, ...]] = {
    "temperature": (),
    "vector": ("scale", "bias"),
    "class-conditional": ("temperatures",),
    "dirichlet": ("matrix", "bias"),
}
"""Method -> the fields that hold its numbers."""


class Calibration(FrozenModel):
    """How logits z of one model are calibrated; `calibrate --method` writes it."""

    dataset: Name | None = Field(
        default=None, description="The dataset that it is for. null means all that have none of their own."
    )
    method: Method = Field(
        description="temperature: nothing but the division. vector: scale z + bias. class-conditional: z / T of the "
        "class with the highest z. dirichlet: matrix log softmax(z) + bias."
    )
    temperature: Positive | None = Field(
        default=None, description="What the result is divided by. null means the model's `temperature`."
    )
    scale: tuple[Number, ...] | None = Field(default=None, description="Of vector: a factor for each class.")
    bias: tuple[Number, ...] | None = Field(
        default=None, description="Of vector and dirichlet: a summand for each class."
    )
    temperatures: tuple[Positive, ...] | None = Field(
        default=None, description="Of class-conditional: T of each class."
    )
    matrix: tuple[tuple[Number, ...], ...] | None = Field(
        default=None, description="Of dirichlet: a row for each class that comes out, a column for each that goes in."
    )

    @model_validator(mode="after")
    def _has_its_numbers(self) -> Calibration:
        if self.method == "temperature" and self.temperature is None:
            raise FieldError("is missing; without it the entry says nothing", "temperature")
        for name in ("scale", "bias", "temperatures", "matrix"):
            there, needed = getattr(self, name) is not None, name in NUMBERS[self.method]
            if needed and not there:
                raise FieldError(f"is missing; {self.method} needs it", name)
            if there and not needed:
                raise FieldError(f"means nothing to {self.method}; remove this", name)
        for i, row in enumerate(self.matrix or ()):
            if len(row) != len(self.matrix or ()):
                raise FieldError(f"has {len(row)} numbers in {len(self.matrix or ())} rows", "matrix", i)
        return self

    def check_classes(self, count: int) -> None:
        """Raise FieldError if it is not of ``count`` classes."""
        for name in NUMBERS[self.method]:
            if (found := len(getattr(self, name))) != count:
                raise FieldError(f"is of {found} classes, but the manifest has {count}; calibrate again", name)


LEAST_DEVIATION = 1e-6
"""The least deviation of max logits; the six digits that are written hold no smaller one."""
_LARGEST = 1e6


class MaxLogits(FrozenModel):
    """Mean and standard deviation of one model's highest logits; `calibrate --max-logits` writes them."""

    mean: tuple[Number, ...] = Field(
        description="For each class, of the highest logit of the pixels that the model alone says to be of it."
    )
    deviation: tuple[Positive, ...] = Field(description="For each class, the standard deviation of the same.")

    @model_validator(mode="after")
    def _fits_logits(self) -> MaxLogits:
        for i, number in enumerate(self.mean):
            if abs(number) > _LARGEST:
                raise FieldError(f"{number:g} is the mean of no logits; fit again", "mean", i)
        for i, number in enumerate(self.deviation):
            if not LEAST_DEVIATION <= number <= _LARGEST:
                raise FieldError(f"{number:g} is not from {LEAST_DEVIATION:g} to {_LARGEST:g}", "deviation", i)
        return self

    def check_classes(self, count: int) -> None:
        """Raise FieldError if they are not of ``count`` classes."""
        for name in ("mean", "deviation"):
            if (found := len(getattr(self, name))) != count:
                raise FieldError(f"is of {found} classes, but the manifest has {count}; fit again", name)


class PredictionSets(FrozenModel):
    """Thresholds of sets that hold the class of a pixel with a known coverage; `calibrate --sets` writes them."""

    coverage: Share = Field(description="The share of pixels whose set holds their class that was asked for.")
    thresholds: tuple[Share, ...] = Field(
        description="For each class the fused probability from which on it is in a set; 0 means always."
    )
    ensemble: Sha256 = Field(
        description="Digest of the members' names, weights, temperatures and calibrations, and of `ensemble.label`, "
        "that they were fitted to; of others they are refused."
    )

    def check_classes(self, count: int) -> None:
        """Raise FieldError if they are not of ``count`` classes."""
        if len(self.thresholds) != count:
            message = f"are of {len(self.thresholds)} classes, but the manifest has {count}; calibrate again"
            raise FieldError(message, "thresholds")


def _each_once(entries: Sequence[Calibration]) -> Sequence[Calibration]:
    seen: set[str | None] = set()
    for i, entry in enumerate(entries):
        key = entry.dataset and entry.dataset.lower()
        if key in seen:
            raise FieldError(f"there are two for {entry.dataset or 'all datasets'}; remove one", i)
        seen.add(key)
    return entries


CalibrationField = Annotated[tuple[Calibration, ...], AfterValidator(_each_once)]


def calibration_of(entries: Sequence[Calibration], dataset: str) -> Calibration | None:
    """Return the entry for a dataset: its own, or that for all; None if there is neither.

    Args:
        entries: of a member.
        dataset: its name.
    """
    own = [entry for entry in entries if entry.dataset and entry.dataset.lower() == dataset.lower()]
    common = [entry for entry in entries if entry.dataset is None]
    return next(iter([*own, *common]), None)
