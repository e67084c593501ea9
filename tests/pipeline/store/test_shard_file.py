"""Shards without Zarr: read, they are what Zarr gives; written, what Zarr writes; others are left to Zarr."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hmsa_pipeline.pipeline.store import shard_reader
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.store.shard_file import read_chunk
from hmsa_pipeline.pipeline.store.zarr_backend import ENCODINGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Blosc
from numcodecs.pcodec import PCodec

from ..stores import CLASSES, filled, logits, photo, plain_array, same_bits, strips_of_eight

LOSSLESS, SMALL = (ENCODINGS[name].compressor for name in ("lossless", "small"))
SIZE = (21, 6)
PHOTOS = [photo("a.png", SIZE), photo("b.png", SIZE)]


@pytest.fixture(params=["lossless", "small", "compact"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LogitStore:
    with strips_of_eight():
        filled(tmp_path / "s.zarr", PHOTOS, encoding=request.param)
    return LogitStore.open(tmp_path / "s.zarr")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the chunks that were read without Zarr."""
    numbers: list[int] = []

    def listening(shard: Path, number: int, *arguments: Any) -> None:
        numbers.append(number)
        read_chunk(shard, number, *arguments)

    monkeypatch.setattr(shard_reader, "read_chunk", listening)
    return numbers


@pytest.mark.usefixtures("low_strips")
def test_what_is_written_are_the_bytes_that_zarr_writes(store: LogitStore) -> None:
    shard = store.shard_path(1)
    assert shard is not None
    ours = shard.read_bytes()
    shard.unlink()
    plain_array(store.path, "21x6", "r+").with_config({"write_empty_chunks": True})[1] = logits(1, *SIZE)
    assert shard.read_bytes() == ours


@pytest.mark.usefixtures("low_strips")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(-22, 25), stop=st.none() | st.integers(-22, 25))
def test_any_rows_are_those_that_zarr_gives(store: LogitStore, start: int, stop: int | None) -> None:
    expected = np.asarray(plain_array(store.path, "21x6")[1])[:, start:stop]
    assert same_bits(store.read(1, start, stop), expected)


@pytest.mark.usefixtures("low_strips")
def test_only_the_strips_that_hold_the_rows_are_read(store: LogitStore, opened: list[int]) -> None:
    store.read(0, 7, 9)
    store.read(0, 8, 16)
    store.read(0)
    assert opened == [0, 1, 1, 0, 1, 2]


@pytest.mark.usefixtures("low_strips")
def test_the_same_room_serves_all_strips_and_images(store: LogitStore) -> None:
    room = store.room_for_strip(0)
    assert room.shape == (CLASSES, 8, 6)
    for index in (0, 1):
        whole = store.read(index)
        for start, stop in store.strips(index):
            assert same_bits(store.read(index, start, stop, room), whole[:, start:stop])


def shard_of(tmp_path: Path, content: np.ndarray, compressor: Blosc | PCodec = LOSSLESS, **changes: int) -> Path:
    """A shard of one chunk, each of whose numbers can be made wrong; its checksums are right."""
    packed = bytearray(compressor.encode(content))
    if "nbytes" in changes:
        packed[4:8] = struct.pack("<I", changes["nbytes"])
    if "cbytes" in changes:
        packed[12:16] = struct.pack("<I", changes["cbytes"])
    chunk = bytes(packed) + struct.pack("<I", google_crc32c.value(bytes(packed)))
    index = struct.pack("<QQ", changes.get("offset", 0), changes.get("length", len(chunk)))
    path = tmp_path / "shard"
    path.write_bytes(chunk + index + struct.pack("<I", google_crc32c.value(index)))
    return path


def test_a_chunk_is_decompressed_into_what_is_given(tmp_path: Path) -> None:
    content = np.arange(1000, dtype=np.uint16)
    found = np.zeros_like(content)
    read_chunk(shard_of(tmp_path, content), 0, 1, found, LOSSLESS)
    assert np.array_equal(found, content)


def test_a_chunk_of_pcodec_is_decompressed_into_what_is_given(tmp_path: Path) -> None:
    content = logits(0, *SIZE)
    found = np.zeros_like(content)
    read_chunk(shard_of(tmp_path, content, SMALL), 0, 1, found, SMALL)
    assert same_bits(found, content)


@pytest.mark.parametrize(
    ("content", "size", "said"),
    [
        (np.arange(1000, dtype=np.float16), 999, "not of the size"),
        (np.arange(1000, dtype=np.float16), 1001, "not of the size"),
        (np.arange(1000, dtype=np.int16), 1000, "cannot be decompressed"),
        (np.arange(1000, dtype=np.float32), 1000, "cannot be decompressed"),
    ],
)
def test_a_chunk_of_pcodec_that_holds_something_else_is_damage(
    tmp_path: Path, content: np.ndarray, size: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read_chunk(shard_of(tmp_path, content, SMALL), 0, 1, np.zeros(size, np.float16), SMALL)


def test_a_chunk_of_another_codec_is_damage(tmp_path: Path) -> None:
    content = np.arange(1000, dtype=np.float16)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        read_chunk(shard_of(tmp_path, content, LOSSLESS), 0, 1, np.zeros_like(content), SMALL)
    with pytest.raises(ValueError, match="not of the size"):
        read_chunk(shard_of(tmp_path, content, SMALL), 0, 1, np.zeros_like(content), LOSSLESS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nbytes": 1998}, "not of the size"),
        ({"nbytes": 2**31 - 1}, "not of the size"),
        ({"cbytes": 17}, "not of the size"),
        ({"offset": 10**9}, "its index is wrong"),
        ({"offset": 2**63}, "its index is wrong"),
        ({"length": 2**63}, "its index is wrong"),
        ({"length": 3}, "its index is wrong"),
        ({"length": 4}, "checksum"),
        ({"offset": 1}, "checksum"),
        ({"offset": 2**64 - 1}, "a strip is missing"),
    ],
)
def test_a_wrong_number_is_said_and_nothing_is_decompressed(
    tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    content = np.arange(1000, dtype=np.uint16)
    found = np.zeros_like(content)
    with pytest.raises(ValueError, match=said):
        read_chunk(shard_of(tmp_path, content, **changes), 0, 1, found, LOSSLESS)
    assert not found.any()


def test_a_file_that_is_shorter_than_an_index_is_damage(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"x" * 19)
    with pytest.raises(ValueError, match="cut short"):
        read_chunk(tmp_path / "shard", 0, 1, np.zeros(2, np.uint16), LOSSLESS)
