"""PNG files of class maps and confidences, read by Pillow and, chunk by chunk, by the specification."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hmsa_pipeline.pipeline.fusion.grey_png import encode_png
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image


def draw(height: int, width: int, dtype: type, seed: int, noise: bool) -> NDArray:
    """Regions of few values, or noise of all of them."""
    generator = np.random.default_rng(seed)
    if noise:
        return generator.integers(0, np.iinfo(dtype).max, (height, width), dtype, endpoint=True)
    rows, columns = np.arange(height)[:, None] // 5, np.arange(width) // 7
    return ((rows * 31 + columns * seed) % np.iinfo(dtype).max).astype(dtype)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of every chunk, whose checksums are right."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found, place = [], 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", png, place + 8 + length) == (zlib.crc32(kind + content),)
        found.append((kind, content))
        place += 12 + length
    return found


@given(
    size=st.tuples(st.sampled_from([1, 2, 31, 32, 33, 70]), st.integers(1, 40)),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 99),
    noise=st.booleans(),
)
@settings(deadline=None)
def test_pillow_reads_every_pixel(size: tuple[int, int], dtype: type, seed: int, noise: bool) -> None:
    pixels = draw(*size, dtype, seed, noise)
    with Image.open(io.BytesIO(encode_png(pixels))) as picture:
        assert picture.mode == {np.uint8: "L", np.uint16: "I;16"}[dtype]
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize(("dtype", "filter_type"), [(np.uint8, 2), (np.uint16, 3)])
def test_every_row_has_the_same_filter(dtype: type, filter_type: int) -> None:
    pixels = draw(70, 9, dtype, 3, noise=False)
    kinds, contents = zip(*chunks(encode_png(pixels)), strict=True)
    assert kinds == (b"IHDR", b"IDAT", b"IEND")
    rows = np.frombuffer(zlib.decompress(contents[1]), np.uint8).reshape(70, -1)
    assert rows.shape[1] == 1 + pixels[0].nbytes
    assert set(rows[:, 0].tolist()) == {filter_type}


def test_maps_are_about_as_small_as_those_of_a_filter_for_every_row() -> None:
    """Levels that rise and fall slowly, as confidences do."""
    y, x = np.mgrid[:256, :512]
    noise = np.random.default_rng(0).integers(0, 64, y.shape)
    confidence = (30000 + 20000 * np.sin(y / 40) * np.cos(x / 60) + noise).astype(np.uint16)
    for pixels in ((confidence // 4096).astype(np.uint8), confidence):
        adaptive = io.BytesIO()
        Image.fromarray(pixels).save(adaptive, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
        assert len(encode_png(pixels)) < 1.1 * len(adaptive.getvalue())
        assert len(encode_png(pixels)) < 0.8 * pixels.nbytes


def test_text_stands_in_front_of_the_pixels() -> None:
    png = encode_png(draw(3, 4, np.uint8, 1, noise=False), {"counts": "1 2 3", "café": "é"})
    assert [kind for kind, _ in chunks(png)] == [b"IHDR", b"tEXt", b"tEXt", b"IDAT", b"IEND"]
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.info == {"counts": "1 2 3", "café": "é"}


def test_arrays_that_are_not_contiguous_give_the_same_file() -> None:
    pixels = draw(40, 60, np.uint16, 5, noise=True)
    assert encode_png(pixels[::2, 1::3]) == encode_png(np.ascontiguousarray(pixels[::2, 1::3]))


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.int32), np.zeros((0, 3), np.uint8)], ids=str
)
def test_other_arrays_are_refused(pixels: NDArray) -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W\) uint8 or uint16, not"):
        encode_png(pixels)
