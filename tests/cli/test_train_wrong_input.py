"""What recipes, datasets, checkpoints and outputs of a training run can be wrong with: one line, nothing is lost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.dataset_specs import NAMES
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.models.checkpoint import read_state_dict, save_checkpoint
from hmsa_pipeline.models.losses.training_loss import LossTerms, training_loss
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from PIL import Image
from scipy.io import loadmat, savemat  # pyright: ignore[reportMissingImports]

from .bench import TINY, Result, changed, run
from .training import last, options

ONE_EPOCH = ("--epochs", "1")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn GTA5: frames 1, 2, 3 to learn from, 4 and 5 to score on. Tests must leave it as it is."""
    root = tmp_path_factory.mktemp("drawn")
    write_source(root, "gta5", train=3, val=2, size=(48, 80))
    return root


@pytest.fixture(scope="session")
def begun(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of one epoch. Tests must leave it as it is, or take a copy."""
    output = tmp_path_factory.mktemp("begun") / "run"
    result = run(*options(drawn, output, *ONE_EPOCH))
    assert result.code == 0, result
    return output


@pytest.fixture
def world(drawn: Path, tmp_path: Path) -> Path:
    """A copy of `drawn` to spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "world"))


@pytest.fixture
def output(begun: Path, tmp_path: Path) -> Path:
    """A copy of `begun` to go on with or to spoil."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def refused(folder: Path, *words: str) -> str:
    """What a command says of its input, having written nothing below ``folder`` and said nothing else."""
    said: list[str] = []
    assert changed(folder, lambda: said.append(run(*words).refusal())) == set()
    return said[0]


def stopped(result: Result) -> str:
    """The one line of an error that could only be found on the way."""
    *notes, error = result.err.splitlines()
    assert result.code == 2, result
    assert error.startswith("error: "), result
    assert not any(note.startswith("error: ") for note in notes), result
    assert "Traceback" not in result.err
    return error.removeprefix("error: ")


def test_a_recipe_is_named_once(drawn: Path, tmp_path: Path) -> None:
    both = ("--dataset", "gta5", "--manifest", "gta5")
    for words in ((), both):
        message = refused(tmp_path, "train", *words, "--data-root", str(drawn))
        assert message == "train: give --dataset NAME, or --manifest FILE with a recipe of your own"


@pytest.mark.parametrize("name", ["gtav", "kitti", "", "GTA5", "a\nb"])
def test_an_unknown_dataset(drawn: Path, tmp_path: Path, name: str) -> None:
    message = refused(tmp_path, *options(drawn, tmp_path / "run", dataset=name))
    assert message.startswith("--dataset ")
    assert message.count(f"known: {', '.join(NAMES)}") == 1
    assert ("did you mean 'gta5'?" in message) == (name in ("gtav", "GTA5"))


def test_an_unknown_recipe(drawn: Path, tmp_path: Path) -> None:
    words = ("--data-root", str(drawn), "--output", str(tmp_path / "run"))
    assert "gta5, idd" in refused(tmp_path, "train", "--manifest", "gta", *words)
    assert "missing.yaml" in refused(tmp_path, "train", "--manifest", str(tmp_path / "missing.yaml"), *words)


def test_a_variable_that_is_not_set_is_named_with_its_flag(drawn: Path, tmp_path: Path) -> None:
    words = ("train", "--dataset", "gta5", "--output", str(tmp_path / "run"))
    message = refused(tmp_path, *words)
    assert "HMSA_DATA_ROOT is not set; set it or give --data-root FOLDER" in message
    message = refused(tmp_path, *words, "--data-root", str(drawn), "--batch-size", "1")
    assert "HMSA_ASSETS is not set; set it or give --assets FOLDER" in message


@pytest.mark.parametrize("dataset", NAMES)
def test_no_dataset(tmp_path: Path, dataset: str) -> None:
    message = refused(tmp_path, *options(tmp_path / "nowhere", tmp_path / "run", dataset=dataset))
    assert message.startswith(str(tmp_path / "nowhere"))
    assert "there is no such folder" in message
    assert "hmsa-pipeline datasets list" in message


def shorter(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        image.crop((0, 0, 80, 40)).save(path)


def unlink(name: str) -> Callable[[Path], object]:
    return lambda gta5: (gta5 / name).unlink()


def without_validation(gta5: Path) -> None:
    arrays = loadmat(gta5 / "split.mat")
    savemat(gta5 / "split.mat", {"trainIds": arrays["trainIds"], "valIds": np.zeros((0, 1))})


def void(path: Path, rows: slice = slice(None)) -> None:
    """Nothing is labelled in these rows any more: id 0 is GTA5's own for that."""
    with Image.open(path) as image:
        palette, ids = image.getpalette(), np.array(image)
    ids[rows] = 0
    changed_mask = Image.fromarray(ids)
    if palette:
        changed_mask.putpalette(palette)
    changed_mask.save(path)


@pytest.mark.parametrize(("split", "frames", "what"), [("train", (1, 2, 3), "learn from"), ("val", (4, 5), "score")])
def test_masks_that_label_nothing(
    world: Path, tmp_path: Path, split: str, frames: tuple[int, ...], what: str
) -> None:
    masks = [world / f"GTA5/labels/{number:05d}.png" for number in frames]
    for mask in masks:
        void(mask)
    error = stopped(run(*options(world, tmp_path / "run", *ONE_EPOCH)))
    assert error.startswith(f"{world / 'GTA5'}: no mask of split '{split}' labels anything (labels/{masks[0].name}, ")
    assert f"so there is nothing to {what}; look at them ('hmsa-pipeline datasets check gta5')" in error
    # Nothing that could be taken for a run is left.
    assert not [*(tmp_path / "run").rglob("*.pth"), *(tmp_path / "run").rglob("recipe.yaml")]


def test_some_masks_that_label_nothing_are_counted(world: Path, tmp_path: Path) -> None:
    void(world / "GTA5/labels/00002.png")
    # The last rows lie beside the last whole tile, where no centroid is looked for.
    void(world / "GTA5/labels/00003.png", slice(46))
    result = run(*options(world, tmp_path / "run", *ONE_EPOCH, "--set", "sampling.tile=46"))
    assert result.code == 0, result
    assert "masks: 1 of the 3 of split 'train' label nothing (labels/00002.png)" in result.err.splitlines()
    assert "loss:    rmi; its region term is a bound that has no least value: the loss may fall below 0" in (
        result.out.splitlines()
    )


HALF: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no masks": (
        lambda gta5: shutil.rmtree(gta5 / "labels"),
        ["3 of the 3 images of split 'train' have no mask", "labels/00001.png", "unpack 01_labels.zip"],
    ),
    "no images": (lambda gta5: shutil.rmtree(gta5 / "images"), ["keeps its images in images/", "unpack 01_images"]),
    "no split": (unlink("split.mat"), ["split.mat is not there", "read_mapping.zip"]),
    "no MATLAB file": (lambda gta5: (gta5 / "split.mat").write_bytes(b"split"), ["split.mat", "fetch it again"]),
    "one mask less": (unlink("labels/00002.png"), ["1 of the 3 images", "(images/00002.png)", "labels/00002.png"]),
    "one image less": (unlink("images/00002.png"), ["1 of the 3 images", "00002"]),
    "nothing to score on": (without_validation, ["split.mat: holds no numbers under 'valIds'"]),
    "one mask to score with less": (unlink("labels/00005.png"), ["1 of the 2 images of split 'val'"]),
}


@pytest.mark.parametrize("trouble", HALF)
def test_a_dataset_that_is_half_unpacked(world: Path, tmp_path: Path, trouble: str) -> None:
    spoil, said = HALF[trouble]
    spoil(world / "GTA5")
    message = refused(tmp_path, *options(world, tmp_path / "run"))
    assert message.startswith(str(world / "GTA5"))
    for part in said:
        assert part in message


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_that_is_none(drawn: Path, tmp_path: Path, split: str) -> None:
    message = refused(tmp_path, *options(drawn, tmp_path / "run", "--set", f"data.{split}=foo"))
    assert message == "type 'gta5' has no split 'foo'; known: train, val, test"


def test_a_split_whose_masks_are_not_published(tmp_path: Path) -> None:
    write_source(tmp_path, "mapillary", train=2, val=2, size=(48, 80))
    (tmp_path / "Mapillary/data/testing/images").mkdir(parents=True, exist_ok=True)
    words = options(tmp_path, tmp_path / "run", "--set", "data.train=test", dataset="mapillary")
    message = refused(tmp_path, *words)
    assert "test" in message
    assert "train" in message


def with_ids(path: Path, ids: list[int]) -> None:
    """Give the first pixels of a mask other ids."""
    with Image.open(path) as image:
        values, palette = np.array(image), image.getpalette()
    values.ravel()[: len(ids)] = ids
    mask = Image.fromarray(values)
    if palette:
        mask.putpalette(palette)
    mask.save(path)


@pytest.mark.parametrize("frame", ["00001", "00003", "00004", "00005"])
def test_ids_outside_the_table_are_found_before_the_first_step(
    world: Path, tmp_path: Path, frame: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr("hmsa_pipeline.pipeline.training.trainer.training_loss", step)
    mask = world / "GTA5" / "labels" / f"{frame}.png"
    with_ids(mask, [77, 200])
    message = stopped(run(*options(world, tmp_path / "run", *ONE_EPOCH)))
    assert message.startswith(f"{mask}: holds the ids 77, 200, which are no ids of GTA5")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_masks_are_looked_at_before_an_older_run_is_removed(world: Path, output: Path) -> None:
    with_ids(world / "GTA5/labels/00005.png", [200])
    spoilt = changed(output, lambda: stopped(run(*options(world, output, *ONE_EPOCH, "--overwrite"))))
    assert {name for name in spoilt if not name.startswith("cache/")} <= {"recipe.yaml"}


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    write_source(tmp_path, "cityscapes", train=2, val=2, size=(48, 80))
    root = tmp_path / "Cityscapes-nvidia"
    mask = sorted(root.glob("gtFine*/**/train/**/*_gtFine_label*Ids.png"))[0]
    shorter(mask)
    message = stopped(run(*options(tmp_path, tmp_path / "run", *ONE_EPOCH, dataset="cityscapes")))
    assert message.startswith(f"{mask}: ")
    assert "48 x 80" in message
    assert "40 x 80" in message


@pytest.mark.parametrize("name", ["images/00001.png", "images/00005.png", "labels/00002.png", "labels/00004.png"])
@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "cut short"])
def test_files_that_are_no_images(world: Path, tmp_path: Path, name: str, content: bytes) -> None:
    path = world / "GTA5" / name
    path.write_bytes(content)
    # One step of all images: class-uniform sampling may leave one out.
    words = options(world, tmp_path / "run", *ONE_EPOCH, "--global-batch", "4", "--set", "sampling.class_uniform=0.0")
    assert stopped(run(*words)).startswith(f"{path}: ")


CHECKPOINTS: dict[str, tuple[tuple[str, ...], str]] = {
    "missing": ((), "there is no {}"),
    "of 65 classes, and no layer is fresh": (("--set", "init.fresh=[]"), "ocr.cls_head.weight is (65, 64, 1, 1)"),
    "with a fresh layer that is none": (
        ("--set", "init.fresh=[ocr.cls_hed, ocr.aux_head.2]"),
        "has no layer 'ocr.cls_hed'; did you mean 'ocr.cls_head'?",
    ),
    "with an unused layer that is none": (("--set", "init.unused=[ocr.cls_hed]"), "has no layer 'ocr.cls_hed'"),
    "under a prefix": (("--set", "init.prefix=backbone."), "keys are missing"),
    "a folder": ((), "is a folder"),
    "truncated": ((), "is truncated, damaged or no checkpoint"),
    "empty": ((), "is empty"),
}
FRESH = ("--set", "init.fresh=[ocr.cls_head, ocr.aux_head.2]")


@pytest.mark.parametrize("trouble", CHECKPOINTS)
def test_an_initial_checkpoint_that_does_not_fit(drawn: Path, tmp_path: Path, trouble: str) -> None:
    more, said = CHECKPOINTS[trouble]
    path = tmp_path / "vistas.pth"
    save_checkpoint(path, build(TINY, 65), arch=TINY, num_classes=65)
    if trouble == "missing":
        path.unlink()
    elif trouble == "a folder":
        path.unlink()
        path.mkdir()
    elif trouble == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif trouble == "empty":
        path.write_bytes(b"")
    message = refused(tmp_path, *options(drawn, tmp_path / "run", "--init", str(path), *FRESH, *more))
    assert said.format(path) in message


SETTINGS: dict[str, str] = {
    "augmentation.flop=1": "augmentation.flop: unknown key; did you mean 'flip'?",
    "foo=1": "foo: unknown key; known: version, ",
    "augmentation=1": "augmentation: a mapping (key: value) is needed, not the number 1",
    "epochs.first=1": "--set epochs.first=1: epochs is ",
    "flip": "--set flip: write KEY=VALUE, such as augmentation.flip=0.0",
    "=1": "write KEY=VALUE",
    "a..b=1": "write KEY=VALUE",
    "augmentation.flip=[": "is no value in YAML",
    "augmentation.flip={a: 1}": "--set augmentation.flip={a: 1}: ",
    "augmentation.flip=yes": "augmentation.flip: a number is needed, not true",
    "augmentation.flip=1.5": "augmentation.flip: must lie between 0 and 1, not 1.5",
    "augmentation.scale=[2, 1]": "augmentation.scale: the smaller one comes first, not 2 before 1",
    "augmentation.scale=[0, 1]": "augmentation.scale[0]: must be above 0, not 0",
    "augmentation.scale=2": "augmentation.scale: a list is needed, not the number 2",
    "augmentation.color_jitter=0.6": "augmentation.color_jitter: 0.5 at most, not 0.6",
    "augmentation.crop=[32, 64, 3]": "augmentation.crop: ",
    "augmentation.rand_augment.magnitude=31": "augmentation.rand_augment.magnitude: 30 at most, not 31",
    "optimizer.lr=1e-3": "optimizer.lr: a number is needed, not the text '1e-3'; write 0.001",
    "optimizer.momentum=1": "optimizer.momentum: must be below 1",
    "loss.scales=-1": "loss.scales: must be 0 or more, not -1",
    "epochs=2.5": "epochs: a whole number is needed, not the number 2.5",
    "data.train=1": "data.train: text is needed, not the number 1; put it in quotes",
    "data.type=kitti": "data.type: the text 'kitti' is not known",
    "validation.scales=[0.5]": "validation.scales: must contain 1.0",
    "checkpoints.minutes=0": "checkpoints.minutes: must be above 0, not 0",
    "compile=maybe": "compile: true or false is needed, not the text 'maybe'",
    "output=elsewhere": "use --output, whose paths start where you are",
    "data.root=elsewhere": "use --root, whose paths start where you are",
    "init.checkpoint=elsewhere": "use --init, whose paths start where you are",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_is_none(drawn: Path, tmp_path: Path, setting: str) -> None:
    assert SETTINGS[setting] in refused(tmp_path, *options(drawn, tmp_path / "run", "--set", setting))


FLAGS: dict[str, str] = {
    "--lr -1": "optimizer.lr: must be above 0, not -1",
    "--lr nan": "optimizer.lr: a finite number is needed",
    "--lr fast": "'--lr'",
    "--epochs 0": "epochs: must be 1 or more, not 0",
    "--batch-norm foo": "batch_norm: the text 'foo' is not known; known: sync, local, frozen",
    "--precision foo": "precision: the text 'foo' is not known; known: fp16, bf16, fp32",
    "--optimizer sdg": "optimizer.name: the text 'sdg' is not known; did you mean 'sgd'?",
    "--loss foo": "loss.criterion: the text 'foo' is not known",
    "--arch resnet": "arch: the text 'resnet' is not known",
    "--seed -1": "seed: must be 0 or more, not -1",
    "--workers -1": "workers: must be 0 or more, not -1",
    "--limit 0": "'--limit'",
    "--global-batch 3": "3 images per step cannot be had 2 at a time; let --batch-size divide --global-batch",
    "--global-batch 2000000000": "global_batch: ",
    "--crop-size 32": "--crop-size 32: write HEIGHTxWIDTH, such as 1052x1914",
    "--crop-size -3x4": "--crop-size -3x4: write HEIGHTxWIDTH",
    "--crop-size axb": "--crop-size axb: write HEIGHTxWIDTH",
    "--crop-size 9999999x1": "--crop-size 9999999x1: write HEIGHTxWIDTH",
    "--crop-size 65x65 --batch-size 1": "augmentation.crop 65x65: one image of it is one pixel to the coarsest",
    "--init ": "--init: an empty name is no file; name one, or random",
    "--crop-size 0x64": "augmentation.crop[0]: must be 1 or more, not 0",
    "--crop-size 4x64": "augmentation.crop: 8 pixels at least on each side for the loss rmi",
    "--resume --overwrite": "--resume goes on with the run that --overwrite removes",
    "--gpus 0": "'--gpus'",
    "--gpus 2": "--gpus 2: no CUDA device is there; ",
    "--gpus 2 --device cuda": "--device cuda: 0 CUDA devices are there",
    "--gpus 2 --device cpu": "batch_norm sync: works between GPUs only; ",
    "--gpus 2 --device cpu --batch-norm local": "global_batch 2: cannot be had from 2 processes with 2 images each",
    "--device cuda": "--device cuda: 0 CUDA devices are there; use --device auto or cpu",
    "--device tpu": "--device tpu: is no device",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_cannot_be(drawn: Path, tmp_path: Path, flags: str) -> None:
    assert FLAGS[flags] in refused(tmp_path, *options(drawn, tmp_path / "run", *flags.split(" ")))


@pytest.mark.parametrize("more", [("--crop-size", "66x8"), ("--crop-size", "32x64", "--batch-norm", "frozen")])
def test_one_image_at_a_time_is_enough_where_a_norm_finds_two_pixels(
    drawn: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    assert run(*options(drawn, tmp_path / "run", *ONE_EPOCH, "--batch-size", "1", *more)).code == 0


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says where there are two; nothing may be computed on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = options(drawn, tmp_path / "run", "--dry-run", "--global-batch", "8", "--batch-size", "1")
    assert refused(tmp_path, *words, "--gpus", "4") == "--gpus 4: 2 CUDA devices are there; lower --gpus"
    message = refused(tmp_path, *words, "--gpus", "2", "--device", "cuda:1")
    assert message == "--device cuda:1: is one GPU, for 2 processes; use --device cuda"
    assert run(*words, "--gpus", "2").code == 0
    # Of four processes on two machines each needs a GPU of its own machine only.
    torchrun(monkeypatch, rank=2, local=0, world=4)
    assert run(*words).code == 0
    torchrun(monkeypatch, rank=2, local=2, world=4)
    assert "process 2 of this machine (counted from 0): 2 CUDA devices are there" in stopped(run(*words))


def torchrun(monkeypatch: pytest.MonkeyPatch, rank: int, local: int, world: int) -> None:
    values = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("wrong", ["RANK=2", "RANK=-1", "RANK=", "LOCAL_RANK=1", "WORLD_SIZE=two", "-MASTER_ADDR"])
def test_variables_of_torchrun_that_do_not_agree(
    drawn: Path, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun(monkeypatch, rank=0, local=0, world=2)
    name, equals, value = wrong.strip("-").partition("=")
    if equals:
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.delenv(name)
    message = refused(tmp_path, *options(drawn, tmp_path / "run"))
    assert message.startswith("the environment variables RANK, ")
    assert message.endswith("start by torchrun or --gpus, or unset WORLD_SIZE to train in one process")


@pytest.mark.parametrize("crop", ["900000x900000", "200000x200000"])
def test_a_crop_that_can_never_fit(drawn: Path, tmp_path: Path, crop: str) -> None:
    message = refused(tmp_path, *options(drawn, tmp_path / "run", "--crop-size", crop))
    assert crop in message
    assert "--crop-size" in message
    assert "--batch-size" in message


def test_a_crop_for_which_memory_runs_out(drawn: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older run is there still, to be gone on with."""

    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("hmsa_pipeline.pipeline.training.trainer.training_loss", fail)
    message = stopped(run(*options(drawn, output.with_name("other"), *ONE_EPOCH)))
    assert message.startswith("2 crops of 32x64 do not fit into the memory of cpu; ")
    for knob in ("--batch-size", "--crop-size", "--activation-checkpointing"):
        assert knob in message


def test_an_output_in_which_a_run_lies(drawn: Path, output: Path) -> None:
    message = refused(output, *options(drawn, output, *ONE_EPOCH))
    assert message.startswith(f"{output}: holds a training run; --resume goes on with it, --overwrite removes it")


def test_a_run_that_was_begun_with_another_recipe(drawn: Path, output: Path) -> None:
    more = ("--resume", "--lr", "0.5", "--set", "augmentation.flip=0.1", "--epochs", "2")
    message = refused(output, *options(drawn, output, *more))
    assert "was begun with another recipe: " in message
    for part in (
        "augmentation.flip was 0.5 and is 0.1",
        "optimizer.lr was 0.01 and is 0.5",
        "epochs was 1 and is 2",
        "--overwrite",
    ):
        assert part in message


def test_a_run_that_learnt_from_other_images(world: Path, output: Path) -> None:
    arrays = loadmat(world / "GTA5/split.mat")
    ids = {"trainIds": arrays["valIds"], "valIds": arrays["trainIds"]}
    savemat(world / "GTA5/split.mat", ids)
    message = refused(output, *options(world, output, *ONE_EPOCH, "--resume"))
    assert message.startswith(f"{output / 'checkpoints/last.pth'}: learnt from other images than the 2 of ")


def test_what_may_differ_when_a_run_goes_on(drawn: Path, output: Path) -> None:
    for more in (("--workers", "1"), ("--set", "checkpoints.every=3"), ("--activation-checkpointing",)):
        result = run(*options(drawn, output, *ONE_EPOCH, "--resume", *more))
        assert result.code == 0, result


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewritten(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)

    return spoil


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is truncated, damaged or no checkpoint"),
    "half": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "is truncated, damaged or no checkpoint",
    ),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("weights"), "is truncated, damaged or no checkpoint"),
    "one bit": (flipped, "is damaged ("),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "weights alone": (
        lambda path: save_checkpoint(path, build(TINY), arch=TINY),
        "no training run to go on with",
    ),
    "no training": (rewritten(lambda c: c.pop("training")), "no training run to go on with"),
    "no recipe": (rewritten(lambda c: c["training"].update(recipe=3)), "no training run to go on with"),
    "no states": (rewritten(lambda c: c["training"].update(rng=None)), "training run is damaged"),
    "other states": (rewritten(lambda c: c["training"].update(rng=[{}])), "training run is damaged"),
    "no step": (rewritten(lambda c: c["training"].update(step="3")), "training run is damaged"),
    "an epoch below 0": (rewritten(lambda c: c.update(epoch=-1)), "training run is damaged"),
    "no optimizer": (rewritten(lambda c: c.update(optimizer={})), "training run is damaged"),
    "no scheduler": (rewritten(lambda c: c["training"].update(scheduler=None)), "training run is damaged"),
    "no history": (rewritten(lambda c: c["training"].update(history=3)), "training run is damaged"),
    "a weight less": (rewritten(lambda c: c["state_dict"].popitem()), "keys are missing (first: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_last_checkpoint_is_damaged(drawn: Path, output: Path, damage: str) -> None:
    spoil, said = DAMAGES[damage]
    path = output / "checkpoints" / "last.pth"
    spoil(path)
    message = refused(output, *options(drawn, output, *ONE_EPOCH, "--resume"))
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "best.pth" in message
    assert "--overwrite" in message


def test_the_best_checkpoint_takes_the_place_of_a_damaged_one(drawn: Path, output: Path) -> None:
    shutil.copyfile(output / "checkpoints/best.pth", output / "checkpoints/last.pth")
    assert run(*options(drawn, output, *ONE_EPOCH, "--resume")).code == 0


@pytest.mark.parametrize("below", ["", "/deep/er"])
def test_an_output_that_is_a_file(drawn: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "run").write_text("in the way")
    message = refused(tmp_path, *options(drawn, Path(f"{tmp_path}/run{below}"), *ONE_EPOCH))
    assert message.startswith(f"{tmp_path / 'run'}: ")


def test_an_output_without_the_right_to_write(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    if os.access(tmp_path / "run", os.W_OK):
        pytest.skip("this user may write anywhere")
    assert refused(tmp_path, *options(drawn, tmp_path / "run")).startswith(f"{tmp_path / 'run'}: cannot be written")


def test_a_cache_that_is_a_file(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    words = options(drawn, tmp_path / "run", *ONE_EPOCH, "--cache", str(tmp_path / "cache"))
    assert stopped(run(*words)).startswith(str(tmp_path / "cache"))


def test_an_output_in_which_another_run_works(drawn: Path, output: Path) -> None:
    with writer_lock(output / "checkpoints"):
        for more in (("--resume",), ("--overwrite",)):
            message = refused(output, *options(drawn, output, *ONE_EPOCH, *more))
            assert message.startswith(f"{output / 'checkpoints.lock'}: held by process {os.getpid()} on ")


def test_an_extra_that_is_not_installed(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = refused(tmp_path, *options(drawn, tmp_path / "run"))
    assert message.startswith("tensorboard is not installed: ")
    assert "pip install 'hmsa-pipeline[train]'" in message


class Spoilt:
    """The loss, which after some good ones is no number any more; keeps what was saved by then."""

    def __init__(self, output: Path, good: int) -> None:
        self.path, self.good = output / "checkpoints" / "last.pth", good
        self.saved = b""

    def __call__(self, *arguments: Any) -> LossTerms:
        terms = training_loss(*arguments)
        self.good -= 1
        if self.good >= 0:
            return terms
        if self.good == -1:
            self.saved = self.path.read_bytes()
        return terms._replace(total=terms.total * float("nan"))


@pytest.mark.parametrize("good", [2, 3], ids=["at once", "in the middle"])
def test_a_loss_that_turns_into_no_number(
    drawn: Path, tmp_path: Path, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch and a checkpoint after each: the last good one is kept, and can be gone on with."""
    output = tmp_path / "run"
    words = options(
        drawn, output, "--epochs", "2", "--global-batch", "1", "--batch-size", "1", "--batch-norm", "frozen"
    )
    words += ["--set", "checkpoints.minutes=0.0000001"]
    spoilt = Spoilt(output, good)
    with monkeypatch.context() as patch:
        patch.setattr("hmsa_pipeline.pipeline.training.trainer.training_loss", spoilt)
        message = stopped(run(*words))
    epoch, step = divmod(good, 3)
    assert message.startswith(f"epoch {epoch + 1}, step {step + 1}: the loss is no number any more; the batch was ")
    assert any(f"images/0000{frame}.png" in message for frame in (1, 2, 3))
    assert spoilt.saved
    assert (output / "checkpoints/last.pth").read_bytes() == spoilt.saved
    assert all(value.isfinite().all() for value in read_state_dict(output / "checkpoints/last.pth").values())
    assert run(*words, "--resume").code == 0
    assert last(output)["epoch"] == 2


def test_a_gradient_that_is_no_number_where_the_loss_is_one(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next step, whose loss would tell, the weights might have been saved."""

    def without_gradient(*arguments: Any) -> LossTerms:
        terms = training_loss(*arguments)
        # The square root's slope at 0 is infinite, and nothing times infinity is no number.
        return terms._replace(total=terms.total + (terms.total * 0).sqrt() * 0)

    monkeypatch.setattr("hmsa_pipeline.pipeline.training.trainer.training_loss", without_gradient)
    output = tmp_path / "run"
    message = stopped(run(*options(drawn, output, *ONE_EPOCH)))
    assert message.startswith("epoch 1, step 1: the weights are no numbers any more and are not saved; ")
    assert list(output.glob("**/*.pth")) == []


@pytest.mark.parametrize("every", ["15", "0.0000001"], ids=["an epoch", "every step"])
def test_a_learning_rate_that_is_far_too_high(drawn: Path, tmp_path: Path, every: str) -> None:
    """One step an epoch: the weights after it are numbers, however large, but what they say of an image is none."""
    output = tmp_path / "run"
    words = options(drawn, output, "--epochs", "4", "--lr", "1e30", "--set", f"checkpoints.minutes={every}")
    message = stopped(run(*words))
    assert message.startswith(
        "epoch 1: the scores of images/00004.png are no numbers; begin another run (--overwrite"
    )
    assert "--lr" in message
    assert not (output / "best_weights.pth").exists()
    if (output / "checkpoints/last.pth").exists():
        assert all(value.isfinite().all() for value in read_state_dict(output / "checkpoints/last.pth").values())


@pytest.mark.parametrize("setting", ["optimizer.lr=1.0e+300", "optimizer.weight_decay=1.0e+300"])
def test_numbers_beyond_those_that_networks_compute_with(drawn: Path, tmp_path: Path, setting: str) -> None:
    message = refused(tmp_path, *options(drawn, tmp_path / "run", "--set", setting))
    assert f"{setting.partition('=')[0]}: 3e+38 at most, " in message
