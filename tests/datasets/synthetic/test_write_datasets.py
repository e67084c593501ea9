"""Drawn datasets: laid out as the real ones are, and read back as they were drawn."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.dataset_specs import NAMES, dataset_spec
from hmsa_pipeline.datasets.decode.image_header import read_size
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.find_images import list_images
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair, list_pairs
from hmsa_pipeline.datasets.synthetic.dataset_frames import SPLITS, Frame, draw_frame, look_of
from hmsa_pipeline.datasets.synthetic.regions import find_regions, number_regions, paint_polygons, to_polygons, trace
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from hmsa_pipeline.datasets.synthetic.style import style_of
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES, IGNORE, PALETTE
from hmsa_pipeline.errors import DatasetError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy.io import loadmat  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

SMALL = (48, 96)
MERGED = {"rider": "person"} | dict.fromkeys(("truck", "bus", "train", "motorcycle", "bicycle"), "car")


@cache
def frame(name: str, split: str, number: int) -> Frame:
    return draw_frame(name, split, number)


def picture(path: Path) -> tuple[str, np.ndarray]:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a drawn dataset of the default size; drawn once, not to be changed."""

    @cache
    def draw(name: str) -> Path:
        return write_source(tmp_path_factory.mktemp("worlds"), name)

    return draw


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shown(name: str, split: str, pairs: list[ImageMaskPair]) -> list[Frame]:
    """The frames that ``pairs`` must hold."""
    if name != "wilddash":
        return [frame(name, split, number) for number in range(len(pairs))]
    numbers = [int(Path(pair.image).name[2:6]) for pair in pairs]
    return [frame(name, "train", n) if n < 8 else frame(name, "val", n - 8) for n in numbers]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_was_drawn(drawn, tmp_path, name):
    root = drawn(name)
    assert root.name == dataset_spec(name).folder
    reader = LabelReader(root, dataset_spec(name), tmp_path)
    found = {split: list_pairs(root, name, split) for split in ("train", "val")}
    # WildDash has no lists: every tenth of all is held out.
    assert [len(pairs) for pairs in found.values()] == ([11, 1] if name == "wilddash" else [8, 4])
    for split, pairs in found.items():
        if any(pair.encoding == "polygons" for pair in pairs):
            reader.prepare(pairs, processes=1)
        for pair, expected in zip(pairs, shown(name, split, pairs), strict=True):
            size = read_size(root / pair.image)
            np.testing.assert_array_equal(reader.read(pair, size), expected.mask)
            seen = decode_image(root / pair.image).permute(1, 2, 0).numpy()
            if pair.image.endswith(".png"):
                np.testing.assert_array_equal(seen, expected.image)
            else:
                assert np.abs(seen.astype(int) - expected.image).mean() < 8


@pytest.mark.parametrize("name", NAMES)
def test_raw_ids_stand_in_the_table_and_mean_what_was_drawn(name):
    facts = dataset_spec(name)
    lookup = facts.lookup("ids" if facts.labels else "train_ids")
    for split in ("train", "val"):
        for number in range(len(look_of(name).styles)):
            one = frame(name, split, number)
            np.testing.assert_array_equal(lookup[one.raw], one.mask)
            assert one.image.shape == (*one.mask.shape, 3) and one.raw.shape == one.mask.shape


def test_cityscapes_tells_objects_apart_that_hide_one_another(drawn):
    root = drawn("cityscapes")
    names = {raw: called for raw, (_, called) in (dataset_spec("cityscapes").labels or {}).items()}
    touching = 0
    for number, pair in enumerate(list_pairs(root, "cityscapes", "train")):
        seen = frame("cityscapes", "train", number)
        mode, ids = picture(root / pair.mask.replace("_labelIds", "_instanceIds"))
        assert mode == "I;16" and ids.shape == seen.raw.shape
        np.testing.assert_array_equal(np.where(ids < 1000, ids, ids // 1000), seen.raw)
        alone = {names[raw] for raw in np.unique(ids[ids < 1000]).tolist()}
        assert not alone & {"person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"}
        found = np.unique(ids[ids >= 1000]).tolist()
        for one in found:
            assert len(np.unique(seen.objects[ids == one])) == 1
        for raw in {one // 1000 for one in found}:
            numbers = [one % 1000 for one in found if one // 1000 == raw]
            assert numbers == list(range(len(numbers)))  # from 0, without gaps, within each class
            regions = len([region for region in find_regions((seen.raw == raw).astype(np.uint8)) if region.id])
            touching += len(numbers) > regions
    assert touching  # which regions alone would take for one


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bdd100k"])
def test_every_name_belongs_to_its_class(name):
    looks, labels = look_of(name), dataset_spec(name).labels or {}
    train_ids = {called: train for train, called in labels.values()}
    finer = {"marking": "road", "motorcyclist": "rider"}
    for part in {*CLASS_NAMES, *looks.names} - {*looks.merged}:
        kind = finer.get(part, part)
        expected = CLASS_NAMES.index(kind) if kind in CLASS_NAMES else IGNORE
        assert {train_ids[called] for called in looks.names.get(part, (part,))} == {expected}, part


def test_no_two_frames_show_the_same_street():
    masks = [
        draw_frame(name, split, number, seed=seed, size=SMALL).mask.tobytes()
        for name in NAMES
        for split in SPLITS
        for number in range(2)
        for seed in (0, 1)
    ]
    assert len(set(masks)) == len(masks)


@given(name=st.sampled_from(NAMES), size=st.tuples(st.integers(32, 70), st.integers(32, 90)), seed=st.integers(0))
@settings(deadline=None, max_examples=20)
def test_any_size_and_seed(name, size, seed):
    one, again = (draw_frame(name, "train", 1, seed=seed, size=size) for _ in range(2))
    expected = (size[0] * 5 // 6, size[1] * 5 // 4) if name == "mapillary" else size
    assert one.image.shape == (*expected, 3)
    assert set(np.unique(one.mask)) <= {*range(19), IGNORE}
    for a, b in ((one.image, again.image), (one.mask, again.mask), (one.raw, again.raw)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes(tmp_path, name):

    def draw(folder: str, seed: int) -> dict[str, str]:
        return digests(write_source(tmp_path / folder, name, train=2, val=1, seed=seed, size=SMALL))

    first = draw("a", 3)
    assert first == draw("b", 3)
    other = draw("c", 4)
    pictures = [path for path in first if "images/" in path or "leftImg8bit/" in path]
    assert len(pictures) >= 3 and first.keys() == other.keys()
    assert all(first[path] != other[path] for path in pictures)


@pytest.mark.parametrize("name", NAMES)
def test_drawing_again_touches_nothing(tmp_path, name):
    root = write_source(tmp_path, name, train=1, val=1, size=SMALL)
    before, files = digests(root), [path for path in root.rglob("*") if path.is_file()]
    times = [path.stat().st_mtime_ns for path in files]
    write_source(tmp_path, name, train=1, val=1, size=SMALL)
    assert digests(root) == before
    assert [path.stat().st_mtime_ns for path in files] == times


def test_what_was_cut_short_is_completed(tmp_path):
    root = write_source(tmp_path, "shift", train=1, val=1, size=SMALL)
    whole = digests(root)
    for path in root.rglob("*.png"):
        path.unlink()
    assert digests(write_source(tmp_path, "shift", train=1, val=1, size=SMALL)) == whole


def test_cityscapes_has_cities_to_hold_out_and_many_void_ids(drawn):
    root = drawn("cityscapes")
    cities = {path.name for path in (root / "leftImg8bit_trainvaltest/leftImg8bit/train").iterdir()}
    assert len(cities) == 3
    held_out = [pair.image.split("/")[3] for pair in list_pairs(root, "cityscapes", "val_cv1")]
    assert len(set(held_out)) == 1 and set(held_out) < cities
    seen: set[int] = set()
    for pair in list_pairs(root, "cityscapes", "train"):
        mode, ids = picture(root / pair.mask)
        assert mode == "L"
        seen |= {*np.unique(ids).tolist()}
    assert {1, 2, 3, 4} <= seen


def test_bdd100k_masks_are_train_ids_and_test_images_have_none(drawn):
    root = drawn("bdd100k")
    assert len([*(root / "images/10k/test").iterdir()]) == 2
    assert not (root / "labels/sem_seg/masks/test").exists()
    _, ids = picture(next((root / "labels/sem_seg/masks/train").iterdir()))
    assert IGNORE in ids and ids.size == np.isin(ids, [*range(19), IGNORE]).sum()


def test_idd_has_frames_of_both_parts_and_polygons_that_must_not_be_painted(drawn):
    root = drawn("idd")
    images = [path.name for path in root.glob("leftImg8bit/*/*/*")]
    assert {name[-16:] for name in images} == {"_leftImg8bit.png", "_leftImg8bit.jpg"}
    ids = {called: raw for raw, (_, called) in (dataset_spec("idd").labels or {}).items()}
    groups = 0
    for number, path in enumerate(sorted(root.glob("gtFine/train/*/*_polygons.json"))):
        content = json.loads(path.read_text())
        expected = frame("idd", "train", number).raw
        assert (content["imgHeight"], content["imgWidth"]) == expected.shape
        canvas = Image.new("L", expected.shape[::-1], ids["unlabeled"])
        for item in content["objects"]:
            corners = [tuple(corner) for corner in item["polygon"]]
            if not item["deleted"] and len(corners) >= 3:
                called = item["label"]
                groups += called not in ids
                ImageDraw.Draw(canvas).polygon(corners, fill=ids[called if called in ids else called[:-5]])
        np.testing.assert_array_equal(np.asarray(canvas), expected)
        assert any(item["deleted"] for item in content["objects"])
        assert any(len(item["polygon"]) == 2 for item in content["objects"])
    assert groups


def test_mapillary_has_two_sizes_and_masks_of_places_in_its_list(drawn):
    root = drawn("mapillary")
    labels = json.loads((root / "config.json").read_text())["labels"]
    assert [label["name"] for label in labels] == [
        called for _, called in (dataset_spec("mapillary").labels or {}).values()
    ]
    masks = sorted(root.glob("training/labels/*.png"))
    assert {read_size(path) for path in masks} == {(144, 192), (120, 240)}
    seen: set[str] = set()
    for path in masks:
        with Image.open(path) as image:
            assert image.mode == "P"
            ids, colours = np.asarray(image), np.array(image.getpalette()).reshape(-1, 3)
        for label in np.unique(ids):
            assert colours[label].tolist() == labels[label]["color"]
            seen.add(labels[label]["name"])
    assert {"marking--general", "construction--flat--road", "object--support--utility-pole"} <= seen
    assert len([*root.glob("testing/images/*.jpg")]) == 2 and not (root / "testing/labels").exists()


def test_wilddash_segments_are_as_its_json_says(drawn):
    root = drawn("wilddash")
    content = json.loads((root / "panoptic.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert not (root / "random_split").exists() and len(files) == 12
    seen, unlabelled, highest = set(), 0, 0
    for annotation in content["annotations"]:
        assert files[annotation["image_id"]] == annotation["file_name"].replace(".png", ".jpg")
        _, colours = picture(root / "panoptic" / annotation["file_name"])
        numbers = colours.astype(int) @ (1, 256, 65536)
        found = {int(n): int(count) for n, count in zip(*np.unique(numbers, return_counts=True), strict=True)}
        unlabelled += found.pop(0, 0)
        assert found == {info["id"]: info["area"] for info in annotation["segments_info"]}
        for info in annotation["segments_info"]:
            left, top, width, height = info["bbox"]
            assert (numbers[top : top + height, left : left + width] == info["id"]).sum() == info["area"]
            seen.add(names[info["category_id"]])
        highest = max(highest, *found)
    assert highest >= 65536 and unlabelled
    assert {"roadmarking", "van", "pickup", "egovehicle", "groundanimal"} <= seen


def test_gta5_has_a_broken_frame_and_a_mask_of_another_size(drawn):
    root = drawn("gta5")
    split = loadmat(root / "split.mat")
    ids = {name: split[name] for name in ("trainIds", "valIds", "testIds")}
    assert [values.shape for values in ids.values()] == [(9, 1), (4, 1), (2, 1)]
    assert 15188 in ids["trainIds"]
    for values in ids.values():
        for number in values.ravel().astype(int):
            assert (root / f"images/{number:05d}.png").is_file() and (root / f"labels/{number:05d}.png").is_file()
    odd = [
        path.name
        for path in sorted(root.glob("images/*"))
        if read_size(path) != read_size(root / "labels" / path.name)
    ]
    assert odd == ["00002.png", "15188.png"]
    assert all(picture(path)[0] == "P" for path in root.glob("labels/*"))


def test_shift_masks_keep_their_ids_in_the_red_channel(drawn):
    root = drawn("shift")
    seen: set[int] = set()
    for pair in list_pairs(root, "shift", "train"):
        mode, pixels = picture(root / pair.mask)
        assert mode == "RGBA" and (pixels[..., 3] == 255).all() and not pixels[..., 1:3].any()
        seen |= {*np.unique(pixels[..., 0]).tolist()}
    assert {6, 7, 10} <= seen <= set(range(23))


def test_shift_counts_all_vehicles_and_all_people_as_one():
    """The street of a frame, drawn by hand, with the classes put together."""
    street = np.random.SeedSequence((0, NAMES.index("shift"), 0, 1)).generate_state(1, np.uint64)
    mask = draw_scene(int(street[0]), 128, 205, style_of("rain")).mask
    expected = mask.copy()
    for kind, whole in MERGED.items():
        expected[mask == CLASS_NAMES.index(kind)] = CLASS_NAMES.index(whole)
    assert not np.array_equal(mask, expected)
    np.testing.assert_array_equal(frame("shift", "train", 1).mask, expected)


@pytest.mark.parametrize("name", NAMES)
def test_all_images_are_found_and_our_mark_is_not_one_of_them(drawn, name):
    root = drawn(name)
    mark = json.loads((root / ".drawn.json").read_text())
    assert mark == {"dataset": name, "train": 8, "val": 4, "seed": 0, "size": None, "style": None}
    images = {image.path for split in ("train", "val") for image in list_images(root, name, split)}
    assert len(images) == 12


def test_what_somebody_downloaded_is_left_alone(tmp_path):
    real = tmp_path / "SHIFT" / "discrete" / "images" / "train" / "front" / "real.jpg"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"precious")
    with pytest.raises(DatasetError, match="SHIFT: holds what was not drawn"):
        write_source(tmp_path, "shift", size=SMALL)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [real]


def test_other_settings_do_not_mix_with_what_is_there(tmp_path):
    root = write_source(tmp_path, "shift", train=1, val=1, size=SMALL)
    before = digests(root)
    with pytest.raises(DatasetError, match=r"drawn with other settings \(.*\"seed\": 0"):
        write_source(tmp_path, "shift", train=1, val=1, seed=1, size=SMALL)
    assert digests(root) == before


def test_datasets_that_cannot_be_drawn(tmp_path):
    with pytest.raises(DatasetError, match="did you mean 'cityscapes'"):
        write_source(tmp_path, "cityscape")
    for train, val in ((0, 1), (1, 0), (-3, 1)):
        with pytest.raises(ValueError, match="each split needs at least one"):
            write_source(tmp_path, "idd", train=train, val=val)
    with pytest.raises(ValueError, match="31 x 64 pixels are too small"):
        write_source(tmp_path, "idd", size=(31, 64))
    with pytest.raises(ValueError, match="seed of -1 is negative"):
        write_source(tmp_path, "idd", seed=-1)
    assert not [*tmp_path.iterdir()]


def test_gta5_without_scipy_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DatasetError, match=r"pip install 'hmsa-pipeline\[train\]'"):
        write_source(tmp_path, "gta5", size=SMALL)
    assert not [*tmp_path.iterdir()]


def test_frames_depend_on_no_other(tmp_path):
    few = write_source(tmp_path / "few", "bdd100k", train=1, val=1, size=SMALL)
    many = write_source(tmp_path / "many", "bdd100k", train=3, val=2, size=SMALL)
    one, all_of_them = digests(few), digests(many)
    assert {path: all_of_them[path] for path in one if path != ".drawn.json"} == {
        path: digest for path, digest in one.items() if path != ".drawn.json"
    }


masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)


def flooded(ids: np.ndarray) -> np.ndarray:
    """Regions numbered by flooding from each pixel that has none yet."""
    numbers = np.full(ids.shape, -1)
    for start in np.ndindex(*ids.shape):
        if numbers[start] < 0:
            number, wave = numbers.max() + 1, [start]
            while wave:
                y, x = wave.pop()
                if not (0 <= y < ids.shape[0] and 0 <= x < ids.shape[1]) or numbers[y, x] >= 0:
                    continue
                if ids[y, x] == ids[start]:
                    numbers[y, x] = number
                    wave += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return numbers


@given(masks)
@settings(deadline=None)
def test_regions_are_what_a_flood_reaches(ids):
    expected = flooded(ids)
    np.testing.assert_array_equal(number_regions(ids), expected)
    for number, region in enumerate(find_regions(ids)):
        rows, columns = np.nonzero(expected == number)
        assert (region.top, region.left) == (rows.min(), columns.min())
        inside = np.zeros(ids.shape, dtype=bool)
        height, width = region.inside.shape
        inside[region.top : region.top + height, region.left : region.left + width] = region.inside
        np.testing.assert_array_equal(inside, expected == number)
        assert region.id == ids[rows[0], columns[0]]


@given(masks, st.integers(0, 4))
@settings(deadline=None)
def test_polygons_paint_the_mask_they_were_made_of(ids, background):
    polygons = to_polygons(ids, background)
    assert all(len(corners) >= 3 for _, corners in polygons)
    np.testing.assert_array_equal(paint_polygons(polygons, ids.shape, background), ids)


def test_rectangles_mend_what_a_painter_rounds_otherwise(monkeypatch):
    from hmsa_pipeline.datasets.synthetic import regions

    ids = np.array([[1, 1, 2, 2], [1, 2, 2, 3], [1, 2, 2, 3]], dtype=np.uint8)
    monkeypatch.setattr(regions, "trace", lambda inside: [(0, 0), (0, 0), (0, 0)])
    np.testing.assert_array_equal(paint_polygons(to_polygons(ids, 0), ids.shape, 0), ids)


def test_an_outline_goes_round_clockwise_and_holes_are_left_out():
    ring = np.array([[0, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]], dtype=bool)
    assert trace(ring) == [(1, 0), (3, 0), (3, 2), (0, 2), (1, 1)]
    assert trace(np.ones((1, 1), dtype=bool)) == [(0, 0)] * 3
    assert set(trace(np.ones((1, 5), dtype=bool))) == {(0, 0), (4, 0)}


def test_a_style_is_the_look_of_all_frames(tmp_path):
    """In the tinted one a class is told by its colour; the streets are those of any other."""
    for number in range(3):
        tinted, foggy = (draw_frame("shift", "train", number, style=style) for style in ("tinted", "fog"))
        np.testing.assert_array_equal(tinted.raw, foggy.raw)
        for label in np.unique(tinted.mask[tinted.mask < 19]):
            seen = tinted.image[tinted.mask == label].mean(axis=0)
            nearest = np.abs(np.array(PALETTE) - seen).sum(axis=1).argmin()
            # Some colours of the palette lie close together.
            assert np.abs(np.array(PALETTE[label]) - np.array(PALETTE[nearest])).max() < 90
    with pytest.raises(ValueError, match="there is no style 'tintet'; did you mean 'tinted'"):
        write_source(tmp_path, "shift", style="tintet")
    assert list(tmp_path.iterdir()) == []
