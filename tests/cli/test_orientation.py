"""Photographs that a camera stored turned: counted and named, and turned where the manifest says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from .bench import Bench, attributes, listed, picture, run

LEFT = Image.Transpose.ROTATE_90


@pytest.fixture
def phone(fresh: Bench, tmp_path: Path) -> Bench:
    """One photograph twice: as a camera held upright stores it, and as viewers show it."""
    bench = fresh.copy(tmp_path / "bench")
    upright = Image.fromarray(picture(7, 40, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned", "upright"):
        (bench.root / "photos" / name).mkdir()
    upright.transpose(LEFT).save(bench.root / "photos/turned/a.png", exif=exif)
    upright.save(bench.root / "photos/upright/a.png")
    bench.tree["models"] = bench.tree["models"][:1]
    bench.tree["datasets"] = [
        {"name": "turned", "type": "folder", "root": "photos/turned"},
        {"name": "upright", "type": "folder", "root": "photos/upright"},
    ]
    return bench.save()


def exif(bench: Bench) -> Bench:
    bench.tree["datasets"][0]["orientation"] = "exif"
    return bench.save()


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


ASKS = "EXIF asks viewers to turn 1 of the photographs (a.png); "


def test_turned_photographs_are_counted_and_named(phone: Bench) -> None:
    said = f"turned: {ASKS}their pixels are taken as stored; 'orientation: exif' on the dataset turns them\n"
    for command in ("dump", "predict"):
        result = phone.run(command, "--dry-run")
        assert (result.code, result.err) == (0, said)
    check = run("manifest", "check", "--manifest", str(phone.manifest)).out.splitlines()
    assert [ASKS in line for line in check] == [False, True, False]
    assert phone.run("dump").code == 0
    assert {e["array"] for e in listed(phone.store("turned", "ant"))} == {"64x40"}


def test_a_folder_can_be_turned_from_the_photograph_to_the_picture(phone: Bench, tmp_path: Path) -> None:
    result = exif(phone).run("dump")
    assert result.code == 0
    assert f"turned: {ASKS}they are turned so" in result.err
    assert phone.run("ensemble").code == 0
    store = attributes(phone.store("turned", "ant"))
    assert store["preprocessing"]["orientation"] == "exif"
    assert "orientation" not in attributes(phone.store("upright", "ant"))["preprocessing"]
    one, two = (zarr.open_group(phone.store(name, "ant"), mode="r")["40x64"][0] for name in ("turned", "upright"))
    assert np.array_equal(one, two), "the network saw the same pixels"
    for ending in ("pred", "conf"):
        files = [phone.predictions / name / f"a_{ending}.png" for name in ("turned", "upright")]
        assert files[0].read_bytes() == files[1].read_bytes()

    # All that shows the photograph beside its prediction turns it, too.
    assert phone.run("render", "--write", str(tmp_path / "p"), "--kinds", "overlay,sheet").code == 0
    for kind in ("overlay", "sheet"):
        pictures = [opened(tmp_path / "p" / name / f"a_{kind}.png") for name in ("turned", "upright")]
        assert np.array_equal(*pictures), kind
    report = phone.run("report", "--write", str(tmp_path / "r"), "--json", "-")
    assert (report.code, [one["failed"] for one in report.figures]) == (0, [{}, {}])
    # A second run makes nothing and does not take the stored size for the turned one.
    again = phone.run("dump", "--json", "-")
    assert [row["done"] for row in again.figures] == [0, 0]


def test_predict_turns_as_dump_does(phone: Bench) -> None:
    assert exif(phone).run("predict", "--keep", "ant").code == 0
    files = [phone.predictions / name / "a_pred.png" for name in ("turned", "upright")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert opened(files[0]).shape == (40, 64)
    assert attributes(phone.store("turned", "ant"))["preprocessing"]["orientation"] == "exif"


def test_sizes_in_a_store_of_stored_pixels_are_not_taken_for_turned_ones(phone: Bench) -> None:
    assert phone.run("dump", "--datasets", "turned").code == 0
    assert exif(phone).run("predict", "--datasets", "turned").code == 0
    assert opened(phone.predictions / "turned" / "a_pred.png").shape == (40, 64)


@pytest.mark.parametrize("command", ["dump", "predict"])
def test_turned_and_stored_pixels_are_never_mixed(phone: Bench, command: str) -> None:
    assert phone.run(command).code == 0
    exif(phone)
    said = phone.run(command).refusal()

    assert "--overwrite" in said
    assert phone.run(command, "--overwrite").code == 0


def test_only_a_folder_can_be_turned(phone: Bench) -> None:
    phone.tree["datasets"][0]["type"] = "bravo"
    said = exif(phone).run("dump").refusal()
    assert "labels of type 'bravo' fit the stored pixels; remove this, or use type 'folder'" in said
    assert "datasets[0].orientation" in said
    phone.tree["datasets"][0] |= {"type": "folder", "orientation": "upright"}
    assert "orientation" in phone.save().run("dump").refusal()
