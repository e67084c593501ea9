"""The challenge's files, against those that its toolkit wrote."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hmsa_pipeline.errors import DatasetError
from hmsa_pipeline.pipeline.submission.bravo_codec import (
    HEADER,
    MAX_PIXELS,
    decode,
    decode_samples,
    encode,
    encode_samples,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

GOLDEN = Path(__file__).parents[2] / "data" / "bravo_submission"


def golden() -> Iterator[tuple[str, bytes, bytes]]:
    """Base, encoded prediction and samples of every image."""
    with tarfile.open(GOLDEN / "samples.tar") as samples, tarfile.open(GOLDEN / "submission.tar") as submission:
        for name in samples.getnames():
            base = name.removesuffix("_samples.bin")
            sampled, encoded = samples.extractfile(name), submission.extractfile(f"{base}_encoded.bin")
            assert sampled is not None
            assert encoded is not None
            yield base, encoded.read(), sampled.read()


def test_what_the_toolkit_wrote_is_read_and_written_alike() -> None:
    inputs = np.load(GOLDEN / "inputs.npz")
    seen = 0
    for base, encoded, sampled in golden():
        key = base.replace("/", "|")
        indices = decode_samples(sampled)
        label, confidences = decode(encoded)
        np.testing.assert_array_equal(indices, inputs[f"{key}|sample_indices"])
        np.testing.assert_array_equal(label, inputs[f"{key}|pred"])
        np.testing.assert_array_equal(confidences, inputs[f"{key}|conf"].ravel()[indices])
        # The compressed bytes are zstd's own affair, which may change with its version.
        again = encode(label, confidences)
        assert again[: HEADER.size] == encoded[: HEADER.size]
        assert unpacked(again[HEADER.size : -4]) == unpacked(encoded[HEADER.size : -4])
        assert unpacked(encode_samples(indices)) == unpacked(sampled)
        seen += 1
    assert seen == 11


def unpacked(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(frame)


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9)),
    arrays(np.uint16, st.integers(0, 20)),
)
def test_predictions_survive(label: np.ndarray, confidences: np.ndarray) -> None:
    again = decode(encode(label, confidences))
    np.testing.assert_array_equal(again[0], label)
    np.testing.assert_array_equal(again[1], confidences)
    assert (again[0].dtype, again[1].dtype) == (np.uint8, np.uint16)


@given(st.lists(st.integers(0, MAX_PIXELS) | st.integers(0, 700), min_size=1, max_size=40, unique=True))
def test_samples_survive(indices: list[int]) -> None:
    assert decode_samples(encode_samples(np.array(sorted(indices)))).tolist() == sorted(indices)


@pytest.mark.parametrize("steps", [[1, 255], [256], [255, 256, 1], [65536, 512, 256]])
def test_steps_whose_bytes_are_zeros_survive(steps: list[int]) -> None:
    indices = np.cumsum([0, *steps])
    assert decode_samples(encode_samples(indices)).tolist() == indices.tolist()


def test_every_flipped_byte_is_noticed() -> None:
    whole = encode(np.arange(12, dtype=np.uint8).reshape(3, 4), np.arange(5, dtype=np.uint16))
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        with pytest.raises(DatasetError):
            decode(bytes(damaged))
    for length in range(len(whole)):
        with pytest.raises(DatasetError):
            decode(whole[:length])


def sealed(version: int = 2, rows: int = 1, columns: int = 2, count: int = 1, payload: bytes = b"\1\2\3\4") -> bytes:
    """A file whose checksum holds, whatever it says."""
    header = HEADER.pack(b"BV23", version, rows, columns, count, rows * columns, 2 * count)
    content = header + zstandard.ZstdCompressor().compress(payload)
    return content + zlib.crc32(content).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (sealed(version=1), "is of version 1"),
        (sealed(rows=2), "holds 4 bytes for 2x2 pixels and 1 confidences"),
        (sealed(count=2), "holds 4 bytes for 1x2 pixels and 2 confidences"),
        (b"PK\3\4" + bytes(60), "is no encoded prediction"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(content: bytes, said: str) -> None:
    assert decode(sealed())[0].tolist() == [[1, 2]]
    with pytest.raises(DatasetError, match=said):
        decode(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\1\0\0", "is no list of samples"),
        (b"\2\0\0" + b"\5\0\0", "says that it lists 2 samples, and lists 1"),
        (b"\2\0\0" + b"\5\0\0" + b"\0\1", "is cut short"),
        (b"\2\0\0" + b"\5\0\0" + b"\0\0\0\0", "do not ascend"),
    ],
)
def test_samples_that_contradict_themselves_are_refused(content: bytes, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        decode_samples(zstandard.ZstdCompressor().compress(content))
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        decode_samples(content)


@pytest.mark.parametrize("indices", [[], [3, 3], [4, 2], [-1, 2], [0, MAX_PIXELS + 1]])
def test_samples_that_cannot_be_written_are_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        encode_samples(np.array(indices, np.int64))


def test_predictions_of_another_kind_are_refused() -> None:
    for label, confidences in (
        (np.zeros((2, 2), np.int64), np.zeros(1, np.uint16)),
        (np.zeros(4, np.uint8), np.zeros(1, np.uint16)),
        (np.zeros((2, 2), np.uint8), np.zeros(1, np.float32)),
    ):
        with pytest.raises(ValueError, match="uint16 are needed"):
            encode(label, confidences)
