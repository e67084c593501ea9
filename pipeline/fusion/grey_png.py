"""Encodes class maps and confidences as PNG, with one row filter each instead of the best for every row.

Pillow tries all filters on each row, which takes more than half of its time. Neighbouring rows of a class map are
mostly equal, and a confidence is mostly near the mean of its neighbours, so that Up and Average (PNG, third edition,
section 9) come within a few percent of the smallest file. Run lengths and Huffman's code (`zlib.Z_RLE`) are faster
than a search for matches and no worse here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP, _AVERAGE = 2, 3
_ROWS = 32
"""Rows that are filtered at once; they stay in a core's cache."""


def encode_png(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode grey pixels as a PNG file.

    Args:
        pixels: (H, W) uint8, filtered by Up, or uint16, filtered by Average; neither side is 0.
        text: keyword -> Latin-1 text, stored in front of the pixels.

    Raises:
        ValueError: the array is of another type or shape.
    """
    if pixels.ndim != 2 or not pixels.size or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels must be (H, W) uint8 or uint16, not {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape
    depth = 8 * pixels.itemsize
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    packed = [deflate.compress(rows) for rows in _filtered(pixels)]
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)),
            *(_chunk(b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in (text or {}).items()),
            _chunk(b"IDAT", b"".join([*packed, deflate.flush()])),
            _chunk(b"IEND", b""),
        ]
    )


def _filtered(pixels: np.ndarray) -> Iterator[bytes]:
    """Give the rows strip by strip, each behind the number of its filter."""
    height, size = pixels.shape[0], pixels.itemsize
    above = np.zeros((1, pixels.shape[1] * size), np.uint8)
    for top in range(0, height, _ROWS):
        # Samples of two bytes begin with the higher one.
        strip = np.ascontiguousarray(pixels[top : top + _ROWS], pixels.dtype.newbyteorder(">")).view(np.uint8)
        upper = np.concatenate([above, strip[:-1]])
        rows = np.empty((len(strip), 1 + strip.shape[1]), np.uint8)
        if size == 1:
            rows[:, 0] = _UP
            np.subtract(strip, upper, out=rows[:, 1:])
        else:
            rows[:, 0] = _AVERAGE
            left = np.zeros_like(strip)
            left[:, size:] = strip[:, :-size]
            # Half of the sum, rounded down, without its ninth bit.
            np.subtract(strip, (left & upper) + ((left ^ upper) >> 1), out=rows[:, 1:])
        above = strip[-1:]
        yield rows.tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
