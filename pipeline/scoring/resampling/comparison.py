"""Paired comparison of two subjects over the same images: difference, interval and p of every figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...text import figure
from ..figures.totals import COUNTS
from .bootstrap import Replicates, interval


@dataclass(frozen=True)
class Difference:
    """One figure of A minus that of B.

    Attributes:
        value: over all images; NaN if one of the two is not defined.
        low, high: the ends of its 95 % interval; NaN without one.
        p: two-sided; NaN without an interval.
    """

    value: float
    low: float
    high: float
    p: float

    def as_json(self) -> dict[str, float]:
        """By name."""
        return {"difference": self.value, "low": self.low, "high": self.high, "p": self.p}


def two_sided_p(differences: np.ndarray) -> float:
    """Twice the smaller share of resamplings (B,) on either side of 0, at most 1; NaN if there is none.

    It is the level at which the percentile interval just reaches 0 (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 15.4). The observed difference counts as one more resampling on each side, so that B
    resamplings never give less than 2 / (B + 1) (Davison and Hinkley, Bootstrap Methods and their Application, 1997,
    equation 4.11).
    """
    known = differences[~np.isnan(differences)]
    if not known.size:
        return np.nan
    least = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    return float(min(1.0, 2 * (least + 1) / (known.size + 1)))


def differences(
    figures: tuple[Mapping[str, Any], Mapping[str, Any]], replicates: tuple[Replicates | None, Replicates | None]
) -> dict[str, Difference | list[Difference]]:
    """Compare every figure of A and B; a list where a figure is one.

    Args:
        figures: of A and of B, over all images.
        replicates: of A and of B, from the same draws; None with fewer than two images.
    """
    found: dict[str, Difference | list[Difference]] = {}
    for name in figures[0]:
        if name in COUNTS:
            continue
        values = np.subtract(figures[0][name], figures[1][name])
        if replicates[0] is None or replicates[1] is None:
            drawn = np.full((1, *values.shape), np.nan)
        else:
            drawn = replicates[0][name] - replicates[1][name]
        low, high = interval(drawn)
        if values.ndim:
            columns = zip(values, low, high, drawn.T, strict=True)
            found[name] = [Difference(float(v), float(a), float(b), two_sided_p(d)) for v, a, b, d in columns]
        else:
            found[name] = Difference(float(values), float(low), float(high), two_sided_p(drawn))
    return found


def comparison_table(
    names: tuple[str, str], figures: tuple[Mapping[str, Any], Mapping[str, Any]], found: Mapping[str, Any]
) -> list[str]:
    """A line for each figure that is one number: A, B, their difference, its interval, and p.

    Args:
        names: of A and B.
        figures: of A and of B.
        found: of `differences`.
    """
    wide = max(len(name) for name in found)
    columns = [max(13, len(name)) for name in names]
    heads = [f"{name:>{width}}" for name, width in zip(names, columns, strict=True)]
    lines = [f"{'':{wide}}  " + "  ".join([*heads, *(f"{head:>13}" for head in ("A - B", "2.5 %", "97.5 %", "p"))])]
    for name, one in found.items():
        if isinstance(one, list):
            continue
        own = [f"{figure(row[name]):>{width}}" for row, width in zip(figures, columns, strict=True)]
        values = [f"{signed(value):>13}" for value in (one.value, one.low, one.high)]
        lines.append(f"{name:{wide}}  " + "  ".join([*own, *values, f"{figure(one.p):>13}"]))
    return lines


def signed(value: float) -> str:
    """Format a difference with its sign and four decimals; a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:+z.4f}"
