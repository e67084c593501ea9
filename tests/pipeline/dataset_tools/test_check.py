"""What a check counts, finds and draws, against what was drawn and against slow and obvious counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.dataset_specs import NAMES, dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair, list_pairs
from hmsa_pipeline.datasets.synthetic.dataset_frames import draw_frame
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES, IGNORE, PALETTE
from hmsa_pipeline.pipeline.dataset_tools.check import find_strays, inspect_pair, plan_check, run_check, spread
from hmsa_pipeline.pipeline.dataset_tools.class_chart import draw_class_chart
from hmsa_pipeline.pipeline.pictures.sheet import dataset_sheet, overlay
from hmsa_pipeline.pipeline.text import percent
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

SIZE, TRAIN, VAL = (48, 96), 3, 2
RARE = {"gta5": 2}  # frames of a further split that has masks


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a drawn dataset, not to be changed."""

    @cache
    def draw(name: str) -> Path:
        return write_source(tmp_path_factory.mktemp(name), name, train=TRAIN, val=VAL, size=SIZE)

    return draw


def masks(name: str) -> list[np.ndarray]:
    """The train ids of all frames that have masks, as they were drawn."""
    counts = {"train": TRAIN, "val": VAL, "test": RARE.get(name, 0)}
    return [
        draw_frame(name, split, number, size=SIZE).mask for split, total in counts.items() for number in range(total)
    ]


def ids(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def bdd100k(root: Path, image: np.ndarray, mask: np.ndarray) -> tuple[LabelReader, ImageMaskPair]:
    """A dataset of one image, in the layout that takes the fewest words."""
    pair = ImageMaskPair("images/10k/val/a.png", "labels/sem_seg/masks/val/a.png", "train_ids")
    for path, pixels in ((pair.image, image), (pair.mask, mask)):
        (root / path).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(root / path)
    return LabelReader(root, dataset_spec("bdd100k")), pair


@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_that_was_drawn_is_counted_once(drawn, tmp_path, name):
    report = run_check(plan_check(name, root=drawn(name), output=tmp_path))
    expected = masks(name)
    assert report.problems == []
    assert report.sound == len(expected)
    for label, pixels, images in zip([*range(19), IGNORE], report.pixels, report.images, strict=True):
        assert pixels == sum(int((mask == label).sum()) for mask in expected)
        assert images == sum(bool((mask == label).any()) for mask in expected)
    sizes = sum((split.sizes for split in report.splits), start=type(report.splits[0].sizes)())
    assert sizes == {shape: sum(mask.shape == shape for mask in expected) for shape in {m.shape for m in expected}}
    assert sum(split.resized for split in report.splits) == (name == "gta5")


def test_several_processes_find_what_one_does(tmp_path):
    root = write_source(tmp_path, "cityscapes", train=40, val=1, size=(32, 64))
    (root / list_pairs(root, "cityscapes", "train")[35].mask).write_bytes(b"")
    one, two = (
        run_check(plan_check("cityscapes", root=root, output=tmp_path / str(workers), workers=workers)).figures()
        for workers in (1, 2)
    )
    assert one == two
    assert len(one["problems"]) == 1 and "the file is empty" in one["problems"][0]


def test_the_processes_that_read_need_not_wait_for_torch():
    module = "hmsa_pipeline.pipeline.dataset_tools.check"
    script = f"import sys, {module} as c; print(c.inspect_pair, {{'torch'}} & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.endswith(" set()\n")


def test_an_image_and_its_mask_are_told_apart(tmp_path):
    image = np.zeros((2, 3, 3), np.uint8)
    reader, pair = bdd100k(tmp_path, image, ids([0, 0, 18], [255, 13, 0]))
    look = inspect_pair(reader, pair)
    assert (look.size, look.mask_size, look.unreadable, look.unknown) == ((2, 3), (2, 3), (), ())
    assert look.pixels is not None
    assert {place: int(count) for place, count in enumerate(look.pixels) if count} == {0: 3, 13: 1, 18: 1, 19: 1}

    Image.fromarray(ids([0, 19, 254, 19], [0, 0, 0, 0])).save(tmp_path / pair.mask)
    look = inspect_pair(reader, pair)
    assert (look.size, look.mask_size, look.unknown, look.pixels) == ((2, 3), (2, 4), (19, 254), None)

    (tmp_path / pair.image).write_bytes(b"GIF89a")
    (tmp_path / pair.mask).unlink()
    look = inspect_pair(reader, pair)
    assert (look.size, look.mask_size, look.pixels) == (None, None, None)
    assert all(
        said.startswith(f"{tmp_path / path}: ")
        for path, said in zip((pair.image, pair.mask), look.unreadable, strict=True)
    )


def touched(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


STRAYS = {
    "cityscapes": "gtFine_trainvaltest/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png",
    "bdd100k": "labels/sem_seg/masks/train/none.png",
    "idd": "gtFine/val/999/000000_gtFine_polygons.json",
    "mapillary": "validation/labels/none.png",
    "wilddash": "panoptic/none.png",
    "gta5": "labels/00999.png",
    "shift": "discrete/labels/val/front/none/00000000_semseg_front.png",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_without_an_image_is_found(tmp_path, name):
    root = write_source(tmp_path, name, train=1, val=1, size=(32, 64))
    splits = [split for split in dataset_spec(name).labelled if split in dataset_spec(name).layout.splits]
    assert find_strays(root, dataset_spec(name), splits) == []
    stray = STRAYS[name]
    hidden = stray.rpartition("/")[0] + "/._none" + stray.rpartition("/")[2]
    touched(root, stray, hidden, stray + ".txt")
    assert find_strays(root, dataset_spec(name), splits) == [stray]


def test_a_joined_split_looks_where_its_parts_lie(tmp_path):
    root = write_source(tmp_path, "cityscapes", train=1, val=1, size=(32, 64))
    touched(root, STRAYS["cityscapes"])
    facts = dataset_spec("cityscapes")
    assert find_strays(root, facts, ["trainval"]) == find_strays(root, facts, ["val"]) == [STRAYS["cityscapes"]]
    assert find_strays(root, facts, ["train"]) == []


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=4), total=st.integers(0, 15))
def test_pictures_are_spread_over_the_splits(counts: list[int], total: int) -> None:
    places = spread(counts, total)
    assert sum(map(len, places)) == min(total, sum(counts))
    for count, chosen in zip(counts, places, strict=True):
        assert chosen == sorted(set(chosen)) and all(0 <= place < count for place in chosen)
        if len(chosen) > 1:
            assert (chosen[0], chosen[-1]) == (0, count - 1)
            gaps = np.diff(chosen)
            assert gaps.max() - gaps.min() <= 1
    # None has fewer than another, unless it has no more to give.
    for count, chosen in zip(counts, places, strict=True):
        assert len(chosen) >= min(count, max(map(len, places)) - 1)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "-"),
        (1, "100 %"),
        (0.335, "33.5 %"),
        (0.0123456, "1.23 %"),
        (0.0000211, "0.00211 %"),
        (2.11e-7, "0.00002 %"),
        (1e-9, "< 1e-5 %"),
    ],
)
def test_shares_have_three_digits(share: float, said: str) -> None:
    assert percent(share) == said


def test_labels_lie_over_the_image_at_half_opacity() -> None:
    image = np.arange(4 * 40 * 3, dtype=np.uint8).reshape(4, 40, 3)
    labels = np.repeat(np.arange(20, dtype=np.uint8), 2)[None].repeat(4, 0)
    labels[labels == 19] = IGNORE
    seen = overlay(image, labels)
    for label in range(19):
        inside = labels == label
        np.testing.assert_allclose(seen[inside], image[inside] / 2 + np.array(PALETTE[label]) / 2, atol=0.5)
    ignored = labels == IGNORE
    striped = ignored & (seen == 255).all(axis=2)
    assert 0 < striped.sum() < ignored.sum()
    np.testing.assert_array_equal(seen[ignored & ~striped], image[ignored & ~striped])


def test_the_sheet_shows_the_image_and_the_legend(tmp_path: Path) -> None:
    grey = np.full((30, 60, 3), 100, np.uint8)
    reader, pair = bdd100k(tmp_path, grey, np.full((30, 60), 8, np.uint8))
    dataset_sheet(tmp_path / "sheet.png", "One image", reader, [("val", pair)])
    with Image.open(tmp_path / "sheet.png") as file:
        sheet = np.asarray(file.convert("RGB"))
    blended = np.rint(np.array(PALETTE[8]) / 2 + 50).astype(int)
    rows, columns = np.nonzero((np.abs(sheet.astype(int) - blended) <= 1).all(axis=2))
    # As wide as its place allows, with its own aspect.
    assert (columns.max() - columns.min() + 1) / (rows.max() - rows.min() + 1) == 2
    for colour in PALETTE:
        assert (sheet == colour).all(axis=2).sum() >= 300


def test_a_picture_of_any_shape_has_its_place(tmp_path: Path) -> None:
    for number, shape in enumerate([(400, 20), (20, 400), (1, 1)]):
        root = tmp_path / str(number)
        reader, pair = bdd100k(root, np.zeros((*shape, 3), np.uint8), np.full(shape, 255, np.uint8))
        dataset_sheet(root / "sheet.png", "A title that is far too long " * 10, reader, [("val", pair)] * 4)
        with Image.open(root / "sheet.png") as sheet:
            assert sheet.width < 2000 and sheet.height < 2000


def test_the_chart_shows_every_class_in_its_colour(tmp_path: Path) -> None:
    pixels = (10 ** np.linspace(1, 7, 20)).astype(np.int64)
    images = np.arange(1, 21)
    for name, counts in (
        ("all", pixels),
        ("one", np.eye(20, dtype=np.int64)[3]),
        ("ignored", np.eye(20, dtype=int)[19]),
    ):
        draw_class_chart(tmp_path / f"{name}.png", "A chart", counts, images * (counts > 0), 20)
    with Image.open(tmp_path / "all.png") as file:
        chart = np.asarray(file.convert("RGB"))
    areas = [int((chart == colour).all(axis=2).sum()) for colour in PALETTE]
    assert min(areas) > 300
    # Both the shares and the images grow from class to class.
    assert areas == sorted(areas), dict(zip(CLASS_NAMES, areas, strict=True))


def test_images_that_are_not_there_are_counted_against_the_official_numbers(tmp_path: Path) -> None:
    root = write_source(tmp_path, "cityscapes", train=2, val=1, size=(32, 64))
    assert run_check(plan_check("cityscapes", root=root, output=tmp_path / "out", workers=1)).problems == []
    (root / ".drawn.json").unlink()  # now it might be a real one
    report = run_check(plan_check("cityscapes", root=root, output=tmp_path / "out", workers=1))
    train, val = report.problems
    assert train.startswith("train: 2973 images of the 2975 that are distributed are missing; unpack leftImg8bit_")
    assert val.startswith("val: 499 images of the 500 ")
    assert report.figures()["splits"]["train"]["distributed"] == 2975
    assert "  train  2 of 2975 images, 2 masks" in "\n".join(report.summary())
    joined = run_check(plan_check("cityscapes", root=root, split="trainval", output=tmp_path / "out", workers=1))
    assert joined.problems[0].startswith("trainval: 3472 images of the 3475 ")
    folds = run_check(plan_check("cityscapes", root=root, split="train_cv1", output=tmp_path / "out", workers=1))
    assert folds.problems == []  # nobody says how many images a fold has


def test_the_coarse_split_of_cityscapes_is_looked_at_where_it_is_there(tmp_path: Path) -> None:
    root = write_source(tmp_path, "cityscapes", train=2, val=1, size=(32, 64))
    for pair in list_pairs(root, "cityscapes", "train"):
        image = root / "leftImg8bit" / pair.image.partition("leftImg8bit/")[2].replace("train/", "train_extra/")
        mask = root / "gtCoarse" / pair.mask.partition("gtFine/")[2].replace("train/", "train_extra/")
        mask = mask.with_name(mask.name.replace("gtFine", "gtCoarse"))
        for old, new in ((pair.image, image), (pair.mask, mask)):
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes((root / old).read_bytes())
    report = run_check(plan_check("cityscapes", root=root, output=tmp_path / "out", workers=1))
    assert report.problems == []
    assert [(split.name, split.pairs) for split in report.splits] == [("train", 2), ("val", 1), ("train_extra", 2)]
    (root / ".drawn.json").unlink()
    mask.unlink()
    report = run_check(plan_check("cityscapes", root=root, split="train_extra", output=tmp_path / "out", workers=1))
    missing, alone = report.problems
    assert missing.startswith(
        "train_extra: 19996 images of the 19998 that are distributed are missing; unpack leftIm"
    )
    assert "1 of 2 images have no mask" in alone and "unpack gtCoarse.zip" in alone


def test_conditions_of_acdc_that_are_missing_are_counted(tmp_path: Path) -> None:
    for split in ("train", "val"):
        below = f"fog/{split}/GOPR0475/GOPR0475_frame_000041"
        for path in (f"rgb_anon/{below}_rgb_anon.png", f"gt/{below}_gt_labelTrainIds.png"):
            (tmp_path / path).parent.mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / f"rgb_anon/{below}_rgb_anon.png")
        Image.new("L", (6, 4)).save(tmp_path / f"gt/{below}_gt_labelTrainIds.png")
    stray = tmp_path / "gt/fog/val/GOPR0475/GOPR0475_frame_000099_gt_labelTrainIds.png"
    Image.new("L", (6, 4)).save(stray)
    report = run_check(plan_check("acdc", root=tmp_path, output=tmp_path / "out"))
    assert [(split.name, split.expected, split.missing) for split in report.splits] == [
        ("train", 1600, 1599),
        ("val", 406, 405),
    ]
    assert any(stray.name in problem for problem in report.problems)
    alone = run_check(plan_check("acdc", root=tmp_path, split="val_fog", output=tmp_path / "out"))
    assert [(split.name, split.expected) for split in alone.splits] == [("val_fog", 100)]
