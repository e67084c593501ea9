"""A chart of how much there is of each class."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ...datasets.taxonomy import CLASS_NAMES, NUM_CLASSES, PALETTE
from ...files import atomic_path
from ..text import percent, plural


def draw_class_chart(
    path: Path, title: str, pixels: NDArray[np.int64], images: NDArray[np.int64], total: int
) -> None:
    """Write a chart of the classes: their share of the labelled pixels, and how many images show them.

    Args:
        path: PNG to write; OSError if that fails.
        title: what stands above it.
        pixels: (20,) pixels of each class, and of none.
        images: (20,) images that show each class, and that have pixels of none.
        total: images in all.
    """
    labelled = int(pixels[:NUM_CLASSES].sum())
    shares = pixels[:NUM_CLASSES] / max(1, labelled)
    rows = np.arange(NUM_CLASSES)
    colours = np.array(PALETTE) / 255
    least = 10.0 ** math.floor(math.log10(shares[shares > 0].min() / 2)) if labelled else 1e-3

    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    # A logarithmic axis has no place for nothing: such bars would hang on its edge.
    left.barh(rows, np.where(shares > 0, shares, least), left=0, color=colours, edgecolor="0.35", linewidth=0.6)
    left.set_xscale("log")
    # Room for the figure beside the longest bar.
    longest = max(shares.max(), 10 * least)
    left.set_xlim(least, longest * (longest / least) ** 0.2)
    left.set_ylim(NUM_CLASSES - 0.4, -0.6)
    for row, share in enumerate(shares):
        left.annotate(
            percent(share) if share > 0 else "none",
            (max(share, least), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    left.set_yticks(rows, CLASS_NAMES)
    left.set_xlabel("share of the labelled pixels (logarithmic)")
    left.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %" if share <= 1 else ""))
    left.xaxis.set_minor_formatter(NullFormatter())
    right.barh(rows, images[:NUM_CLASSES], color=colours, edgecolor="0.35", linewidth=0.6)
    right.set_xlim(0, 1.18 * max(1, total))
    right.axvline(total, color="0.6", linewidth=1, linestyle="--", zorder=0)
    for row, shown in enumerate(images[:NUM_CLASSES]):
        right.annotate(
            f"{shown}" if shown else "none", (shown, row), xytext=(5, 0), textcoords="offset points", va="center"
        )
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel(f"images that show it (dashed: all {total})")
    for axes in (left, right):
        axes.set_axisbelow(True)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    share = int(pixels[NUM_CLASSES]) / max(1, int(pixels.sum()))
    ignored = f"{percent(share)} of all pixels are ignored" if share else "no pixel is ignored"
    figure.suptitle(f"{title}\n{plural(total, 'image')}; {labelled:,} labelled pixels, {ignored}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
