"""Which files belong to a dataset, on small trees of empty files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hmsa_pipeline.datasets.layouts import LAYOUTS, ImageFile, list_images, output_stem
from hmsa_pipeline.errors import DatasetError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


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
    assert listed[0] == ImageFile("B.jpeg", len("B.jpeg"))


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
        "import sys, hmsa_pipeline.datasets.layouts, hmsa_pipeline.datasets.headers; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_every_default_is_a_split():
    for layout in LAYOUTS.values():
        assert layout.default is None or layout.default in layout.splits
