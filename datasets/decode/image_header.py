"""Format and size of an image file, read from its first bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...errors import DatasetError, cannot_read
from .exif import EXIF_MARK, MOST_EXIF, read_orientation, swaps_sides

MAX_PIXELS = 2**28 // 3
"""Larger pictures are refused (89 million pixels, a quarter of a GiB): damaged headers claim any size."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_REFUSED = (
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the content with git lfs pull)"),
    (b"<", "a web page"),
)
# Bit depths by colour type (ISO/IEC 15948, 11.2.2).
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@dataclass(frozen=True, slots=True)
class Header:
    """Facts in the first bytes of an image file."""

    format: str
    """``png``, ``jpeg`` or ``webp``, by the content, not by the file's name."""
    height: int
    """Rows of pixels as they are stored."""
    width: int
    orientation: int = 1
    """How EXIF asks a viewer to turn the stored pixels, 1 (not at all) to 8; see `exif.turned`."""

    @property
    def turned_size(self) -> tuple[int, int]:
        """``(height, width)`` of the picture that a viewer shows."""
        return (self.width, self.height) if swaps_sides(self.orientation) else (self.height, self.width)


class BadImage(Exception):  # noqa: N818  it never leaves this package: callers see a DatasetError
    """Why a file is no image that we read."""


def read_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` of an image in pixels, from its header; a rotation noted in EXIF is ignored.

    Raises:
        DatasetError: the file cannot be read, is no PNG, JPEG or WebP, or has more than `MAX_PIXELS`.
    """
    header = header_of(path)
    return header.height, header.width


def header_of(path: Path | str, late_exif: bool = False) -> Header:
    """Read the header of an image file; see `read_header`; raises as `read_size`."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  a Path costs as much as reading, and there are many
            return read_header(file, late_exif)
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
    except BadImage as error:
        raise DatasetError(f"{path}: {error}") from error


def read_header(file: BinaryIO, late_exif: bool = False) -> Header:
    """Format, size and orientation, from a file at its beginning, which is read no further than it takes.

    With ``late_exif`` the orientation of a PNG is also looked for behind its pixels. Few programs write it there,
    and to get there takes as long as to read the file where disks are slow.

    Raises:
        BadImage: with the reason.
    """
    start = file.read(32)
    if start.startswith(PNG_SIGNATURE):
        header = _png_header(start, file, late_exif)
    elif start.startswith(b"\xff\xd8\xff"):
        file.seek(2)
        header = _jpeg_header(file)
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        header = _webp_header(start, file)
    else:
        raise BadImage(_what_instead(start))
    if header.height < 1 or header.width < 1:
        raise BadImage(f"its header says {header.height} x {header.width} pixels; the file is damaged")
    if header.height * header.width > MAX_PIXELS:
        raise BadImage(
            f"its header says {header.height} x {header.width} pixels, more than {MAX_PIXELS}; "
            "the file is damaged, or must be cut into smaller ones"
        )
    return header


def _what_instead(start: bytes) -> str:
    if not start:
        return "the file is empty"
    content = next((name for magic, name in _REFUSED if start.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        content = "an AVIF or HEIC picture"
    return f"holds {content or 'no image that we know'}; only PNG, JPEG and WebP are read"


def _png_header(start: bytes, file: BinaryIO, late_exif: bool) -> Header:
    if len(start) < 32 or start[8:16] != b"\0\0\0\x0dIHDR":
        raise BadImage("the PNG does not begin with its header; the file is damaged")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", start[16:29])
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise BadImage("the PNG's header says what no PNG can be; the file is damaged")
    return Header("png", height, width, _png_orientation(file, late_exif))


def _png_orientation(file: BinaryIO, late_exif: bool) -> int:
    """Orientation in the chunk eXIf; 1 without one."""
    place = len(PNG_SIGNATURE) + 25  # behind the chunk IHDR
    while True:
        file.seek(place)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IEND" or (kind == b"IDAT" and not late_exif):
            return 1
        if kind == b"eXIf":
            return read_orientation(file.read(min(length, MOST_EXIF)))
        place += 12 + length


def _jpeg_header(file: BinaryIO) -> Header:
    orientation = 1
    while True:
        byte = file.read(1)
        if not byte:
            raise BadImage("the JPEG ends within its header; the file is cut short")
        if byte != b"\xff":
            continue  # stray bytes between segments, which decoders skip as well
        while byte == b"\xff":
            byte = file.read(1)
        marker = byte[0] if byte else 0
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:
            continue  # these stand alone
        if marker in (0xD9, 0xDA):
            raise BadImage("the JPEG has no frame header; the file is damaged")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = file.read(7)
            if len(frame) < 7:
                raise BadImage("the JPEG ends within its header; the file is cut short")
            height, width = struct.unpack(">HH", frame[3:7])
            return Header("jpeg", height, width, orientation)
        length = int.from_bytes(file.read(2), "big")
        if length < 2:
            raise BadImage("the JPEG has a segment without a length; the file is damaged")
        if marker == 0xE1 and orientation == 1:
            segment = file.read(length - 2)
            if segment.startswith(EXIF_MARK):
                orientation = read_orientation(segment)
            continue
        file.seek(length - 2, 1)


def _webp_header(start: bytes, file: BinaryIO) -> Header:
    kind, body = start[12:16], start[20:]
    if len(body) < 10:
        raise BadImage("the WebP ends within its header; the file is cut short")
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return Header("webp", height & 0x3FFF, width & 0x3FFF)
    if kind == b"VP8L" and body[:1] == b"\x2f":
        packed = int.from_bytes(body[1:5], "little")
        return Header("webp", (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1)
    if kind == b"VP8X":
        if body[0] & 0x02:
            raise BadImage("holds an animated WebP; only still pictures are read")
        height, width = int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
        return Header("webp", height, width, _webp_orientation(file) if body[0] & 0x08 else 1)
    raise BadImage("the WebP's header cannot be read; the file is damaged")


def _webp_orientation(file: BinaryIO) -> int:
    """Orientation in the chunk EXIF, which stands behind the few others; 1 without one."""
    place = 12
    while True:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8:
            return 1
        if head[:4] == b"EXIF":
            return read_orientation(file.read(min(length, MOST_EXIF)))
        place += 8 + length + length % 2
