"""The plots of a report, as SVG files: made of counts, and the same bytes for the same counts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from ...files import write_bytes
from ..pictures.plot_style import PLOT_SETTINGS
from ..scoring.figures.class_reliability import CONFIDENCE, PIXELS, RIGHT, class_ece
from ..scoring.figures.selective import aurc, risk_coverage
from ..scoring.metrics import class_iou, errors_first, precision_recall, reliability, roc
from ..scoring.pixel_counts import PixelCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any colour vision tell apart; with dashes and marks they are told apart
# in grey, too. The ensemble is black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKS = "osD^vP*"
_POINTS = 400
_ABREAST = 5  # diagrams of classes
_MOST_WRITTEN = 40  # classes of which a matrix has room for numbers


def _look(number: int) -> dict[str, Any]:
    """How subject ``number`` is drawn; 0 is the ensemble."""
    if number == 0:
        return {"color": "black", "linewidth": 2.2, "linestyle": "-", "zorder": 5}
    place = (number - 1) % len(_COLOURS)
    return {"color": _COLOURS[place], "linewidth": 1.2, "linestyle": _DASHES[place]}


def _write(figure: Figure, path: Path) -> None:
    file = io.BytesIO()
    with mpl.rc_context(PLOT_SETTINGS):
        figure.savefig(file, format="svg", metadata={"Date": None})
    write_bytes(path, file.getvalue())


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def iou_bars(path: Path, counts: Mapping[str, PixelCounts], names: Sequence[str]) -> None:
    """IoU of each class: a bar for the first subject, a mark for each other one.

    Args:
        path: of the SVG file.
        counts: by subject.
        names: of the classes, by id.
    """
    figure, (axes,) = _axes(max(10.5, 0.28 * len(names)), 4.0)
    places = np.arange(len(names))
    top = 0.0
    for number, (name, found) in enumerate(counts.items()):
        values = np.array(class_iou(torch.from_numpy(found.confusion)).tolist())
        top = max(top, float(np.nan_to_num(values).max()))
        if number == 0:
            axes.bar(places, values, width=0.72, color="#B9C4D0", label=name)
            for place, value in zip(places, values, strict=True):
                if np.isfinite(value) and len(counts) == 1:
                    axes.text(float(place), value, f"{value:.2f}", ha="center", va="bottom", fontsize=7)
        else:
            look = _look(number)
            mark = _MARKS[(number - 1) % len(_MARKS)]
            axes.plot(places, values, mark, color=look["color"], markersize=4.5, label=name)
    axes.set_xticks(places, list(names), rotation=45, ha="right")
    axes.set(ylabel="IoU", ylim=(0, max(0.05, 1.08 * top)))
    axes.grid(axis="x", visible=False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend([handles[name] for name in counts], list(counts), loc="upper left", bbox_to_anchor=(1, 1))
    _write(figure, path)


def reliability_diagram(path: Path, counts: Mapping[str, PixelCounts]) -> None:
    """How often pixels are right by how sure they are, and below how many there are."""
    with mpl.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(5.2, 5.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="#999999", linewidth=1, linestyle=":")
    for number, (name, found) in enumerate(counts.items()):
        pixels, sure, right = reliability(found.levels)
        held = pixels > 0
        look = _look(number)
        above.plot(sure[held], right[held], marker=".", label=name, **look)
        if number == 0:
            share = pixels / max(1, pixels.sum())
            below.bar((np.arange(len(pixels)) + 0.5) / len(pixels), share, width=0.9 / len(pixels), color="#B9C4D0")
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    below.set(xlabel="confidence", ylabel="share of pixels")
    above.legend(loc="upper left", fontsize=8)
    _write(figure, path)


def class_reliability(path: Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """How often pixels that are predicted as a class are right by how sure they are, a diagram for each class.

    Args:
        path: of the SVG file.
        counts: (3, C, 15) of `class_reliability.count_by_class`.
        names: of the classes, by id.
    """
    pixels, errors = counts[PIXELS], class_ece(counts)
    shown = np.flatnonzero(pixels.sum(1)).tolist()
    rows = max(1, -(-len(shown) // _ABREAST))
    width, height = 2.1 * _ABREAST, 0.5 + 2.05 * rows
    # Places that matplotlib finds by itself take two thirds of the time.
    places = {"left": 0.75 / width, "right": 1 - 0.1 / width, "bottom": 0.55 / height, "top": 1 - 0.3 / height}
    with mpl.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(
            rows,
            _ABREAST,
            squeeze=False,
            sharex=True,
            sharey=True,
            gridspec_kw=places | {"wspace": 0.12, "hspace": 0.18},
        ).ravel()
    edges = np.linspace(0, 1, pixels.shape[1] + 1)
    for axes, number in zip(grid, shown, strict=False):
        held = pixels[number] > 0
        axes.stairs(pixels[number] / pixels[number].sum(), edges, fill=True, color="#B9C4D0")
        axes.plot((0, 1), (0, 1), color="#999999", linewidth=1, linestyle=":")
        sure, right = (counts[which][number][held] / pixels[number][held] for which in (CONFIDENCE, RIGHT))
        axes.plot(sure, right, marker=".", **_look(0) | {"linewidth": 1.4})
        axes.set_title(f"{names[number]}, ECE {errors[number]:.3f}", fontsize=9, y=1)
    grid[0].set(xlim=(0, 1), ylim=(0, 1.02), yticks=(0, 0.5, 1))
    grid[0].set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("accuracy; share of pixels", fontsize=10)
    _write(figure, path)


def risk_coverage_curves(path: Path, counts: Mapping[str, PixelCounts]) -> None:
    """Plot the share of wrong pixels among the surest ones, over the share of pixels that is kept."""
    figure, (axes,) = _axes(5.2, 4.4)
    top = 0.0
    for number, (name, found) in enumerate(counts.items()):
        if not found.levels.any():
            continue
        coverage, risk = risk_coverage(found.levels)
        top = max(top, float(risk.max()))
        label = f"{name}, AURC {aurc(found.levels):.4f}"
        axes.plot(*_thinned(coverage, risk), label=label, **_look(number))
    axes.set(xlabel="coverage: share of pixels kept", ylabel="risk: share of these that is wrong")
    axes.set(xlim=(0, 1), ylim=(0, max(0.01, 1.05 * top)))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", fontsize=8)
    _write(figure, path)


def curves(path: Path, counts: Mapping[str, PixelCounts], *, ood: bool) -> None:
    """Plot ROC and precision over recall: of errors found by low confidence, or of out-of-distribution pixels.

    Args:
        path: of the SVG file.
        counts: by subject.
        ood: the counts are of out-of-distribution pixels.
    """
    figure, (left, right) = _axes(9.5, 4.4, 2)
    for number, (name, found) in enumerate(counts.items()):
        levels = found.levels if ood else errors_first(found.levels)
        if not levels.sum(1).all():
            continue
        look = _look(number)
        left.plot(*_thinned(*roc(levels)), label=name, **look)
        precision, recall = precision_recall(levels)
        right.plot(*_thinned(recall, precision), label=name, **look)
    left.plot((0, 1), (0, 1), color="#999999", linewidth=1, linestyle=":")
    what = "what is out of distribution" if ood else "errors"
    left.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    left.set_title(f"ROC: {what} found by low confidence", fontsize=10)
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    right.set_title(f"precision and recall: {what}", fontsize=10)
    if left.get_legend_handles_labels()[1]:
        left.legend(loc="lower right", fontsize=8)
    _write(figure, path)


def dots_by_dataset(
    path: Path, figures: Mapping[str, Mapping[str, Mapping[str, float]]], names: Mapping[str, str]
) -> None:
    """Plot each figure of every subject, one line per dataset.

    Args:
        path: of the SVG file.
        figures: dataset -> subject -> name -> value.
        names: of the figures that are shown -> title.
    """
    figure, panels = _axes(10.5, 1.4 + 0.3 * len(figures), len(names))
    lines = np.arange(len(figures))[::-1]
    subjects = list(next(iter(figures.values())))
    for axes, (name, title) in zip(panels, names.items(), strict=True):
        for number, who in reversed(list(enumerate(subjects))):
            values = [float(row[who][name]) for row in figures.values()]
            look = _look(number)
            mark = "D" if number == 0 else _MARKS[(number - 1) % len(_MARKS)]
            size = 7 if number == 0 else 4.5
            axes.plot(
                values, lines, mark, color=look["color"], markersize=size, label=who, zorder=look.get("zorder", 2)
            )
        axes.set_yticks(lines, list(figures) if axes is panels[0] else [""] * len(figures))
        axes.set_title(title, fontsize=10)
        axes.margins(y=0.6 / max(1, len(figures)))
    handles = dict(zip(*reversed(panels[-1].get_legend_handles_labels()), strict=True))
    shown = [handles[who] for who in subjects]
    panels[-1].legend(shown, subjects, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    _write(figure, path)


def confidence_histogram(path: Path, histogram: np.ndarray) -> None:
    """How sure the ensemble is of how many pixels."""
    figure, (axes,) = _axes(5.2, 3.2)
    share = histogram / max(1, histogram.sum())
    places = (np.arange(len(share)) + 0.5) / len(share)
    axes.bar(places, share, width=1 / len(share), color="#5B7FA6")
    axes.set(xlabel="confidence", ylabel="share of pixels", xlim=(0, 1))
    _write(figure, path)


def dispute_matrix(path: Path, shares: np.ndarray, names: Sequence[str]) -> None:
    """Plot the share of pixels on which each two members disagree.

    Args:
        path: of the SVG file.
        shares: (M, M) float64, 0 to 1.
        names: of the members.
    """
    size = 2.4 + 0.62 * len(names)
    figure, (axes,) = _axes(size, size)
    held = np.where(np.eye(len(names), dtype=bool), np.nan, shares)
    top = max(float(np.nanmax(held)), 1e-9)
    axes.imshow(held, cmap="cividis", vmin=0, vmax=top)
    for i in range(len(names)):
        for j in range(len(names)):
            if i != j:
                ink = "black" if held[i, j] > 0.55 * top else "white"
                axes.text(j, i, f"{100 * held[i, j]:.1f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.set_title("pixels in dispute, %", fontsize=10)
    _write(figure, path)


def confusion_matrix(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Plot of the pixels of each class how many percent are predicted as which; classes without labels have no row.

    Args:
        path: of the SVG file.
        matrix: (C, C) counts, rows are labels.
        names: of the classes, by id.
    """
    labelled = matrix.sum(1)
    rows = np.flatnonzero(labelled)
    columns = np.flatnonzero(matrix.any(0) | (labelled > 0))
    shares = 100 * matrix[np.ix_(rows, columns)] / np.maximum(1, labelled[rows, None])
    figure, (axes,) = _axes(2.6 + 0.42 * max(1, len(columns)), 2.0 + 0.34 * max(1, len(rows)))
    if shares.size:
        axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    few = len(columns) <= _MOST_WRITTEN
    for i, j in np.argwhere(shares >= 0.5).tolist() if few else ():
        ink = "black" if shares[i, j] > 55 else "white"
        axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(columns)), [names[i] for i in columns.tolist()], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [f"{names[i]} ({_short(int(labelled[i]))})" for i in rows.tolist()])
    axes.set(xlabel="predicted as", ylabel="labelled as (pixels)")
    axes.grid(visible=False)
    axes.set_title("% of the labelled pixels of a class" + (", from 0.5 % on" if few else ""), fontsize=10)
    _write(figure, path)


def _short(pixels: int) -> str:
    """Such as ``730``, ``12 k`` and ``3.4 M``."""
    if pixels < 1000:
        return str(pixels)
    return f"{pixels / 1e3:.3g} k" if pixels < 999_500 else f"{pixels / 1e6:.3g} M"


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most some hundred points of a curve, evenly along its way, both ends among them."""
    way = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    places = np.unique(np.searchsorted(way, np.linspace(0, way[-1], _POINTS)).clip(0, len(x) - 1))
    return x[places], y[places]
