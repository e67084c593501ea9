"""Figures with the ends of their intervals, as lines for people and as cells of CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...text import figure

Figures = Mapping[str, Mapping[str, float]]
"""Subject -> name of a figure -> value."""
Ends = Mapping[str, Mapping[str, Sequence[float]]]
"""Subject -> name of a figure -> low and high end."""


def lines_with_ends(title: str, figures: Figures, ends: Ends) -> list[str]:
    """A line for each subject below the names of the figures, and two below it if there are intervals.

    Args:
        title: of the column of subjects.
        figures: by subject, the same for each.
        ends: empty, or without some figures, where there are none.
    """
    wide = max(map(len, [*figures, title]))
    columns = list(next(iter(figures.values())))
    lines = [f"{title:{wide}}  " + "  ".join(f"{name:>13}" for name in columns)]
    for name, one in figures.items():
        lines.append(f"{name:{wide}}  " + "  ".join(f"{figure(one[column]):>13}" for column in columns))
        for end, what in enumerate(("  2.5 %", "  97.5 %") if ends.get(name) else ()):
            cells = (figure(ends[name][column][end]) if column in ends[name] else "" for column in columns)
            lines.append((f"{what:{wide}}  " + "  ".join(f"{cell:>13}" for cell in cells)).rstrip())
    return lines


def with_ends(figures: Mapping[str, float], ends: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Figures of one subject, with those of their intervals as ``<name> low`` and ``<name> high``."""
    found = dict(figures)
    for name, (low, high) in ends.items():
        found |= {f"{name} low": low, f"{name} high": high}
    return found
