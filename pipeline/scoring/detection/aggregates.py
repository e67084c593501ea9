"""One figure of an image from the uncertainties of its pixels.

===========  ==========================================================================
aggregate    figure
===========  ==========================================================================
mean         mean over the pixels
q95          quantile over the pixels, here of 95 %, linear between two pixels; q1 to q99
patch10      highest mean of a square of 10x10 pixels, wherever it lies: a small thing that
             is strange is not averaged away; patch1 (the highest pixel) and upward
===========  ==========================================================================

Means and patches: Kahl et al., ValUES: A Framework for Systematic Validation of Uncertainty Estimation in Semantic
Segmentation, ICLR 2024 (arXiv 2401.08501), section 3.
"""

from __future__ import annotations

import re

import numpy as np

DEFAULT = ("mean", "q95", "patch10")


def is_aggregate(name: str) -> bool:
    """Say whether a name is that of an aggregate."""
    return name == "mean" or re.fullmatch(r"q[1-9]\d?|patch[1-9]\d{0,3}", name) is not None


def nearest_aggregate(name: str) -> str:
    """Suggest what an unknown name may have meant: ``patch10`` for ``patch 10x10``; else list what there is."""
    found = re.fullmatch(r"(patch|q)\D{0,2}(\d+)\s*(?:%|px|[x×*]\s*(\d+))?", name.strip().lower())
    if found:
        kind, number, other = found.group(1), int(found.group(2)), found.group(3)
        if other is not None and int(other) != number:
            return f"patches are square: did you mean 'patch{min(number, int(other))}'?"
        if is_aggregate(meant := f"{kind}{number}"):
            return f"did you mean '{meant}'?"
    return (
        "known: mean, q1 to q99 (a quantile), patch1 to patch9999 (the patch of so many pixels a side that has the "
        "highest mean)"
    )


def aggregate(name: str, uncertainty: np.ndarray) -> float:
    """Summarise an image's uncertainties.

    Args:
        name: of the aggregate, see the module.
        uncertainty: (H, W) float64; a patch that is larger is cut to it.

    Raises:
        ValueError: there is no such aggregate.
    """
    if not is_aggregate(name):
        raise ValueError(f"unknown aggregate {name!r}")
    if name == "mean":
        return float(uncertainty.mean())
    if name.startswith("q"):
        return float(np.quantile(uncertainty, int(name[1:]) / 100))
    height, width = (min(int(name.removeprefix("patch")), side) for side in uncertainty.shape)
    sums = np.zeros((uncertainty.shape[0] + 1, uncertainty.shape[1] + 1))
    uncertainty.cumsum(0, out=sums[1:, 1:])
    sums[1:, 1:].cumsum(1, out=sums[1:, 1:])
    patches = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return float(patches.max() / (height * width))
