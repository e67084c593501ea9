"""Decoding against Pillow and a PNG writer of our own; damaged files in a process of their own."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.decode import tensors as images
from hmsa_pipeline.datasets.decode.image_header import read_size
from hmsa_pipeline.errors import DatasetError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
# Hypothesis draws contents only; the one folder it writes to is overwritten each time.
in_one_folder = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: bytes, height: int, width: int, depth: int, colour: int, palette: bytes = b"", **header) -> bytes:
    """A PNG by the specification's book; ``rows`` with the filter byte before each."""
    values = {"w": width, "h": height, "d": depth, "c": colour, "z": 0, "f": 0, "i": 0} | header
    parts = [SIGNATURE, chunk(b"IHDR", struct.pack(">IIBBBBB", *values.values()))]
    if palette:
        parts.append(chunk(b"PLTE", palette))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def png_from(samples: np.ndarray, depth: int, colour: int) -> bytes:
    """``samples`` (H, W, S) of at most ``depth`` bits."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if depth == 16:
        rows = flat.astype(">u2").view(np.uint8)
    elif depth == 8:
        rows = flat.astype(np.uint8)
    else:
        bits = (flat[..., None].astype(np.uint8) >> np.arange(depth - 1, -1, -1, dtype=np.uint8)) & 1
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    return png(np.pad(rows, ((0, 0), (1, 0))).tobytes(), height, width, depth, colour)


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    place, found = 8, []
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def joined(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(kind, content) for kind, content in chunks)


def picture(height: int = 31, width: int = 43, seed: int = 0) -> Image.Image:
    """Smooth in parts and rough in others, with transparency."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 5, y * 7, (x + y) * 3, 255 - x * 4], axis=2) + rng.integers(0, 20, (height, width, 4))
    return Image.fromarray((pixels % 256).astype(np.uint8), "RGBA")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data: bytes, folder: Path, name: str = "picture.png") -> torch.Tensor:
    path = folder / name
    path.write_bytes(data)
    return images.decode_image(path)


def with_adobe_marker(jpeg: bytes, transform: int) -> bytes:
    marker = b"\xff\xee\x00\x0eAdobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    assert jpeg[2:4] == b"\xff\xee", "Pillow writes this marker first"
    return jpeg[:2] + marker + jpeg[18:]


QUARTER_TURN = Image.Exif()
QUARTER_TURN[ExifTags.Base.Orientation] = 6
RGBA = picture()
RGB = RGBA.convert("RGB")
KINDS = {
    "rgb": encoded(RGB, "PNG"),
    "rgba": encoded(RGBA, "PNG"),
    "grey": encoded(RGB.convert("L"), "PNG"),
    "grey with alpha": encoded(RGBA.convert("LA"), "PNG"),
    "grey with one transparent level": encoded(RGB.convert("L"), "PNG", transparency=7),
    "black and white": encoded(RGB.convert("1"), "PNG"),
    "palette": encoded(RGB.convert("P"), "PNG"),
    "palette of four colours": encoded(RGB.quantize(4), "PNG"),
    "palette with transparency": encoded(RGB.convert("P"), "PNG", transparency=3),
    "jpeg": encoded(RGB, "JPEG"),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True, quality=91, subsampling=0),
    "grey jpeg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    "inverted ycck jpeg": with_adobe_marker(encoded(RGB.convert("CMYK"), "JPEG"), 2),
    "rgb jpeg": encoded(RGB, "JPEG", keep_rgb=True),
    "rotated by exif": encoded(RGB, "JPEG", exif=QUARTER_TURN),
    "webp": encoded(RGB, "WEBP"),
    "lossless webp": encoded(RGB, "WEBP", lossless=True),
    "webp with alpha": encoded(RGBA, "WEBP"),
    "extended webp": encoded(RGB, "WEBP", icc_profile=b"some profile"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_as_torchvision_decodes_it(kind, tmp_path):
    from torchvision.io import ImageReadMode, decode_image

    picture = decode(KINDS[kind], tmp_path)
    assert picture.dtype == torch.uint8 and picture.is_contiguous()
    # Only whole files may go there: damaged ones end the process.
    other = decode_image(torch.frombuffer(bytearray(KINDS[kind]), dtype=torch.uint8), mode=ImageReadMode.RGB)
    assert torch.equal(picture, other)
    assert read_size(tmp_path / "picture.png") == (31, 43)  # the name says PNG; the content decides


@given(
    colour=st.sampled_from([0, 2, 4, 6]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
)
@in_one_folder
def test_sixteen_bits_scale_to_eight(colour, size, seed, tmp_path):
    samples = np.random.default_rng(seed).integers(0, 2**16, (*size, SAMPLES[colour]), dtype=np.uint16)
    samples.reshape(-1)[:2] = (0, 65535)[: samples.size]
    colours = samples[..., :3] if colour in (2, 6) else np.repeat(samples[..., :1], 3, axis=2)
    out = decode(png_from(samples, 16, colour), tmp_path).numpy().transpose(1, 2, 0)
    # The upper byte is at most one level from the nearest of 256, and black and white stay what they are.
    assert np.abs(out.astype(float) - colours / 257).max() < 1
    assert (out[colours == 0] == 0).all() and (out[colours == 65535] == 255).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_shallow_grey_fills_the_whole_range(depth, tmp_path):
    levels = np.arange(2**depth).reshape(1, -1, 1)
    out = decode(png_from(levels, depth, 0), tmp_path).numpy()
    np.testing.assert_array_equal(out, np.repeat(levels[None, :, :, 0] * (255 // (2**depth - 1)), 3, axis=0))


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    depth_colour=st.sampled_from([(8, 2), (1, 0), (16, 6)]),
)
@in_one_folder
def test_interlaced(size, depth_colour, tmp_path):
    (height, width), (depth, colour) = size, depth_colour
    samples = np.random.default_rng(height * 31 + width).integers(0, 2**depth, (height, width, SAMPLES[colour]))
    rows = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = samples[y::dy, x::dx]
        if part.size:
            rows += zlib.decompress(dict(chunks_of(png_from(part, depth, colour)))[b"IDAT"])
    interlaced = png(rows, height, width, depth, colour, i=1)
    assert torch.equal(decode(interlaced, tmp_path), decode(png_from(samples, depth, colour), tmp_path, "plain.png"))
    with pytest.raises(DatasetError, match="fewer pixels"):
        decode(png(rows[:-1], height, width, depth, colour, i=1), tmp_path)


@given(
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    how=st.sampled_from(
        [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"x"})]
    ),
)
@in_one_folder
def test_size_from_the_header(size, how, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(Image.new("RGB", size[::-1]), how[0], **how[1]))
    assert read_size(path) == size


def test_a_header_behind_a_long_profile_and_a_thumbnail(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(RGB, "JPEG", icc_profile=bytes(300_000), comment=encoded(RGB.resize((8, 8)), "JPEG")))
    assert read_size(path) == (31, 43)


def test_later_pictures_of_an_animated_png_do_not_count(tmp_path):
    animated = encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(90, expand=False)])
    assert torch.equal(decode(animated, tmp_path), decode(KINDS["rgb"], tmp_path))


def test_trailing_bytes_are_ignored(tmp_path):
    for kind in ("rgb", "jpeg", "webp"):
        assert torch.equal(decode(KINDS[kind] + b"more" * 99, tmp_path), decode(KINDS[kind], tmp_path))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "no image that we know"),
        (encoded(RGB, "GIF"), "a GIF picture; only PNG, JPEG and WebP"),
        (encoded(RGB, "BMP"), "a BMP picture"),
        (encoded(RGB, "TIFF"), "a TIFF picture"),
        (encoded(RGB, "AVIF") if "AVIF" in Image.SAVE else b"\0\0\0\x1cftypavif", "an AVIF or HEIC picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!doctype html><title>404</title>", "a web page"),
        (encoded(RGB, "WEBP", save_all=True, append_images=[RGBA.rotate(9)]), "animated WebP"),
        (png(b"\0", 1, 1, 3, 0), "what no PNG can be"),
        (png(b"\0", 0, 1, 8, 0), "0 x 1 pixels"),
        (png(b"\0", 1, 1, 8, 3), "no palette"),
        (b"\xff\xd8\xff\xd9", "no frame header"),
        (b"\xff\xd8\xff\xe0\x00\x01", "without a length"),
    ],
)
def test_what_is_refused_says_why_in_one_line(data, reason, tmp_path):
    path = tmp_path / "odd.png"
    path.write_bytes(data)
    for read in (images.decode_image, read_size) if reason != "no palette" else (images.decode_image,):
        with pytest.raises(DatasetError, match=reason) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_cannot_be_opened(tmp_path):
    for read in (images.decode_image, read_size):
        with pytest.raises(DatasetError, match=r"nowhere\.png: cannot be read"):
            read(tmp_path / "nowhere.png")
        with pytest.raises(DatasetError, match="cannot be read"):
            read(tmp_path)


@given(kind=st.sampled_from(sorted(KINDS)), share=st.floats(0, 1, exclude_max=True))
@in_one_folder
def test_a_file_cut_short_anywhere_is_never_a_picture(kind, share, tmp_path):
    whole = KINDS[kind]
    with pytest.raises(DatasetError):
        decode(whole[: int(len(whole) * share)], tmp_path)


@pytest.mark.parametrize("kind", ["rgb", "jpeg", "progressive jpeg", "webp", "lossless webp"])
def test_a_file_that_lacks_its_last_bytes_is_never_a_picture(kind, tmp_path):
    for lost in range(1, 12):
        with pytest.raises(DatasetError):
            decode(KINDS[kind][:-lost], tmp_path)


@given(place=st.integers(8, len(KINDS["rgb"]) - 1), bit=st.integers(0, 7))
@in_one_folder
def test_one_flipped_bit_in_a_png_is_always_noticed(place, bit, tmp_path):
    damaged = bytearray(KINDS["rgb"])
    damaged[place] ^= 1 << bit
    with pytest.raises(DatasetError):
        decode(bytes(damaged), tmp_path)


@pytest.mark.parametrize("rows", [0, 1, 15, 30])
def test_missing_rows_are_noticed_even_where_the_stream_ends_as_it_should(rows, tmp_path):
    cut = png_from(np.full((rows, 43, 3), 9), 8, 2) if rows else png(b"", 1, 43, 8, 2)
    claims_more = cut[:20] + struct.pack(">I", 31) + cut[24:29]
    data = claims_more + struct.pack(">I", zlib.crc32(claims_more[12:29])) + cut[33:]
    with pytest.raises(DatasetError, match="fewer pixels"):
        decode(data, tmp_path)


def damaged_files() -> dict[str, bytes]:
    """Files whose checksums are right and whose content is not, and damaged JPEG and WebP."""
    files: dict[str, bytes] = {}
    rng = random.Random(5)
    for kind, data in KINDS.items():
        if not data.startswith(SIGNATURE):
            for n in range(30):
                damaged = bytearray(data)
                for _ in range(rng.choice([1, 3, 20])):
                    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
                files[f"{kind} {n}"] = bytes(damaged)
            continue
        chunks = chunks_of(data)
        head, rest = [c for c in chunks if c[0] != b"IDAT"][:-1], [(b"IEND", b"")]
        packed = dict(chunks)[b"IDAT"]
        pixels, ihdr = zlib.decompress(packed), bytearray(chunks[0][1])
        for n in range(16):
            damaged = bytearray(packed)
            damaged[rng.randrange(min(len(damaged), 40 if n % 2 else 10**6))] ^= 1 << rng.randrange(8)
            files[f"{kind} stream {n}"] = joined([*head, (b"IDAT", bytes(damaged)), *rest])
        filtered = bytes([77]) + pixels[1:]
        for name, content in {
            "stream empty": b"",
            "stream half": packed[: len(packed) // 2],
            "stream unchecked": packed[:-1] + bytes([packed[-1] ^ 1]),
            "pixels half": zlib.compress(pixels[: len(pixels) // 2]),
            "filter unknown": zlib.compress(filtered),
        }.items():
            files[f"{kind} {name}"] = joined([*head, (b"IDAT", content), *rest])
        for place, values in {
            8: (1, 2, 4, 16, 99),
            9: (0, 2, 3, 4, 6, 99),
            12: (1, 2),
            3: (44, 42),
            7: (32, 30),
        }.items():
            for value in values:
                if ihdr[place] != value:
                    other = bytes(ihdr[:place]) + bytes([value]) + bytes(ihdr[place + 1 :])
                    files[f"{kind} header {place} is {value}"] = joined([(b"IHDR", other), *chunks[1:]])
        files[f"{kind} no pixels"] = joined([*head, *rest])
        files[f"{kind} two headers"] = joined([chunks[0], *chunks])
        files[f"{kind} unknown chunk"] = joined([*head, (b"WHAT", b"?"), *chunks[len(head) :]])
    files["huge header"] = png(b"\0" * 99, 60_000, 60_000, 8, 2)
    files["huge for its length"] = png(b"\0" * 99, 9_000, 9_000, 8, 2)
    files["unpacks to far more"] = png(bytes(100_000_000), 4, 4, 8, 2)
    return files


CHILD = """
import json, resource, sys
from pathlib import Path
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.errors import DatasetError
outcomes, before = {}, 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        outcomes[path.name] = decode_image(path).numpy().tobytes().hex()
    except DatasetError as error:
        outcomes[path.name] = f"error: {error}"
    before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"outcomes": outcomes, "grown_kib": grown}))
"""


def test_no_damaged_file_takes_the_process_or_its_memory(tmp_path):
    files = damaged_files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    child = subprocess.run([sys.executable, "-P", "-c", CHILD, str(tmp_path)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    report = json.loads(child.stdout)
    outcomes = report["outcomes"]
    assert len(outcomes) == len(files) > 400
    assert report["grown_kib"] < 60_000
    for name, outcome in outcomes.items():
        kind = next((k for k in sorted(KINDS, key=len, reverse=True) if name.startswith(k)), "")
        if " stream " in name and not outcome.startswith("error: "):
            # Some bits of a zlib stream mean nothing; then the picture is whole.
            assert outcome == decode(KINDS[kind], tmp_path, "whole").numpy().tobytes().hex(), name
        elif "header" not in name and KINDS.get(kind, SIGNATURE).startswith(SIGNATURE) and "far more" not in name:
            assert outcome.startswith("error: "), name


def test_normalise_is_the_plain_formula_to_the_last_bit():
    batch = torch.arange(2 * 3 * 16 * 16, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 3, 16, 16)
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (images.MEAN, images.STD))
    expected = (batch.numpy().astype(np.float32) / np.float32(255) - mean) / std
    out = images.normalise(batch)
    assert out.dtype == torch.float32
    np.testing.assert_array_equal(out.numpy(), expected)
    assert images.MEAN == (0.485, 0.456, 0.406) and images.STD == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_normalise_refuses_other_shapes_and_types(wrong):
    with pytest.raises(ValueError, match="uint8"):
        images.normalise(wrong)
