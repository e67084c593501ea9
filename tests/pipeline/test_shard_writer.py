"""Writing single images from other processes, which know only the images that they are given."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.store import LogitStore

from .stores import begun, identity, logits, photo, same_bits

SIZE = (20, 30)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "ant.zarr"


def test_a_writer_that_travelled_writes_what_the_store_would(where: Path, tmp_path: Path) -> None:
    photos = [photo(f"{n}.png", SIZE) for n in range(3)]
    store, other = begun(where, photos), begun(tmp_path / "other.zarr", photos)
    writer = pickle.loads(pickle.dumps(store.writer()))
    for index, entry in enumerate(store.images):
        assert writer.incomplete([entry]) == [entry]
        writer.write(entry, logits(index, *SIZE))
        other.write(index, logits(index, *SIZE))
        assert writer.incomplete([entry]) == []
        assert same_bits(LogitStore.open(where).read(index), logits(index, *SIZE))
        shards = [one.shard_path(index) for one in (store, other)]
        assert shards[0] is not None and shards[1] is not None
        assert shards[0].read_bytes() == shards[1].read_bytes()


def test_a_writer_travels_light(where: Path) -> None:
    few = len(pickle.dumps(begun(where, [photo("0.png", SIZE)]).writer()))
    many = begun(where.with_name("many.zarr"), [photo(f"{n}.png", SIZE) for n in range(500)])
    assert len(pickle.dumps(many.writer())) <= few + 50


def test_a_writer_of_before_writes_images_that_came_later(where: Path) -> None:
    """Zarr would write nothing past the end of the array that was opened, and say nothing."""
    photos = [photo(f"{n}.png", SIZE) for n in range(4)]
    store = begun(where, photos[:2])
    writer = store.writer()
    writer.write(store.images[0], logits(0, *SIZE))
    store.register(photos)
    writer.write(store.images[3], logits(3, *SIZE))
    assert LogitStore.open(where).complete() == [True, False, False, True]


def test_a_writer_stops_when_the_store_is_started_afresh(where: Path) -> None:
    store = begun(where, [photo("0.png", SIZE)])
    writer, entry = store.writer(), store.images[0]
    LogitStore.create(where, identity(scales=(1.0,)), {}).register([photo("0.png", SIZE)])
    with pytest.raises(StoreError, match="was started over meanwhile"):
        writer.write(entry, logits(0, *SIZE))
    assert writer.incomplete([entry]) == [entry]
