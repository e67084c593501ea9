"""Which mask belongs to which image, on small trees of empty files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.dataset_specs import NAMES, dataset_spec
from hmsa_pipeline.datasets.layout.image_mask_pairs import (
    ImageMaskPair,
    find_pairs,
    labelled_pairs,
    list_pairs,
    panoptic_json,
)
from hmsa_pipeline.errors import DatasetError

# An image of each dataset, and its masks as they are converted, as distributed, and as distributed otherwise; the
# first that is there counts.
EXAMPLES = {
    "cityscapes": (
        "leftImg8bit_trainvaltest/leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
        {
            "gtFine_trainvaltest/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png": "ids",
            "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png": "ids",
        },
    ),
    "bdd100k": (
        "images/10k/val/7d06-1.jpg",
        {
            "labels/sem_seg/masks/val/7d06-1.png": "train_ids",
            "seg/labels/val/7d06-1_train_id.png": "train_ids",
        },
    ),
    "idd": (
        "leftImg8bit/val/119/frame1_leftImg8bit.jpg",
        {
            "gtFine/val/119/frame1_gtFine_labelcsTrainIds.png": "train_ids",
            "gtFine/val/119/frame1_gtFine_polygons.json": "polygons",
        },
    ),
    "mapillary": (
        "validation/images/a_B-1.jpg",
        {
            "validation/labels_cityscapes/a_B-1.png": "train_ids",
            "validation/labels/a_B-1.png": "ids",
            "validation/v1.2/labels/a_B-1.png": "ids",
            "validation/v2.0/labels/a_B-1.png": "ids_v2",
        },
    ),
    "wilddash": (
        "images/wd0000_100000.jpg",
        {"semantic_csTrain/wd0000_100000_labelIds.png": "train_ids", "panoptic/wd0000_100000.png": "panoptic"},
    ),
    "gta5": ("images/00042.png", {"labels_cityscapes/00042.png": "train_ids", "labels/00042.png": "ids"}),
    "shift": (
        "discrete/images/val/front/0aee-69fd/00000010_img_front.jpg",
        {
            "discrete/labels_cityscapes/val/front/0aee-69fd/00000010_semseg_front.png": "train_ids",
            "discrete/labels/val/front/0aee-69fd/00000010_semseg_front.png": "red",
            "discrete/images/val/front/semseg/0aee-69fd/00000010_semseg_front.png": "red",
            "discrete/images/val/front/0aee-69fd/00000010_semseg_front.png": "red",
        },
    ),
}


def tree(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def begin(root: Path, name: str) -> str:
    """A dataset of one image, which is for validation, and no masks; returns its path."""
    image = EXAMPLES[name][0]
    tree(root, image)
    if name == "gta5":
        np.savez(root / "split.npz", valIds=[42])
    if name == "wilddash":
        tree(root, "panoptic.json")
    if name == "mapillary":
        labels = [{"name": meaning} for _, meaning in (dataset_spec(name).labels or {}).values()]
        (root / "config.json").write_text(json.dumps({"labels": labels}))
    return image


@pytest.mark.parametrize("name", NAMES)
def test_each_mask_is_found_and_the_preferred_one_taken(tmp_path, name):
    image, masks = begin(tmp_path, name), EXAMPLES[name][1]
    assert find_pairs(tmp_path, name, "val") == ([], [image])
    for mask, encoding in reversed(masks.items()):
        tree(tmp_path, mask)
        assert list_pairs(tmp_path, name, "val") == [ImageMaskPair(image, mask, encoding)]
    assert (
        list_pairs(tmp_path, name)
        == find_pairs(tmp_path, name)[0]
        == [ImageMaskPair(image, *next(iter(masks.items())))]
    )
    rules = [rule for rule in dataset_spec(name).masks if not rule.splits]
    assert len(masks) == len(rules), "every rule has an example"


@pytest.mark.parametrize("name", NAMES)
def test_images_without_masks_are_told_where_to_get_them(tmp_path, name):
    image = begin(tmp_path, name)
    with pytest.raises(DatasetError) as caught:
        list_pairs(tmp_path, name, "val")
    message = str(caught.value)
    assert f"1 of the 1 images of split 'val' have no mask ({image})" in message
    assert all(mask in message for mask in EXAMPLES[name][1])
    assert f"unpack {dataset_spec(name).mask_archive}; see: hmsa-pipeline datasets list" in message
    assert "\n" not in message


def test_some_masks_are_found_and_the_others_counted(tmp_path):
    images = [f"images/10k/val/{n}.jpg" for n in range(9)]
    tree(tmp_path, *images, *(f"labels/sem_seg/masks/val/{n}.png" for n in (8, 2)))
    pairs, alone = find_pairs(tmp_path, "bdd100k", "val")
    assert [pair.image for pair in pairs] == [images[2], images[8]]
    assert alone == [*images[:2], *images[3:8]]
    with pytest.raises(DatasetError, match=r"7 of the 9 images .*0\.jpg, .*1\.jpg, .*3\.jpg and 4 more"):
        list_pairs(tmp_path, "bdd100k", "val")


def test_images_to_leave_out_are_left_out_with_their_masks_or_without(tmp_path):
    images = [f"images/10k/val/{n}.jpg" for n in range(4)]
    tree(tmp_path, *images, *(f"labels/sem_seg/masks/val/{n}.png" for n in (0, 1, 2)))
    pairs, left_out = labelled_pairs(tmp_path, "bdd100k", "val", leave_out=[images[1], images[3]])
    assert [pair.image for pair in pairs] == [images[0], images[2]]
    assert left_out == [images[1], images[3]]
    pairs, left_out = labelled_pairs(tmp_path, "bdd100k", "val", allow_unlabelled=True)
    assert ([pair.image for pair in pairs], left_out) == (images[:3], images[3:])
    away = [*images[3:], "images/10k/train/a.jpg"]
    with pytest.raises(DatasetError, match=r"without_masks names 1 images .*train/a\.jpg"):
        labelled_pairs(tmp_path, "bdd100k", "val", leave_out=away)
    assert labelled_pairs(tmp_path, "bdd100k", "val", leave_out=away, all_there=False)[1] == images[3:]


@pytest.mark.parametrize("how", [{"allow_unlabelled": True}, {"leave_out": ["images/10k/val/0.jpg"]}])
def test_a_split_without_any_mask_is_refused_whatever_is_left_out(tmp_path, how):
    tree(tmp_path, "images/10k/val/0.jpg")
    with pytest.raises(DatasetError, match="1 of the 1 images of split 'val' have no mask") as caught:
        labelled_pairs(tmp_path, "bdd100k", "val", **how)
    assert "allow" not in str(caught.value)


def test_names_with_braces_are_names(tmp_path):
    tree(tmp_path, "images/10k/val/{x}/{0}.jpg", "labels/sem_seg/masks/val/{x}/{0}.png")
    assert [pair.mask for pair in list_pairs(tmp_path, "bdd100k")] == ["labels/sem_seg/masks/val/{x}/{0}.png"]


@pytest.mark.parametrize("coarse", ["gtCoarse", "gtCoarse/gtCoarse"])
def test_coarse_masks_of_cityscapes_are_those_of_train_extra_alone(tmp_path, coarse):
    for split in ("train", "val", "train_extra"):
        tree(tmp_path, f"leftImg8bit/{split}/ulm/ulm_1_leftImg8bit.png")
        tree(tmp_path, f"{coarse}/{split}/ulm/ulm_1_gtCoarse_labelIds.png")
    image, mask = (f"{top}/train_extra/ulm/ulm_1" for top in ("leftImg8bit", coarse))
    assert list_pairs(tmp_path, "cityscapes", "train_extra") == [
        ImageMaskPair(f"{image}_leftImg8bit.png", f"{mask}_gtCoarse_labelIds.png", "ids")
    ]
    with pytest.raises(DatasetError, match=r"1 of the 1 images .* gtFine_trainvaltest/.*unpack gtFine_trainvaltest"):
        list_pairs(tmp_path, "cityscapes", "val")
    (tmp_path / f"{mask}_gtCoarse_labelIds.png").unlink()
    with pytest.raises(DatasetError, match=r"that would be gtCoarse/gtCoarse/.*; unpack gtCoarse\.zip"):
        list_pairs(tmp_path, "cityscapes", "train_extra")


def test_joined_splits_look_for_masks_where_each_image_lies(tmp_path):
    for split, city in (("train", "ulm"), ("train", "jena"), ("val", "lindau")):
        tree(tmp_path, f"leftImg8bit/{split}/{city}/{city}_leftImg8bit.png")
        tree(tmp_path, f"gtFine/{split}/{city}/{city}_gtFine_labelIds.png")
    masks = {pair.mask for pair in list_pairs(tmp_path, "cityscapes", "trainval")}
    assert masks == {
        "gtFine/train/jena/jena_gtFine_labelIds.png",
        "gtFine/train/ulm/ulm_gtFine_labelIds.png",
        "gtFine/val/lindau/lindau_gtFine_labelIds.png",
    }
    parts = [list_pairs(tmp_path, "cityscapes", split) for split in ("train_cv2", "val_cv2")]
    assert {pair.mask for part in parts for pair in part} == masks
    assert [len(part) for part in parts] == [2, 1]


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("cityscapes", "leftImg8bit/test/ulm/ulm_leftImg8bit.png"),
        ("bdd100k", "images/10k/test/a.jpg"),
        ("idd", "leftImg8bit/test/1/a_leftImg8bit.png"),
        ("mapillary", "testing/images/a.jpg"),
    ],
)
def test_splits_whose_masks_are_kept_back_are_refused(tmp_path, name, image):
    tree(tmp_path, image)
    with pytest.raises(
        DatasetError, match=r"the masks of split 'test' of .* are not published; choose one of train, .*val"
    ):
        list_pairs(tmp_path, name, "test")
    assert find_pairs(tmp_path, name, "test") == ([], [image])


def test_gta5_has_masks_for_its_test_split(tmp_path):
    tree(tmp_path, "images/00001.png", "labels/00001.png")
    np.savez(tmp_path / "split.npz", testIds=[1])
    assert list_pairs(tmp_path, "gta5", "test") == [ImageMaskPair("images/00001.png", "labels/00001.png", "ids")]


def test_colours_without_their_meaning_are_refused(tmp_path):
    begin(tmp_path, "wilddash")
    tree(tmp_path, "panoptic/wd0000_100000.png")
    (tmp_path / "panoptic.json").unlink()
    with pytest.raises(DatasetError, match=r"panoptic\.json: there is no such file.*unpack wd_public_v2p0\.zip"):
        list_pairs(tmp_path, "wilddash")
    tree(tmp_path, "semantic_csTrain/wd0000_100000_labelIds.png")
    assert len(list_pairs(tmp_path, "wilddash")) == 1


def test_the_json_lies_beside_the_folder_of_the_masks():
    assert panoptic_json("panoptic/a.png") == "panoptic.json"
    assert panoptic_json("x/y/a.png") == "x/y.json"


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(DatasetError, match=r"unknown dataset 'cityscape'; did you mean 'cityscapes'\?"):
        list_pairs(tmp_path, "cityscape")
    with pytest.raises(DatasetError, match=r"type 'gta5' has no split 'vall'; did you mean 'val'\?"):
        find_pairs(tmp_path, "gta5", "vall")
    with pytest.raises(DatasetError, match=r"keeps its images in training/images/; none is there; unpack"):
        list_pairs(tmp_path, "mapillary", "train")
