"""The store on the disk: its layout, that any zarr reads it, that what goes in comes out, and equal bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.store.zarr_backend import strip_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from ..stores import (
    CLASSES,
    SETTINGS,
    VERSIONS,
    begun,
    edit_json,
    filled,
    identity,
    logits,
    photo,
    plain_array,
    same_bits,
    strips_of_eight,
    tree,
)

MIXED = [
    photo("day/a.png", (48, 80), 10),
    photo("day/b.png", (33, 57), 20),
    photo("night/c.jpg", (48, 80), 30),
    photo("night/d.jpg", None, 40),
]


def test_the_folder_holds_a_group_an_array_per_size_and_a_file_per_image(where: Path) -> None:
    filled(where, MIXED)
    assert set(tree(where)) == {
        "zarr.json",
        "images/zarr.json",
        "images/path/zarr.json",
        "images/path/c.0",
        "images/numbers/zarr.json",
        "images/numbers/c.0.0",
        "48x80/zarr.json",
        "48x80/c.0.0.0.0",
        "48x80/c.1.0.0.0",
        "33x57/zarr.json",
        "33x57/c.0.0.0.0",
    }


@pytest.mark.usefixtures("low_strips")
def test_an_array_is_float16_of_one_shard_per_image_in_strips_with_checksums(where: Path) -> None:
    begun(where, [photo("a.png", (33, 57)), photo("b.png", (33, 57))])
    array = json.loads((where / "33x57" / "zarr.json").read_text())
    assert (array["zarr_format"], array["node_type"]) == (3, "array")
    assert array["shape"] == [2, 19, 33, 57]
    assert (array["data_type"], array["fill_value"]) == ("float16", "NaN")
    # A shard is a whole number of strips: five of eight rows for 33.
    assert array["chunk_grid"] == {"name": "regular", "configuration": {"chunk_shape": [1, 19, 40, 57]}}
    assert array["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
    (sharding,) = array["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, 19, 8, 57]
    plain, blosc, checksum = sharding["configuration"]["codecs"]
    assert plain == {"name": "bytes", "configuration": {"endian": "little"}}
    assert blosc["name"] == "blosc"
    assert (blosc["configuration"]["cname"], blosc["configuration"]["shuffle"]) == ("lz4", "shuffle")
    assert blosc["configuration"]["typesize"] == 2
    assert checksum == {"name": "crc32c"}
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]


def test_the_attributes_say_what_the_logits_are_and_nothing_that_two_equal_runs_differ_in(where: Path) -> None:
    begun(where, MIXED)
    group = json.loads((where / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    assert "consolidated_metadata" not in group
    expected = {
        "format_version": 2,
        **SETTINGS,
        **VERSIONS,
        "images": 4,
    }
    assert group["attributes"] == json.loads(json.dumps(expected))


def test_plain_zarr_reads_a_store_without_this_package(where: Path) -> None:
    _, made = filled(where, MIXED)
    script = (
        "import sys, zarr\n"
        "group = zarr.open_group(sys.argv[1], mode='r')\n"
        "sys.stdout.buffer.write(group['48x80'][1].tobytes())\n"
        "count = group.attrs['images']\n"
        "paths, numbers = group['images/path'][:count], group['images/numbers'][:count]\n"
        "assert list(paths) == ['day/a.png', 'day/b.png', 'night/c.jpg', 'night/d.jpg'], paths\n"
        "assert group['images/numbers'].attrs['columns'] == ['bytes', 'height', 'width', 'row']\n"
        "expected = [[10, 48, 80, 0], [20, 33, 57, 0], [30, 48, 80, 1], [40, -1, -1, -1]]\n"
        "assert numbers.tolist() == expected, numbers\n"
        "assert 'hmsa_pipeline' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script, where], capture_output=True, check=True)
    assert done.stdout == made["night/c.jpg"].tobytes()


def test_xarray_opens_a_store_of_several_sizes_as_one_dataset(where: Path) -> None:
    _, made = filled(where, MIXED)
    opened = xarray.open_zarr(where, consolidated=False)
    assert opened["33x57"].dims == ("image_33x57", "class", "y_33x57", "x_33x57")
    assert same_bits(opened["48x80"].isel(image_48x80=1).to_numpy(), made["night/c.jpg"])


def test_a_store_without_names_of_dimensions_is_read_and_grows(where: Path) -> None:
    _, made = filled(where, MIXED[:1])
    edit_json(where / "48x80" / "zarr.json", lambda array: array.pop("dimension_names"))
    store = begun(where, MIXED)
    assert same_bits(store.read(0), made["day/a.png"])
    store.write(2, made["day/a.png"])
    assert same_bits(LogitStore.open(where).read(2), made["day/a.png"])


def test_an_image_that_was_not_dumped_never_looks_like_logits_to_plain_zarr(where: Path) -> None:
    begun(where, MIXED)
    assert np.isnan(np.asarray(plain_array(where, "48x80")[0])).all()


def test_strips_of_the_usual_photographs_take_about_five_mebibytes() -> None:
    assert [strip_rows(19, *size) for size in ((1024, 2048), (1080, 1920), (4000, 6000), (48, 80))] == [
        64,
        64,
        16,
        48,
    ]


@given(classes=st.integers(1, 66), height=st.integers(1, 9000), width=st.integers(1, 9000))
def test_a_strip_is_a_power_of_two_of_rows_within_five_mebibytes_but_never_under_eight(
    classes: int, height: int, width: int
) -> None:
    rows = strip_rows(classes, height, width)
    assert 1 <= rows <= height
    if rows < height:
        assert rows >= 8
        assert rows.bit_count() == 1
        assert rows == 8 or classes * rows * width * 2 <= 5 * 2**20
        assert classes * 2 * rows * width * 2 > 5 * 2**20 or rows == 8


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 20), data=st.data())
def test_what_is_written_is_read_to_the_last_bit_whole_in_strips_and_by_plain_zarr(
    height: int, width: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    bits = np.random.default_rng(seed).integers(0, 2**16, (CLASSES, height, width), dtype=np.uint16)
    # Any number but infinities and NaN: both zeros and the subnormal ones too.
    bits[(bits & 0x7C00) == 0x7C00] = 0x8000
    values = bits.view(np.float16)
    start = data.draw(st.integers(0, height - 1))
    stop = data.draw(st.integers(start + 1, height))
    with tempfile.TemporaryDirectory() as folder, strips_of_eight():
        path = Path(folder, "ant.zarr")
        begun(path, [photo("a.png", (height, width)), photo("b.png", (height, width))]).write(1, values)
        store = LogitStore.open(path)
        assert store.complete() == [False, True]
        assert same_bits(store.read(1), values)
        assert same_bits(store.read(1, start, stop), values[:, start:stop])
        strips = [store.read(1, *strip) for strip in store.strips(1)]
        assert len(strips) == -(-height // 8)
        assert same_bits(np.concatenate(strips, axis=1), values)
        store.check(1)
        assert same_bits(np.asarray(plain_array(path, f"{height}x{width}")[1]), values)


@pytest.mark.usefixtures("low_strips")
def test_zeros_are_logits_and_no_empty_chunks(where: Path) -> None:
    store = begun(where, [photo("none.png", (20, 9)), photo("middle.png", (20, 9))])
    for index, shown in enumerate((slice(0, 0), slice(8, 16))):
        values = np.zeros((CLASSES, 20, 9), np.float16)
        values[:, shown] = 1.5
        store.write(index, values)
        assert store.complete()[index]
        assert same_bits(LogitStore.open(where).read(index), values)
        store.check(index)


def test_what_the_disk_holds_depends_neither_on_the_order_of_the_images_nor_on_threads(tmp_path: Path) -> None:
    sizes = [(48, 80), (33, 57), (48, 80), (33, 57), (48, 80), (20, 20)]
    photos = [photo(f"{i}.png", size) for i, size in enumerate(sizes)]
    forward, backward, threads = (begun(tmp_path / name / "ant.zarr", photos) for name in ("a", "b", "c"))
    for index, size in enumerate(sizes):
        forward.write(index, logits(index, *size))
    for index, size in reversed(list(enumerate(sizes))):
        backward.write(index, logits(index, *size))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: threads.write(i, logits(i, *sizes[i])), range(len(sizes))))
    assert tree(forward.path) == tree(backward.path) == tree(threads.path)


def test_a_store_that_grew_is_the_store_that_was_begun_with_all(tmp_path: Path) -> None:
    photos = [
        photo("a.png"),
        photo("b.png", (33, 57)),
        photo("c.png"),
        photo("d.png", (33, 57)),
        photo("e.png", (9, 9)),
    ]
    whole, _ = filled(tmp_path / "whole.zarr", photos)
    for count in range(1, len(photos) + 1):
        grown = LogitStore.for_writing(tmp_path / "grown.zarr", identity(), VERSIONS)
        assert grown.register(photos[:count]) == 1
        size = photos[count - 1].size
        assert size is not None
        grown.write(count - 1, logits(count - 1, *size))
    assert tree(tmp_path / "grown.zarr") == tree(whole.path)


def test_writing_the_same_image_again_changes_nothing(where: Path) -> None:
    store, made = filled(where, [photo("a.png", (33, 57))])
    before = tree(where)
    store.write(0, made["a.png"])
    assert tree(where) == before
