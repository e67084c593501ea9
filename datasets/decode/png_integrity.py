"""Check that a PNG is whole before a decoder sees it."""

from __future__ import annotations

import struct
import zlib

from .image_header import PNG_SIGNATURE, BadImage

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type
# First column and row of each pass of an interlaced picture, and the steps between (ISO/IEC 15948, 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def whole_png(data: bytes | bytearray) -> bytes:
    """The PNG in ``data`` once more, with its picture and nothing else, proven to be complete.

    Every chunk's place, length and checksum is examined, also of those that are then left out: transparency,
    colour profiles, rotation, text, and the further pictures of an animation. The pixels are unpacked,
    counted and stored as they are, so that the decoder need not unpack them again.

    Raises:
        BadImage: a chunk is missing, misplaced, cut short or damaged, or there are too few pixels.
    """
    kept: dict[bytes, list[memoryview]] = {b"IHDR": [], b"PLTE": [], b"IDAT": []}
    view, place, kind = memoryview(data), len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(view[place : place + 4], "big"), bytes(view[place + 4 : place + 8])
        end = place + 12 + length
        if end > len(view):
            raise BadImage("the PNG ends too early; the file is cut short")
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            name = ascii(kind)[2:-1]
            raise BadImage(f"chunk {name} at byte {place} has a wrong checksum; the file is damaged")
        if kind in kept:
            # Only pixels come in several chunks, and nothing comes after them.
            if (kept[kind] and kind != b"IDAT") or (kept[b"IDAT"] and kind == b"PLTE"):
                raise BadImage(f"chunk {kind.decode()} at byte {place} is one too many; the file is damaged")
            kept[kind].append(view[place + 8 : end - 4])
        elif kind != b"IEND" and not kind[:1].islower():  # a capital marks what a picture cannot be read without
            raise BadImage(f"chunk {ascii(kind)[2:-1]} at byte {place} is none that we know; the file is damaged")
        place = end
    (header,), palette = kept[b"IHDR"], kept[b"PLTE"]
    if header[9] == 3 and not (palette and 3 <= len(palette[0]) <= 768 and len(palette[0]) % 3 == 0):
        raise BadImage("the PNG has no palette; the file is damaged")
    # At its level 0 zlib packs nothing, at the speed of a copy.
    pixels = zlib.compress(_unpack(b"".join(kept[b"IDAT"]), _unpacked_size(header)), 0)
    chunks = [_chunk(b"IHDR", header)]
    if palette and header[9] == 3:
        chunks.append(_chunk(b"PLTE", palette[0]))
    return b"".join([PNG_SIGNATURE, *chunks, _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")])


def _unpack(packed: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        # One byte more than there should be makes zlib read on to the checksum at the end of the stream; no
        # more than that, since a small file can unpack to more than the memory holds.
        pixels = stream.decompress(packed, size + 1)
    except zlib.error as error:
        raise BadImage(f"the PNG's pixels cannot be unpacked ({error}); the file is damaged") from error
    if len(pixels) < size or (len(pixels) == size and not stream.eof):
        raise BadImage("the PNG holds fewer pixels than its header says; the file is cut short")
    return pixels


def _unpacked_size(header: memoryview) -> int:
    """How many bytes the pixels and the filter byte before each row take, from the content of IHDR."""
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    bits = depth * _SAMPLES[colour]
    passes = _PASSES if header[12] else ((0, 0, 1, 1),)
    size = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -((x - width) // step_x), -((y - height) // step_y)
        if columns > 0 and rows > 0:
            size += rows * (1 + (columns * bits + 7) // 8)
    return size


def _chunk(kind: bytes, content: bytes | memoryview) -> bytes:
    crc = zlib.crc32(content, zlib.crc32(kind))
    return b"".join([len(content).to_bytes(4, "big"), kind, content, crc.to_bytes(4, "big")])
