"""A 3x3 convolution of enlarged maps, done for the most part before they are enlarged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_BYTES = 2**24
"""Products of so many bytes are made at once: what stays in a cache is not fetched from memory again."""
_COLUMNS = 32
"""Columns that are enlarged by one matrix product; more of them multiply with more zeros."""


def conv3x3_of_enlarged(branches: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``F.conv2d(join(branches), weight, bias, padding=1)`` with less work, up to rounding.

    A 3x3 convolution is a sum of nine 1x1 ones, each moved by a pixel at most. A 1x1 convolution and bilinear
    enlargement are linear in different dimensions, so the order of the two does not matter: it goes first, on the
    small map. Enlarging and moving is then a product with a band matrix, for rows and columns apart. Four branches of
    which each has twice the channels and half the sides of the one before take an eighth of the multiplications.

    Args:
        branches: (N, C, h, w) each, of falling size, float32.
        weight: (O, sum of all C, 3, 3).
        bias: (O,).

    Returns:
        (N, O, h, w) of the first branch's size, channels last.
    """
    first, *smaller = branches
    own, *others = weight.split([branch.shape[1] for branch in branches], dim=1)
    found = F.conv2d(first, own, bias, padding=1).contiguous(memory_format=torch.channels_last)
    for branch, part in zip(smaller, others, strict=True):
        products = part.permute(2, 1, 3, 0).reshape(3, part.shape[1], -1)  # of each row of the kernel: (C, 3 * O)
        for image, sums in zip(branch, found.permute(0, 2, 3, 1), strict=True):
            _add_enlarged(image.permute(1, 2, 0), products, sums)
    return found


def _add_enlarged(image: Tensor, products: Tensor, sums: Tensor) -> None:
    """Add what a small map (h, w, C) gives to ``sums`` (H, W, O), for ``products`` (3, C, 3 * O)."""
    height, width, channels = image.shape
    large_height, large_width, outputs = sums.shape
    step = max(1, _CHUNK_BYTES // (4 * 3 * outputs * (width + large_width)))
    columns = list(_bands_of_targets(_taps(width, large_width), _COLUMNS))
    for sources, targets, matrix in _bands_of_sources(_taps(height, large_height), step):
        rows = image[sources]
        count = len(rows)
        wide = sums.new_empty(3, count, large_width, outputs)
        for kernel_row, product in enumerate(products):
            narrow = torch.mm(rows.reshape(-1, channels), product).view(count, width * 3, outputs)
            for seen, made, enlarge in columns:
                torch.bmm(
                    enlarge.expand(count, -1, -1),
                    narrow[:, 3 * seen.start : 3 * seen.stop],
                    out=wide[kernel_row, :, made],
                )
        sums[targets].flatten(1).addmm_(matrix, wide.view(3 * count, -1))


def _taps(small: int, large: int) -> Tensor:
    """How much of each source (small) the kernel's three places see around each target: (large, 3, small).

    Beyond the edge they see nothing, as a convolution's padding has it.
    """
    where = ((torch.arange(large) + 0.5) * (small / large) - 0.5).clamp_(min=0)
    source = where.long()
    share = where - source
    enlarge = torch.zeros(large + 2, small)
    target = torch.arange(1, large + 1)
    enlarge[target, source] += 1 - share
    enlarge[target, (source + 1).clamp_(max=small - 1)] += share
    return torch.stack([enlarge[place : place + large] for place in range(3)], dim=1)


def _bands_of_sources(taps: Tensor, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Split by sources; yield some, the targets that see them, and the matrix (targets, 3 * sources)."""
    for start in range(0, taps.shape[2], step):
        part = taps[:, :, start : start + step]
        targets = _extent(part.sum((1, 2)))
        yield slice(start, start + step), targets, part[targets].flatten(1)


def _bands_of_targets(taps: Tensor, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Split by targets; yield the sources that some see, these, and the matrix (targets, sources * 3)."""
    for start in range(0, taps.shape[0], step):
        targets = slice(start, start + step)
        sources = _extent(taps[targets].sum((0, 1)))
        yield sources, targets, taps[targets, :, sources].transpose(1, 2).flatten(1)


def _extent(values: Tensor) -> slice:
    """From the first to behind the last of the values that are not zero."""
    where = values.nonzero()
    return slice(int(where[0]), int(where[-1]) + 1)
