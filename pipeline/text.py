"""Figures, sizes and counts as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def as_size(count: float) -> str:
    """Bytes for people, such as ``1.54 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percent(share: float) -> str:
    """A share with three digits, such as ``33.5 %`` and ``0.00211 %``; a dash for nothing."""
    if share <= 0:
        return "-"
    if share < 1e-7:
        return "< 1e-5 %"
    return f"{100 * share:.{min(5, max(0, 2 - math.floor(math.log10(100 * share))))}f} %"


def plural(number: int, what: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def figure(value: float | None) -> str:
    """A figure or a number of things for people; a dash where it is not defined."""
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def without_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with None for NaN, as JSON can hold them."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(each) for each in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: one(value) for name, value in figures.items()}
