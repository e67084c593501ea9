"""What a dataset holds: our own outputs left out by their place, sizes read once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.datasets.decode.image_header import Header
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.errors import DatasetError
from hmsa_pipeline.pipeline.config.manifest import Manifest
from hmsa_pipeline.pipeline.inference import inputs
from hmsa_pipeline.pipeline.storage.output_folder import store_path
from hmsa_pipeline.pipeline.store.image_table import Photograph
from PIL import Image

from ..stores import SIZE, begun, draw_photo, manifest_of, store_at


def survey(manifest: Manifest, dataset: str = "street") -> list[Photograph]:
    return list(inputs.survey(manifest, manifest.dataset(dataset)).photographs)


def paths(manifest: Manifest) -> list[str]:
    return [photo.path for photo in survey(manifest)]


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers were read."""
    read: list[str] = []
    real = inputs.header_of

    def spy(path: str, late_exif: bool = False) -> Header:
        read.append(Path(path).name)
        return real(path, late_exif)

    monkeypatch.setattr(inputs, "header_of", spy)
    return read


def test_photographs_come_sorted_with_their_bytes_and_sizes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    files = [draw_photo(root / name, size, i) for i, (name, size) in enumerate(FILES.items())]
    found = survey(manifest_of(tmp_path, ["ant"], {"street": root}))
    assert found == [
        Photograph(name, file.stat().st_size, size)
        for (name, size), file in sorted(zip(FILES.items(), files, strict=True))
    ]


@pytest.mark.parametrize("slow", [0, 1e9])  # seconds: every disk is slow, and none
@pytest.mark.parametrize("images", [1, 3, 16, 17, 40])
def test_slow_and_fast_disks_give_the_same_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float, images: int
) -> None:
    monkeypatch.setattr(inputs, "_SLOW_HEADER", slow)
    monkeypatch.setattr(inputs, "_HEADERS_OF_A_BATCH", 19)
    sizes = {f"{number:02}.png": (number + 1, 2 * number + 1) for number in range(images)}
    for name, size in sizes.items():
        draw_photo(tmp_path / "photos" / name, size)
    (tmp_path / "photos" / "00.png").write_bytes(b"no image")
    found = survey(manifest_of(tmp_path, ["ant"], {"street": tmp_path / "photos"}))
    assert {photo.path: photo.size for photo in found} == sizes | {"00.png": None}


def test_only_slow_disks_are_read_by_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: list[str]
) -> None:
    for number in range(40):
        draw_photo(tmp_path / "photos" / f"{number:02}.png", (2, 2))
    readers: set[int] = set()
    monkeypatch.setattr(inputs, "_photograph", spied(inputs._photograph, readers))
    manifest = manifest_of(tmp_path, ["ant"], {"street": tmp_path / "photos"})
    monkeypatch.setattr(inputs, "_SLOW_HEADER", 1e9)
    survey(manifest)
    assert readers == {threading.get_ident()}
    monkeypatch.setattr(inputs, "_SLOW_HEADER", 0)
    survey(manifest)
    assert len(readers) > 1
    assert len(headers) == 80


def spied(real: Callable[..., Photograph], readers: set[int]) -> Callable[..., Photograph]:
    def spy(*arguments: Any) -> Photograph:
        readers.add(threading.get_ident())
        return real(*arguments)

    return spy


FILES = {"b/2.png": (33, 57), "a.png": SIZE, "b/10.jpg": (20, 20), "B.png": SIZE}


@pytest.mark.parametrize("place", ["photos/runs/one", "photos", "elsewhere", "photos/day", "."])
def test_our_own_outputs_are_no_photographs_wherever_the_output_lies(tmp_path: Path, place: str) -> None:
    root, output = tmp_path / "photos", tmp_path / place
    draw_photo(root / "a.png")
    draw_photo(root / "night" / "b.png")
    manifest = manifest_of(tmp_path, ["ant"], {"street": root}, output)
    before = paths(manifest)
    for folder in ("logits/street/ant.zarr", "predictions/street/night", "damaged/street/ant"):
        draw_photo(output / folder / "c.png")
    assert paths(manifest) == before == ["a.png", "night/b.png"]


def test_a_folder_is_ours_by_its_place_and_not_by_its_name(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("logits/a.png", "predictions/b.png", "damaged/c.png", "out/d.png"):
        draw_photo(root / name)
    manifest = manifest_of(tmp_path, ["ant"], {"street": root})
    assert paths(manifest) == ["damaged/c.png", "logits/a.png", "out/d.png", "predictions/b.png"]


def test_an_output_that_is_reached_by_a_link_is_still_ours(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    draw_photo(root / "a.png")
    (tmp_path / "link").symlink_to(root)
    manifest = manifest_of(tmp_path, ["ant"], {"street": root}, tmp_path / "link")
    draw_photo(tmp_path / "link" / "predictions" / "street" / "a_pred.png")
    assert paths(manifest) == ["a.png"]


def test_a_dataset_may_lie_within_the_output(tmp_path: Path) -> None:
    root = tmp_path / "out" / "photos"
    draw_photo(root / "a.png")
    assert paths(manifest_of(tmp_path, ["ant"], {"street": root})) == ["a.png"]


def test_headers_are_read_once_and_of_new_and_changed_files_again(tmp_path: Path, headers: list[str]) -> None:
    root = tmp_path / "photos"
    for i, name in enumerate(("a.png", "b.png")):
        draw_photo(root / name, (33, 57), i)
    manifest = manifest_of(tmp_path, ["ant", "bee"], {"street": root})
    first = survey(manifest)
    assert sorted(headers) == ["a.png", "b.png"]
    # The second member's store will do where the first has none yet.
    begun(store_at(manifest, "street", "bee"), first, model="bee")
    headers.clear()
    assert survey(manifest) == first
    assert headers == []
    draw_photo(root / "b.png", (9, 9))
    draw_photo(root / "c.png", (7, 7))
    assert [photo.size for photo in survey(manifest)] == [(33, 57), (9, 9), (7, 7)]
    assert sorted(headers) == ["b.png", "c.png"]


def test_a_store_of_another_dataset_is_not_asked(tmp_path: Path, headers: list[str]) -> None:
    roots = {"street": tmp_path / "street", "garden": tmp_path / "garden"}
    draw_photo(roots["street"] / "a.png", (33, 57))
    # As long in bytes and as many pixels, but upright.
    draw_photo(roots["garden"] / "a.png", (57, 33))
    manifest = manifest_of(tmp_path, ["ant"], roots)
    begun(
        store_at(manifest, "street", "ant"),
        [Photograph("a.png", (roots["garden"] / "a.png").stat().st_size, (33, 57))],
    )
    assert [photo.size for photo in survey(manifest, "garden")] == [(57, 33)]
    assert headers == ["a.png"]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_without_a_readable_header_is_listed_without_size_and_asked_again(
    tmp_path: Path, headers: list[str], content: bytes
) -> None:
    root = tmp_path / "photos"
    draw_photo(root / "a.png", (33, 57))
    (root / "b.png").write_bytes(content)
    manifest = manifest_of(tmp_path, ["ant"], {"street": root})
    found = survey(manifest)
    assert found[1] == Photograph("b.png", len(content), None)
    begun(store_at(manifest, "street", "ant"), found)
    headers.clear()
    assert survey(manifest) == found
    assert headers == ["b.png"]


def test_a_damaged_store_does_not_keep_the_photographs_from_being_listed(tmp_path: Path, headers: list[str]) -> None:
    root = tmp_path / "photos"
    draw_photo(root / "a.png", (33, 57))
    manifest = manifest_of(tmp_path, ["ant", "bee"], {"street": root})
    first = survey(manifest)
    for name in ("ant", "bee"):
        begun(store_at(manifest, "street", name), first, model=name)
    (store_at(manifest, "street", "ant") / "zarr.json").write_text("{")
    headers.clear()
    assert survey(manifest) == first
    assert headers == []
    (store_at(manifest, "street", "bee") / "zarr.json").write_text("{")
    assert survey(manifest) == first
    assert headers == ["a.png"]


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        survey(manifest_of(tmp_path, ["ant"], {"street": tmp_path / "nowhere"}))


def test_a_store_lies_under_its_dataset_and_model() -> None:
    assert store_path(Path("out"), "street", "ant") == Path("out/logits/street/ant.zarr")


@pytest.mark.parametrize("late", [False, True], ids=["before the pixels", "behind them"])
def test_turned_photographs_have_the_size_that_they_are_decoded_to(tmp_path: Path, late: bool) -> None:
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    if late:
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    manifest = manifest_of(tmp_path, ["ant"], {"street": path.parent})
    stored = manifest.dataset("street")
    turned = stored.model_copy(update={"orientation": "exif"})
    assert [photo.size for photo in inputs.survey(manifest, stored).photographs] == [(4, 8)]
    assert [(photo.size, photo.turned) for photo in inputs.survey(manifest, turned).photographs] == [((8, 4), True)]
    assert decode_image(path, exif=True).shape == (3, 8, 4)
