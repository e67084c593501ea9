"""The bytes of a shard file, packed and read without Zarr: the same bytes in a part of the time.

Zarr takes each chunk through an event loop, its threads and several copies, which costs more than decompression. A
shard as Zarr v3 writes it (codec ``sharding_indexed`` of its specification) is chunks in any order and, at the end,
an index: offset and length of each chunk as uint64, all ones for a chunk that was not written, and the crc32c of the
index. Each chunk of a logit store is a buffer of Blosc or pcodec, followed by its crc32c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from io import RawIOBase
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc  # type: ignore[attr-defined]
from numcodecs.pcodec import PCodec
from pcodec import standalone  # type: ignore[attr-defined]

from .image_table import ImageEntry

# Its own threads make the bytes differ from run to run.
blosc.use_threads = False

_NOT_WRITTEN = 2**64 - 1
_CHECKSUM_BYTES = 4
_HEADER_BYTES = 16


def shard_path(path: Path, entry: ImageEntry) -> Path | None:
    """Locate an image's shard in the store at ``path``; None for an image that has no place in an array."""
    return None if entry.array is None else path / entry.array / f"c.{entry.row}.0.0.0"


def is_finite(logits: np.ndarray) -> bool:
    """Say whether all logits (C, H, W) float16 are finite."""
    # NumPy converts half to float slowly; the exponent bits tell as much. One class at a time stays in the cache.
    return not any(bool(((one.view(np.uint16) & 0x7C00) == 0x7C00).any()) for one in logits)


def pack_shard(chunks: Iterable[np.ndarray], compressor: Blosc | PCodec) -> list[bytes]:
    """Compress chunks into the pieces of a shard file, to be written one after another.

    The chunks are contiguous arrays of 2-byte values, in the order of the rows.
    """
    pieces: list[bytes] = []
    index, offset = b"", 0
    for chunk in chunks:
        packed = compressor.encode(chunk)
        pieces += [packed, _checksum(packed)]
        index += struct.pack("<QQ", offset, len(packed) + _CHECKSUM_BYTES)
        offset += len(packed) + _CHECKSUM_BYTES
    return [*pieces, index, _checksum(index)]


def _checksum(content: bytes) -> bytes:
    return google_crc32c.value(content).to_bytes(_CHECKSUM_BYTES, "little")


def read_chunk(shard: Path, number: int, count: int, into: np.ndarray, compressor: Blosc | PCodec) -> None:
    """Decompress one chunk of a shard file.

    Args:
        shard: the file.
        number: index of the chunk, in the order of the rows.
        count: number of chunks in the shard.
        into: contiguous array of exactly the chunk's uncompressed size in bytes; it is overwritten.
        compressor: what compressed the chunk.

    Raises:
        ValueError: the shard is damaged, or the chunk was never written.
        OSError: the file cannot be read.
    """
    with shard.open("rb", buffering=0) as file:
        end = file.seek(0, 2)
        length = 16 * count + _CHECKSUM_BYTES
        index = _piece(file, end - length, length, end)
        offset, length = struct.unpack_from("<QQ", index, 16 * number)
        if offset == _NOT_WRITTEN:
            raise ValueError("a strip is missing")
        packed = _piece(file, offset, length, end)
    if isinstance(compressor, PCodec):
        _unpack_pcodec(packed, into)
    else:
        _unpack_blosc(packed, into)


def _unpack_blosc(packed: bytes, into: np.ndarray) -> None:
    # Blosc would trust its header, and leave the rest of a larger target as it was.
    if len(packed) < _HEADER_BYTES or struct.unpack_from("<I4xI", packed, 4) != (into.nbytes, len(packed)):
        raise ValueError("a strip is not of the size that it must be")
    blosc.decompress(packed, into)


def _unpack_pcodec(packed: bytes, into: np.ndarray) -> None:
    try:
        progress = standalone.simple_decompress_into(packed, into.reshape(-1))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a strip cannot be decompressed: {error}") from error
    # numcodecs would leave the rest of a larger target as it was, and cut what does not fit into a smaller one.
    if progress.n_processed != into.size or not progress.finished:
        raise ValueError("a strip is not of the size that it must be")


def _piece(file: RawIOBase, offset: int, length: int, end: int) -> bytes:
    """Read ``length`` bytes at ``offset``, check the checksum at their end and return the rest."""
    if not 0 <= offset <= offset + length <= end or length < _CHECKSUM_BYTES:
        raise ValueError("the shard is cut short, or its index is wrong")
    file.seek(offset)
    piece, checksum = file.read(length - _CHECKSUM_BYTES), file.read(_CHECKSUM_BYTES)
    if piece is None or checksum is None or len(piece) + len(checksum) != length:
        raise ValueError("the shard was cut short")
    if _checksum(piece) != checksum:
        raise ValueError("a checksum is wrong")
    return piece
