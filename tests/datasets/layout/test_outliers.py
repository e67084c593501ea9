"""Sets of what is out of distribution, laid out as they are distributed and as others' code reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.dataset_specs import EVALUATED, dataset_spec
from hmsa_pipeline.datasets.labels.outlier_masks import OutlierReader
from hmsa_pipeline.datasets.layout.find_images import list_images, survey_images
from hmsa_pipeline.datasets.layout.image_mask_pairs import find_pairs
from hmsa_pipeline.datasets.layout.outlier_sets import OUTLIERS
from hmsa_pipeline.errors import DatasetError
from PIL import Image

STREET = "01_Hanns_Klemm_Str_45"
FRAME = f"{STREET}_000000_000080"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)


def mask(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (4, 6))).save(path)


def read(root: Path, name: str, split: str | None = None) -> dict[str | None, list[tuple[str, list[int]]]]:
    """Split -> images with the first values of their masks, as they are scored."""
    reader = OutlierReader(root, name)
    return {
        part: [(pair.image, reader.read(pair, (4, 6)).ravel()[:4].tolist()) for pair in pairs]
        for part, pairs in reader.pairs(split).items()
    }


@pytest.mark.parametrize("top", ["", "dataset_LostAndFound/"])
@pytest.mark.parametrize(
    ("ending", "values"), [("labelIds", (0, 1, 2, 43)), ("labelTrainIds", (255, 1, 2, 2))], ids=["ids", "train ids"]
)
def test_lost_and_found(tmp_path: Path, top: str, ending: str, values: tuple[int, ...]) -> None:
    for split in ("train", "test"):
        image = f"{top}leftImg8bit/{split}/{STREET}/{FRAME}_leftImg8bit.png"
        picture(tmp_path / image)
        mask(tmp_path / f"{top}gtCoarse/{split}/{STREET}/{FRAME}_gtCoarse_{ending}.png", *values)
        Image.new("RGB", (6, 4)).save(tmp_path / f"{top}gtCoarse/{split}/{STREET}/{FRAME}_gtCoarse_color.png")
        assert read(tmp_path, "lostandfound", split) == {split: [(image, [255, 0, 1, 1])]}
    assert [*read(tmp_path, "lostandfound")] == ["test"]


def test_label_ids_win_over_train_ids(tmp_path: Path) -> None:
    stem = tmp_path / "gtCoarse/test" / STREET / FRAME
    picture(tmp_path / f"leftImg8bit/test/{STREET}/{FRAME}_leftImg8bit.png")
    mask(Path(f"{stem}_gtCoarse_labelIds.png"), 0, 1, 200, 255)
    mask(Path(f"{stem}_gtCoarse_labelTrainIds.png"), 1)
    assert read(tmp_path, "lostandfound")["test"][0][1] == [255, 0, 1, 255]
    mask(Path(f"{stem}_gtCoarse_labelIds.png"), 0, 1, 201)
    with pytest.raises(DatasetError, match=r"labelIds\.png: holds other values than 0 to 200 and 255 \(201\)"):
        read(tmp_path, "lostandfound")


def test_fishyscapes_as_it_is_distributed(tmp_path: Path) -> None:
    other = f"{STREET}_000001_000060"
    for frame, split in ((FRAME, "train"), (other, "test"), (f"{STREET}_000099_000000", "test")):
        picture(tmp_path / f"leftImg8bit/{split}/{STREET}/{frame}_leftImg8bit.png")
    for number, frame in enumerate((FRAME, other)):
        mask(tmp_path / f"fishyscapes_lostandfound/{number:04d}_{frame}_labels.png", 0, 1, 255)
    listing = survey_images(tmp_path, "fishyscapes")
    images = [f"leftImg8bit/{s}/{STREET}/{f}_leftImg8bit.png" for s, f in (("test", other), ("train", FRAME))]
    assert [image.path for image in listing.images] == images
    assert listing.left_out == {"of LostAndFound, which Fishyscapes does not label": 1}
    assert read(tmp_path, "fishyscapes") == {"lostandfound": [(image, [0, 1, 255, 0]) for image in images]}


def test_fishyscapes_as_others_prepare_it(tmp_path: Path) -> None:
    for part in ("LostAndFound", "Static"):
        picture(tmp_path / part / "original" / "7.png")
        mask(tmp_path / part / "labels" / "7.png", 255, 1, 0)
    assert read(tmp_path, "fishyscapes") == {
        "lostandfound": [("LostAndFound/original/7.png", [255, 1, 0, 255])],
        "static": [("Static/original/7.png", [255, 1, 0, 255])],
    }
    assert [*read(tmp_path, "fishyscapes", "static")] == ["static"]


@pytest.mark.parametrize("top", ["", "RoadAnomaly_jpg/", "dataset_RoadAnomaly/"])
def test_road_anomaly(tmp_path: Path, top: str) -> None:
    picture(tmp_path / f"{top}frames/animals01.jpg")
    mask(tmp_path / f"{top}frames/animals01.labels/labels_semantic.png", 0, 1, 2, 255)
    Image.new("RGB", (6, 4)).save(tmp_path / f"{top}frames/animals01.labels/labels_semantic_color.png")
    assert [image.path for image in list_images(tmp_path, "roadanomaly")] == [f"{top}frames/animals01.jpg"]
    assert read(tmp_path, "roadanomaly") == {None: [(f"{top}frames/animals01.jpg", [0, 0, 1, 255])]}


BUNDLE = {
    "RoadAnomaly21": "png",
    "RoadObsticle21": "webp",
    "fs_static": "jpg",
    "FS_LostFound_full": "png",
    "RoadAnomaly": "jpg",
}


@pytest.mark.parametrize("top", ["", "Validation_Dataset/"])
def test_the_bundle_is_five_sets(tmp_path: Path, top: str) -> None:
    for name, suffix in BUNDLE.items():
        picture(tmp_path / f"{top}{name}/images/0.{suffix}")
        mask(tmp_path / f"{top}{name}/labels_masks/0.png", *((0, 2) if name == "RoadAnomaly" else (0, 1, 255)))
    assert read(tmp_path, "validation_dataset") == {
        name: [(f"{top}{name}/images/0.{suffix}", [0, 1, 0, 1] if name == "RoadAnomaly" else [0, 1, 255, 0])]
        for name, suffix in BUNDLE.items()
    }
    mask(tmp_path / f"{top}fs_static/labels_masks/0.png", 0, 2)
    with pytest.raises(DatasetError, match=r"holds other values than 0, 1 and 255 \(2\)"):
        read(tmp_path, "validation_dataset", "fs_static")


@pytest.mark.parametrize("name", [*OUTLIERS])
def test_sets_without_masks_say_where_they_would_be(tmp_path: Path, name: str) -> None:
    layout = OUTLIERS[name].layout
    split = next(iter(layout.splits))
    picture(tmp_path / layout.splits[split][0] / f"a{layout.stem_ending}.png")
    with pytest.raises(DatasetError, match=r"no image has a mask \(.*(beside|unpack)"):
        OutlierReader(tmp_path, name).pairs(split)


# ------------------------------------------------------------------ ACDC and MUSES

CONDITIONS = ("fog", "night", "rain", "snow")


@pytest.mark.parametrize(("images", "masks"), [("", ""), ("rgb_anon_trainvaltest/", "gt_trainval/")])
def test_acdc(tmp_path: Path, images: str, masks: str) -> None:
    for condition in ("fog", "night"):
        for split in ("train", "val", "test"):
            below = f"{condition}/{split}/GOPR0475/GOPR0475_frame_000041"
            picture(tmp_path / f"{images}rgb_anon/{below}_rgb_anon.png")
            picture(tmp_path / f"{images}rgb_anon/{condition}/{split}_ref/GOPR0475/a_rgb_ref_anon.png")
            if split != "test":
                mask(tmp_path / f"{masks}gt/{below}_gt_labelIds.png", 7)
                if condition == "fog":
                    mask(tmp_path / f"{masks}gt/{below}_gt_labelTrainIds.png", 0)
    below = "val/GOPR0475/GOPR0475_frame_000041"
    pairs, alone = find_pairs(tmp_path, "acdc")
    assert alone == []
    assert [(pair.image, pair.mask, pair.encoding) for pair in pairs] == [
        (
            f"{images}rgb_anon/fog/{below}_rgb_anon.png",
            f"{masks}gt/fog/{below}_gt_labelTrainIds.png",
            "train_ids",
        ),
        (f"{images}rgb_anon/night/{below}_rgb_anon.png", f"{masks}gt/night/{below}_gt_labelIds.png", "ids"),
    ]
    assert len(find_pairs(tmp_path, "acdc", "train_night")[0]) == 1
    assert len(list_images(tmp_path, "acdc", "test")) == 2
    with pytest.raises(DatasetError, match="split 'val_rain' keeps its images in rgb_anon/rain/val/ or "):
        list_images(tmp_path, "acdc", "val_rain")


def test_muses(tmp_path: Path) -> None:
    picture(tmp_path / "frame_camera/val/fog/day/REC0001_frame_000001_frame_camera.png")
    picture(tmp_path / "reference_frames/val/fog/day/REC0001_frame_000001_frame_camera.png")
    mask(tmp_path / "gt_semantic/val/fog/day/REC0001_frame_000001_gt_labelTrainIds.png", 0)
    pairs, alone = find_pairs(tmp_path, "muses")
    assert (len(pairs), alone) == (1, [])


@pytest.mark.parametrize("name", EVALUATED)
def test_their_ids_are_those_of_cityscapes(name: str) -> None:
    assert dataset_spec(name).labels == dataset_spec("cityscapes").labels
    assert "test" in dataset_spec(name).unlabelled


# ------------------------------------------------------------------ what is no photograph


def test_class_maps_and_confidences_beside_photographs_are_left_out(tmp_path: Path) -> None:
    mine = ("a.jpg", "sub/b.webp", "c_pred.png", "d_pred.jpg", "d.png")
    for name in (*mine, "a_pred.png", "a_conf.png", "sub/b_conf.png"):
        picture(tmp_path / name)
    listing = survey_images(tmp_path, "folder")
    assert [image.path for image in listing.images] == sorted(mine)
    assert listing.left_out == {"class maps and confidences beside their photographs": 3}
    assert survey_images(tmp_path, "bravo").images == listing.images


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "fog/a.png")
    for name in ("__MACOSX/fog/a.png", "__MACOSX/fog/._a.png", "fog/._a.png", "fog/__MACOSX/b.png"):
        picture(tmp_path / name)
    for layout in ("folder", "bravo"):
        assert [image.path for image in list_images(tmp_path, layout)] == ["fog/a.png"]


def test_bravo_takes_of_acdc_what_the_challenge_asks_for(tmp_path: Path) -> None:
    for split in ("train", "val", "test", "train_ref", "val_ref", "test_ref"):
        picture(tmp_path / "fog" / split / "GOPR0475" / "a_rgb_anon.png")
    picture(tmp_path / "rain/train/GOPR0400/b_rgb_anon.png")
    listing = survey_images(tmp_path, "bravo")
    assert [image.path for image in listing.images] == ["fog/test/GOPR0475/a_rgb_anon.png"]
    (left_out,) = listing.left_out.items()
    assert left_out == ("of train, val and the reference frames of ACDC, which the challenge does not ask for", 6)
    assert len(list_images(tmp_path, "folder")) == 7


def test_bravo_leaves_another_tree_as_it_is(tmp_path: Path) -> None:
    for name in ("fog/test_ref/s/a.png", "fog/val/s/b.png", "day/test/s/c.png", "test/train/d.png"):
        picture(tmp_path / name)
    listing = survey_images(tmp_path, "bravo")
    assert (len(listing.images), listing.left_out) == (4, {})
