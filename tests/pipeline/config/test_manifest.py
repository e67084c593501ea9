"""The manifest: what is read, what is refused and in which words."""

from __future__ import annotations

import cProfile
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hmsa_pipeline.datasets.layout.find_images import LAYOUTS
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.models.registry import ARCHITECTURES
from hmsa_pipeline.pipeline.config.load_manifest import find_manifest, load_manifest, shipped_manifests
from hmsa_pipeline.pipeline.config.manifest import DatasetEntry, FusionFunctions, Manifest, StoreSettings
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions, Tile
from pydantic import BaseModel

GOOD = """\
version: 1
output: out
inference:
  scales: [0.5, 1.0, 2.0]
  flip: false
  precision: fp16
store:
  encoding: lossless
ensemble:
  label: mean-softmax
  confidence: mean-softmax
models:
  - name: first
    source: somewhere
    arch: hrnet_ocr_mscale
    checkpoint: weights/first.pth
    sha256: null
    weight: 1.0
    temperature: 1.0
  - name: second
    arch: external
datasets:
  - name: photos
    type: folder
    root: photos
    split: null
"""
MINIMAL = """\
version: 1
output: out
models: [{name: a, arch: hrnet_ocr, checkpoint: a.pth}]
datasets: [{name: d, type: folder, root: d}]
"""
SOURCES = ["cityscapes", "bdd100k", "idd", "mapillary", "wilddash", "gta5", "shift"]
SEVEN = [
    "cityscapes_SOTA_trainval_ocr.HRNet_Mscale_nimble-chihuahua.pth",
    "bdd100k_from_mapillary_industrious-chicken-ep125.pth",
    "idd_fromcityscapes_outstanding-turtle_ep118.pth",
    "mapillary_pretrain_from_mapillary_ocrnet.HRNet_Mscale_fast-rattlesnake_best_checkpoint_ep13.pth",
    "wilddash_fromcityscapes_nimble-chihuahua_ep115.pth",
    "gta5_frommapillary-ep170.pth",
    "shift_frommapillary_ep17.pth",
]
SUBSETS = ["ACDC", "SMIYC", "synobjs", "outofcontext", "synflare", "synrain"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HMSA_ASSETS", "HMSA_DATA_ROOT", "NOWHERE"):
        monkeypatch.delenv(name, raising=False)


def write(text: str, path: str = "m.yaml") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def refusal(source: str | Path, **kwargs: Any) -> str:
    """The one line with which a manifest is refused."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(source, **kwargs)
    assert str(caught.value).isprintable(), repr(str(caught.value))
    return str(caught.value)


# What is read.


def test_every_field_is_read() -> None:
    text = GOOD.replace("sha256: null", f"sha256: {'aB' * 32}").replace(
        "split: null", "split: val\n    orientation: exif"
    )
    manifest = load_manifest(write(text))
    here = Path.cwd()
    assert manifest.resolved() == {
        "version": 1,
        "output": str(here / "out"),
        "inference": {"scales": [0.5, 1.0, 2.0], "flip": False, "precision": "fp16", "tile": None}
        | {"cuda_graphs": False, "compile": "off"},
        "store": {"encoding": "lossless"},
        "ensemble": {"label": "mean-softmax", "confidence": "mean-softmax"},
        "models": [
            {
                "name": "first",
                "source": "somewhere",
                "arch": "hrnet_ocr_mscale",
                "checkpoint": str(here / "weights/first.pth"),
                "sha256": "ab" * 32,
                "weight": 1.0,
                "temperature": 1.0,
                "view": None,
                "classes": None,
                "mean": None,
                "std": None,
                "backbone": None,
                "layers": None,
                "norm": None,
                "kind": None,
                "postprocess": None,
                "inference": None,
                "views": None,
                "dropout": None,
                "sample": None,
            },
            {
                "name": "second",
                "source": None,
                "arch": "external",
                "checkpoint": None,
                "sha256": None,
                "weight": 1.0,
                "temperature": 1.0,
                "view": None,
                "classes": None,
                "mean": None,
                "std": None,
                "backbone": None,
                "layers": None,
                "norm": None,
                "kind": None,
                "postprocess": None,
                "inference": None,
                "views": None,
                "dropout": None,
                "sample": None,
            },
        ],
        "datasets": [
            {
                "name": "photos",
                "type": "folder",
                "root": str(here / "photos"),
                "split": "val",
                "orientation": "exif",
                "mapping": None,
                "without_masks": [],
                "allow_unlabelled": False,
            },
        ],
    }
    assert json.loads(json.dumps(manifest.resolved())) == manifest.resolved()
    assert [member.external for member in manifest.models] == [False, True]
    assert manifest.member("second") is manifest.models[1]
    assert manifest.dataset("photos").root_path() == here / "photos"


def test_a_minimal_manifest_takes_the_defaults() -> None:
    manifest = load_manifest(write(MINIMAL))
    assert manifest.inference == InferenceOptions(scales=(0.5, 1.0, 2.0), flip=False, precision="fp16")
    assert manifest.store == StoreSettings(encoding="lossless")
    assert manifest.ensemble == FusionFunctions(label="mean-softmax", confidence="mean-softmax")
    assert (manifest.models[0].weight, manifest.models[0].temperature) == (1.0, 1.0)


def test_tiles_are_read_and_shown() -> None:
    manifest = load_manifest(write(GOOD.replace("precision: fp16", "tile: {size: [512, 1024]}")))
    assert manifest.inference.tile == Tile(size=(512, 1024), overlap=128)
    assert yaml.safe_load(manifest.to_yaml())["inference"]["tile"] == {"size": [512, 1024], "overlap": 128}
    assert load_manifest(write(manifest.to_yaml(), "again.yaml")) == manifest
    narrow = load_manifest(write(GOOD.replace("precision: fp16", "tile: {size: [65, 64], overlap: 63}")))
    assert narrow.inference.tile == Tile(size=(65, 64), overlap=63)


@pytest.mark.parametrize("name", shipped_manifests())
def test_shipped_manifests_have_no_tiles(name: str) -> None:
    assert load_manifest(name).inference.tile is None


def test_whole_numbers_become_floats() -> None:
    manifest = load_manifest(write(GOOD.replace("[0.5, 1.0, 2.0]", "[1, 2]").replace("weight: 1.0", "weight: 3")))
    assert [type(scale) for scale in manifest.inference.scales] == [float, float]
    assert manifest.models[0].weight == 3.0


def test_a_manifest_never_changes() -> None:
    manifest = load_manifest(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        manifest.models[0].weight = 2.0  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(manifest) == hash(load_manifest(write(MINIMAL, "other.yaml")))


def test_dates_and_the_like_are_text() -> None:
    text = MINIMAL.replace("name: d,", "name: 2024-01-01,").replace("root: d", "root: 2024-99-99")
    dataset = load_manifest(write(text)).datasets[0]
    assert (dataset.name, Path(dataset.root).name) == ("2024-01-01", "2024-99-99")


def test_anchors_and_a_byte_order_mark_are_understood() -> None:
    text = "\ufeff" + MINIMAL.replace("root: d", "root: &here d, split: *here")
    assert load_manifest(write(text)).datasets[0].split == "d"


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "external"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_architecture_and_layout_is_known(arch: str, kind: str) -> None:
    member = {"name": "a", "arch": arch} | ({} if arch == "external" else {"checkpoint": "a.pth"})
    tree = {
        "version": 1,
        "output": "o",
        "models": [member],
        "datasets": [{"name": "d", "type": kind, "root": "d"}],
    }
    assert load_manifest(write(yaml.safe_dump(tree))).models[0].arch == arch


# Paths.


def test_relative_paths_start_at_the_manifest_and_output_at_the_current_folder() -> None:
    manifest = load_manifest(write(MINIMAL, "deep/er/m.yaml"))
    assert manifest.output == Path.cwd() / "out"
    assert manifest.models[0].checkpoint_path() == Path.cwd() / "deep/er/a.pth"
    assert manifest.datasets[0].root_path() == Path.cwd() / "deep/er/d"


def test_variables_and_home_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        MINIMAL.replace(": out", ": ~/out/${RUN}")
        .replace("a.pth", "'${HMSA_ASSETS}/a.pth'")
        .replace("root: d", "root: '${HMSA_DATA_ROOT}/${RUN}/d'")
    )
    for name, value in {
        "HOME": "/home/me",
        "RUN": "7",
        "HMSA_ASSETS": "/as",
        "HMSA_DATA_ROOT": "data",
    }.items():
        monkeypatch.setenv(name, value)
    manifest = load_manifest(write(text, "sub/m.yaml"))
    assert manifest.output == Path("/home/me/out/7")
    assert manifest.models[0].checkpoint_path() == Path("/as/a.pth")
    # What is typed in a shell starts at the current folder, not at the manifest's.
    assert manifest.datasets[0].root_path() == Path.cwd() / "data/7/d"


def test_flags_win_over_variables_and_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMSA_ASSETS", "/wrong")
    monkeypatch.setenv("HMSA_DATA_ROOT", "/wrong")
    manifest = load_manifest(
        "bravo",
        output=Path("elsewhere"),
        data_root=Path("data"),
        assets=Path("/assets"),
        overrides={"output": "x"},
    )
    assert manifest.output == Path.cwd() / "elsewhere"
    assert manifest.datasets[0].root_path() == Path.cwd() / "data/bravo_1.0/bravo_ACDC"
    assert manifest.models[5].checkpoint_path() == Path("/assets/seg_weights/gta5_frommapillary-ep170.pth")


@pytest.mark.parametrize("empty", [False, True])
def test_an_unset_variable_is_an_error_when_its_path_is_asked_for(
    empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if empty:
        monkeypatch.setenv("HMSA_ASSETS", "")
    manifest = load_manifest("bravo")
    with pytest.raises(ManifestError, match=r"'gta5'.*HMSA_ASSETS is not set; set it or give --assets") as caught:
        manifest.member("gta5").checkpoint_path()
    assert str(caught.value).isprintable()
    with pytest.raises(ManifestError, match=r"'bravo_ACDC'.*HMSA_DATA_ROOT is not set.*--data-root"):
        manifest.dataset("bravo_ACDC").root_path()
    text = MINIMAL.replace("a.pth", "'sub/${NOWHERE}.pth'")
    with pytest.raises(ManifestError, match=r"NOWHERE is not set; set it$"):
        load_manifest(write(text)).models[0].checkpoint_path()


def test_an_external_model_has_no_checkpoint_to_ask_for() -> None:
    with pytest.raises(ManifestError, match=r"'second' is external: .*import-logits"):
        load_manifest(write(GOOD)).member("second").checkpoint_path()


def test_an_unset_variable_in_output_does_not_matter_under_the_flag() -> None:
    path = write(MINIMAL.replace(": out", ": ${NOWHERE}/out"))
    assert "m.yaml:2: output: the environment variable NOWHERE is not set" in refusal(path)
    assert load_manifest(path, output=Path("/o")).output == Path("/o")


def test_a_folder_that_looks_like_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(MINIMAL.replace(": out", ": ${NOWHERE}/out"), "${x}/m.yaml")
    monkeypatch.setenv("NOWHERE", "/${HOME}")
    message = refusal(path)
    assert "output" in message and "checkpoint" in message and "'${' in its name" in message


def test_settings_made_in_python_start_at_the_current_folder() -> None:
    member = Member(name="a", arch="hrnet_ocr", checkpoint="a.pth")
    dataset = DatasetEntry(name="d", type="folder", root="d")
    manifest = Manifest(version=1, output=Path("o"), models=(member,), datasets=(dataset,))
    assert member.checkpoint_path() == Path.cwd() / "a.pth"
    assert manifest.output == Path.cwd() / "o"


# The shipped manifests, and where manifests are found.


def test_bravo_lists_the_seven_members_and_the_six_subsets() -> None:
    manifest = load_manifest("bravo", assets=Path("/a"), data_root=Path("/d"))
    assert manifest.output == Path.cwd() / "runs/bravo"
    assert [str(m.checkpoint_path()) for m in manifest.models] == [f"/a/seg_weights/{name}" for name in SEVEN]
    assert [m.source for m in manifest.models] == [m.name for m in manifest.models] == SOURCES
    assert {m.arch for m in manifest.models} == {"hrnet_ocr_mscale"}
    assert [d.name for d in manifest.datasets] == [f"bravo_{subset}" for subset in SUBSETS]
    assert [str(d.root_path()) for d in manifest.datasets] == [f"/d/bravo_1.0/bravo_{s}" for s in SUBSETS]
    assert {(d.type, d.split) for d in manifest.datasets} == {("bravo", None)}
    assert manifest.inference == InferenceOptions(scales=(0.5, 1.0, 2.0), precision="fp16")


def test_cityscapes_is_the_first_member_on_val() -> None:
    bravo, manifest = load_manifest("bravo"), load_manifest("cityscapes")
    assert manifest.models == bravo.models[:1]
    assert [(d.type, d.split) for d in manifest.datasets] == [("cityscapes", "val")]
    assert manifest.inference == bravo.inference


@pytest.mark.parametrize("name", ["bravo", "bravo-mixed", "cityscapes"])
def test_a_shipped_manifest_is_found_by_its_bare_name(name: str) -> None:
    assert name in shipped_manifests()
    shipped = find_manifest(name)
    assert shipped == find_manifest(f"{name}.yaml")
    Path(name).mkdir()
    assert find_manifest(name) == shipped
    assert find_manifest(write(MINIMAL, f"{name}.yaml")) == Path.cwd() / f"{name}.yaml"
    assert find_manifest(f"{name}.yaml") == Path.cwd() / f"{name}.yaml"


@pytest.mark.parametrize("source", ["brovo", "sub/bravo.yaml", "./bravo", "bravo.yml", "a\nb", "bravo.yaml/x"])
def test_a_missing_manifest_is_refused_with_the_shipped_ones(source: str) -> None:
    assert re.search("no such manifest; the package ships .*bravo.*cityscapes", refusal(source))


def test_a_shipped_manifest_is_named_in_messages_by_its_file_name() -> None:
    assert refusal("bravo", overrides={"inference": {"flip": 1}}).startswith("bravo.yaml: inference.flip: ")


# Selecting and overriding.


def test_models_and_datasets_are_selected_in_the_manifests_order() -> None:
    manifest = load_manifest("bravo", models=["shift", "idd", "shift"], datasets=["bravo_synrain"])
    assert [member.name for member in manifest.models] == ["idd", "shift"]
    assert [dataset.name for dataset in manifest.datasets] == ["bravo_synrain"]
    everything = load_manifest("bravo", models=[], datasets=[])
    assert everything == load_manifest("bravo") != manifest


def test_a_model_of_weight_zero_can_be_selected() -> None:
    path = write(GOOD.replace("weight: 1.0", "weight: 0"))
    assert [member.weight for member in load_manifest(path, models=["first"]).models] == [0.0]


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("models", "gta", "no model 'gta' in the manifest; did you mean 'gta5'?"),
        ("models", "IDD", "did you mean 'idd'?"),
        ("models", "", "known: cityscapes, bdd100k"),
        ("datasets", "bravo_acdc", "no dataset 'bravo_acdc' in the manifest; did you mean 'bravo_ACDC'?"),
    ],
)
def test_an_unknown_selection_is_refused(kind: str, name: str, hint: str) -> None:
    assert hint in refusal("bravo", **{kind: [name]})
    with pytest.raises(ManifestError, match=re.escape(hint)):
        manifest = load_manifest("bravo")
        manifest.member(name) if kind == "models" else manifest.dataset(name)


def test_overrides_win_and_none_changes_nothing() -> None:
    manifest = load_manifest(
        write(GOOD),
        overrides={
            "inference": {"precision": "fp32", "flip": None},
            "ensemble": {"label": "mean-logit"},
            "store": None,
        },
    )
    assert manifest.inference == InferenceOptions(scales=(0.5, 1.0, 2.0), flip=False, precision="fp32")
    assert manifest.ensemble == FusionFunctions(label="mean-logit", confidence="mean-softmax")
    assert load_manifest(write(MINIMAL), overrides={"inference": {"scales": [1]}}).inference.scales == (1.0,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"inference": {"precision": "fp8"}},
            "m.yaml: inference.precision: the text 'fp8' is not known; known: fp16, bf16, fp32 "
            "(given on the command line)",
        ),
        (
            {"inference": {"scales": [1, 0]}},
            "m.yaml: inference.scales[1]: must be above 0, not 0 (given on the command line)",
        ),
        (
            {"inference": {"scale": 1}},
            "m.yaml: inference.scale: unknown key; did you mean 'scales'? (given on the command line)",
        ),
    ],
)
def test_a_wrong_override_is_named_as_such(overrides: dict[str, Any], message: str) -> None:
    assert refusal(write(GOOD), overrides=overrides) == message


def test_an_override_does_not_hide_what_the_file_has_wrong() -> None:
    path = write(GOOD.replace("flip: false", "flip: 3").replace("store:", "store: 3\nx:"))
    message = refusal(path, overrides={"inference": {"precision": "fp32"}, "store": {"encoding": "lossless"}})
    assert "m.yaml:5: inference.flip:" in message
    assert "line 7: store: a mapping" in message


# What a later page of documentation is made of, and what starting the program costs.


@pytest.mark.parametrize("model", [Manifest, InferenceOptions, StoreSettings, FusionFunctions, Member, DatasetEntry])
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert set(model.model_json_schema()["properties"]) == set(model.model_fields)


def test_the_manifest_is_there_without_torch() -> None:
    script = (
        "import sys, hmsa_pipeline.pipeline.config.load_manifest as m; m.load_manifest('bravo');"
        "print(*{'torch', 'torchvision', 'zarr', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_loading_is_little_work() -> None:
    """Counted in calls of functions, which are as many on a slow machine."""
    load_manifest("bravo")
    with cProfile.Profile() as profile:
        load_manifest("bravo")
    calls = sum(entry.callcount for entry in profile.getstats())
    assert 1_000 < calls < 100_000


@pytest.mark.parametrize("inside", ["rgb_anon", "rgb_anon_trainvaltest/rgb_anon"])
def test_bravo_finds_acdc_where_its_archives_were_unpacked(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside / "fog/test").mkdir(parents=True)
    (tmp_path / "gt_trainval/gt/fog/val").mkdir(parents=True)
    entries = {kind: DatasetEntry(name="a", type=kind, root=str(tmp_path)) for kind in ("bravo", "folder")}
    assert entries["bravo"].root_path() == tmp_path / inside
    assert entries["folder"].root_path() == tmp_path
