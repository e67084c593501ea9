"""Softmax over classes, on a CPU to the same bits with and without the compiled library."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .library import LOG2_E, add_members, in_parts, is_readable

_PARTS = 8
_ROUNDER = np.float32(12582912.0)
_BIAS = np.uint32(191 << 23)
_UNBIASED = np.float32(2.0**-64)
_LEADING, *_COEFFICIENTS = (
    np.float32(float.fromhex(digits))
    for digits in (
        "-0x1.5b7694p-10",
        "0x1.3cee94p-7",
        "-0x1.c6b846p-5",
        "0x1.ebf9aep-3",
        "-0x1.62e428p-1",
        "1.0",
    )
)
_CACHED_PIXELS = 4096


def softmax(z: Tensor, temperature: float, out: Tensor) -> Tensor:
    """Compute softmax(z / temperature) over the classes.

    On a CPU the result depends neither on the processor nor on the compiled library; a GPU has digits of its own.

    Args:
        z: (C, P) float32; not changed.
        temperature: positive.
        out: (C, P) float32, which is overwritten.

    Returns:
        ``out``.
    """
    if z.device.type != "cpu":
        return torch.softmax(z if temperature == 1.0 else z / temperature, 0, out=out)
    if is_readable(z):
        add_members([z], [temperature], [1.0], ["softmax"], {"softmax": out})
    else:
        softmax_by_numpy(z.numpy(), temperature, out.numpy())
    return out


def softmax_by_numpy(z: np.ndarray, temperature: float, out: np.ndarray) -> None:
    """Do what ``softmax_sums.c`` does, operation by operation; for the formulas see there.

    Args:
        z, temperature, out: see `softmax`, as arrays.
    """
    in_parts(lambda first, last: _fill(z[:, first:last], temperature, out[:, first:last]), z.shape[1])


@np.errstate(all="ignore")
def _fill(z: np.ndarray, temperature: float, out: np.ndarray) -> None:
    scale = np.float32(LOG2_E / temperature)
    classes, size = len(z), min(_CACHED_PIXELS, z.shape[1])
    # To allocate memory takes longer than to fill it.
    rooms, parts = np.empty((3, classes, size), np.float32), np.empty((_PARTS, size), np.float32)
    for start in range(0, z.shape[1], _CACHED_PIXELS):
        here = z[:, start : start + _CACHED_PIXELS]
        t, rounded, r = rooms[:, :, : here.shape[1]]
        np.subtract(here, here.max(0), out=t)
        np.multiply(t, scale, out=t)
        np.maximum(t, np.float32(-150.0), out=t)
        np.add(t, _ROUNDER, out=rounded)
        np.subtract(rounded, _ROUNDER, out=r)
        g = np.subtract(r, t, out=t)
        np.multiply(g, _LEADING, out=r)
        np.add(r, _COEFFICIENTS[0], out=r)
        for coefficient in _COEFFICIENTS[1:]:
            np.multiply(r, g, out=r)
            np.add(r, coefficient, out=r)
        exponent = rounded.view(np.uint32)
        np.left_shift(exponent, 23, out=exponent)
        np.add(exponent, _BIAS, out=exponent)
        np.multiply(r, rounded, out=r)
        np.multiply(r, _UNBIASED, out=r)
        total = parts[:, : here.shape[1]]
        total[:] = 0.0
        for first in range(0, classes, _PARTS):
            some = r[first : first + _PARTS]
            total[: len(some)] += some
        while len(total) > 1:
            half = len(total) // 2
            total = np.add(total[:half], total[half:], out=total[:half])
        np.multiply(r, np.float32(1.0) / total[0], out=out[:, start : start + _CACHED_PIXELS])
