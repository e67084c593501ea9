"""Numbers as people read them: sizes, shares, counts and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def as_size(count: float) -> str:
    """Format a number of bytes, such as ``1.54 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percent(share: float) -> str:
    """Format a share with three digits, such as ``33.5 %`` and ``0.00211 %``; a dash for 0."""
    if share <= 0:
        return "-"
    if share < 1e-7:
        return "< 1e-5 %"
    return f"{100 * share:.{min(5, max(0, 2 - math.floor(math.log10(100 * share))))}f} %"


def plural(number: int, what: str, many: str | None = None) -> str:
    """Format a count, such as ``1 image`` and ``2 images``.

    Args:
        number: how many.
        what: follows one.
        many: follows another number, where that is not ``what`` and an s.
    """
    return f"{number} {what if number == 1 else many or what + 's'}"


def figure(value: float | None) -> str:
    """Format a score with four decimals, or a count; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def without_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN by None, also in lists and mappings, so that JSON can hold the figures."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(each) for each in value]
        if isinstance(value, dict):
            return without_nan(value)
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: one(value) for name, value in figures.items()}
