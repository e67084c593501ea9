"""Image files to arrays, without torch, so that worker processes which only read masks need not wait for it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DatasetError, cannot_read, reason
from .exif import turned
from .image_header import BadImage, Header, read_header
from .png_integrity import whole_png

# Colour types of PNG (ISO/IEC 15948, 11.2.2).
_GREY, _COLOUR, _PALETTE, _COLOUR_WITH_ALPHA = 0, 2, 3, 6


def decode_rgb(path: Path, exif: bool = False) -> NDArray[np.uint8]:
    """The picture (H, W, 3) uint8, RGB, in a PNG, JPEG or WebP file, told by its content and not by its name.

    Grey, palette and CMYK become RGB; transparency is ignored; of 16 bits the upper 8 are kept. With ``exif`` it is
    turned as EXIF says; without, it is as stored, which is what labels fit.

    Raises:
        DatasetError: the file cannot be read, is none of these, is cut short or damaged, or has more than
            `MAX_PIXELS`. A JPEG or WebP whose bits are damaged in the middle can decode to a wrong picture:
            these formats have no checksum.
    """
    with _naming(path):
        header, data = _read(path, exif)
        pixels = _checked(_rgb(data, header.format), header)
        return np.ascontiguousarray(turned(pixels, header.orientation)) if exif else pixels


def decode_ids(path: Path) -> NDArray[np.uint8]:
    """The ids (H, W) uint8 in a mask: the grey values or palette indices of a PNG, as they are stored.

    Raises:
        DatasetError: as `decode_rgb`; the file is no PNG, holds colours, or has more than 8 bits.
    """
    with _naming(path):
        header, data = _read(path)
        depth, kind = _depth_and_kind(header, data)
        if kind not in (_GREY, _PALETTE):
            raise BadImage(
                "is a picture in colours, but ids are expected as grey values or palette indices; "
                "take the file of ids, not the one for the eye"
            )
        if depth > 8:
            raise BadImage("holds 16 bits a pixel, but ids take 8; take the file of class ids, not of instances")
        ids = _checked(_as_stored(data), header)
        # Pillow spreads the levels of 1, 2 and 4 bits over 0 to 255.
        return ids if kind == _PALETTE or depth == 8 else ids // (255 // (2**depth - 1))


def decode_colours(path: Path) -> NDArray[np.uint8]:
    """The colours (H, W, 3) uint8, RGB, in a mask that holds its ids in them; transparency is ignored.

    Raises:
        DatasetError: as `decode_rgb`; the file is no PNG, holds no colours, or has more than 8 bits a channel.
    """
    with _naming(path):
        header, data = _read(path)
        depth, kind = _depth_and_kind(header, data)
        if kind not in (_COLOUR, _COLOUR_WITH_ALPHA):
            raise BadImage("is a grey or palette picture, but ids are expected in red, green and blue")
        if depth > 8:
            raise BadImage("holds 16 bits a channel, but ids are expected in 8")
        return _checked(_as_stored(data)[..., :3], header)


def decode_grey(content: bytes | bytearray, path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The grey values (H, W), uint8 or, of 16 bits, uint16, of a PNG whose content was read from ``path`` already.

    Raises:
        DatasetError: it is damaged, no PNG, holds colours, or has fewer than 8 bits.
    """
    with _naming(path):
        header, data = read_header(io.BytesIO(content)), bytearray(content)
        depth, kind = _depth_and_kind(header, data)
        if kind != _GREY or depth < 8:
            raise BadImage(f"is a PNG of {depth} bits and colour type {kind}, but 8 or 16 bits of grey are expected")
        with _opened(whole_png(data), "png") as image:
            return _checked(np.array(image, dtype=np.uint8 if depth == 8 else np.uint16), header)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong inside into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
    except BadImage as error:
        raise DatasetError(f"{path}: {error}") from error


def _read(path: Path, late_exif: bool = False) -> tuple[Header, bytearray]:
    with path.open("rb") as file:
        header = read_header(file, late_exif)
        file.seek(0)
        return header, bytearray(file.read())


def _depth_and_kind(header: Header, data: bytearray) -> tuple[int, int]:
    """Bits a channel and colour type of a mask."""
    if header.format != "png":
        raise BadImage(f"is a {header.format.upper()}, but masks must be PNG: others do not keep ids as they are")
    return data[24], data[25]


def _checked(pixels: NDArray[Any], header: Header) -> NDArray[Any]:
    if pixels.shape[:2] != (header.height, header.width):
        raise BadImage("the picture has another size than its header says; the file is damaged")
    return pixels


def _as_stored(data: bytearray) -> NDArray[np.uint8]:
    with _opened(whole_png(data), "png") as image:
        grey = image.convert("L") if image.mode == "1" else image
        return np.array(grey, dtype=np.uint8)


def _rgb(data: bytearray, kind: str) -> NDArray[np.uint8]:
    # Of a PNG whose sound zlib stream ends with a row, Pillow alone would leave the rest of the picture black.
    with _opened(whole_png(data) if kind == "png" else data, kind) as image:
        if image.mode == "I;16":  # whose conversion by Pillow clips where the other 16-bit kinds scale
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextlib.contextmanager
def _opened(content: bytes | bytearray, kind: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(content), formats=[kind]) as image:
            image.load()
            yield image
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more for what is damaged
        raise BadImage(f"cannot be decoded ({reason(error)}); the file is damaged") from error
