"""Photographs that EXIF asks viewers to turn: Pillow's own turning says what is right."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.decode.arrays import decode_rgb
from hmsa_pipeline.datasets.decode.exif import EXIF_MARK, read_orientation
from hmsa_pipeline.datasets.decode.image_header import header_of, read_size
from hmsa_pipeline.datasets.decode.tensors import decode_image
from PIL import Image, ImageOps

SUFFIXES = ("jpg", "png", "webp")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def photograph(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x010F] = "a maker"  # so that the orientation is not the first entry
    exif[0x0112] = orientation
    picture = Image.fromarray(PIXELS)
    picture.info["comment"] = b"a comment between the header and EXIF"
    picture.save(path, exif=exif, lossless=True)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_on_request_alone(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = photograph(tmp_path / f"a.{suffix}", orientation)
    with Image.open(path) as image:
        stored = np.array(image.convert("RGB"))
        shown = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode_rgb(path), stored)
    assert np.array_equal(decode_rgb(path, exif=True), shown)
    assert np.array_equal(decode_image(path, exif=True).permute(1, 2, 0).numpy(), shown)
    assert read_size(path) == stored.shape[:2]
    assert (header_of(path).orientation, header_of(path).turned_size) == (orientation, shown.shape[:2])


def test_exif_behind_the_pixels_of_a_png_is_found_where_pixels_are_to_be_turned(tmp_path: Path) -> None:
    data = photograph(tmp_path / "a.png", 8).read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    rest = data[:start] + data[end:]
    path = tmp_path / "late.png"
    path.write_bytes(rest[:-12] + data[start:end] + rest[-12:])
    assert header_of(path).orientation == 1
    assert header_of(path, late_exif=True).turned_size == (9, 6)
    assert np.array_equal(decode_rgb(path), PIXELS)
    assert np.array_equal(decode_rgb(path, exif=True), np.rot90(PIXELS))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_most_photographs_say_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).save(path)
    assert header_of(path).orientation == 1


def block(order: str, value: int, kind: int = 3, count: int = 1) -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}HHHIHH", 1, 0x0112, kind, count, value, 0)


@pytest.mark.parametrize("order", "<>")
def test_both_orders_of_bytes_are_read_with_and_without_the_mark(order: str) -> None:
    assert read_orientation(block(order, 6)) == read_orientation(EXIF_MARK + block(order, 6)) == 6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"II*\0",
        block("<", 6)[:-6],
        block("<", 9),
        block("<", 0),
        block("<", 6, kind=4),
        block("<", 6, count=2),
        b"II*\0\xff\xff\xff\xff",
        b"no TIFF at all",
    ],
)
def test_damaged_exif_turns_nothing(content: bytes) -> None:
    assert read_orientation(content) == 1


def test_a_png_is_not_read_through_to_look_for_exif(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(path)

    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.taken += len(found)
            return found

    from hmsa_pipeline.datasets.decode.image_header import read_header

    file = Counting(path.read_bytes())
    read_header(file)
    assert file.taken < 200
