"""The recipes that come with the package: what the published members were made with, value by value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hmsa_pipeline.datasets.dataset_specs import NAMES, dataset_spec
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.checkpoint import expected_shapes
from hmsa_pipeline.pipeline.config.load_manifest import shipped_manifests
from hmsa_pipeline.pipeline.config.load_recipe import load_recipe, recipe_of
from hmsa_pipeline.pipeline.config.recipe import RECIPES

WEIGHTS = "${HMSA_ASSETS}/seg_weights"
MAPILLARY_65 = f"{WEIGHTS}/mapillary_ocrnet.HRNet_Mscale_fast-rattlesnake.pth"
MAPILLARY_ONE_SCALE = f"{WEIGHTS}/ocrnet.HRNet_industrious-chicken.pth"
CITYSCAPES = f"{WEIGHTS}/cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth"
CITYSCAPES_TRAINVAL = (
    f"{WEIGHTS}/cityscapes_SOTA_trainval_ocr.HRNet_Mscale_nimble-chihuahua.pth",
    f"{WEIGHTS}/cityscapes_trainval_ocr.HRNet_Mscale_nimble-chihuahua.pth",
)
CLASS_LAYERS = ("ocr.cls_head", "ocr.aux_head.2")

# Dataset: crop, GPUs, images on each, epochs, learning rate, exponent; initial weights and layers that start afresh.
PUBLISHED = {
    "gta5": ((1052, 1914), 2, 3, 175, 0.01, 2.0, (MAPILLARY_65,), CLASS_LAYERS),
    "cityscapes": ((1024, 2048), 8, 1, 175, 0.005, 2.0, (MAPILLARY_ONE_SCALE,), ("scale_attn",)),
    "mapillary": ((1024, 1024), 8, 2, 200, 0.005, 1.0, (MAPILLARY_65,), CLASS_LAYERS),
    "bdd100k": ((720, 1280), 2, 3, 175, 0.01, 2.0, (MAPILLARY_ONE_SCALE,), ("scale_attn",)),
    "idd": ((1080, 1920), 2, 3, 175, 0.01, 2.0, (CITYSCAPES,), ()),
    "wilddash": ((1080, 1920), 2, 3, 175, 0.01, 2.0, CITYSCAPES_TRAINVAL, ()),
    "shift": ((800, 1280), 2, 3, 175, 0.01, 2.0, (MAPILLARY_65,), CLASS_LAYERS),
}
# What has no source because it says where things lie, how often something is written, or what is trained at all.
WITHOUT_SOURCE = re.compile(r"version|output|data\..*|checkpoints\..*")
COMMAND_OF_GTA5 = {
    "optimizer.name",
    "epochs",
    "global_batch",
    "batch_size",
    "precision",
    "batch_norm",
    "augmentation.crop",
    "sampling.tile",
    "loss.criterion",
    "loss.scales",
    "optimizer.lr",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "schedule.name",
    "schedule.exponent",
    "validation.scales",
}


@pytest.fixture(autouse=True)
def _no_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HMSA_ASSETS", "HMSA_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


def text(name: str) -> str:
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def comments(name: str) -> dict[str, str]:
    """Of every value that stands in a recipe, by its place, what its line says behind the ``#``."""
    found: dict[str, str] = {}
    section = ""
    for line in text(name).splitlines():
        key = re.match(r"( *)([a-z_]+):(.*)", line)
        if not key:
            continue
        indent, word, rest = key.groups()
        if not indent:
            section = word
        value, _, comment = rest.partition("#")
        # A list may begin on the next line.
        if value.strip() or comment:
            found[f"{section}.{word}" if indent else word] = comment
    return found


def leaves(tree: dict[str, Any], above: str = "") -> list[str]:
    deeper = [leaves(v, f"{above}{k}.") if isinstance(v, dict) else [f"{above}{k}"] for k, v in tree.items()]
    return [place for places in deeper for place in places]


def test_every_dataset_has_one_and_the_demo_too() -> None:
    assert shipped_manifests(RECIPES) == sorted([*NAMES, "demo", "cityscapes-autolabel"])
    assert set(PUBLISHED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_values_are_those_of_the_published_members(name: str) -> None:
    crop, gpus, images, epochs, lr, exponent, checkpoints, fresh = PUBLISHED[name]
    recipe = load_recipe(recipe_of(name))
    assert recipe.resolved() == {
        "version": 1,
        "output": str(Path.cwd() / "runs/train" / name),
        "arch": "hrnet_ocr_mscale",
        "data": {
            "type": name,
            "root": f"${{HMSA_DATA_ROOT}}/{dataset_spec(name).folder}",
            "train": "train",
            "validation": "val",
            "limit": None,
            "mapping": None,
            "without_masks": [],
            "allow_unlabelled": False,
            "cache": None,
            "labels": "own",
            "share": None,
            "threshold": None,
            "weight_by_confidence": False,
            "boost": None,
            "until_epoch": None,
        },
        "init": {"checkpoint": list(checkpoints), "fresh": list(fresh), "unused": [], "prefix": ""},
        "epochs": epochs,
        "global_batch": gpus * images,
        "batch_size": images,
        "seed": 0,
        "precision": "fp16",
        "batch_norm": "sync",
        "dropout": 0.05,
        "activation_checkpointing": False,
        "compile": False,
        "workers": 8,
        "augmentation": {
            "crop": list(crop),
            "scale": [0.5, 2.0],
            "long_edge": 2177 if name == "mapillary" else None,
            "flip": 0.5,
            "color_jitter": 0.25,
            "gaussian_blur": name == "mapillary",
            "rand_augment": None,
        },
        "sampling": {"class_uniform": 0.5, "tile": 1024},
        "loss": {"criterion": "rmi", "auxiliary": 0.4, "scales": 0.05, "border_relaxation": 0, "distillation": None},
        "optimizer": {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": {"name": "poly", "exponent": exponent, "step": 110},
        "validation": {"every": 1, "scales": [0.5, 1.0, 2.0], "flip": False},
        "checkpoints": {"every": 25, "minutes": 15.0},
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_command_at_its_head_is_the_one_for_its_gpus(name: str) -> None:
    _, gpus, *_ = PUBLISHED[name]
    command = f"hmsa-pipeline train --dataset {name} --data-root DATA --assets ASSETS --gpus {gpus}"
    assert re.search(rf"^# +{command}$", text(name), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_names_its_source(name: str) -> None:
    found = comments(name)
    assert set(leaves(yaml.safe_load(text(name)))) == set(found)
    sourced = {place: comment for place, comment in found.items() if not WITHOUT_SOURCE.fullmatch(place)}
    numbers = {place: re.findall(r"\[([1-4])\]", comment) for place, comment in sourced.items()}
    assert {place for place, named in numbers.items() if len(named) != 1} == set()
    head = text(name).partition("\nversion:")[0]
    assert all(f"[{number}] " in head for number in range(1, 5))
    if name == "gta5":
        assert {place for place, named in numbers.items() if named == ["1"]} == COMMAND_OF_GTA5
    if name not in ("gta5", "cityscapes", "mapillary"):
        # Of these four nothing was published but where they start from.
        assert {place for place, named in numbers.items() if named == ["1"]} == set()


@pytest.mark.parametrize("name", NAMES)
def test_the_fresh_layers_are_layers_of_the_network(name: str) -> None:
    recipe = load_recipe(recipe_of(name))
    keys = expected_shapes(recipe.arch)
    for layer in recipe.init.fresh:
        assert any(key.startswith(f"{layer}.") for key in keys)


@pytest.mark.parametrize("name", [*NAMES, "demo", "cityscapes-autolabel"])
def test_what_is_resolved_gives_the_same_recipe(name: str, tmp_path: Path) -> None:
    assets = None if name == "demo" else Path("/assets")  # the demo starts from nothing
    recipe = load_recipe(name, data_root=Path("/data"), assets=assets)
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    assert recipe.scored.root_path() == Path("/data") / dataset_spec(recipe.scored.type).folder
    assert all(path.startswith("/assets/seg_weights/") for path in recipe.init.checkpoint)


@pytest.mark.parametrize("place", [0, 1])
def test_wilddash_starts_from_the_file_under_either_of_its_names(place: int, tmp_path: Path) -> None:
    file = tmp_path / "seg_weights" / Path(CITYSCAPES_TRAINVAL[place]).name
    file.parent.mkdir()
    file.write_bytes(b"")
    assert load_recipe("wilddash", assets=tmp_path).init.path() == file


def test_the_demo_trains_the_tiny_network_from_nothing() -> None:
    recipe = load_recipe("demo")
    assert (recipe.arch, recipe.init.checkpoint, recipe.data.type) == ("hrnet_tiny_ocr_mscale", (), "shift")
    # SyncBatchNorm and fp16 are for GPUs.
    assert (recipe.batch_norm, recipe.precision) == ("local", "fp32")


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_network_follows_any_of_them_from_random_weights(name: str) -> None:
    recipe = load_recipe(recipe_of(name), overrides={"arch": "hrnet_tiny_ocr_mscale"})
    assert recipe.init.path() is None
    assert [note.partition(":")[0] for note in recipe.notes] == ["init"]


AUTOLABEL = "cityscapes-autolabel"
BOOSTED = (3, 4, 6, 7, 9, 11, 12, 13, 14, 15, 16, 17, 18)
"""Train ids of coarse_boost_classes in scripts/train_cityscapes_sota.yml of NVIDIA/semantic-segmentation."""


def test_the_recipe_with_auto_labels_differs_from_cityscapes_by_what_was_published() -> None:
    plain, found = (load_recipe(name).resolved() for name in ("cityscapes", AUTOLABEL))
    fine, coarse = found.pop("data")
    of_plain = plain.pop("data")
    # 16 GPUs instead of 8, and twice the learning rate.
    assert found == plain | {
        "output": str(Path.cwd() / "runs/train" / AUTOLABEL),
        "global_batch": 16,
        "optimizer": plain["optimizer"] | {"lr": 0.01},
    }
    assert fine == of_plain | {"share": 1.0}
    assert coarse == of_plain | {
        "train": "train_extra",
        "labels": "autolabel ${HMSA_DATA_ROOT}/autolabels/cityscapes_coarse",
        "share": 0.0,
        "threshold": 0.5,
        "until_epoch": 150,
        "boost": {"classes": [CLASS_NAMES[label] for label in BOOSTED], "factor": 1},
    }


def test_every_value_of_the_recipe_with_auto_labels_names_its_source() -> None:
    places = re.compile(r"version|output|type|root|labels|every|minutes")
    lines = text(AUTOLABEL).partition("\nversion:")[2].splitlines()
    wrong = []
    for number, line in enumerate(lines):
        value = re.match(r" *(?:- )?([a-z_]+): *([^# ][^#]*)(#.*)?$", line)
        if value is None or places.fullmatch(value[1]):
            continue
        above = lines[number - 1].strip() if lines[number - 1].strip().startswith("#") else ""
        if len(re.findall(r"\[([1-4])\]", value[3] or above)) != 1 and value[1] != "every":
            wrong.append(line)
    assert wrong == []
    head = text(AUTOLABEL).partition("\nversion:")[0]
    assert all(f"[{number}] " in head for number in range(1, 5))
    assert f"hmsa-pipeline train --manifest {AUTOLABEL} --data-root DATA --assets ASSETS --gpus 16" in head
