"""The recipe: what is read, what wins over what, what is refused and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hmsa_pipeline.datasets.dataset_specs import NAMES
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.models.registry import ARCHITECTURES
from hmsa_pipeline.pipeline.config import recipe as recipe_module
from hmsa_pipeline.pipeline.config import recipe_data
from hmsa_pipeline.pipeline.config.frozen_model import FrozenModel
from hmsa_pipeline.pipeline.config.load_recipe import load_recipe, parse_size, recipe_of
from hmsa_pipeline.pipeline.config.recipe import RANDOM, Init
from hmsa_pipeline.pipeline.training.checkpoint import require_same_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from .recipes import GOOD, MINIMAL, refusal, said, write

SECTIONS = [
    kind
    for module in (recipe_module, recipe_data)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, FrozenModel) and kind != FrozenModel
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HMSA_ASSETS", "HMSA_DATA_ROOT", "NOWHERE"):
        monkeypatch.delenv(name, raising=False)


# What is read.


def test_every_field_is_read() -> None:
    recipe, here = load_recipe(write(GOOD)), Path.cwd()
    tree = yaml.safe_load(GOOD)
    tree["output"] = str(here / "out")
    tree["data"] |= {"root": str(here / "streets"), "cache": str(here / "made")}
    tree["data"]["labels"] = f"autolabel {here / 'marks'}"
    tree["loss"]["distillation"]["stores"] = str(here / "teachers")
    tree["init"]["checkpoint"] = [str(here / "weights/a.pth"), str(here / "weights/b.pth")]
    assert recipe.resolved() == tree
    assert json.loads(json.dumps(recipe.resolved())) == recipe.resolved()
    assert recipe.data.root_path() == here / "streets"
    assert recipe.cache_path() == here / "made"
    assert (recipe.sources, recipe.scored) == ((recipe.data,), recipe.data)
    assert recipe.scored.labels_path() == here / "marks"
    assert recipe.notes == ()


def test_a_minimal_recipe_takes_the_defaults() -> None:
    recipe, here = load_recipe(write(MINIMAL)), Path.cwd()
    assert recipe.resolved() == {
        "version": 1,
        "output": str(here / "out"),
        "arch": "hrnet_ocr_mscale",
        "data": {
            "type": "gta5",
            "root": str(here / "streets"),
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
        "init": {"checkpoint": [], "fresh": [], "unused": [], "prefix": ""},
        "epochs": 1,
        "global_batch": 2,
        "batch_size": 2,
        "seed": 0,
        "precision": "fp16",
        "batch_norm": "sync",
        "dropout": 0.05,
        "activation_checkpointing": False,
        "compile": False,
        "workers": 8,
        "augmentation": {
            "crop": [8, 8],
            "scale": [0.5, 2.0],
            "long_edge": None,
            "flip": 0.5,
            "color_jitter": 0.25,
            "gaussian_blur": False,
            "rand_augment": None,
        },
        "sampling": {"class_uniform": 0.5, "tile": 1024},
        "loss": {"criterion": "rmi", "auxiliary": 0.4, "scales": 0.05, "border_relaxation": 0, "distillation": None},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": {"name": "poly", "exponent": 2.0, "step": 110},
        "validation": {"every": 1, "scales": [0.5, 1.0, 2.0], "flip": False},
        "checkpoints": {"every": None, "minutes": 15.0},
    }
    assert recipe.cache_path() == here / "out/cache"
    assert recipe.init.path() is None


@pytest.mark.parametrize("text", [GOOD, MINIMAL])
def test_what_is_written_gives_the_same_recipe_from_any_folder(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write(text))
    path = write(recipe.to_yaml(), "elsewhere/resolved.yaml").absolute()
    monkeypatch.chdir(path.parent)
    assert load_recipe(path) == recipe
    assert load_recipe(path).to_yaml() == recipe.to_yaml()


NUMBERS = st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True)


@settings(deadline=None, max_examples=50)
@given(
    lr=NUMBERS,
    share=NUMBERS,
    crop=st.tuples(st.integers(8, 4000), st.integers(8, 4000)),
    batch=st.integers(1, 16),
    times=st.integers(1, 16),
    seed=st.integers(0, 2**31 - 1),
    split=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    augment=st.none() | st.fixed_dictionaries({"operations": st.integers(1, 9), "magnitude": st.integers(0, 30)}),
)
def test_any_values_survive_being_written(
    tmp_path_factory: pytest.TempPathFactory,
    lr: float,
    share: float,
    crop: tuple[int, int],
    batch: int,
    times: int,
    seed: int,
    split: str,
    augment: dict[str, int] | None,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "first.yaml").write_text(MINIMAL)
    recipe = load_recipe(
        folder / "first.yaml",
        overrides={
            "batch_size": batch,
            "global_batch": batch * times,
            "seed": seed,
            "data": {"train": split},
            "augmentation": {"crop": list(crop), "flip": share, "rand_augment": augment},
            "optimizer": {"lr": lr, "momentum": share},
        },
    )
    (folder / "second.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(folder / "second.yaml") == recipe
    assert (recipe.optimizer.lr, recipe.augmentation.crop, recipe.data.train) == (lr, crop, split)


def test_a_recipe_never_changes() -> None:
    recipe = load_recipe(write(GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimizer.lr = 2.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_field_is_described(kind: type[FrozenModel]) -> None:
    assert kind.__doc__
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_the_recipe_is_there_without_torch() -> None:
    script = (
        "import sys, hmsa_pipeline.pipeline.config.load_recipe as m; m.load_recipe('gta5');"
        "print(*{'torch', 'torchvision', 'zarr', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Paths.


def test_relative_paths_start_at_the_recipe_and_output_at_the_current_folder() -> None:
    recipe, here = load_recipe(write(GOOD, "deep/er/r.yaml")), Path.cwd()
    assert recipe.output == here / "out"
    assert recipe.data.root_path() == here / "deep/er/streets"
    assert recipe.cache_path() == here / "deep/er/made"
    assert recipe.init.checkpoint[0] == str(here / "deep/er/weights/a.pth")


def test_paths_of_flags_start_at_the_current_folder_and_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMSA_DATA_ROOT", "/wrong")
    recipe = load_recipe(
        write(GOOD, "deep/r.yaml"),
        output=Path("o"),
        root=Path("streets"),
        cache=Path("kept"),
        init="w.pth",
    )
    here = Path.cwd()
    assert (recipe.output, recipe.data.root_path(), recipe.cache_path()) == (
        here / "o",
        here / "streets",
        here / "kept",
    )
    assert recipe.init.checkpoint == (str(here / "w.pth"),)


def test_variables_are_expanded_and_their_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINIMAL.replace("root: streets", "root: '${HMSA_DATA_ROOT}/GTA5'")
    text += "init: {checkpoint: '${HMSA_ASSETS}/a.pth'}\n"
    recipe = load_recipe(write(text))
    with pytest.raises(ManifestError, match=r"data\.root.*HMSA_DATA_ROOT is not set; set it or give --data-root"):
        recipe.data.root_path()
    with pytest.raises(ManifestError, match=r"init\.checkpoint.*HMSA_ASSETS is not set; set it or give --assets"):
        recipe.init.path()
    monkeypatch.setenv("HMSA_DATA_ROOT", "/env")
    assert load_recipe("r.yaml").data.root == "/env/GTA5"
    assert load_recipe("r.yaml", data_root=Path("d")).data.root == str(Path.cwd() / "d/GTA5")
    assert load_recipe("r.yaml", assets=Path("/as")).init.checkpoint == ("/as/a.pth",)


def test_of_several_checkpoints_the_first_that_is_there_is_read() -> None:
    recipe = load_recipe(write(GOOD))
    with pytest.raises(ManifestError, match=r"there is no .*weights/a\.pth nor .*weights/b\.pth; .*--init random"):
        recipe.init.path()
    b = write("", "weights/b.pth").absolute()
    assert recipe.init.path() == b
    assert recipe.init.path() != write("", "weights/a.pth").absolute() == recipe.init.path()


# What wins over what.


def test_flags_win_over_the_recipe_and_set_over_both() -> None:
    overrides = {"epochs": 9, "optimizer": {"lr": 0.5, "name": None}, "loss": {"criterion": None}, "seed": 1}
    recipe = load_recipe(write(GOOD), overrides=overrides, settings=["seed=2", "seed=3", "data.train=a b"])
    assert (recipe.epochs, recipe.optimizer.lr, recipe.seed) == (9, 0.5, 3)
    assert (recipe.optimizer.name, recipe.loss.criterion) == ("adamw", "image_weighted")
    assert recipe.data.train == "a b"


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("augmentation.flip=0", "augmentation", "flip", 0.0),
        (" augmentation.flip = 0.5 ", "augmentation", "flip", 0.5),
        ("augmentation.scale=[1, 2]", "augmentation", "scale", (1.0, 2.0)),
        ("augmentation.long_edge=null", "augmentation", "long_edge", None),
        ("augmentation.rand_augment=null", "augmentation", "rand_augment", None),
        ("data.limit=", "data", "limit", None),
        ("data.train='5'", "data", "train", "5"),
        ("validation.flip=false", "validation", "flip", False),
        ("init.fresh=[]", "init", "fresh", ()),
        ("checkpoints.every=null", "checkpoints", "every", None),
        ("init.prefix=''", "init", "prefix", ""),
    ],
)
def test_set_changes_any_value_even_to_nothing(setting: str, section: str, key: str, value: object) -> None:
    before, after = load_recipe(write(GOOD)), said(GOOD, setting)
    assert getattr(getattr(after, section), key) == value
    changed = after.resolved()
    changed[section][key] = before.resolved()[section][key]
    assert changed == before.resolved()


def test_set_makes_sections_that_the_recipe_has_not() -> None:
    recipe = said(MINIMAL, "augmentation.rand_augment.magnitude=4", "schedule.exponent=1")
    assert recipe.augmentation.rand_augment is not None
    assert recipe.augmentation.rand_augment.model_dump() == {"operations": 2, "magnitude": 4}
    assert recipe.schedule.exponent == 1


# What a run starts from.


def test_another_checkpoint_keeps_the_recipes_fresh_layers() -> None:
    recipe = load_recipe(write(GOOD), init="other.pth")
    assert recipe.init.model_dump() == {
        "checkpoint": (str(Path.cwd() / "other.pth"),),
        "fresh": ("ocr.cls_head",),
        "unused": ("head",),
        "prefix": "backbone.",
    }
    assert load_recipe("r.yaml", init="other.pth", settings=["init.fresh=[]"]).init.fresh == ()


def test_random_weights_need_no_file() -> None:
    recipe = load_recipe(write(GOOD), init=RANDOM)
    assert recipe.init == Init()
    assert recipe.init.path() is None
    assert recipe.notes == ()


@pytest.mark.parametrize("way", ["flag", "setting"])
def test_another_architecture_starts_from_random_weights_and_says_so(way: str) -> None:
    path, arch = write(GOOD), "hrnet_tiny_ocr_mscale"
    by_flag = way == "flag"
    how: dict[str, Any] = {"overrides": {"arch": arch}} if by_flag else {"settings": [f"arch={arch}"]}
    recipe = load_recipe(path, **how)
    assert (recipe.arch, recipe.init) == (arch, Init())
    (note,) = recipe.notes
    assert (
        note == "init: random weights, since the recipe's checkpoint is one of hrnet_ocr; name another by --init FILE"
    )
    named = load_recipe(path, init="tiny.pth", **how)
    assert named.init == Init(checkpoint=(str(Path.cwd() / "tiny.pth"),))
    assert named.notes == ()


def test_the_recipes_own_architecture_changes_nothing() -> None:
    recipe = load_recipe(write(GOOD), overrides={"arch": "hrnet_ocr"})
    assert recipe == load_recipe("r.yaml")
    assert recipe.notes == ()


def test_an_architecture_that_the_recipe_leaves_open_is_the_usual_one() -> None:
    path = write(MINIMAL + "init: {checkpoint: a.pth}\n")
    assert load_recipe(path, overrides={"arch": "hrnet_ocr_mscale"}).init.checkpoint
    assert load_recipe(path, overrides={"arch": "hrnet_ocr"}).init == Init()


def test_without_a_checkpoint_there_is_nothing_to_say_of_it() -> None:
    assert load_recipe(write(MINIMAL), overrides={"arch": "hrnet_ocr"}).notes == ()


def test_a_crop_of_one_pixel_will_do_for_a_loss_without_regions() -> None:
    assert said(GOOD, "augmentation.crop=[1, 1]").augmentation.crop == (1, 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", NAMES)
def test_every_architecture_and_dataset_is_known(arch: str, kind: str) -> None:
    recipe = said(MINIMAL, f"arch={arch}", f"data.type={kind}")
    assert (recipe.arch, recipe.data.type) == (arch, kind)


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_has_its_recipe(name: str) -> None:
    assert load_recipe(recipe_of(name)).data.type == name


@given(st.integers(0, 999_999), st.integers(0, 999_999), st.sampled_from("xX"))
def test_a_size_is_height_by_width(height: int, width: int, times: str) -> None:
    assert parse_size(f"{height}{times}{width}", "--size", "128x256") == (height, width)


def test_a_run_from_before_a_setting_was_known_goes_on(tmp_path: Path) -> None:
    recipe = load_recipe("gta5", root=tmp_path)
    saved = recipe.resolved()
    for name in ("mapping", "without_masks", "allow_unlabelled", "labels", "share", "threshold", "until_epoch"):
        del saved["data"][name]
    del saved["loss"]["border_relaxation"], saved["loss"]["distillation"]
    require_same_recipe(tmp_path / "last.pth", saved, recipe)
    other = load_recipe("gta5", root=tmp_path, settings=["data.allow_unlabelled=true"])
    with pytest.raises(ManifestError, match=r"data\.allow_unlabelled was False and is True"):
        require_same_recipe(tmp_path / "last.pth", saved, other)


# Several sources.

LISTED = MINIMAL.replace(
    "data: {type: gta5, root: streets}",
    """data:
  - {type: gta5, root: streets, share: 0.5}
  - type: shift
    root: more
    labels: autolabel marks
    share: 0.5
    until_epoch: 3""",
)


def test_sources_are_a_list() -> None:
    found, here = load_recipe(write(LISTED)), Path.cwd()
    assert [one.type for one in found.sources] == ["gta5", "shift"]
    assert found.scored == found.sources[0]
    assert found.sources[1].labels == f"autolabel {here / 'marks'}"
    assert found.sources[1].labels_path() == here / "marks"
    assert found.sources[0].labels_path() is None
    path = write(found.to_yaml(), "elsewhere/resolved.yaml")
    assert load_recipe(path) == found
    assert [one["root"] for one in yaml.safe_load(found.to_yaml())["data"]] == [
        str(here / "streets"),
        str(here / "more"),
    ]


def test_settings_of_the_command_line_reach_sources() -> None:
    found = load_recipe(
        write(LISTED),
        overrides={"data": {"limit": 7, "allow_unlabelled": None}},
        settings=["data.1.threshold=0.75", "data.0.share=0.25", "data.1.share=0.75"],
        cache=Path("there"),
    )
    assert [one.limit for one in found.sources] == [7, 7]
    assert [one.threshold for one in found.sources] == [None, 0.75]
    assert [one.share for one in found.sources] == [0.25, 0.75]
    assert found.cache_path() == Path.cwd() / "there"
    assert found.sources[1].cache is None


def test_an_entry_of_a_list_is_named_with_its_line() -> None:
    message = refusal(write(LISTED.replace("until_epoch: 3", "until_epoch: 0")))
    assert message == "r.yaml:9: data[1].until_epoch: must be 1 or more, not 0"
    message = refusal(write(LISTED), settings=["data.1.share=x"])
    assert message == "r.yaml: data[1].share: a number is needed, not the text 'x' (given on the command line)"
    message = refusal(write(LISTED), settings=["data.two.share=1"])
    assert message == "--set data.two.share=1: data is a list of 2; name an entry by its number, data.0 to data.1"


def test_a_run_on_moved_sources_goes_on_and_one_on_others_does_not(tmp_path: Path) -> None:
    saved = load_recipe(write(LISTED)).resolved()
    moved = LISTED.replace("root: more", "root: moved").replace("autolabel marks", "autolabel moved-too")
    require_same_recipe(tmp_path / "last.pth", saved, load_recipe(write(moved)))
    with pytest.raises(ManifestError, match=r"data\[1\]\.labels was autolabel .* and is own"):
        require_same_recipe(
            tmp_path / "last.pth", saved, load_recipe(write(LISTED.replace("autolabel marks", "own")))
        )
    with pytest.raises(ManifestError, match=r"data\[1\]\.type was shift and is idd"):
        require_same_recipe(
            tmp_path / "last.pth", saved, load_recipe(write(LISTED.replace("type: shift", "type: idd")))
        )
