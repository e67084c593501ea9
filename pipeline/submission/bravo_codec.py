"""The files of a BRAVO submission, as the challenge's toolkit reads and writes them.

Vu et al., The BRAVO Semantic Segmentation Challenge Results in UNCV2024 (arXiv 2409.15107); the toolkit is
https://github.com/valeoai/bravo_challenge.

``_encoded.bin``, little endian: a header of the magic ``BV23``, the version, rows, columns, the number of
confidences, and how many bytes all classes and all confidences take; a zstd frame of the class map, row by row, and
the confidences; and the CRC-32 of all that. ``_samples.bin`` says which pixels the confidences belong to: a zstd
frame of their number and the first one in three bytes each, then the steps from one to the next, in one byte, or in a
zero and three.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import zstandard

from ...errors import DatasetError, reason

MAGIC, VERSION = b"BV23", 2
HEADER = struct.Struct("<4sIIIIII")
MAX_PIXELS = 2**24 - 1
_LEVEL = 9  # the toolkit's
_MOST_BYTES = 2**28


def encode(label: np.ndarray, confidences: np.ndarray) -> bytes:
    """One image's prediction: train ids (H, W) uint8, confidences (N,) uint16 of the sampled pixels in their order.

    ValueError for other shapes or dtypes.
    """
    if label.dtype != np.uint8 or label.ndim != 2 or confidences.dtype != np.uint16 or confidences.ndim != 1:
        raise ValueError(f"(H, W) uint8 and (N,) uint16 are needed, not {label.dtype} and {confidences.dtype}")
    header = HEADER.pack(MAGIC, VERSION, *label.shape, confidences.size, label.nbytes, confidences.nbytes)
    payload = np.ascontiguousarray(label).tobytes() + confidences.astype("<u2").tobytes()
    content = header + zstandard.ZstdCompressor(level=_LEVEL).compress(payload)
    return content + zlib.crc32(content).to_bytes(4, "little")


def decode(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Class map (H, W) uint8 and confidences (N,) uint16 of an ``_encoded.bin``.

    DatasetError if it is damaged, of another version, or no such file; the message does not name it.
    """
    if len(content) < HEADER.size + 4 or content[:4] != MAGIC:
        raise DatasetError("is no encoded prediction")
    if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise DatasetError("is damaged: its checksum is another")
    _, version, rows, columns, count, class_bytes, confidence_bytes = HEADER.unpack_from(content)
    if version != VERSION:
        raise DatasetError(f"is of version {version}, and {VERSION} is read")
    pixels = rows * columns
    payload = _unpacked(content[HEADER.size : -4])
    if (class_bytes, confidence_bytes, len(payload)) != (pixels, 2 * count, pixels + 2 * count):
        raise DatasetError(f"holds {len(payload)} bytes for {rows}x{columns} pixels and {count} confidences")
    label = np.frombuffer(payload, np.uint8, pixels).reshape(rows, columns)
    return label, np.frombuffer(payload, "<u2", count, pixels).astype(np.uint16)


def encode_samples(indices: np.ndarray) -> bytes:
    """Which pixels are sampled: (N,) ascending flat positions below 2**24, at least one.

    ValueError if they are none, not ascending, or too large.
    """
    indices = np.asarray(indices, np.int64)
    steps = np.diff(indices)
    if not indices.size or indices[0] < 0 or indices[-1] > MAX_PIXELS or (steps <= 0).any():
        raise ValueError("at least one, ascending, below 2**24")
    content = bytearray(indices.size.to_bytes(3, "little") + int(indices[0]).to_bytes(3, "little"))
    for step in steps.tolist():
        content += step.to_bytes(1, "little") if step <= 255 else b"\0" + step.to_bytes(3, "little")
    return zstandard.ZstdCompressor(level=_LEVEL).compress(bytes(content))


def decode_samples(content: bytes) -> np.ndarray:
    """Flat positions of the sampled pixels, (N,) int64, ascending.

    DatasetError if it is damaged, or no such file; the message does not name it.
    """
    data = np.frombuffer(_unpacked(content), np.uint8)
    if data.size < 6:
        raise DatasetError("is no list of samples")
    count, first = (int.from_bytes(data[i : i + 3].tobytes(), "little") for i in (0, 3))
    steps = _steps(data[6:])
    if steps.size != count - 1:
        raise DatasetError(f"says that it lists {count} samples, and lists {steps.size + 1}")
    return first + np.concatenate([[0], np.cumsum(steps)])


def _steps(data: np.ndarray) -> np.ndarray:
    """Steps of one byte, or of a zero and three bytes, without looking at each byte from Python."""
    found = []
    position = 0
    zeros = np.flatnonzero(data == 0)
    at = 0
    while at < zeros.size:
        zero = int(zeros[at])
        found.append(data[position:zero].astype(np.int64))
        if zero + 4 > data.size:
            raise DatasetError("is cut short")
        found.append(np.array([int.from_bytes(data[zero + 1 : zero + 4].tobytes(), "little")], np.int64))
        position = zero + 4
        at = int(np.searchsorted(zeros, position))
    found.append(data[position:].astype(np.int64))
    steps = np.concatenate(found)
    if (steps <= 0).any():
        raise DatasetError("lists samples that do not ascend")
    return steps


def _unpacked(frame: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=_MOST_BYTES)
    except zstandard.ZstdError as error:
        raise DatasetError(f"cannot be unpacked ({reason(error)})") from error
