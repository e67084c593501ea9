"""Masks as they are distributed to train ids, against slow and obvious readings of the same arrays."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.datasets import parallel as workers
from hmsa_pipeline.datasets.dataset_specs import NAMES, DatasetSpec, dataset_spec
from hmsa_pipeline.datasets.decode import arrays as pixels
from hmsa_pipeline.datasets.labels import panoptic, polygons
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair
from hmsa_pipeline.errors import DatasetError, DiskError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

in_one_folder = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def random_ids(size: tuple[int, int], below: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, size, dtype=np.uint8)


def save(path: Path, array: np.ndarray, palette: bool = False, **options: Any) -> Path:
    image = Image.fromarray(array)
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
        image.info["transparency"] = 3
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", **options)
    return path


def reader(root: Path, name: str = "cityscapes", cache: Path | None = None) -> LabelReader:
    return LabelReader(root, dataset_spec(name), cache)


def mapped(raw: np.ndarray, facts: DatasetSpec) -> np.ndarray:
    """One boolean mask for each id."""
    out = np.full(raw.shape, 99, np.uint8)
    for number, (train, _) in (facts.labels or {}).items():
        out[raw == number] = train
    return out


def refused(call: Callable[[], Any], reason: str) -> None:
    with pytest.raises(DatasetError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


# Grey values and palette indices.


@given(size=sizes, depth=st.sampled_from([1, 2, 4, 8]), palette=st.booleans(), seed=st.integers(0, 99))
@in_one_folder
def test_ids_are_read_as_they_are_stored_at_any_depth(size, depth, palette, seed, tmp_path):
    ids = random_ids(size, 2**depth, seed)
    if palette:
        save(tmp_path / "mask.png", ids, palette=True, bits=depth)
    elif depth == 1:
        save(tmp_path / "mask.png", ids.astype(bool))
    elif depth == 8:
        save(tmp_path / "mask.png", ids)
    else:
        grey_of_few_bits(tmp_path / "mask.png", ids, depth)
    assert (tmp_path / "mask.png").read_bytes()[24] == depth
    read = pixels.decode_ids(tmp_path / "mask.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, ids)


def grey_of_few_bits(path: Path, ids: np.ndarray, depth: int) -> None:
    """Pillow writes no grey of 2 and 4 bits: a palette PNG becomes one by its colour type."""
    data = save(path, ids, palette=True, bits=depth).read_bytes()
    header = data[12:25] + b"\0" + data[26:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


@pytest.mark.parametrize("name", ["cityscapes", "gta5", "mapillary"])
@pytest.mark.parametrize("palette", [False, True])
def test_raw_ids_become_train_ids(tmp_path, name, palette):
    known = np.array([raw % 256 for raw in dataset_spec(name).labels or ()], np.uint8)
    ids = np.resize(known, (9, 16))
    save(tmp_path / "mask.png", ids, palette=palette)
    pair, labels = ImageMaskPair("image.png", "mask.png", "ids"), reader(tmp_path, name)
    np.testing.assert_array_equal(labels.raw(pair), ids)
    out = labels.read(pair, (9, 16))
    assert out.dtype == np.uint8 and out.flags.writeable
    expected = mapped(ids, dataset_spec(name))
    expected[ids == 255] = 255
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cityscapes"])
def test_masks_of_train_ids_stay_what_they_are(tmp_path, name):
    ids = np.array([[*range(19), 255]], np.uint8)
    save(tmp_path / "mask.png", ids)
    np.testing.assert_array_equal(reader(tmp_path, name).read(ImageMaskPair("i", "mask.png", "train_ids")), ids)


@pytest.mark.parametrize(
    ("encoding", "ids", "reason"),
    [
        ("ids", [[0, 34, 99, 33]], r"mask\.png: holds the ids 34, 99, which are no ids of Cityscapes;"),
        ("ids", [[254]], "holds the ids 254, which"),
        ("ids", [[*range(40, 60)]], "holds the ids 40, 41, 42, 43, 44 and 15 more"),
    ],
)
def test_ids_outside_the_table_are_named(tmp_path, encoding, ids, reason):
    save(tmp_path / "mask.png", np.array(ids, np.uint8))
    refused(lambda: reader(tmp_path).read(ImageMaskPair("i", "mask.png", encoding)), reason)


def test_train_ids_that_are_none_are_named(tmp_path):
    save(tmp_path / "mask.png", np.array([[3, 19, 254, 255]], np.uint8))
    pair = ImageMaskPair("i", "mask.png", "train_ids")
    refused(lambda: reader(tmp_path, "bdd100k").read(pair), "holds the ids 19, 254, which are no train ids")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint8), "is a picture in colours, but ids are expected"),
        (np.zeros((4, 4, 4), np.uint8), "is a picture in colours, but ids are expected"),
        (np.zeros((4, 4, 2), np.uint8), "is a picture in colours, but ids are expected"),
        (np.zeros((4, 4), np.uint16), "holds 16 bits a pixel, but ids take 8"),
    ],
)
def test_pictures_that_hold_no_ids(tmp_path, array, reason):
    save(tmp_path / "mask.png", array)
    refused(lambda: reader(tmp_path).read(ImageMaskPair("i", "mask.png", "ids")), rf"mask\.png: {reason}")


@pytest.mark.parametrize("encoding", ["ids", "red"])
def test_damaged_masks_are_named(tmp_path, encoding):
    array = np.random.default_rng(0).integers(0, 20, (9, 9, 3), dtype=np.uint8)
    good = save(tmp_path / "mask.png", array if encoding == "red" else array[..., 0]).read_bytes()
    labels, pair = reader(tmp_path, "shift"), ImageMaskPair("i", "mask.png", encoding)
    labels.raw(pair)
    for data in (b"", good[:-20], good[:60] + b"\0\0\0" + good[63:], b"<html>"):
        (tmp_path / "mask.png").write_bytes(data)
        refused(lambda: labels.raw(pair), r"mask\.png: ")
    Image.fromarray(array).save(tmp_path / "mask.png", "JPEG")
    refused(lambda: labels.raw(pair), r"mask\.png: is a JPEG, but masks must be PNG")
    (tmp_path / "mask.png").unlink()
    refused(lambda: labels.raw(pair), r"mask\.png: cannot be read \(No such file")


# Sizes.


def test_a_mask_of_another_size_names_both_files(tmp_path):
    save(tmp_path / "mask.png", random_ids((5, 7), 30))
    pair = ImageMaskPair("images/i.png", "mask.png", "ids")
    assert reader(tmp_path).read(pair, (5, 7)).shape == reader(tmp_path).read(pair).shape == (5, 7)
    reason = r"mask\.png: has 5 x 7 pixels, but its image images/i\.png has 7 x 5; they do not belong together"
    refused(lambda: reader(tmp_path).read(pair, (7, 5)), reason)


@given(size=sizes, other=sizes)
@in_one_folder
def test_gta5_resizes_by_nearest_neighbours(size, other, tmp_path):
    raw = random_ids(size, 35, seed=sum(size))
    save(tmp_path / "mask.png", raw)
    out = reader(tmp_path, "gta5").read(ImageMaskPair("i", "mask.png", "ids"), other)
    assert out.shape == other
    for y, x in np.ndindex(other):
        # Where the centre of the pixel lies in the raw mask; on an edge either neighbour will do.
        rows, columns = (
            {math.ceil((n + 0.5) * old / new) - 1, int((n + 0.5) * old / new)}
            for n, old, new in zip((y, x), size, other, strict=True)
        )
        near = [raw[row, column] for row in rows for column in columns]
        assert out[y, x] in mapped(np.array(near), dataset_spec("gta5"))


# Red channels.


@pytest.mark.parametrize("channels", [3, 4])
def test_shift_keeps_its_ids_in_red(tmp_path, channels):
    array = np.random.default_rng(0).integers(0, 256, (8, 9, channels), dtype=np.uint8)
    array[..., 0] %= 23
    save(tmp_path / "mask.png", array)
    pair = ImageMaskPair("i", "mask.png", "red")
    np.testing.assert_array_equal(reader(tmp_path, "shift").raw(pair), array[..., 0])
    np.testing.assert_array_equal(reader(tmp_path, "shift").read(pair), mapped(array[..., 0], dataset_spec("shift")))


def test_grey_where_red_is_expected(tmp_path):
    pair = ImageMaskPair("i", "mask.png", "red")
    for palette in (False, True):
        save(tmp_path / "mask.png", random_ids((4, 4), 20), palette=palette)
        refused(lambda: reader(tmp_path, "shift").raw(pair), "grey or palette picture, but ids are expected in red")
    wide = save(tmp_path / "mask.png", np.zeros((4, 4, 3), np.uint8)).read_bytes()
    sixteen_bits(tmp_path / "mask.png", wide)
    refused(lambda: reader(tmp_path, "shift").raw(pair), "holds 16 bits a channel")


def sixteen_bits(path: Path, data: bytes) -> None:
    """The same header with another depth; the pixels are not looked at any more."""
    header = data[12:24] + b"\x10" + data[25:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


# Panoptic masks.


def write_panoptic(root: Path, pictures: dict[str, tuple[np.ndarray, dict[int, int]]]) -> None:
    """Masks of segments (H, W), with the category of each segment that the JSON names."""
    for stem, (segments, _) in pictures.items():
        colours = np.stack([segments >> shift & 255 for shift in (0, 8, 16)], axis=2).astype(np.uint8)
        save(root / f"panoptic/{stem}.png", colours)
    annotations = [
        {
            "file_name": f"{stem}.png",
            "image_id": stem,
            "segments_info": [{"id": i, "category_id": c, "area": 1, "iscrowd": 0} for i, c in categories.items()],
        }
        for stem, (_, categories) in pictures.items()
    ]
    (root / "panoptic.json").write_text(json.dumps({"images": [], "annotations": annotations}), encoding="utf-8")


def of(stem: str) -> ImageMaskPair:
    return ImageMaskPair(f"images/{stem}.jpg", f"panoptic/{stem}.png", "panoptic")


@given(
    size=sizes,
    categories=st.dictionaries(st.integers(0, 2**24 - 1), st.integers(0, 80), max_size=6),
    stray=st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=2),
    seed=st.integers(0, 99),
)
@in_one_folder
def test_segments_become_their_categories(size, categories, stray, seed, tmp_path):
    choices = np.array([*categories, *stray], np.int64)
    segments = np.random.default_rng(seed).choice(choices, size)
    write_panoptic(tmp_path, {"a": (segments, categories), "b": (segments[::-1], {})})
    expected = np.vectorize(lambda segment: categories.get(int(segment), 0), otypes=[np.uint8])(segments)
    panoptic._parsed.cache_clear()
    labels = reader(tmp_path, "wilddash")
    np.testing.assert_array_equal(labels.raw(of("a")), expected)
    np.testing.assert_array_equal(labels.read(of("a"), size), mapped(expected, dataset_spec("wilddash")))
    assert not labels.raw(of("b")).any()


def test_the_json_is_parsed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    segments = np.full((2, 2), 70_000)
    write_panoptic(tmp_path, {"a": (segments, {70_000: 7}), "b": (segments, {70_000: 24})})
    parsed: list[int] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda data: parsed.append(len(data)) or loads(data))
    first, second = reader(tmp_path, "wilddash"), reader(tmp_path, "wilddash")
    assert [r.raw(of(stem)).max() for r in (first, second) for stem in "ab"] == [7, 24, 7, 24]
    assert len(parsed) == 1
    write_panoptic(tmp_path, {"a": (segments, {70_000: 11})})
    assert first.raw(of("a")).max() == 11 and len(parsed) == 2
    assert len(pickle.dumps(first)) < 16384


def test_panoptic_files_that_say_nothing(tmp_path):
    segments = np.full((2, 2), 5)
    write_panoptic(tmp_path, {"a": (segments, {5: 7}), "b": (segments, {5: 99}), "c": (segments, {5: 300})})
    labels, file = reader(tmp_path, "wilddash"), tmp_path / "panoptic.json"
    refused(lambda: labels.read(of("a")), r"panoptic\.json: is not in COCO's panoptic format")
    write_panoptic(tmp_path, {"a": (segments, {5: 7}), "b": (segments, {5: 99})})
    labels.read(of("a"))
    refused(lambda: labels.read(of("b")), r"b\.png: holds the ids 99, which are no ids of WildDash 2")
    refused(lambda: labels.read(of("d")), r"panoptic\.json: says nothing about d\.png")
    for content, reason in [
        ("", "is no JSON"),
        ("[" * 10**5, "is no JSON"),
        ("{}", "not in COCO's panoptic format"),
        ('{"annotations": [{"file_name": "a.png"}]}', "not in COCO's .*segments_info"),
        (
            '{"annotations": [{"file_name": "a.png", "segments_info": [{"id": "x", "category_id": 1}]}]}',
            "not in COCO",
        ),
        ('{"annotations": [{"file_name": "a.png", "segments_info": [{"id": -1, "category_id": 1}]}]}', "not in COCO"),
        ("[1]", "not in COCO"),
    ]:
        file.write_text(content, encoding="utf-8")
        refused(lambda: labels.read(of("a")), rf"panoptic\.json: .*{reason}")
    file.unlink()
    refused(lambda: labels.read(of("a")), r"panoptic\.json: cannot be read")


# Polygons.

BOX = [[2, 1], [9, 1], [9, 5], [2, 5]]


def write_polygons(path: Path, *objects: dict[str, Any], size: tuple[int, int] = (12, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"imgHeight": size[0], "imgWidth": size[1], "objects": list(objects)}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def box(label: str, points: list[list[float]] = BOX, **more: Any) -> dict[str, Any]:
    return {"label": label, "polygon": points, "draw": True, "verified": 0, **more}


def drive(root: Path, count: int = 1) -> list[ImageMaskPair]:
    """Pairs of IDD, each with a car at a place of its own."""
    pairs = []
    for n in range(count):
        mask = f"gtFine/val/7/{n:04d}_gtFine_polygons.json"
        write_polygons(root / mask, box("car", [[n % 5, 1], [9, 1], [9, 5], [n % 5, 5]]))
        pairs.append(ImageMaskPair(f"leftImg8bit/val/7/{n:04d}_leftImg8bit.png", mask, "polygons"))
    return pairs


def kept(cache: Path, pair: ImageMaskPair) -> Path:
    return cache / "masks" / "idd" / pair.mask.replace(".json", ".png")


boxes = st.tuples(st.integers(-3, 18), st.integers(-3, 14), st.integers(0, 12), st.integers(0, 12))
things = st.lists(st.tuples(boxes, st.sampled_from(["road", "car", "sky", "non-drivable fallback"])), max_size=6)


@given(things=things)
@in_one_folder
def test_boxes_cover_one_another_in_the_order_of_the_file(things, tmp_path):
    ids = {name: raw for raw, (_, name) in (dataset_spec("idd").labels or {}).items()}
    expected = np.full((12, 16), 35, np.uint8)
    objects = []
    for (x, y, width, height), label in things:
        objects.append(box(label, [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]))
        # Both edges of a polygon belong to it.
        expected[max(y, 0) : max(y + height + 1, 0), max(x, 0) : max(x + width + 1, 0)] = ids[label]
    write_polygons(tmp_path / "p.json", *objects)
    labels, pair = reader(tmp_path, "idd"), ImageMaskPair("i", "p.json", "polygons")
    np.testing.assert_array_equal(labels.raw(pair), expected)
    np.testing.assert_array_equal(labels.read(pair, (12, 16)), mapped(expected, dataset_spec("idd")))


@given(points=st.lists(st.tuples(st.integers(-5, 45), st.integers(-5, 45)), min_size=3, max_size=8))
@in_one_folder
def test_pixels_clearly_inside_or_outside_are_drawn_so(points, tmp_path):
    write_polygons(tmp_path / "p.json", box("sky", [list(point) for point in points]), size=(40, 40))
    out = polygons.draw(tmp_path / "p.json", {"unlabeled": 0, "sky": 1})
    ys, xs = np.mgrid[0:40, 0:40]
    inside = np.zeros((40, 40), bool)
    far = np.full((40, 40), np.inf)
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if y1 != y2:
            inside ^= ((y1 <= ys) != (y2 <= ys)) & (xs < x1 + (ys - y1) * (x2 - x1) / (y2 - y1))
        along = np.clip(
            ((xs - x1) * (x2 - x1) + (ys - y1) * (y2 - y1)) / max((x2 - x1) ** 2 + (y2 - y1) ** 2, 1), 0, 1
        )
        far = np.minimum(far, np.hypot(xs - x1 - along * (x2 - x1), ys - y1 - along * (y2 - y1)))
    clear = far > 1.5
    np.testing.assert_array_equal(out[clear], inside[clear])


def test_what_is_no_object(tmp_path):
    path = write_polygons(
        tmp_path / "p.json",
        box("car", deleted=1),
        box("nothing known", deleted=True),
        box("nothing known", BOX[:2]),
        box("sky", []),
        box("road", [[0, 8], [15.9, 8.2], [15, 11], [0.7, 11.9]], deleted=0),
    )
    expected = np.full((12, 16), 35, np.uint8)
    expected[8:12] = 0
    np.testing.assert_array_equal(reader(tmp_path, "idd").raw(ImageMaskPair("i", path.name, "polygons")), expected)


def test_groups_count_as_what_they_are_groups_of(tmp_path):
    pair = ImageMaskPair("i", "p.json", "polygons")
    write_polygons(tmp_path / pair.mask, box("cargroup"))
    assert set(np.unique(reader(tmp_path, "idd").raw(pair))) == {12, 35}
    write_polygons(tmp_path / pair.mask, box("car"), box("trukgroup"))
    refused(lambda: reader(tmp_path, "idd").raw(pair), r"p\.json: holds an object called 'trukgroup'.*'truck'\?")
    write_polygons(tmp_path / pair.mask, {"label": None, "polygon": BOX})
    refused(lambda: reader(tmp_path, "idd").raw(pair), r"p\.json: holds an object called 'None'")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is no JSON"),
        ('{"imgHeight": 4', "is no JSON"),
        ("[" * 10**5, "is no JSON"),
        ("[]", "is no file of polygons"),
        ("{}", r"is no file of polygons: .*KeyError: 'imgHeight'"),
        ('{"imgHeight": 4, "imgWidth": 4}', r"is no file of polygons.*'objects'"),
        ('{"imgHeight": 4, "imgWidth": 4, "objects": [1]}', "is no file of polygons"),
        ('{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "car"}]}', "is no file of polygons"),
        (
            '{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "car", "polygon": [1, 2, 3]}]}',
            "is no file of polygons",
        ),
        (
            '{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "car", "polygon": [[1, 2], [3, 4], [5]]}]}',
            "is no file of polygons",
        ),
        ('{"imgHeight": 0, "imgWidth": 4, "objects": []}', "says 0 x 4 pixels"),
        ('{"imgHeight": 1e6, "imgWidth": 1e6, "objects": []}', "says 1000000 x 1000000 pixels"),
        (
            '{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "car", "polygon": [[0, 0], [1e300, 0], [0, 1]]}]}',
            "a polygon of 'car' has a point far outside",
        ),
        (
            '{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "car", "polygon": [[0, 0], [NaN, 0], [0, 1]]}]}',
            "a polygon of 'car' has a point far outside",
        ),
    ],
)
def test_files_that_hold_no_polygons(tmp_path, content, reason):
    (tmp_path / "p.json").write_text(content, encoding="utf-8")
    refused(lambda: reader(tmp_path, "idd").raw(ImageMaskPair("i", "p.json", "polygons")), rf"p\.json: {reason}")


def test_polygons_are_drawn_once(tmp_path, monkeypatch):
    root, cache = tmp_path / "IDD", tmp_path / "cache"
    pairs = drive(root, 3)
    labels = reader(root, "idd", cache)
    expected = [labels.raw(pair) for pair in pairs]
    assert not cache.exists()
    ready: list[int] = []
    labels.prepare(pairs, lambda: ready.append(1))
    assert len(ready) == 3 and all(kept(cache, pair).is_file() for pair in pairs)
    monkeypatch.setattr(polygons.ImageDraw, "Draw", lambda image: pytest.fail("was drawn again"))
    labels.prepare(pairs, lambda: ready.append(1))
    assert len(ready) == 6
    for pair, ids in zip(pairs, expected, strict=True):
        np.testing.assert_array_equal(labels.raw(pair), ids)


@pytest.mark.parametrize("later", [-3600, 3600])
def test_a_file_that_changed_is_drawn_again(tmp_path, later):
    root, cache = tmp_path / "IDD", tmp_path / "cache"
    (pair,) = drive(root)
    labels = reader(root, "idd", cache)
    labels.prepare([pair])
    write_polygons(root / pair.mask, box("sky"))
    time = kept(cache, pair).stat().st_mtime + later
    os.utime(root / pair.mask, (time, time))
    assert 33 in labels.raw(pair), "even before it is prepared"
    labels.prepare([pair])
    assert 33 in pixels.decode_ids(kept(cache, pair))


def test_a_cache_of_another_folder_is_not_taken(tmp_path):
    (pair,) = drive(tmp_path / "one")
    reader(tmp_path / "one", "idd", tmp_path / "cache").prepare([pair])
    write_polygons(tmp_path / "two" / pair.mask, box("sky"))
    assert 33 in reader(tmp_path / "two", "idd", tmp_path / "cache").raw(pair)


def test_many_polygons_are_drawn_by_several_processes(tmp_path):
    root = tmp_path / "IDD"
    pairs = drive(root, 40)
    ready: list[int] = []
    for cache, processes in (("alone", 1), ("together", 2)):
        reader(root, "idd", tmp_path / cache).prepare(pairs, lambda: ready.append(1), processes)
    assert len(ready) == 80
    for pair in pairs:
        assert kept(tmp_path / "alone", pair).read_bytes() == kept(tmp_path / "together", pair).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_an_error_in_another_process_is_the_same_error(tmp_path):
    pairs = drive(tmp_path, 40)
    write_polygons(tmp_path / pairs[20].mask, box("spaceship"))
    labels = reader(tmp_path, "idd", tmp_path / "cache")
    refused(lambda: labels.prepare(pairs, processes=2), r"0020_gtFine_polygons\.json: .* called 'spaceship'")
    assert kept(tmp_path / "cache", pairs[0]).is_file(), "what was drawn is kept"


def test_a_process_that_dies_is_told():
    with pytest.raises(DatasetError, match=r"ended from outside, .* fewer than 2 processes"):
        list(workers.map_files(os._exit, [9] * 40, processes=2))


def test_a_cache_that_cannot_be_written(tmp_path):
    pairs = drive(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DiskError, match="cannot be written"):
        reader(tmp_path, "idd", tmp_path / "cache").prepare(pairs)
    with pytest.raises(ValueError, match="there is none"):
        reader(tmp_path, "idd").prepare(pairs)
    (tmp_path / pairs[0].mask).unlink()
    refused(lambda: reader(tmp_path, "idd", tmp_path / "other").prepare(pairs), "cannot be read")


def test_other_encodings_need_no_preparing(tmp_path):
    ready: list[int] = []
    reader(tmp_path, "wilddash").prepare([of("a"), of("b")], lambda: ready.append(1))
    assert len(ready) == 2 and not list(tmp_path.iterdir())


# The reader itself.


def test_an_encoding_that_nobody_knows(tmp_path):
    with pytest.raises(ValueError, match="unknown encoding 'blue'"):
        reader(tmp_path).raw(ImageMaskPair("i", "m", "blue"))


def test_a_reader_travels(tmp_path):
    ids = random_ids((4, 4), 30)
    save(tmp_path / "mask.png", ids)
    data = pickle.dumps(reader(tmp_path, "mapillary"))
    assert len(data) < 16384
    np.testing.assert_array_equal(pickle.loads(data).raw(ImageMaskPair("i", "mask.png", "ids")), ids)


def test_reading_does_not_wait_for_torch():
    code = "import sys, hmsa_pipeline.datasets.labels.label_reader; print(*{'torch', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\s*", done.stdout)
