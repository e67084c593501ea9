"""A codec that saves disk space: logits in fixed point, each predicted from its neighbours.

A logit becomes the nearest multiple of 1/64. Then each value of a class map is replaced by the residual of the
Lorenzo predictor, a plane through its upper, left and upper left neighbours (Ibarria et al., Out-of-core
compression and decompression of large n-dimensional scalar fields, Eurographics 2003). In maps that were enlarged
bilinearly the residuals are close to zero. A standard compressor does the rest.

Accuracy: with every logit within d = 1/128 of what it was, a probability p becomes at most
p e^d / (p e^d + (1 - p) e^-d), which is largest beside p at p = 1/2: tanh(d) / 2 < 0.004. Logits of 16 and more are
multiples of 1/64 in float16, and are kept as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayArrayCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.core.dtype import UInt16
from zarr.registry import register_codec

STEPS = 64
LIMIT = 511.75
"""The largest logit that fits, on either side of zero: the last float16 below 2**15 steps."""
NAME = "hmsa.fixed_point"


def encode(logits: np.ndarray) -> np.ndarray:
    """Encode logits (..., H, W) float16 within `LIMIT` as residuals (..., H, W) uint16, small where smooth."""
    import torch  # here, so that commands which decode nothing need not wait for it

    fixed = torch.from_numpy(np.ascontiguousarray(logits)).float().mul_(STEPS).round_().to(torch.int16).numpy()
    values = fixed.view(np.uint16)  # differences wrap around, and so do the sums that undo them
    errors = values.copy()
    errors[..., 1:] -= values[..., :-1]
    values = errors.copy()
    errors[..., 1:, :] -= values[..., :-1, :]
    sign = (errors.view(np.int16) >> 15).view(np.uint16)
    return (errors << 1) ^ sign


def decode(errors: np.ndarray) -> np.ndarray:
    """Decode residuals (..., H, W) uint16 to logits (..., H, W) float16, which are multiples of 1/64."""
    import torch

    values = (errors >> 1) ^ (0 - (errors & 1))
    for y in range(1, values.shape[-2]):  # row by row, which vectorises where NumPy's own sum along an axis does not
        values[..., y, :] += values[..., y - 1, :]
    np.cumsum(values, axis=-1, dtype=np.uint16, out=values)
    return torch.from_numpy(values.view(np.int16)).float().div_(STEPS).to(torch.float16).numpy()


@dataclass(frozen=True)
class FixedPoint(ArrayArrayCodec):
    """`encode` and `decode` as a codec of Zarr v3, from float16 to uint16."""

    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the codec from an array's metadata; ValueError if they name another codec or other steps."""
        steps = data.get("configuration", {}).get("steps")
        if data.get("name") != NAME or steps != STEPS:
            raise ValueError(f"codec {data.get('name')} with {steps} steps is not {NAME} with {STEPS}")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """Return the codec as it stands in an array's metadata."""
        return {"name": NAME, "configuration": {"steps": STEPS}}

    def resolve_metadata(self, chunk_spec: ArraySpec) -> ArraySpec:
        """Describe the chunk (uint16) that the next codec gets."""
        return replace(chunk_spec, dtype=UInt16(), fill_value=np.uint16(0))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Return the size of the input: the codec keeps it."""
        return input_byte_length

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return _buffer(encode(chunk_data.as_numpy_array()), chunk_spec)

    async def _decode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return _buffer(decode(chunk_data.as_numpy_array()), chunk_spec)


def _buffer(values: Any, chunk_spec: ArraySpec) -> NDBuffer:
    return chunk_spec.prototype.nd_buffer.from_ndarray_like(values)


register_codec(NAME, FixedPoint)
