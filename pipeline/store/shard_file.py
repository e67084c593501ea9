"""Shards read and written without Zarr: the same bytes for a part of the time.

Zarr takes every strip through an event loop, its threads, and several copies; that is fine for a user, but costs more
than decompression itself. A shard as Zarr v3 writes it (its specification's
``sharding_indexed`` codec) is chunks in any order and, at the end, an index: offset and length of every chunk,
uint64, all ones for one that was not written, and the crc32c of that. A chunk of ours is a Blosc buffer with its
crc32c behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from io import RawIOBase
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc  # type: ignore[attr-defined]

from ..storage.filesystem import size
from .image_table import ImageEntry


def shard_path(path: Path, entry: ImageEntry) -> Path | None:
    return None if entry.array is None else path / entry.array / f"c.{entry.row}.0.0.0"


def has_content(path: Path) -> bool:
    return bool(size(path))


def is_finite(logits: np.ndarray) -> bool:
    # NumPy converts half to float slowly; the exponent bits tell as much. One class at a time stays in the cache.
    return not any(bool(((one.view(np.uint16) & 0x7C00) == 0x7C00).any()) for one in logits)


# Its own threads make the bytes differ from run to run.
blosc.use_threads = False

_MISSING = 2**64 - 1
_CHECKSUM = 4
_HEADER = 16


def pack_shard(chunks: Iterable[np.ndarray], compressor: Blosc) -> list[bytes]:
    """A whole shard file, in pieces.

    Args:
        chunks: what each holds, contiguous, in the order of the rows.
        compressor: of each.
    """
    pieces: list[bytes] = []
    index, offset = b"", 0
    for chunk in chunks:
        packed = compressor.encode(chunk)
        pieces += [packed, _sum(packed)]
        index += struct.pack("<QQ", offset, len(packed) + _CHECKSUM)
        offset += len(packed) + _CHECKSUM
    return [*pieces, index, _sum(index)]


def _sum(content: bytes) -> bytes:
    return google_crc32c.value(content).to_bytes(_CHECKSUM, "little")


def read_chunk(shard: Path, number: int, count: int, into: np.ndarray) -> None:
    """Decompress one chunk of a shard file.

    Args:
        shard: the file.
        number: of the chunk, in the order of the rows.
        count: chunks of the shard.
        into: contiguous, exactly as many bytes as the chunk holds.

    Raises:
        ValueError: the shard is damaged, or the chunk was never written.
        OSError: the disk does not give it.
    """
    with shard.open("rb", buffering=0) as file:
        end = file.seek(0, 2)
        length = 16 * count + _CHECKSUM
        index = _piece(file, end - length, length, end)
        offset, length = struct.unpack_from("<QQ", index, 16 * number)
        if offset == _MISSING:
            raise ValueError("a strip is missing")
        packed = _piece(file, offset, length, end)
    # Blosc would trust its header, and leave the rest of a larger target as it was.
    if len(packed) < _HEADER or struct.unpack_from("<I4xI", packed, 4) != (into.nbytes, len(packed)):
        raise ValueError("a strip is not of the size that it must be")
    blosc.decompress(packed, into)


def _piece(file: RawIOBase, offset: int, length: int, end: int) -> bytes:
    """``length`` bytes but the checksum at their end, which must be right."""
    if not 0 <= offset <= offset + length <= end or length < _CHECKSUM:
        raise ValueError("the shard is cut short, or its index is wrong")
    file.seek(offset)
    piece, checksum = file.read(length - _CHECKSUM), file.read(_CHECKSUM)
    if piece is None or checksum is None or len(piece) + len(checksum) != length:
        raise ValueError("the shard was cut short")
    if _sum(piece) != checksum:
        raise ValueError("a checksum is wrong")
    return piece
