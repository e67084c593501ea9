"""Overlapping windows over an image: where they lie, and how they are blended."""

from __future__ import annotations

import torch
from torch import Tensor


def window_starts(side: int, window: int, overlap: int) -> list[int]:
    """Return where windows begin that cover a side of an image, evenly spread, with ``overlap`` pixels or more.

    Args:
        side, window, overlap: in pixels; the overlap is smaller than the window.
    """
    if side <= window:
        return [0]
    count = -(-(side - overlap) // (window - overlap))
    return [round(i * (side - window) / (count - 1)) for i in range(count)]


def window_weights(size: tuple[int, int], overlap: tuple[int, int]) -> Tensor:
    """Return a window's weight (height, width) float32 at its pixels: it rises from the edges over the overlap to 1.

    Args:
        size: height and width of the window in pixels.
        overlap: with windows above and below, and with those beside it, in pixels.
    """
    sides = []
    for side, shared in zip(size, overlap, strict=True):
        near = torch.minimum(torch.arange(side), torch.arange(side).flip(0)) + 1
        sides.append((near / (shared + 1)).clamp(max=1.0))
    return sides[0][:, None] * sides[1]
