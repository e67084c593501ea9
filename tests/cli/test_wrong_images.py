"""Photographs that do not decode: listed with the reason, while all others are dumped and fused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from re import fullmatch

import pytest

from .bench import Bench, ended, files, listed, quiet


def with_wrong_crc(kind: bytes) -> Callable[[bytes], bytes]:
    """A PNG whose first chunk of a kind has another checksum than its content."""

    def spoil(png: bytes) -> bytes:
        start = png.index(kind)
        end = start + 4 + int.from_bytes(png[start - 4 : start])
        return png[:end] + bytes(byte ^ 0xFF for byte in png[end : end + 4]) + png[end + 4 :]

    return spoil


def with_broken_stream(png: bytes) -> bytes:
    """A PNG whose every checksum is right, round a zlib stream that is none."""
    start = png.index(b"IDAT")
    end = start + 4 + int.from_bytes(png[start - 4 : start])
    content = png[start + 4 : start + 6] + b"\xff" * (end - start - 6)
    return png[: start + 4] + content + zlib.crc32(b"IDAT" + content).to_bytes(4) + png[end + 4 :]


def as_large_as_a_city(png: bytes) -> bytes:
    """A PNG that says it has ten thousand million pixels."""
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4) + png[33:]


PNG, JPEG = "night/d.png", "day/b.jpg"

TROUBLES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a PNG with a wrong CRC": (PNG, with_wrong_crc(b"IDAT")),
    "a PNG with a wrong CRC in its header": (PNG, with_wrong_crc(b"IHDR")),
    "a PNG with a broken stream": (PNG, with_broken_stream),
    "a truncated PNG": (PNG, lambda content: content[: len(content) // 2]),
    "a PNG that wants all memory": (PNG, as_large_as_a_city),
    "a truncated JPEG": (JPEG, lambda content: content[: len(content) // 2]),
    "a JPEG without its pixels": (JPEG, lambda content: content[:200]),
    "an empty file": (PNG, lambda content: b""),
    "a text": (PNG, lambda content: b"a photograph of a street"),
    "zeros": (JPEG, lambda content: bytes(len(content))),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_one_that_does_not_decode_is_listed_and_the_others_are_done(empty: Bench, trouble: str) -> None:
    image, spoil = TROUBLES[trouble]
    photo = empty.root / "photos/street" / image
    sound = photo.read_bytes()
    photo.write_bytes(spoil(sound))
    chosen = ("--models", "ant", "--datasets", "street")
    result = empty.run("dump", *chosen)
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith(f"failed: street/ant: {image}: {photo}: ")
    assert "3 images dumped, 0 complete before, 1 failed" in result.out
    entry = next(e for e in listed(empty.store("street", "ant")) if e["path"] == image)
    assert not (empty.store("street", "ant") / f"{entry['array']}/c.{entry['row']}.0.0.0").exists()

    result = empty.run("ensemble", *chosen)
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith(f"failed: street: {image}: {photo}: ")
    assert "3 images fused, 0 done before, 1 failed" in result.out

    photo.write_bytes(sound)
    assert "1 image dumped, 3 complete before, 0 failed" in empty.run("dump", *chosen).out
    assert "1 image fused, 3 done before, 0 failed" in empty.run("ensemble", *chosen).out
    assert empty.run("verify").out == "4 images are sound, 0 damaged, 0 unreadable\n"


def test_a_damaged_png_does_not_take_the_process_down(empty: Bench) -> None:
    photo = empty.root / "photos/street" / PNG
    photo.write_bytes(with_broken_stream(photo.read_bytes()))
    result = ended(empty.start("dump", "--models", "ant"))
    assert result.code == 1
    (line,) = quiet(result.err)
    assert line.startswith(f"failed: street/ant: {PNG}: ")
    assert "5 images dumped, 0 complete before, 1 failed" in result.out


def test_an_image_name_of_several_lines_is_listed_in_one(empty: Bench) -> None:
    (empty.root / "photos/garden/two\nlines.png").write_bytes(b"")
    result = empty.run("dump", "--models", "ant", "--datasets", "garden")
    (line,) = result.err.splitlines()
    assert line.startswith(r"failed: garden/ant: two\nlines.png: ")
    shards = [name for name in files(empty.store("garden", "ant")) if fullmatch(r"\d+x\d+/c\..*", name)]
    assert len(shards) == 2
