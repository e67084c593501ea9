"""Checks of scores and labels that all losses share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255
"""The label of pixels that no loss looks at."""


class BatchTotals(NamedTuple):
    """The batch that a step of the optimiser is about, where a loss sees one part of it at a time.

    A GPU's or an accumulation step's part of the loss is divided by what the whole batch holds. The parts' sum is
    then the loss of the whole, however it was split, though one part may have fewer labelled pixels than another.
    """

    images: int
    pixels: int
    """Labelled pixels of all images."""
    taught: int = 0
    """Pixels of all images with soft targets."""


def labelled(logits: Tensor, labels: Tensor) -> Tensor:
    """Where a pixel has a label, (N, H, W) bool, after a look at what was given.

    Scores are (N, C, H, W), of any floating dtype; labels (N, H, W) int64 train ids in 0..C-1, or `IGNORE`.

    Raises:
        ValueError: a shape or dtype is another, there is no pixel at all, or a label is no class.
    """
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be floats of shape (N, C, H, W), not {logits.dtype} {tuple(logits.shape)}")
    expected = (logits.shape[0], *logits.shape[-2:])
    if labels.shape != expected or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 of shape {expected}, not {labels.dtype} {tuple(labels.shape)}")
    if not logits.numel():
        raise ValueError(f"logits of shape {tuple(logits.shape)} hold no pixel")
    valid = labels != IGNORE
    wrong = valid & ((labels < 0) | (labels >= logits.shape[1]))
    if wrong.any():
        raise ValueError(
            f"label {int(labels[wrong][0])} is neither one of {logits.shape[1]} classes nor {IGNORE} (ignored)"
        )
    return valid


def in_float32(logits: Tensor) -> Tensor:
    """Scores (N, C, H, W) as float32 where they came in half precision; float64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()
