"""Sets of classes: names and colours in the order of the ids that masks, logits and predictions hold."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import DatasetError, nearest
from .taxonomy import CLASS_NAMES, PALETTE

SHIPPED: tuple[str, ...] = ("cityscapes19", "mapillary65", "mapillary124", "idd26")
"""Sets that come with the package: the first in `taxonomy`, the others in ``class_sets/<name>.yaml``."""

MOST_CLASSES = 255
"""Masks and predictions have 8 bits a pixel, and 255 is `taxonomy.IGNORE`."""

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

_FILES = Path(__file__).with_name("class_sets")


@dataclass(frozen=True)
class ClassSet:
    """The classes of a manifest or a recipe.

    Attributes:
        name: one of `SHIPPED`; None for classes of the user's own.
        names: C names, by id.
        colours: C colours, for class maps that people look at.
    """

    name: str | None
    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_default(self) -> bool:
        """True for the 19 classes of Cityscapes, which benchmarks' files hold."""
        return self.name == CITYSCAPES19.name

    def __str__(self) -> str:
        return self.name or f"{len(self)} of your own"


CITYSCAPES19 = ClassSet(SHIPPED[0], CLASS_NAMES, PALETTE)
"""The 19 classes of `taxonomy`."""


@functools.cache
def shipped_set(name: str) -> ClassSet:
    """Read one of `SHIPPED`; DatasetError if there is none of this name."""
    if name == CITYSCAPES19.name:
        return CITYSCAPES19
    if name not in SHIPPED:
        raise DatasetError(f"there is no class set '{name}'; {nearest(name, SHIPPED)}")
    rows = yaml.safe_load((_FILES / f"{name}.yaml").read_text(encoding="utf-8"))["classes"]
    return ClassSet(name, tuple(row["name"] for row in rows), tuple(tuple(row["color"]) for row in rows))
