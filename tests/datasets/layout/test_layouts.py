"""Which files belong to a dataset, on small trees of empty files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.dataset_specs import EVALUATED, NAMES, dataset_spec
from hmsa_pipeline.datasets.layout.find_images import LAYOUTS, list_images
from hmsa_pipeline.datasets.layout.folder_layout import output_stem
from hmsa_pipeline.datasets.layout.outlier_sets import OUTLIERS
from hmsa_pipeline.errors import DatasetError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat  # pyright: ignore[reportMissingImports]


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * len(path))
    return root


def paths(root: Path, layout: str = "folder", split: str | None = None, **kwargs) -> list[str]:
    return [image.path for image in list_images(root, layout, split, **kwargs)]


def test_a_folder_is_any_tree_of_images_in_plain_string_order(tmp_path):
    tree(tmp_path, "b/z.PNG", "b/a.jpg", "B.jpeg", "a.WebP", "a-1.png", "a/b.png", "a/é 1.x.png", "notes.txt")
    listed = list_images(tmp_path, "folder")
    assert [i.path for i in listed] == [
        "B.jpeg",
        "a-1.png",
        "a.WebP",
        "a/b.png",
        "a/é 1.x.png",
        "b/a.jpg",
        "b/z.PNG",
    ]
    assert (listed[0].path, listed[0].bytes) == ("B.jpeg", len("B.jpeg"))


def test_hidden_files_and_folders_are_left_out(tmp_path):
    tree(tmp_path, "a.png", ".a.png", "._a.png", ".git/b.png", "c/.d/e.png")
    assert paths(tmp_path) == ["a.png"]


def test_our_outputs_are_left_out_by_their_place_and_not_their_name(tmp_path):
    tree(tmp_path, "a.png", "logits/b.png", "predictions/c_pred.png", "x/predictions/d.png", "x/run/e.png")
    (tmp_path / "link").symlink_to(tmp_path / "x" / "run")
    outputs = [tmp_path / "predictions", tmp_path / "y" / ".." / "x" / "run", tmp_path / "missing"]
    assert paths(tmp_path, exclude=outputs) == ["a.png", "logits/b.png", "x/predictions/d.png"]


def test_a_link_into_the_middle_of_our_outputs_is_left_out(tmp_path):
    tree(tmp_path, "data/a.png", "run/predictions/b/c.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "run" / "predictions" / "b")
    assert paths(tmp_path / "data", exclude=[tmp_path / "run"]) == ["a.png"]


def test_a_root_among_our_outputs_was_named_and_is_read(tmp_path):
    tree(tmp_path, "run/data/a.png", "run/data/logits/b.png")
    assert paths(tmp_path / "run" / "data", exclude=[tmp_path / "run"]) == ["a.png", "logits/b.png"]
    outputs = [tmp_path / "run", tmp_path / "run" / "data" / "logits"]
    assert paths(tmp_path / "run" / "data", exclude=outputs) == ["a.png"]


def test_links_are_followed_and_loops_are_not(tmp_path):
    tree(tmp_path, "root/a/b.png", "elsewhere/c.png", "elsewhere/sub/d.png")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a" / "self").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "above").symlink_to(tmp_path)
    (tmp_path / "root" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "sub" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "file.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    assert paths(tmp_path / "root") == ["a/b.png", "file.png", "other/c.png", "other/sub/d.png"]
    assert list_images(tmp_path / "root", "folder")[1].bytes == len("elsewhere/c.png")


def test_two_folders_that_link_to_one_another_end(tmp_path):
    tree(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert paths(tmp_path) == ["a/1.png", "a/to_b/2.png", "b/2.png", "b/to_a/1.png"]


def test_a_dangling_link_is_named(tmp_path):
    tree(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"b\.png: is a link to a file that is not there"):
        list_images(tmp_path, "folder")


def test_pipes_and_folders_that_are_called_like_images(tmp_path):
    tree(tmp_path, "a.png", "d.png/e.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert paths(tmp_path) == ["a.png", "d.png/e.png"]


def test_bravo_leaves_the_masks_out(tmp_path):
    tree(tmp_path, "RoadAnomaly21/images/a.jpg", "RoadAnomaly21/labels_masks/a.png", "x/labels_masks/y/b.png")
    assert paths(tmp_path, "bravo") == ["RoadAnomaly21/images/a.jpg"]
    with pytest.raises(DatasetError, match="has no splits, but split 'val'"):
        list_images(tmp_path, "bravo", "val")


@pytest.mark.parametrize("top", ["leftImg8bit_trainvaltest/leftImg8bit", "leftImg8bit"])
def test_cityscapes(tmp_path, top):
    names = [f"{split}/ulm/ulm_000000_0000{n}9_leftImg8bit.png" for split in ("train", "val", "test") for n in (1, 2)]
    tree(
        tmp_path,
        *(f"{top}/{name}" for name in names),
        f"{top}/val/ulm/ulm_gtFine_labelIds.png",
        f"{top}/README.png",
    )
    assert paths(tmp_path, "cityscapes") == [f"{top}/{name}" for name in names[2:4]]
    assert paths(tmp_path, "cityscapes", "test") == [f"{top}/{name}" for name in names[4:]]
    with pytest.raises(DatasetError, match=r"no split 'vals'; did you mean 'val'\?"):
        list_images(tmp_path, "cityscapes", "vals")


@pytest.mark.parametrize("top", ["leftImg8bit_trainextra/leftImg8bit", "leftImg8bit"])
def test_cityscapes_extra_is_a_split_of_its_own(tmp_path, top):
    tree(tmp_path, f"{top}/train_extra/ulm/ulm_1_leftImg8bit.png", "leftImg8bit/train/ulm/ulm_2_leftImg8bit.png")
    assert paths(tmp_path, "cityscapes", "train_extra") == [f"{top}/train_extra/ulm/ulm_1_leftImg8bit.png"]
    assert paths(tmp_path, "cityscapes", "train") == ["leftImg8bit/train/ulm/ulm_2_leftImg8bit.png"]


def test_cityscapes_extra_that_is_missing_names_its_own_archive(tmp_path):
    tree(tmp_path, "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png")
    with pytest.raises(DatasetError, match=r"none is there; unpack leftImg8bit_trainextra\.zip"):
        list_images(tmp_path, "cityscapes", "train_extra")
    (tmp_path / "leftImg8bit/train_extra").mkdir()
    with pytest.raises(DatasetError, match=r"holds no image .*unpack leftImg8bit_trainextra\.zip"):
        list_images(tmp_path, "cityscapes", "train_extra")


def test_cityscapes_elsewhere_says_how_it_must_look(tmp_path):
    tree(tmp_path, "val/ulm/ulm_leftImg8bit.png")
    with pytest.raises(
        DatasetError, match=r"split 'val' keeps its images in leftImg8bit_trainvaltest/.*/val/ or left"
    ):
        list_images(tmp_path, "cityscapes")


@pytest.mark.parametrize(
    ("anomaly", "obstacle"),
    [("dataset_AnomalyTrack", "dataset_ObstacleTrack"), ("RoadAnomaly21", "RoadObsticle21")],
)
def test_smiyc(tmp_path, anomaly, obstacle):
    first, second = f"{anomaly}/images/a.jpg", f"{obstacle}/images/b.webp"
    tree(tmp_path, first, second, f"{anomaly}/labels_masks/a.png")
    assert paths(tmp_path, "smiyc") == sorted([first, second])
    assert paths(tmp_path, "smiyc", "anomaly") == [first]
    assert paths(tmp_path, "smiyc", "obstacle") == [second]
    assert paths(tmp_path / anomaly, "smiyc") == ["images/a.jpg"]
    with pytest.raises(DatasetError, match=rf"split 'obstacle' keeps its images in .*{obstacle}/images/"):
        list_images(tmp_path / anomaly, "smiyc", "obstacle")


def test_half_of_smiyc_is_whatever_is_there(tmp_path):
    tree(tmp_path, "RoadObsticle21/images/b.webp")
    assert paths(tmp_path, "smiyc") == ["RoadObsticle21/images/b.webp"]


def test_two_images_with_the_same_outputs_are_an_error(tmp_path):
    tree(tmp_path, "x/a.png", "x/a.jpg", "y/a.png", "b.png")
    with pytest.raises(DatasetError, match=r"2 images differ in their suffix alone.*: x/a\.jpg, x/a\.png; keep one"):
        list_images(tmp_path, "folder")


def test_folders_that_are_missing_empty_or_no_folders(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: there is no such folder"):
        list_images(tmp_path / "nowhere", "folder")
    with pytest.raises(DatasetError, match=r"holds no image of type \.png \.jpg"):
        list_images(tmp_path, "bravo")
    with pytest.raises(DatasetError, match="is not a folder"):
        list_images(tree(tmp_path, "file.png") / "file.png", "folder")
    with pytest.raises(DatasetError, match=r"unknown dataset type 'citiscapes'; did you mean 'cityscapes'\?"):
        list_images(tmp_path, "citiscapes")


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    tree(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path):  # permissions do not stop root, who runs the tests in some places
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"locked: cannot be read \(Permission denied\)"):
        list_images(tmp_path, "folder")


def test_names_that_are_not_utf8_are_shown_escaped(tmp_path):
    tree(tmp_path, "ok.png")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    with pytest.raises(DatasetError, match=r"1 file names are not UTF-8: 'caf\\udce9\.png'; rename"):
        list_images(tmp_path, "folder")


names = st.text(st.sampled_from("ab.-_ é中A"), min_size=1, max_size=5)


@given(
    st.lists(
        st.tuples(st.lists(names, max_size=2), names, st.sampled_from([".png", ".JPG", ".txt", ""])),
        max_size=8,
    )
)
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_against_pathlib(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("any")
    for folders, name, suffix in files:
        file = root.joinpath(*(f"d{folder}" for folder in folders), f"f{name}{suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"12")
    expected = sorted(
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.suffix.lower() in {".png", ".jpg"} and p.is_file()
    )
    stems = [str(Path(p).with_suffix("")) for p in expected]
    if not expected or len(set(stems)) < len(stems):
        with pytest.raises(DatasetError):
            list_images(root, "folder")
    else:
        assert paths(root) == expected
        assert [output_stem(p) for p in expected] == stems


def test_listing_does_not_wait_for_torch():
    code = (
        "import sys, hmsa_pipeline.datasets.layout.find_images, hmsa_pipeline.datasets.decode.image_header;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_every_default_is_a_split():
    for layout in LAYOUTS.values():
        assert layout.default is None or layout.default in layout.split_names


# The seven source datasets.

CITIES = {
    "val": ["frankfurt", "lindau", "munster"],
    "train": [
        *["aachen", "bochum", "bremen", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg", "hanover"],
        *["jena", "krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen", "ulm", "weimar", "zurich"],
    ],
}


def cityscapes(root: Path, cities: dict[str, list[str]]) -> None:
    """Two images of each city."""
    for split, names in cities.items():
        for city in names:
            tree(root, *(f"leftImg8bit/{split}/{city}/{city}_{n}_leftImg8bit.png" for n in "ab"))


def cities_of(root: Path, split: str) -> set[str]:
    listed = paths(root, "cityscapes", split)
    assert all(listed.count(path) == 1 and path.replace("_a_", "_b_") in listed for path in listed)
    return {path.split("/")[2] for path in listed}


def gta5(root: Path, there: range, **splits: list[int]) -> Path:
    tree(root, *(f"images/{number:05d}.png" for number in there))
    np.savez(root / "split.npz", **{f"{split}Ids": np.array(ids)[:, None] for split, ids in splits.items()})
    return root


def without_scipy(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)


def wilddash(root: Path, count: int = 40) -> list[str]:
    names = [f"wd{n:04d}_100000" for n in range(count)]
    tree(root, *(f"images/{name}.jpg" for name in names))
    return names


def lists(root: Path, **content: str | bytes) -> None:
    (root / "random_split").mkdir(exist_ok=True)
    for name, text in content.items():
        data = text if isinstance(text, bytes) else text.encode()
        (root / "random_split" / f"{name}.txt").write_bytes(data)


def test_layouts_are_a_collection_of_names():
    assert list(LAYOUTS) == ["bravo", "folder", *OUTLIERS, *NAMES, *EVALUATED] and len(LAYOUTS) == len(list(LAYOUTS))
    assert "gta5" in LAYOUTS and "folder" in LAYOUTS and "gta" not in LAYOUTS
    assert LAYOUTS["gta5"] is dataset_spec("gta5").layout
    with pytest.raises(KeyError):
        LAYOUTS["gta"]


def test_cross_validation_takes_the_cities_that_the_members_saw(tmp_path):
    cityscapes(tmp_path, CITIES)
    held_out = {
        "cv1": {"darmstadt", "dusseldorf", "erfurt"},
        "cv2": {"monchengladbach", "strasbourg", "stuttgart"},
    }
    every = {*CITIES["train"], *CITIES["val"]}
    for fold, cities in held_out.items():
        assert cities_of(tmp_path, f"val_{fold}") == cities
        assert cities_of(tmp_path, f"train_{fold}") == every - cities
    assert cities_of(tmp_path, "trainval") == every
    assert cities_of(tmp_path, "train") == set(CITIES["train"])


@given(train=st.integers(1, 9), val=st.integers(1, 4), fold=st.integers(1, 2))
@settings(deadline=None, max_examples=25)
def test_cross_validation_parts_the_cities_of_any_number(train, val, fold, tmp_path_factory):
    root = tmp_path_factory.mktemp("any")
    # A city may stand in both splits, as it does in drawn worlds.
    cityscapes(root, {"train": [f"c{n}" for n in range(train)], "val": [f"c{n}" for n in range(val)]})
    every = paths(root, "cityscapes", "trainval")
    names = [f"val/c{n}" for n in range(val)] + [f"train/c{n}" for n in range(train)]
    start = fold * len(names) // 3
    held_out = names[start : start + val]
    expected = [path for path in every if "/".join(path.split("/")[1:3]) in held_out]
    assert paths(root, "cityscapes", f"val_cv{fold}") == expected
    others = [path for path in every if path not in expected]
    if others:
        assert paths(root, "cityscapes", f"train_cv{fold}") == others
    else:
        with pytest.raises(DatasetError, match=r"split 'train_cv\d' is empty"):
            list_images(root, "cityscapes", f"train_cv{fold}")


def test_half_of_a_joined_split_is_not_enough(tmp_path):
    cityscapes(tmp_path, {"train": ["ulm"]})
    with pytest.raises(
        DatasetError, match=r"split 'val', part of 'trainval', keeps its images in .*leftImg8bit/val/;"
    ):
        list_images(tmp_path, "cityscapes", "trainval")


def test_images_know_their_place(tmp_path):
    tree(tmp_path, "leftImg8bit/val/drive/1/a_leftImg8bit.jpg", "leftImg8bit/val/b_leftImg8bit.png")
    assert [image[2:5] for image in list_images(tmp_path, "idd")] == [("val", "", "b"), ("val", "drive/1/", "a")]
    tree(tmp_path / "plain", "c.png", "d/e.png")
    assert [image[2:5] for image in list_images(tmp_path / "plain", "folder")] == [(None, "", "c"), (None, "d/", "e")]


def test_idd_takes_both_formats(tmp_path):
    tree(tmp_path, *(f"leftImg8bit/val/1/{n}_leftImg8bit.{n}" for n in ("png", "jpg")), "leftImg8bit/val/1/x.png")
    assert paths(tmp_path, "idd") == [f"leftImg8bit/val/1/{n}_leftImg8bit.{n}" for n in ("jpg", "png")]


def test_shift_has_masks_and_other_views_beside_its_images(tmp_path):
    folder = "discrete/images/val/front/ab12"
    tree(tmp_path, f"{folder}/00000000_img_front.jpg", f"{folder}/00000000_semseg_front.png")
    tree(tmp_path, "discrete/images/val/left_45/ab12/00000000_img_left_45.jpg", "discrete/images/val/front/img.zip")
    assert paths(tmp_path, "shift") == [f"{folder}/00000000_img_front.jpg"]


def test_splits_without_masks_have_images(tmp_path):
    tree(tmp_path, "images/10k/test/a.jpg", "testing/images/b.jpg")
    assert paths(tmp_path, "bdd100k", "test") == ["images/10k/test/a.jpg"]
    assert paths(tmp_path, "mapillary", "test") == ["testing/images/b.jpg"]


def test_gta5_goes_by_its_numbers(tmp_path):
    gta5(tmp_path, range(1, 9), train=[1, 2, 3], val=[4, 6], test=[5, 8])
    tree(tmp_path, "images/notes.png")
    assert paths(tmp_path, "gta5") == paths(tmp_path, "gta5", "val") == ["images/00004.png", "images/00006.png"]
    assert paths(tmp_path, "gta5", "train") == [f"images/0000{n}.png" for n in (1, 2, 3)]
    assert paths(tmp_path, "gta5", "test") == ["images/00005.png", "images/00008.png"]


def test_gta5_reads_the_split_as_its_authors_give_it(tmp_path, monkeypatch):
    gta5(tmp_path, range(1, 9), train=[1], val=[2])
    ids = {"trainIds": [1, 2, 3], "valIds": [4, 6], "testIds": [5, 8]}
    arrays = {name: np.array(numbers, np.uint16)[:, None] for name, numbers in ids.items()}
    savemat(tmp_path / "split.mat", arrays, do_compression=True)
    assert paths(tmp_path, "gta5") == ["images/00004.png", "images/00006.png"]
    without_scipy(monkeypatch)
    assert paths(tmp_path, "gta5") == ["images/00002.png"]
    (tmp_path / "split.npz").unlink()
    with pytest.raises(DatasetError, match=r"split\.mat: .*scipy.*pip install 'hmsa-pipeline\[train\]'") as caught:
        list_images(tmp_path, "gta5")
    assert "\n" not in str(caught.value)


def test_gta5_leaves_two_frames_out(tmp_path):
    gta5(tmp_path, range(15187, 15190), train=[15187, 15188, 17705], val=[15189])
    tree(tmp_path, "images/17705.png")
    assert paths(tmp_path, "gta5", "train") == ["images/15187.png"]
    (tmp_path / "images/17705.png").unlink()
    assert paths(tmp_path, "gta5", "train") == ["images/15187.png"]


def test_gta5_counts_the_images_that_are_not_there(tmp_path):
    gta5(tmp_path, range(1, 4), train=[1], val=[2, 7, 300])
    with pytest.raises(
        DatasetError, match=r"2 of the 3 images of split 'val' are not there \(00007, 00300\).*01_images"
    ):
        list_images(tmp_path, "gta5")


def test_gta5_without_a_split_says_where_it_comes_from(tmp_path):
    tree(tmp_path, "images/00001.png")
    with pytest.raises(DatasetError, match=r"split\.mat is not there, .* read_mapping\.zip .* datasets list"):
        list_images(tmp_path, "gta5")


@pytest.mark.parametrize("name", ["split.npz", "split.mat"])
@pytest.mark.parametrize("data", [b"", b"garbage" * 99, b"PK\x03\x04"])
def test_a_damaged_split_is_named(tmp_path, name, data):
    tree(tmp_path, "images/00001.png")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{name}: cannot be read") as caught:
        list_images(tmp_path, "gta5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[], ["a"], [0.5]])
def test_a_split_without_numbers_is_named(tmp_path, ids):
    gta5(tmp_path, range(1, 3), train=[1], val=ids)
    with pytest.raises(DatasetError, match=r"split\.npz: holds no numbers under 'valIds'"):
        list_images(tmp_path, "gta5")
    np.savez(tmp_path / "split.npz", other=[1])
    with pytest.raises(DatasetError, match="holds no numbers under 'trainIds'"):
        list_images(tmp_path, "gta5", "train")


def test_wilddash_draws_a_tenth_that_never_changes(tmp_path):
    names = wilddash(tmp_path)
    held_out = [Path(path).stem for path in paths(tmp_path, "wilddash")]
    # Written down: a split that changes with a version makes scores of different days incomparable.
    assert held_out == [f"wd{n:04d}_100000" for n in (10, 11, 12, 25)]
    rest = [Path(path).stem for path in paths(tmp_path, "wilddash", "train")]
    assert sorted(held_out + rest) == names


def test_two_images_are_enough_for_both_splits(tmp_path):
    names = wilddash(tmp_path, 2)
    both = paths(tmp_path, "wilddash", "train") + paths(tmp_path, "wilddash", "val")
    assert sorted(Path(path).stem for path in both) == names
    (tmp_path / both[0]).unlink()
    with pytest.raises(DatasetError, match="split 'train' is empty: none of the 1 images"):
        list_images(tmp_path, "wilddash", "train")


def test_wilddash_takes_lists(tmp_path):
    names = wilddash(tmp_path, 6)
    lists(tmp_path, training=f"\ufeff{names[4]}\r\n\r\n{names[1]}.jpg\r\n", validation=f" {names[0]}\n{names[0]}")
    assert paths(tmp_path, "wilddash", "train") == [f"images/{names[n]}.jpg" for n in (1, 4)]
    assert paths(tmp_path, "wilddash") == [f"images/{names[0]}.jpg"]


def test_lists_that_cannot_be_meant(tmp_path):
    names = wilddash(tmp_path, 6)
    lists(tmp_path, training=names[0])
    with pytest.raises(DatasetError, match=r"validation\.txt: is not there, but the other list is"):
        list_images(tmp_path, "wilddash", "train")
    lists(tmp_path, validation=f"{names[1]}\n{names[0]}")
    with pytest.raises(DatasetError, match=rf"validation\.txt: 1 of its images stand in training\.txt.*{names[0]}"):
        list_images(tmp_path, "wilddash", "train")
    lists(tmp_path, validation="gone\nlost")
    with pytest.raises(DatasetError, match=r"validation\.txt: 2 of its 2 images are not there \(gone, lost\)"):
        list_images(tmp_path, "wilddash")
    lists(tmp_path, validation="\n \n")
    with pytest.raises(DatasetError, match=r"validation\.txt: is empty; write"):
        list_images(tmp_path, "wilddash")
    lists(tmp_path, validation=b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"validation\.txt: cannot be read as a list of names"):
        list_images(tmp_path, "wilddash")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_unpacked_is_told_in_one_line(tmp_path, name):
    layout = LAYOUTS[name]
    with pytest.raises(DatasetError) as caught:
        list_images(tmp_path / "nowhere", name)
    assert "there is no such folder" in str(caught.value) and "hmsa-pipeline datasets list" in str(caught.value)
    folders = layout.splits["val"]
    for make in ((), folders[:1]):
        for folder in make:
            (tmp_path / folder).mkdir(parents=True)
        with pytest.raises(DatasetError) as caught:
            list_images(tmp_path, name)
        message = str(caught.value)
        assert folders[0] in message and dataset_spec(name).image_archive in message and "\n" not in message
        assert message.endswith("see: hmsa-pipeline datasets list")
