"""How drawn files are written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...files import write_bytes

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


def write_drawn(path: Path, content: bytes) -> None:
    """Write a file; one that holds this already keeps its time, so that nothing made of it looks too old."""
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)


def encode(
    name: str, pixels: NDArray[np.uint8] | NDArray[np.uint16], colours: NDArray[np.uint8] | None = None
) -> bytes:
    """An image in the format that the suffix of its name says.

    Args:
        name: of the file.
        pixels: (H, W), (H, W, 3) or (H, W, 4) uint8, or (H, W) uint16 for PNG.
        colours: (n, 3), of which ``pixels`` are then indices.
    """
    image = Image.fromarray(pixels)
    if colours is not None:
        image.putpalette(colours.tobytes())  # which makes a palette image of a grey one
    file = io.BytesIO()
    image.save(file, "JPEG" if name.endswith(".jpg") else "PNG", quality=92)
    return file.getvalue()
