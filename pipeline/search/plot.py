"""Quality against cost: every combination, and the choice among those of one size."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ...files import write_bytes
from ..pictures.plot_style import PLOT_SETTINGS
from .record import figure_of, words

_UNDATED: Any = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_UNITS = {"members": "members", "seconds": "seconds an image"}


def draw_pareto(found: Mapping[str, Any], path: Path) -> None:
    """Draw the figure that was searched for against the cost; the ending of the name says which kind of file.

    Args:
        found: of `SearchResult.as_json`.
        path: the picture; OSError if it cannot be written.
    """
    name = figure_of(found)
    rows = [row for row in found["held_out"] if row["figures"][name]["value"] is not None]
    with mpl.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        points = [(row["cost"], row[name]) for row in found["chosen_by"] if row.get(name) is not None]
        if points:
            axes.scatter(
                *zip(*points, strict=True), s=10, color="0.75", label="every combination, all images", zorder=1
            )
        stages = [row for row in rows if row["name"].startswith(("best ", "after "))]
        others = [row for row in rows if row not in stages]
        _draw(axes, stages, name, "#0072B2", "o", "chosen among those of one size, images not seen", joined=True)
        for row, colour, mark in zip(
            others, ("#D55E00", "#009E73", "#CC79A7")[-len(others) :], "sD^"[-len(others) :], strict=True
        ):
            _draw(axes, [row], name, colour, mark, f"{words(row['name'])}, images not seen")
        axes.set_xlabel(f"cost: {_UNITS[found['cost']]}")
        axes.set_ylabel(f"{found['by']}" if name == "score" else name)
        axes.legend(loc="best", fontsize=8)
        file = io.BytesIO()
        figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=_UNDATED.get(path.suffix))
    write_bytes(path, file.getvalue())


def _draw(
    axes: Any, rows: list[dict[str, Any]], name: str, colour: str, mark: str, label: str, *, joined: bool = False
) -> None:
    costs = [row["chosen"]["cost"] for row in rows]
    values = [row["figures"][name] for row in rows]
    middle = [one["value"] for one in values]
    below = [max(0.0, one["value"] - one["low"]) for one in values]
    above = [max(0.0, one["high"] - one["value"]) for one in values]
    style = {"linestyle": "-" if joined else "", "linewidth": 1.4, "capsize": 3, "markersize": 6}
    axes.errorbar(costs, middle, yerr=(below, above), color=colour, marker=mark, label=label, zorder=3, **style)
