"""Networks of other libraries beside one of ours, from the manifest to the report, as a stranger does it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.manifest import Member

from ..documents import DOCS
from ..models.adapters.tiny import save
from .bench import TINY, Bench, attributes, run
from .conftest import plain_cpu

ROOT = "photos/Cityscapes-nvidia"
THREE_LINES: list[dict[str, Any]] = [
    {"name": "segformer", "arch": "transformers", "checkpoint": "segformer"},
    {"name": "mask2former", "arch": "transformers", "checkpoint": "mask2former"},
    {"name": "unet", "arch": "smp", "checkpoint": "unet", "classes": list(CLASS_NAMES)},
]
NAMES = ["hmsa", *(member["name"] for member in THREE_LINES)]


def smp_folder(folder: Path) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    network: Any = smp.Unet(
        "tu-mobilenetv3_small_050", encoder_weights=None, classes=19, decoder_channels=(16, 8, 8, 8, 8)
    )
    network.eval().save_pretrained(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A drawn Cityscapes of three images, dumped and fused by one member of ours and three of other libraries."""
    bench = Bench(
        tmp_path_factory.mktemp("mixed"),
        {
            "version": 1,
            "inference": {"scales": [0.5, 1.0], "precision": "fp32"},
            "models": [{"name": "hmsa", "arch": TINY, "checkpoint": "hmsa.pth"}, *THREE_LINES],
            "datasets": [{"name": "city", "type": "cityscapes", "root": ROOT, "split": "val"}],
        },
    )
    torch.manual_seed(0)
    save_checkpoint(bench.root / "hmsa.pth", build(TINY), arch=TINY)
    for family in ("segformer", "mask2former"):
        save(family, bench.root / family)
    smp_folder(bench.root / "unet")
    with plain_cpu():
        drawn = ("--output", str(bench.root / "photos"), "--train", "1", "--val", "3", "--size", "64x128")
        assert run("datasets", "draw", "cityscapes", *drawn).code == 0
        bench.save()
        for command in ("dump", "ensemble"):
            result = bench.run(command)
            assert result.code == 0, result
        yield bench


def test_the_check_says_what_each_member_is(mixed: Bench) -> None:
    checked = run("manifest", "check", "--manifest", str(mixed.manifest))
    assert checked.code == 0, checked
    for name in NAMES:
        assert re.search(rf"^ok +model +{name}: ", checked.out, re.MULTILINE)
    assert "ImageNet's; 'mean' and 'std' give others" in checked.out


def test_each_member_has_a_store_of_its_own_kind(mixed: Bench) -> None:
    said = {name: attributes(mixed.store("city", name)) for name in NAMES}
    assert [said[name]["architecture"] for name in NAMES] == [TINY, "transformers", "transformers", "smp"]
    kinds = [said[name]["preprocessing"].get("kind") for name in NAMES]
    assert kinds == [None, "logits", "scores", "logits"]
    assert all(said[name]["scales"] == [0.5, 1.0] for name in NAMES)


def test_members_are_scored_alone(mixed: Bench) -> None:
    (figures,) = mixed.run("evaluate", "--per-model", "--json", "-").figures
    assert list(figures["scores"]) == ["ensemble", *NAMES]
    assert len({figures["scores"][name]["accuracy"] for name in NAMES}) == len(NAMES)  # none is another one's copy


def test_several_members_of_one_network_are_scored_alone_and_together(mixed: Bench, tmp_path: Path) -> None:
    bench = mixed.copy(tmp_path / "bench")
    bench.tree["models"] = [bench.tree["models"][1] | {"views": ["flip"], "dropout": 2}]
    bench.save()
    for command in ("dump", "ensemble"):
        result = bench.run(command, *(["--overwrite"] if command == "ensemble" else []))
        assert result.code == 0, result
    (figures,) = bench.run("evaluate", "--per-model", "--json", "-").figures
    names = ["segformer", "segformer-flip", "segformer-dropout1", "segformer-dropout2"]
    assert list(figures["scores"]) == ["ensemble", *names]
    assert len({figures["scores"][name]["ece"] for name in names}) == len(names)
    result = bench.run("report", "--write", str(tmp_path / "report"))
    assert result.code == 0, result
    sees = [row["sees"] for row in json.loads((tmp_path / "report/report.json").read_text())["members"]]
    assert sees == [f"scales 0.5, 1{more}" for more in ("", "; the mirrored image", "; dropout 1", "; dropout 2")]


def test_temperatures_are_found_and_fused(mixed: Bench, tmp_path: Path) -> None:
    bench = mixed.copy(tmp_path / "bench")
    result = bench.run("calibrate", "--write", str(bench.root / "calibrated.yaml"))
    assert result.code == 0, result
    tree = yaml.safe_load((bench.root / "calibrated.yaml").read_text())
    assert [member["name"] for member in tree["models"]] == NAMES
    fused = run("ensemble", "--workers", "0", "--manifest", str(bench.root / "calibrated.yaml"), "--overwrite")
    assert fused.code == 0, fused


def test_the_report_and_pictures_show_them(mixed: Bench, tmp_path: Path) -> None:
    result = mixed.run("report", "--write", str(tmp_path / "report"))
    assert (result.code, result.err) == (0, ""), result
    figures = json.loads((tmp_path / "report/report.json").read_text())
    assert figures["datasets"][0]["members"] == NAMES
    rows = {row["name"]: row for row in figures["members"]}
    assert [rows[name]["network"] for name in NAMES] == [
        TINY,
        "SegformerForSemanticSegmentation",
        "Mask2FormerForUniversalSegmentation",
        "Unet with tu-mobilenetv3_small_050",
    ]
    assert [rows[name]["output"] for name in NAMES] == ["logits", "logits", "scores", "logits"]
    assert {row["sees"] for row in rows.values()} == {"scales 0.5, 1"}
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("<td>scales 0.5, 1</td>") == len(NAMES)
    rendered = mixed.run("render", "--write", str(tmp_path / "pictures"))
    assert rendered.code == 0, rendered


def test_the_page_names_the_same_members_with_all_that_they_need() -> None:
    page = (DOCS / "members.md").read_text()
    block = page.partition("```yaml\n")[2].partition("```")[0]
    entries = [Member.model_validate(entry) for entry in yaml.safe_load(block)]
    assert [(entry.name, entry.arch) for entry in entries] == [(one["name"], one["arch"]) for one in THREE_LINES]
    assert entries[2].classes == CLASS_NAMES
    assert entries[2].mean is not None
