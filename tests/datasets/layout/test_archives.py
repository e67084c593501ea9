"""Datasets that lie as their authors' archives unpack: which images and masks are found, and what masks mean."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels import label_reader as labels_module
from hmsa_pipeline.datasets.labels import polygons
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.find_images import list_images
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair, find_pairs, labelled_pairs, list_pairs
from hmsa_pipeline.errors import DatasetError
from PIL import Image

SIZE = (6, 8)
V2_NAMES = [name for _, name in (dataset_spec("mapillary").labels_v2 or {}).values()]
V1_NAMES = [name for _, name in (dataset_spec("mapillary").labels or {}).values()]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def grey(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path)


def polygon_file(path: Path, label: str = "road") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = SIZE
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    objects = [{"label": label, "polygon": corners}]
    path.write_text(json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects}))


# ------------------------------------------------------------------ SHIFT


def shift(root: Path, base: str, view: str, *, own_folders: bool, splits: tuple[str, ...] = ("train", "val")) -> None:
    for split in splits:
        for group, suffix in (("img", "jpg"), ("semseg", "png")):
            folder = f"{base}/{split}/{view}/{group}" if own_folders else f"{base}/{split}/{view}"
            touch(root, f"{folder}/0003-17fb/00000010_{group}_{view}.{suffix}")


@pytest.mark.parametrize("own_folders", [False, True])
@pytest.mark.parametrize(
    ("split", "base", "view"),
    [
        ("val", "discrete/images", "front"),
        ("val_left_45", "discrete/images", "left_45"),
        ("train_left_stereo", "discrete/images", "left_stereo"),
        ("train_continuous_1x", "continuous/images/1x", "front"),
        ("val_continuous_100x", "continuous/100x/images", "front"),
    ],
)
def test_shift_is_read_however_its_zips_were_unpacked(tmp_path, split, base, view, own_folders):
    shift(tmp_path, base, view, own_folders=own_folders)
    pairs, alone = find_pairs(tmp_path, "shift", split)
    assert alone == []
    ((image, mask, encoding),) = [(pair.image, pair.mask, pair.encoding) for pair in pairs]
    assert encoding == "red"
    group = f"{base}/{split.partition('_')[0]}/{view}/" + ("{}/" if own_folders else "")
    assert image == group.format("img") + f"0003-17fb/00000010_img_{view}.jpg"
    assert mask == group.format("semseg") + f"0003-17fb/00000010_semseg_{view}.png"


def test_cameras_of_shift_are_not_mixed(tmp_path):
    for view in ("front", "left_45"):
        shift(tmp_path, "discrete/images", view, own_folders=True)
    assert [image.path for image in list_images(tmp_path, "shift", "train")] == [
        "discrete/images/train/front/img/0003-17fb/00000010_img_front.jpg"
    ]


def test_the_test_split_of_shift_has_images_and_no_masks(tmp_path):
    shift(tmp_path, "discrete/images", "front", own_folders=True, splits=("test",))
    assert len(list_images(tmp_path, "shift", "test")) == 1
    with pytest.raises(DatasetError, match="the masks of split 'test' of SHIFT are not published"):
        list_pairs(tmp_path, "shift", "test")
    with pytest.raises(DatasetError, match="the masks of split 'test_left_45' of SHIFT are not published"):
        list_pairs(tmp_path, "shift", "test_left_45")


# ------------------------------------------------------------------ IDD


def idd(folder: Path, suffix: str, drive: str, label: str) -> None:
    for split in ("train", "val"):
        touch(folder, f"leftImg8bit/{split}/{drive}/frame1_leftImg8bit.{suffix}")
        polygon_file(folder / f"gtFine/{split}/{drive}/frame1_gtFine_polygons.json", label)


@pytest.mark.parametrize("where", ["inside", "around", "beside"])
def test_both_parts_of_idd_are_read(tmp_path, where):
    """Part II inside part I's folder, both in the folder that is named, or part II beside part I's folder."""
    root = tmp_path if where == "around" else tmp_path / "IDD_Segmentation"
    idd(tmp_path / "IDD_Segmentation", "png", "0", "road")
    idd((root if where == "inside" else tmp_path) / "idd20kII", "jpg", "0", "sky")
    pairs, alone = find_pairs(root, "idd", "train")
    first = "IDD_Segmentation/" if where == "around" else ""
    assert alone == []
    assert sorted((pair.image, pair.mask) for pair in pairs) == sorted(
        (
            f"{part}leftImg8bit/train/0/frame1_leftImg8bit.{suffix}",
            f"{part}gtFine/train/0/frame1_gtFine_polygons.json",
        )
        for part, suffix in ((first, "png"), ("idd20kII/", "jpg"))
    )
    reader = LabelReader(root, dataset_spec("idd"), tmp_path / "cache")
    reader.prepare(pairs, processes=1)
    shown = {pair.image.rpartition(".")[2]: set(np.unique(reader.read(pair, SIZE))) for pair in pairs}
    assert shown == {"png": {0}, "jpg": {10}}  # road, sky


def test_a_part_inside_wins_over_one_beside(tmp_path):
    root = tmp_path / "IDD_Segmentation"
    idd(root, "png", "0", "road")
    idd(root / "idd20kII", "jpg", "1", "sky")
    idd(tmp_path / "idd20kII", "jpg", "2", "sky")
    assert [pair.image for pair in list_pairs(root, "idd", "val")] == [
        "idd20kII/leftImg8bit/val/1/frame1_leftImg8bit.jpg",
        "leftImg8bit/val/0/frame1_leftImg8bit.png",
    ]


def test_what_lies_beside_other_datasets_is_not_theirs(tmp_path):
    touch(tmp_path, "Cityscapes-nvidia/leftImg8bit/val/a/a_leftImg8bit.png")
    idd(tmp_path / "idd20kII", "png", "1", "sky")
    assert [image.path for image in list_images(tmp_path / "Cityscapes-nvidia", "cityscapes")] == [
        "leftImg8bit/val/a/a_leftImg8bit.png"
    ]
    # The part itself is named: it is not its own second part.
    assert [pair.image for pair in list_pairs(tmp_path / "idd20kII", "idd", "val")] == [
        "leftImg8bit/val/1/frame1_leftImg8bit.png"
    ]


def test_part_two_of_idd_alone(tmp_path):
    idd(tmp_path, "jpg", "201", "sky")
    assert [pair.image for pair in list_pairs(tmp_path, "idd", "val")] == [
        "leftImg8bit/val/201/frame1_leftImg8bit.jpg"
    ]


# ------------------------------------------------------------------ BDD100K


def test_the_tree_of_bdd100k_before_2021(tmp_path):
    touch(tmp_path, "seg/images/val/a-1.jpg", "seg/labels/val/a-1_train_id.png", "seg/color_labels/val/a-1_x.png")
    assert list_pairs(tmp_path, "bdd100k", "val") == [
        ImageMaskPair("seg/images/val/a-1.jpg", "seg/labels/val/a-1_train_id.png", "train_ids")
    ]


# ------------------------------------------------------------------ Mapillary


def config(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"labels": [{"name": name} for name in names]}))


def flat(root: Path, ids: np.ndarray) -> None:
    touch(root, "validation/images/a.jpg")
    grey(root / "validation/labels/a.png", ids)


def test_the_same_ids_mean_what_the_config_says(tmp_path):
    ids = np.full(SIZE, 21)  # a motorcyclist of v1.2, a road of v2.0
    for version, names, train in (("1.2", V1_NAMES, 12), ("2.0", V2_NAMES, 0)):
        root = tmp_path / version
        flat(root, ids)
        config(root / "config.json", names)
        (pair,) = list_pairs(root, "mapillary", "val")
        assert set(np.unique(LabelReader(root, dataset_spec("mapillary")).read(pair, SIZE))) == {train}


def test_nothing_is_guessed_without_a_config(tmp_path):
    flat(tmp_path, np.zeros(SIZE))
    with pytest.raises(
        DatasetError, match=r"config\.json: is not there, which says of which version the masks in val"
    ):
        list_pairs(tmp_path, "mapillary", "val")
    config(tmp_path / "config_v2.0.json", V2_NAMES)
    assert list_pairs(tmp_path, "mapillary", "val")[0].encoding == "ids_v2"
    config(tmp_path / "config_v1.2.json", V1_NAMES)
    with pytest.raises(DatasetError, match=r"config_v1\.2\.json and config_v2\.0\.json are there, so nothing says"):
        list_pairs(tmp_path, "mapillary", "val")
    config(tmp_path / "config.json", V1_NAMES[:60])
    with pytest.raises(DatasetError, match="lists 60 labels, but Mapillary Vistas has 66 or 124"):
        list_pairs(tmp_path, "mapillary", "val")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(DatasetError, match=r"config\.json: is no list of labels"):
        list_pairs(tmp_path, "mapillary", "val")


def test_of_the_archive_of_v2_the_labels_of_v1_are_read_if_they_are_there(tmp_path):
    touch(tmp_path, "training/images/a.jpg", "training/v2.0/labels/a.png")
    assert list_pairs(tmp_path, "mapillary", "train")[0].encoding == "ids_v2"
    touch(tmp_path, "training/v1.2/labels/a.png")
    assert list_pairs(tmp_path, "mapillary", "train") == [
        ImageMaskPair("training/images/a.jpg", "training/v1.2/labels/a.png", "ids")
    ]


def test_labels_of_v2_count_as_those_of_v1_of_which_they_were_made():
    facts = dataset_spec("mapillary")
    v1, v2 = facts.labels or {}, facts.labels_v2 or {}
    assert sorted(v2) == list(range(124)) and len(set(V2_NAMES)) == 124
    by_name = {name: raw for raw, (_, name) in v1.items()}
    for old, name in v2.values():
        if name in by_name:  # what has kept its name has kept its meaning
            assert old == by_name[name], name
        else:
            group = name.split("--")[0].removesuffix("-only")
            assert v1[old][1].startswith((group, "void--unlabeled", "object--billboard")), name
    assert {old for old, _ in v2.values()} == set(v1)


def test_robustnet_maps_twelve_ids_otherwise():
    facts = dataset_spec("mapillary")
    other = facts.mapped("robustnet")
    assert facts.mapped("hmsa") == facts == facts.mapped(None)
    # As the loader of RobustNet lists them: train id -> raw ids; all others are ignored.
    listed = {0: [13, 24, 41], 1: [2, 15], 5: [45, 47], 12: [20, 21, 22]}
    single = {2: 17, 3: 6, 4: 3, 6: 48, 7: 50, 8: 30, 9: 29, 10: 27, 11: 19, 13: 55, 14: 61, 15: 54, 16: 58, 17: 57}
    listed |= {train: [raw] for train, raw in (single | {18: 52}).items()}
    expected = dict.fromkeys(range(66), 255) | {raw: train for train, raws in listed.items() for raw in raws}
    assert {raw: train for raw, (train, _) in (other.labels or {}).items()} == expected
    ours = {raw: train for raw, (train, _) in (facts.labels or {}).items()}
    assert [raw for raw in range(66) if ours[raw] != expected[raw]] == [2, 5, 7, 8, 9, 10, 11, 23, 26, 28, 41, 46]
    assert other.lookup("ids_v2")[V2_NAMES.index("object--manhole")] == 0
    assert facts.lookup("ids_v2")[V2_NAMES.index("object--manhole")] == 255
    # Train ids on the disk were made by the first mapping, and say nothing of curbs.
    assert "train_ids" in {rule.encoding for rule in facts.masks}
    assert "train_ids" not in {rule.encoding for rule in other.masks}
    with pytest.raises(DatasetError, match=r"no mapping 'robustnt'; did you mean 'robustnet'\?"):
        facts.mapped("robustnt")
    with pytest.raises(DatasetError, match=r"IDD .* has no other mappings"):
        dataset_spec("idd").mapped("robustnet")


# ------------------------------------------------------------------ images without masks


def test_images_without_masks_are_left_out_where_that_is_asked_for(tmp_path):
    touch(tmp_path, *(f"images/10k/val/{name}.jpg" for name in "abc"), "labels/sem_seg/masks/val/a.png")
    place = "images/10k/val/"
    with pytest.raises(DatasetError, match=r"2 of the 3 images of split 'val' have no mask .*--allow-unlabelled"):
        labelled_pairs(tmp_path, "bdd100k", "val")
    pairs, left_out = labelled_pairs(tmp_path, "bdd100k", "val", allow_unlabelled=True)
    assert ([pair.image for pair in pairs], left_out) == ([f"{place}a.jpg"], [f"{place}b.jpg", f"{place}c.jpg"])
    listed = [f"{place}b.jpg", f"{place}c.jpg"]
    assert labelled_pairs(tmp_path, "bdd100k", "val", leave_out=listed)[1] == listed
    with pytest.raises(DatasetError, match="1 of the 2 images"):
        labelled_pairs(tmp_path, "bdd100k", "val", leave_out=listed[:1])
    with pytest.raises(DatasetError, match=r"without_masks names 1 images that split 'val' does not hold \(d\.jpg\)"):
        labelled_pairs(tmp_path, "bdd100k", "val", leave_out=["d.jpg"], allow_unlabelled=True)
    (tmp_path / "labels/sem_seg/masks/val/a.png").unlink()
    with pytest.raises(DatasetError, match="3 of the 3 images"):
        labelled_pairs(tmp_path, "bdd100k", "val", allow_unlabelled=True)


# ------------------------------------------------------------------ drawn polygons


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a disk that keeps times in steps of two seconds."""
    utime = os.utime

    def coarser(path, times=None, **how):
        if "cache" in Path(path).parts and "ns" in how:
            how["ns"] = tuple(time // 2_000_000_000 * 2_000_000_000 for time in how["ns"])
        utime(path, times, **how) if times else utime(path, **how)

    monkeypatch.setattr(os, "utime", coarser)


def test_drawn_polygons_are_kept_on_disks_with_coarse_times(tmp_path, coarse, monkeypatch):
    idd(tmp_path, "png", "0", "road")
    (pair,) = list_pairs(tmp_path, "idd", "train")
    path = tmp_path / pair.mask
    drawn: list[Path] = []
    draw = polygons.draw

    def counted(path, ids):
        drawn.append(path)
        return draw(path, ids)

    monkeypatch.setattr(polygons, "draw", counted)
    monkeypatch.setattr(labels_module, "draw", counted)
    reader = LabelReader(tmp_path, dataset_spec("idd"), tmp_path / "cache")
    for _ in range(2):
        reader.prepare([pair], processes=1)
        assert set(np.unique(reader.read(pair, SIZE))) == {0}
    assert drawn == [path]
    # A change that leaves the size alone, and one that leaves the time alone, are seen.
    time = path.stat().st_mtime_ns
    polygon_file(path, "wall")
    os.utime(path, ns=(time + 4_000_000_000, time + 4_000_000_000))
    assert set(np.unique(reader.read(pair, SIZE))) == {3}
    reader.prepare([pair], processes=1)
    time = path.stat().st_mtime_ns
    polygon_file(path, "building")
    os.utime(path, ns=(time, time))
    assert set(np.unique(reader.read(pair, SIZE))) == {2}


def test_a_drawn_picture_is_an_ordinary_png(tmp_path):
    idd(tmp_path, "png", "0", "road")
    (pair,) = list_pairs(tmp_path, "idd", "train")
    LabelReader(tmp_path, dataset_spec("idd"), tmp_path / "cache").prepare([pair], processes=1)
    (made,) = (tmp_path / "cache").rglob("*.png")
    with Image.open(made) as picture:
        assert (picture.mode, picture.size) == ("L", SIZE[::-1])
        assert "drawn-from" in picture.info
        assert set(np.unique(np.asarray(picture))) == {0}
