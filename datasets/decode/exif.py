"""How a camera was held, as EXIF notes it: read from a header, and applied to pixels."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

EXIF_MARK = b"Exif\0\0"
"""Mark at the beginning of EXIF in a JPEG, and by some writers in a WebP."""

MOST_EXIF = 2**16
"""Bytes of EXIF that are looked at; in a JPEG there is room for no more."""

_ORIENTATION, _SHORT = 0x0112, 3


def read_orientation(content: bytes) -> int:
    """The orientation that a block of EXIF notes: a TIFF header, perhaps behind `EXIF_MARK`, and its directory.

    Returns:
        1 to 8 (CIPA DC-008, 4.6.4 A); 1, which changes nothing, where there is none or what is there is damaged.
    """
    content = content.removeprefix(EXIF_MARK)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    try:
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (entries,) = struct.unpack_from(f"{order}H", content, start)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", content, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def swaps_sides(orientation: int) -> bool:
    """True if height and width change places."""
    return orientation >= 5


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The picture that a viewer shows of stored pixels (H, W, C), whose orientation is 1 to 8.

    Returns:
        (H, W, C), or (W, H, C) if `swaps_sides`; a view where that is possible.
    """
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
