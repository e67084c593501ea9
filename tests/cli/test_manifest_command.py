"""`manifest show` and `manifest check`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest

from .bench import Bench, changed, ended, files, run, start

MEMBERS = ["cityscapes", "bdd100k", "idd", "mapillary", "wilddash", "gta5", "shift"]
SUBSETS = ["bravo_ACDC", "bravo_SMIYC", "bravo_synobjs", "bravo_outofcontext", "bravo_synflare", "bravo_synrain"]


def test_the_default_is_the_bravo_manifest_and_needs_no_variable() -> None:
    result = run("manifest", "show")
    assert (result.code, result.err) == (0, "")
    shown = yaml.safe_load(result.out)
    assert [model["source"] for model in shown["models"]] == MEMBERS
    assert [dataset["name"] for dataset in shown["datasets"]] == SUBSETS
    assert shown["models"][0]["checkpoint"].startswith("${HMSA_ASSETS}/seg_weights/")
    shared = {"scales": [0.5, 1.0, 2.0], "flip": False, "precision": "fp16", "tile": None}
    assert shown["inference"] == shared | {"cuda_graphs": False, "compile": "off"}
    assert run("manifest", "show", "--manifest", "bravo").out == result.out


def test_the_mixed_manifest_adds_three_networks_to_those_of_bravo(tmp_path: Path) -> None:
    shown, plain = (
        yaml.safe_load(run("manifest", "show", "--manifest", name).out) for name in ("bravo-mixed", "bravo")
    )
    assert (shown["models"][:7], shown["datasets"]) == (plain["models"], plain["datasets"])
    assert shown["inference"] == plain["inference"]
    others = {model["name"]: model["arch"] for model in shown["models"][7:]}
    assert others == {"dinov2_linear": "timm_linear", "eomt": "transformers", "mask2former": "transformers"}
    checked = run("manifest", "check", "--manifest", "bravo-mixed", "--assets", str(tmp_path))
    assert (checked.code, checked.err) == (2, "")
    lines = checked.out.splitlines()
    assert [line.split()[:3] for line in lines[:10]] == [
        ["MISSING", "model", f"{name}:"] for name in (*MEMBERS, *others)
    ]
    assert f"{tmp_path}/members/eomt: there is no such checkpoint" in lines[8]
    assert lines[-1] == "16 of 16 are missing"


def test_flags_and_variables_fill_paths_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HMSA_ASSETS", "/variable")
    monkeypatch.chdir(tmp_path)
    shown = yaml.safe_load(run("manifest", "show", "--data-root", "data", "--output", "out").out)
    assert shown["models"][0]["checkpoint"].startswith("/variable/seg_weights/")
    assert shown["datasets"][0]["root"] == str(tmp_path / "data/bravo_1.0/bravo_ACDC")
    assert shown["output"] == str(tmp_path / "out")
    shown = yaml.safe_load(run("manifest", "show", "--assets", "/flag").out)
    assert shown["models"][0]["checkpoint"].startswith("/flag/seg_weights/")


def test_what_is_shown_is_a_manifest_that_says_the_same(empty: Bench, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "copy.yaml"
    copy.parent.mkdir()
    copy.write_text(run("manifest", "show", "--manifest", str(empty.manifest)).out)
    assert load_manifest(copy) == load_manifest(empty.manifest)


def test_models_and_datasets_can_be_chosen(empty: Bench) -> None:
    chosen = ("--models", "cat,ant", "--datasets", "garden", "--json", "-")
    shown = run("manifest", "show", "--manifest", str(empty.manifest), *chosen).figures
    assert [model["name"] for model in shown["models"]] == ["ant", "cat"]
    assert [dataset["name"] for dataset in shown["datasets"]] == ["garden"]


def test_check_says_what_is_there_and_touches_nothing(empty: Bench) -> None:
    def look() -> None:
        result = ended(start("manifest", "check", "--manifest", str(empty.manifest)))
        assert (result.code, result.err) == (0, "")
        lines = result.out.splitlines()
        assert [line.split()[:3] for line in lines] == [
            *(["ok", "model", f"{name}:"] for name in ("ant", "bee", "cat")),
            *(["ok", "dataset", f"{name}:"] for name in ("street", "garden")),
        ]
        assert str(empty.root / "weights/ant.pth") in lines[0]
        assert "4 images in " in lines[3]

    assert changed(empty.root, look) == set()


def test_check_lists_everything_that_is_missing(empty: Bench) -> None:
    (empty.root / "weights/bee.pth").unlink()
    shutil.rmtree(empty.root / "photos/street")
    empty.tree["models"][2]["checkpoint"] = "${HMSA_ASSETS}/cat.pth"
    empty.tree["models"].append({"name": "dog", "arch": "external"})
    before = files(empty.save().root)
    result = run("manifest", "check", "--manifest", str(empty.manifest))
    assert (result.code, result.err) == (2, "")
    *lines, last = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "MISSING", "MISSING", "ok", "MISSING", "ok"]
    assert f"{empty.root / 'weights/bee.pth'}: there is no such checkpoint" in lines[1]
    assert "HMSA_ASSETS is not set" in lines[2]
    assert "external" in lines[3]
    assert f"{empty.root / 'photos/street'}: there is no such folder" in lines[4]
    assert last == "3 of 6 are missing"
    assert files(empty.root) == before

    result = run("manifest", "check", "--manifest", str(empty.manifest), "--json", "-")
    assert result.code == 2
    assert [row["problem"] is None for row in result.figures] == [True, False, False, True, False, True]


def test_check_counts_images_that_cannot_be_read(empty: Bench) -> None:
    (empty.root / "photos/garden/flower.png").write_bytes(b"")
    result = run("manifest", "check", "--manifest", str(empty.manifest))
    assert "2 images in " in result.out
    assert "1 of them unreadable (first: flower.png)" in result.out


def test_figures_of_show_go_into_a_file(empty: Bench) -> None:
    target = empty.root / "shown.json"
    result = run("manifest", "show", "--manifest", str(empty.manifest), "--json", str(target))
    assert json.loads(target.read_text()) == yaml.safe_load(result.out)
