"""Datasets to train on: listed, checked and drawn."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline import __version__
from hmsa_pipeline.datasets.dataset_specs import EVALUATED, NAMES, dataset_spec
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.config.load_recipe import load_recipe, recipe_of
from PIL import Image

from .bench import Result, changed, files, run

KNOWN = ", ".join((*NAMES, *EVALUATED))
GT = "gtFine_trainvaltest/gtFine"
LEFT = "leftImg8bit_trainvaltest/leftImg8bit"
# The ids of the 19 classes in the masks of Cityscapes, in the order of the classes.
IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The data root that holds a drawn dataset, not to be changed."""

    @cache
    def draw(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        write_source(root, name, train=4, val=2, size=(48, 96))
        return root

    return draw


@pytest.fixture
def city(originals: Callable[[str], Path], tmp_path: Path) -> Path:
    """The folder of a drawn Cityscapes to damage; its data root is the test's own folder."""
    return copied(originals, "cityscapes", tmp_path)


def copied(originals: Callable[[str], Path], name: str, root: Path) -> Path:
    folder = dataset_spec(name).folder
    return Path(shutil.copytree(originals(name) / folder, root / folder))


def check(name: str, root: Path, *options: str) -> Result:
    """``datasets check`` with figures on standard output, whose pictures go to ``<root>/out``."""
    return run(
        "datasets", "check", name, "--data-root", str(root), "--output", str(root / "out"), "--json", "-", *options
    )


def problems(result: Result) -> list[str]:
    """What was found to be wrong, which the figures must tell as well."""
    assert result.code == 1, result
    found = [line.removeprefix("problem: ") for line in result.err.splitlines() if line.startswith("problem: ")]
    assert result.figures["problems"] == found != []
    return found


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with Image.open(path) as file:
        pixels = np.array(file)
    Image.fromarray(change(pixels)).save(path)


def masks_of(city: Path, split: str = "train") -> list[Path]:
    return sorted((city / GT / split).rglob("*_labelIds.png"))


def images_of(city: Path, split: str = "train") -> list[Path]:
    return sorted((city / LEFT / split).rglob("*.png"))


# list


def test_the_list_says_all_that_is_needed_to_get_each() -> None:
    result = run("datasets", "list")
    assert (result.code, result.err) == (0, "")
    for name in (*NAMES, *EVALUATED):
        facts = dataset_spec(name)
        (block,) = (text for text in result.out.split("\n\n") if text.startswith(f"{name}: "))
        for said in (facts.title, facts.homepage, facts.paper, " ".join(facts.download.split()), "HMSA_DATA_ROOT"):
            assert said in " ".join(block.split())
        for line in facts.tree.splitlines():
            assert " ".join(line.split()) in " ".join(block.split())
        for split in facts.layout.split_names:
            assert split in block or split in facts.layout.variants
        # No member is trained on those that are only evaluated on, so they have no recipe.
        assert (f"train --dataset {name} --data-root" in block) == (name in NAMES)
        assert f"datasets check {name} --data-root" in block
    long = [line for line in result.out.splitlines() if len(line) > 100]
    assert all(line.split()[:1] == ["paper"] for line in long)


@pytest.mark.parametrize("name", [*NAMES, *EVALUATED])
def test_the_list_says_where_each_fact_comes_from(name: str) -> None:
    result = run("datasets", "list", name, "--json", "-")
    (figures,) = result.figures
    assert figures["sources"] == dict(dataset_spec(name).sources)
    assert figures["unsure"] == sorted(dataset_spec(name).unsure)
    block = " ".join(" ".join(line[12:] for line in result.err.splitlines()).split())
    assert all(text in block for text in figures["sources"].values())
    counted = result.err.replace("\n            ", " ").count("(counted by others, not stated by the authors)")
    assert counted == len(figures["unsure"])


@pytest.mark.parametrize("name", EVALUATED)
def test_what_is_only_evaluated_on_is_neither_drawn_nor_has_a_recipe(name: str, tmp_path: Path) -> None:
    said = run("datasets", "draw", name, "--output", str(tmp_path)).refusal()
    assert said == f"{name}: cannot be drawn; those that can: {', '.join(NAMES)}"
    assert f"--dataset {name}: is not known; " in run("train", "--dataset", name).refusal()
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", ["smiyc", "bravo", "folder"])
def test_a_type_without_classes_is_sent_to_the_manifest(name: str) -> None:
    said = run("datasets", "check", name).refusal()
    assert said.startswith(f"{name}: is no dataset to train on")
    assert "'hmsa-pipeline manifest check'" in said


def test_the_list_of_some() -> None:
    result = run("datasets", "list", "shift", "idd", "shift", "--json", "-")
    assert [figures["name"] for figures in result.figures] == ["shift", "idd"]
    assert result.err.count("  homepage  ") == 2
    facts = result.figures[1]
    assert (facts["folder"], facts["labelled"], facts["default"]) == ("IDD_Segmentation", ["train", "val"], "val")
    assert "no masks" in facts["splits"]["test"]


@pytest.mark.parametrize("command", ["list", "check", "draw"])
def test_an_unknown_name_lists_the_known_ones(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("datasets", command, "gta").refusal() == f"gta: is no dataset that is known; known: {KNOWN}"
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_train_on_and_score_the_splits_that_the_list_says(name: str) -> None:
    uses = run("datasets", "list", name, "--json", "-").figures[0]["splits"]
    data = load_recipe(recipe_of(name)).data
    assert uses[data.train] == "trained on"
    assert uses[data.validation].startswith("scored")


# check


def counted(masks: list[Path]) -> dict[str, dict[str, int]]:
    """Pixels and images of each class in Cityscapes' masks."""
    found = {name: {"pixels": 0, "images": 0} for name in CLASS_NAMES}
    for path in masks:
        with Image.open(path) as file:
            ids, counts = np.unique(np.array(file), return_counts=True)
        for number, count in zip(ids.tolist(), counts.tolist(), strict=True):
            if number in IDS:
                name = CLASS_NAMES[IDS.index(number)]
                found[name]["pixels"] += count
                found[name]["images"] += 1
    return found


def without_share(classes: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {name: {key: n for key, n in figures.items() if key != "share"} for name, figures in classes.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_dataset_passes(name: str, originals: Callable[[str], Path], tmp_path: Path) -> None:
    root = originals(name)
    said: list[Result] = []
    options = ("--data-root", str(root), "--output", str(tmp_path / "out"))
    assert changed(root, lambda: said.append(run("datasets", "check", name, *options))) == set()
    (result,) = said
    assert (result.code, result.err) == (0, "")
    assert f"{dataset_spec(name).title}: {root / dataset_spec(name).folder}" in result.out
    assert "no problems" in result.out
    assert {*files(tmp_path / "out")} == {"check.json", "classes.png", "contact_sheet.png"}
    for picture in ("classes.png", "contact_sheet.png"):
        with Image.open(tmp_path / "out" / picture) as file:
            assert min(file.size) >= 500
    figures = json.loads((tmp_path / "out/check.json").read_text())
    assert (figures["version"], figures["dataset"], figures["problems"]) == (__version__, name, [])
    total = sum(split["images"] for split in figures["splits"].values())
    assert total == sum(split["sound"] for split in figures["splits"].values()) == (8 if name == "gta5" else 6)
    assert sum(figures["classes"][each]["share"] for each in CLASS_NAMES) == pytest.approx(1)


def test_figures_are_those_of_the_files(city: Path, tmp_path: Path) -> None:
    result = check("cityscapes", tmp_path)
    figures = result.figures
    assert json.loads((tmp_path / "out/check.json").read_text()) == figures
    train, val = masks_of(city), masks_of(city, "val")
    assert without_share(figures["classes"]) == counted(train + val)
    assert without_share(figures["splits"]["val"]["classes"]) == counted(val)
    pixels = sum(n["pixels"] for n in figures["classes"].values()) + figures["ignored_pixels"]
    assert pixels == 6 * 48 * 96
    split = figures["splits"]["train"]
    assert (split["images"], split["masks"], split["read"], split["sound"]) == (4, 4, 4, 4)
    assert split["sizes"] == {"48x96": 4}
    for name in ("road", "sky"):
        assert name in result.err


def test_a_split_and_a_limit(city: Path, tmp_path: Path) -> None:
    figures = check("cityscapes", tmp_path, "--split", "train", "--limit", "3").figures
    assert [*figures["splits"]] == ["train"]
    split = figures["splits"]["train"]
    assert (split["images"], split["masks"], split["read"], split["sound"]) == (4, 4, 3, 3)
    assert without_share(split["classes"]) == counted(masks_of(city)[:3])
    joined = check("cityscapes", tmp_path, "--split", "trainval").figures
    assert (joined["splits"]["trainval"]["images"], joined["limit"]) == (6, None)


def test_the_output_lies_below_runs_if_none_is_named(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HMSA_DATA_ROOT", str(tmp_path))
    assert run("datasets", "check", "cityscapes").out.endswith("written: runs/datasets/cityscapes\n")
    assert (tmp_path / "runs/datasets/cityscapes/contact_sheet.png").is_file()
    shutil.move(city, tmp_path / "elsewhere")
    assert run("datasets", "check", "cityscapes", "--root", "elsewhere").code == 0


def test_a_mask_that_is_gone(city: Path, tmp_path: Path) -> None:
    masks_of(city)[1].unlink()
    image = images_of(city)[1].relative_to(city)
    result = check("cityscapes", tmp_path)
    (problem,) = problems(result)
    assert problem.startswith(f"train: 1 of 4 images have no mask ({image}); unpack gtFine_trainvaltest.zip")
    split = result.figures["splits"]["train"]
    assert (split["images"], split["masks"], split["images_without_mask"]) == (4, 3, [str(image)])


def test_an_image_that_is_gone(city: Path, tmp_path: Path) -> None:
    images_of(city)[2].unlink()
    mask = masks_of(city)[2].relative_to(city)
    result = check("cityscapes", tmp_path)
    (problem,) = problems(result)
    assert problem.startswith(f"1 mask without an image ({mask}); unpack leftImg8bit_trainvaltest.zip")
    assert result.figures["masks_without_image"] == [str(mask)]


def test_a_mask_of_another_size(city: Path, tmp_path: Path) -> None:
    mask, image = (paths[0].relative_to(city) for paths in (masks_of(city), images_of(city)))
    edit(city / mask, lambda pixels: pixels[:40])
    result = check("cityscapes", tmp_path)
    (problem,) = problems(result)
    assert problem.startswith(f"train: {mask}: has 40x96 pixels, but its image {image} has 48x96; ")
    # What training would refuse is not counted.
    assert without_share(result.figures["classes"]) == counted(masks_of(city)[1:] + masks_of(city, "val"))


def test_masks_of_another_size_that_are_known_of(originals: Callable[[str], Path], tmp_path: Path) -> None:
    copied(originals, "gta5", tmp_path)
    edit(tmp_path / "GTA5/labels/00001.png", lambda pixels: pixels[::2, ::2])
    figures = check("gta5", tmp_path).figures
    assert figures["problems"] == []
    assert figures["splits"]["train"]["resized_masks"] == 2  # one is drawn so


def test_ids_that_no_table_knows(city: Path, tmp_path: Path) -> None:
    def spoilt(*ids: int) -> Callable[[np.ndarray], np.ndarray]:
        def change(pixels: np.ndarray) -> np.ndarray:
            pixels[0, : len(ids)] = ids
            return pixels

        return change

    first, second = masks_of(city)[1:3]
    edit(first, spoilt(77, 200))
    edit(second, spoilt(200, 200))
    edit(masks_of(city, "val")[0], spoilt(*range(100, 108)))
    result = check("cityscapes", tmp_path)
    found = problems(result)
    where, there = (path.relative_to(city) for path in (first, second))
    assert found[0].startswith(f"train: id 77 is none of Cityscapes, but 1 mask holds it, first {where}; ")
    assert found[1].startswith(f"train: id 200 is none of Cityscapes, but 2 masks hold it, first {where}; ")
    assert [line.partition(" is")[0] for line in found[2:7]] == [f"val: id {number}" for number in range(100, 105)]
    assert found[7:] == ["val: 3 more ids are none of Cityscapes (105, 106, 107)"]
    ids = result.figures["splits"]["train"]["unknown_ids"]
    assert ids == {"77": [str(where)], "200": [str(where), str(there)]}


def test_masks_that_label_nothing(city: Path, tmp_path: Path) -> None:
    def void(pixels: np.ndarray) -> np.ndarray:
        return np.zeros_like(pixels)

    masks = masks_of(city)
    edit(masks[0], void)
    some = run("datasets", "check", "cityscapes", "--data-root", str(tmp_path), "--output", str(tmp_path / "out"))
    assert (some.code, some.err) == (0, "")
    assert "; 1 mask that labels nothing" in some.out
    assert "no problems" in some.out
    for mask in masks[1:]:
        edit(mask, void)
    everything = check("cityscapes", tmp_path)
    (problem,) = problems(everything)
    assert problem.startswith(f"train: none of the {len(masks)} masks that were read labels anything (")
    named = everything.figures["splits"]["train"]["masks_that_label_nothing"]
    assert named == [mask.relative_to(city).as_posix() for mask in masks]


def test_damaged_files(city: Path, tmp_path: Path) -> None:
    mask, image = masks_of(city)[0], images_of(city)[1]
    data = bytearray(mask.read_bytes())
    data[len(data) // 2] ^= 1
    mask.write_bytes(data)
    image.write_bytes(image.read_bytes()[:500])
    result = check("cityscapes", tmp_path)
    wrong_mask, short_image = problems(result)
    assert wrong_mask.startswith(f"train: {mask}: ") and "wrong checksum" in wrong_mask
    assert short_image.startswith(f"train: {image}: ") and "cut short" in short_image
    assert result.figures["splits"]["train"]["sizes"] == {"48x96": 3}


def test_of_many_alike_the_first_few_are_said_and_all_written(
    originals: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(originals, "bdd100k", tmp_path)
    images = sorted((folder / "images/10k").rglob("*.jpg"))
    for path in (path for path in images if "test" not in path.parts):
        path.write_bytes(b"<html>")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/classes.png").touch()
    result = check("bdd100k", tmp_path, "--split", "train")
    assert len(problems(result)) == 4
    # Nothing can be trained on, so there is nothing to draw, and no older picture may be taken for it.
    assert [*files(tmp_path / "out")] == ["check.json"]
    assert result.figures["splits"]["train"]["sound"] == 0


def test_one_reason_of_many_files_is_said_once(originals: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(originals, "wilddash", tmp_path)
    (folder / "panoptic.json").write_text("{")
    found = problems(check("wilddash", tmp_path, "--split", "train"))
    assert len(found) == 1 and found[0].startswith(f"train: {folder}/panoptic.json: is no JSON")


def test_a_name_that_is_no_label(originals: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(originals, "idd", tmp_path)
    path = min((folder / "gtFine/val").rglob("*.json"))
    path.write_text(path.read_text().replace('"road"', '"raod"'))
    (problem,) = problems(check("idd", tmp_path))
    assert problem.startswith(f"val: {path}: holds an object called 'raod', which is no label; did you mean 'road'?")


# check, refused


def refused(root: Path, name: str, *options: str) -> str:
    """What a check says that cannot be done, having written nothing."""
    said: list[str] = []
    arguments = ("--data-root", str(root), "--output", str(root / "out"), *options)
    assert changed(root, lambda: said.append(run("datasets", "check", name, *arguments).refusal())) == set()
    assert not (root / "out").exists()
    return said[0]


def test_no_folder(tmp_path: Path) -> None:
    message = refused(tmp_path, "gta5")
    assert message.startswith(f"{tmp_path / 'GTA5'}: there is no such folder")
    assert message.endswith("see: hmsa-pipeline datasets list")


def test_no_data_root() -> None:
    message = run("datasets", "check", "gta5").refusal()
    assert message == "gta5: the environment variable HMSA_DATA_ROOT is not set; set it or give --data-root FOLDER"


def test_a_folder_that_is_half_unpacked(city: Path, tmp_path: Path) -> None:
    shutil.rmtree(city / GT / "val")
    message = refused(tmp_path, "cityscapes")
    assert message.startswith(f"{city}: 2 of the 2 images of split 'val' have no mask")
    assert "unpack gtFine_trainvaltest.zip" in message
    shutil.rmtree(city / LEFT / "train")
    message = refused(tmp_path, "cityscapes")
    assert f"{city}: type 'cityscapes', split 'train' keeps its images in {LEFT}/train/" in message
    assert "unpack leftImg8bit_trainvaltest.zip" in message


def test_panoptic_masks_without_their_json(originals: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(originals, "wilddash", tmp_path)
    (folder / "panoptic.json").unlink()
    assert refused(tmp_path, "wilddash").startswith(f"{folder / 'panoptic.json'}: there is no such file")


def test_a_split_that_there_is_not(city: Path, tmp_path: Path) -> None:
    assert refused(tmp_path, "cityscapes", "--split", "vla") == (
        "type 'cityscapes' has no split 'vla'; did you mean 'val'?"
    )


def test_a_split_whose_masks_are_not_published(originals: Callable[[str], Path], tmp_path: Path) -> None:
    copied(originals, "bdd100k", tmp_path)
    message = refused(tmp_path, "bdd100k", "--split", "test")
    assert message.endswith("the masks of split 'test' of BDD100K are not published; choose one of train, val")


def test_an_output_that_cannot_be_written(city: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(tmp_path, "cityscapes", "--output", str(tmp_path / "file/out"))
    assert message == f"{tmp_path}/file/out: cannot be written (Not a directory); choose another --output"


# draw


def test_all_seven_are_drawn_as_their_checks_want_them(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    result = run("datasets", "draw", "--output", str(folder), "--train", "2", "--val", "1", "--size", "40x72")
    assert (result.code, result.err) == (0, "")
    for name in NAMES:
        assert f"drawn: {folder / dataset_spec(name).folder}\n" in result.out
        report = run(
            "datasets", "check", name, "--data-root", str(folder), "--output", str(tmp_path / "out"), "--json", "-"
        )
        assert (report.code, report.figures["problems"]) == (0, [])
        if name != "mapillary":
            assert report.figures["splits"]["train"]["sizes"] == {"40x72": 2}


def test_drawing_is_told_in_figures_and_repeatable(tmp_path: Path) -> None:
    options = (
        "datasets",
        "draw",
        "shift",
        "idd",
        "--output",
        str(tmp_path),
        "--train",
        "1",
        "--val",
        "1",
        "--size",
        "32X64",
    )
    result = run(*options, "--json", "-")
    assert [(one["dataset"], one["folder"]) for one in result.figures] == [
        ("shift", str(tmp_path / "SHIFT")),
        ("idd", str(tmp_path / "IDD_Segmentation")),
    ]
    assert changed(tmp_path, lambda: run(*options)) == set()
    message = run(*options, "--seed", "1").refusal()
    assert message.startswith(f"{tmp_path / 'SHIFT'}: holds a dataset drawn with other settings")


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_it_names_is_ready_to_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = run("datasets", "draw", name, "--train", "2", "--val", "1", "--size", "32x64", "--json", "-").figures
    program, *words = shlex.split(drawn[0]["command"])
    assert program == "hmsa-pipeline"
    planned = run(*words, "--dry-run")
    assert planned.code == 0, planned
    assert f"data:    {name}, 2 images to learn from, 1 to score on; {tmp_path / 'drawn'}" in planned.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "40"), "--size 40: write HEIGHTxWIDTH, such as 128x256"),
        (("--size", "31x64"), "shift: frames of 31 x 64 pixels are too small; 32 x 32 is the least"),
        (("--train", "0"), "Invalid value for '--train'"),
        (("--val", "0"), "Invalid value for '--val'"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
        (("--output", ""), "--output: an empty name names nothing"),
    ],
)
def test_what_cannot_be_drawn(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = run("datasets", "draw", "shift", "--output", str(tmp_path / "drawn"), *options)
    assert result.refusal().startswith(said)
    assert files(tmp_path) == {}


def test_what_was_not_drawn_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "SHIFT").mkdir()
    (tmp_path / "SHIFT/mine.txt").write_text("real")
    message = run("datasets", "draw", "shift", "--output", str(tmp_path)).refusal()
    assert message.startswith(f"{tmp_path / 'SHIFT'}: holds what was not drawn, and is left as it is")
    assert [*files(tmp_path)] == ["SHIFT/mine.txt"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = run("datasets", "draw", "shift", "--output", str(tmp_path / "file")).refusal()
    assert message == f"{tmp_path}/file/SHIFT: cannot be written (Not a directory); choose another --output"
