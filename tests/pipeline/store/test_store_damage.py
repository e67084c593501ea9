"""Damage is noticed: whatever bit of a store is not what was written, reading raises or gives what was written."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.store import shard_reader
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.store.shard_file import read_chunk
from hmsa_pipeline.pipeline.store.zarr_backend import DamagedShardError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ..stores import CLASSES, SIZE, begun, filled, flip_bit, logits, photo, plain_array, same_bits, strips_of_eight

PHOTOS = [photo("a.png", (21, 6)), photo("b.png", (21, 6)), photo("c.png", (21, 6))]
FLIPS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Sample:
    """A small store of three strips per image, the last one cut short, and what its files held."""

    path: Path
    made: dict[str, np.ndarray]
    shard: Path
    content: bytes


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    path = tmp_path_factory.mktemp("damage") / "ant.zarr"
    with strips_of_eight():
        store, made = filled(path, PHOTOS)
        shard = store.shard_path(1)
        assert shard is not None
        yield Sample(path, made, shard, shard.read_bytes())


def is_noticed(sample: Sample) -> bool:
    """Whether reading and checking both call image 1 damaged."""
    for attempt in (lambda s: s.read(1), lambda s: s.check(1)):
        with pytest.raises(DamagedShardError) as caught:
            attempt(LogitStore.open(sample.path))
        message = str(caught.value)
        assert message.startswith(f"{sample.shard}: ")
        assert "b.png" in message
        assert "\n" not in message
    return True


@FLIPS
@given(place=st.floats(0, 1, exclude_max=True), more=st.sets(st.floats(0, 1, exclude_max=True), max_size=3))
@example(place=0.0, more=set())
def test_flipped_bits_anywhere_in_a_shard_are_damage(sample: Sample, place: float, more: set[float]) -> None:
    bits = {int(share * 8 * len(sample.content)) for share in {place, *more}}
    try:
        for bit in bits:
            flip_bit(sample.shard, bit)
        assert is_noticed(sample)
    finally:
        sample.shard.write_bytes(sample.content)


def test_a_flip_of_every_bit_of_the_index_and_of_the_codecs_headers_is_damage(sample: Sample) -> None:
    index = 3 * 16 + 4
    offsets = [struct.unpack_from("<QQ", sample.content[-index:], 16 * i)[0] for i in range(3)]
    header = range(8 * 16)
    bits = [8 * offset + bit for offset in offsets for bit in header]
    bits += range(8 * (len(sample.content) - index), 8 * len(sample.content))
    store = LogitStore.open(sample.path)
    try:
        for bit in bits:
            flip_bit(sample.shard, bit)
            with pytest.raises(DamagedShardError):
                store.read(1)
            flip_bit(sample.shard, bit)
    finally:
        sample.shard.write_bytes(sample.content)


@FLIPS
@given(share=st.floats(0, 1, exclude_min=True, exclude_max=True), longer=st.booleans())
def test_a_shard_cut_short_or_grown_is_damage(sample: Sample, share: float, longer: bool) -> None:
    length = 1 + int(share * (len(sample.content) - 1))
    try:
        sample.shard.write_bytes(sample.content + sample.content[:length] if longer else sample.content[:length])
        assert is_noticed(sample)
    finally:
        sample.shard.write_bytes(sample.content)


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_a_missing_and_an_empty_shard_are_incomplete_and_no_damage(sample: Sample, state: str) -> None:
    try:
        sample.shard.unlink()
        if state == "empty":
            sample.shard.touch()
        store = LogitStore.open(sample.path)
        assert store.complete() == [True, False, True]
        for attempt in (store.read, store.check):
            with pytest.raises(
                StoreError, match=r"has no logits of b\.png; make them with 'hmsa-pipeline dump'"
            ) as caught:
                attempt(1)
            assert not isinstance(caught.value, DamagedShardError)
    finally:
        sample.shard.write_bytes(sample.content)


def test_only_the_strips_that_hold_the_damage_cannot_be_read(sample: Sample) -> None:
    store = LogitStore.open(sample.path)
    try:
        flip_bit(sample.shard, 8 * 20)
        assert same_bits(store.read(1, 8, 21), sample.made["b.png"][:, 8:])
        with pytest.raises(DamagedShardError):
            store.read(1, 0, 8)
        assert same_bits(store.read(0), sample.made["a.png"])
    finally:
        sample.shard.write_bytes(sample.content)


@pytest.mark.usefixtures("low_strips")
def test_a_shard_that_plain_zarr_wrote_by_halves_is_damage_and_no_nan(where: Path) -> None:
    store = begun(where, [photo("a.png", (21, 6))])
    plain_array(where, "21x6", "r+")[0, :, :8] = 1.0
    assert store.complete() == [True]
    assert not np.isnan(store.read(0, 0, 8)).any()
    for rows in ((0, 21), (8, 16), (20, 21)):
        with pytest.raises(DamagedShardError, match="a strip is missing"):
            store.read(0, *rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_finds_a_value_that_is_not_finite(where: Path, value: float) -> None:
    store = begun(where, [photo("a.png")])
    values = logits(0, *SIZE)
    values[7, 30, 50] = value
    plain_array(where, "48x80", "r+")[0] = values
    with pytest.raises(DamagedShardError, match=r"logits of a\.png are not all finite"):
        store.check(0)


@pytest.mark.usefixtures("low_strips")
def test_rubbish_under_a_right_checksum_is_damage_too(where: Path) -> None:
    """As if the memory had failed between compressing and summing up."""
    store, _ = filled(where, [photo("a.png", (21, 6))])
    shard = store.shard_path(0)
    assert shard is not None
    data = bytearray(shard.read_bytes())
    offset, length = struct.unpack_from("<QQ", data, len(data) - 52)
    data[offset + 4 : offset + 8] = b"\xff\xff\xff\x7f"
    data[offset + length - 4 : offset + length] = struct.pack(
        "<I", google_crc32c.value(bytes(data[offset : offset + length - 4]))
    )
    shard.write_bytes(data)
    with pytest.raises(DamagedShardError):
        store.read(0)


FAILURES = {
    "the disk": OSError(errno.EIO, "Input/output error"),
    "rights": PermissionError(errno.EACCES, "Permission denied"),
    "memory": MemoryError("no memory for 80 MB"),
    "threads": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_the_machine_cannot_give_is_no_damage(
    sample: Sample, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LogitStore.open(sample.path)

    def fail(*_args: object) -> None:
        raise FAILURES[failure]

    monkeypatch.setattr(shard_reader, "read_chunk", fail)
    with pytest.raises(StoreError, match="cannot be read") as caught:
        store.read(1)
    assert not isinstance(caught.value, DamagedShardError)


def test_a_shard_that_is_taken_away_under_a_reader_gives_no_nan_and_is_no_damage(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LogitStore.open(sample.path)

    def late(shard: Path, *arguments: Any) -> None:
        shard.unlink(missing_ok=True)
        read_chunk(shard, *arguments)

    monkeypatch.setattr(shard_reader, "read_chunk", late)
    try:
        with pytest.raises(StoreError, match=r"has no logits of b\.png") as caught:
            store.read(1)
        assert not isinstance(caught.value, DamagedShardError)
    finally:
        sample.shard.write_bytes(sample.content)


METADATA = [
    *("zarr.json", "21x6/zarr.json"),
    *("images/path/zarr.json", "images/path/c.0", "images/numbers/zarr.json", "images/numbers/c.0.0"),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), which=st.sampled_from(METADATA))
def test_a_flipped_bit_in_the_metadata_never_gives_other_logits(sample: Sample, place: float, which: str) -> None:
    """They have no checksum: what is read must be refused, missing, or what was written under that name."""
    file = sample.path / which
    content = file.read_bytes()
    try:
        flip_bit(file, int(place * 8 * len(content)))
        store = LogitStore.open(sample.path)
        for name in sample.made.keys() & store.index.keys():
            index = store.index[name]
            try:
                assert same_bits(store.read(index), sample.made[name])
            except StoreError as error:
                # Damage would have `verify --repair` move a sound shard away.
                assert not isinstance(error, DamagedShardError)
    except StoreError:
        pass
    finally:
        file.write_bytes(content)


WRONG_ARRAYS: dict[str, Callable[[dict], object]] = {
    "a row less": lambda array: array["shape"].__setitem__(2, 20),
    "a column more": lambda array: array["shape"].__setitem__(3, 7),
    "a class less": lambda array: array["shape"].__setitem__(1, CLASSES - 1),
    "images less": lambda array: array["shape"].__setitem__(0, 1),
    "other keys": lambda array: array["chunk_key_encoding"]["configuration"].update(separator="/"),
    "another type": lambda array: array.update(data_type="int16", fill_value=0),
    "floats of twice the length": lambda array: array.update(data_type="float32"),
    "another fill value": lambda array: array.update(fill_value=0.0),
    "other strips": lambda array: array["codecs"][0]["configuration"].update(chunk_shape=[1, CLASSES, 12, 6]),
    "shards of two images": lambda array: array["chunk_grid"]["configuration"].update(
        chunk_shape=[2, CLASSES, 24, 6]
    ),
    "no shards": lambda array: array.update(codecs=array["codecs"][0]["configuration"]["codecs"]),
    "another encoding": lambda array: array["codecs"][0]["configuration"]["codecs"].insert(
        0, {"name": "hmsa.fixed_point", "configuration": {"steps": 64}}
    ),
    "an encoding of other steps": lambda array: array["codecs"][0]["configuration"]["codecs"].insert(
        0, {"name": "hmsa.fixed_point", "configuration": {"steps": 32}}
    ),
    "another compressor": lambda array: array["codecs"][0]["configuration"]["codecs"][1]["configuration"].update(
        cname="zstd"
    ),
    "no checksums": lambda array: array["codecs"][0]["configuration"]["codecs"].pop(),
    "values of the other byte order": lambda array: array["codecs"][0]["configuration"]["codecs"][0][
        "configuration"
    ].update(endian="big"),
    "an index without its byte order": lambda array: array["codecs"][0]["configuration"]["index_codecs"][0].pop(
        "configuration"
    ),
    "an index of the other byte order": lambda array: array["codecs"][0]["configuration"]["index_codecs"][0][
        "configuration"
    ].update(endian="big"),
    "an index without a checksum": lambda array: array["codecs"][0]["configuration"]["index_codecs"].pop(),
    "an index at the start": lambda array: array["codecs"][0]["configuration"].update(index_location="start"),
    "a codec of somebody's": lambda array: array["codecs"].append({"name": "somebodys"}),
    "a key too few": lambda array: array.pop("chunk_grid"),
}


@pytest.mark.usefixtures("low_strips")
@pytest.mark.parametrize("wrong", WRONG_ARRAYS)
def test_an_array_that_is_not_the_tables_is_neither_read_nor_written(where: Path, wrong: str) -> None:
    filled(where, PHOTOS[:2])
    file = where / "21x6" / "zarr.json"
    array = json.loads(file.read_text())
    WRONG_ARRAYS[wrong](array)
    file.write_text(json.dumps(array))
    shards = {path: path.read_bytes() for path in where.glob("*/c.*")}
    store = LogitStore.open(where, writable=True)
    with pytest.raises(StoreError) as caught:
        store.read(1)
    assert not isinstance(caught.value, DamagedShardError)
    if wrong != "images less":
        with pytest.raises(StoreError, match="remove this one file"):
            LogitStore.open(where).require_arrays()
        assert "remove this one file, the next 'hmsa-pipeline dump'" in str(caught.value)
        with pytest.raises(StoreError):
            store.write(0, logits(0, 21, 6))
    assert {path: path.read_bytes() for path in where.glob("*/c.*")} == shards
    # Removing that file is all it takes.
    file.unlink()
    store = begun(where, PHOTOS[:2])
    assert same_bits(store.read(1), logits(1, 21, 6))


def test_an_array_with_too_few_images_is_grown_by_the_next_writer(where: Path) -> None:
    _, made = filled(where, PHOTOS)
    file = where / "21x6" / "zarr.json"
    array = json.loads(file.read_text())
    array["shape"][0] = 1
    file.write_text(json.dumps(array))
    assert same_bits(begun(where, PHOTOS).read(2), made["c.png"])


def test_a_folder_in_a_shards_place_is_no_logits(where: Path) -> None:
    store, _ = filled(where, PHOTOS)
    shard = store.shard_path(0)
    assert shard is not None
    shard.unlink()
    shard.mkdir()
    with pytest.raises(StoreError):
        store.read(0)
    shutil.rmtree(shard)
