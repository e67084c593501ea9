"""docs/metrics.md: our metrics beside those of other packages, which ran once; see benchmarks/metric_peers.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PINNED = {
    "cityscapesScripts": "2.3.0",
    "bdd100k": "1.0.1",
    "torchmetrics": "1.9.0",
    "torch-uncertainty": "0.13.0",
    "pytorch-ood": "0.4.0",
    "netcal": "1.4.0",
    "relplot": "1.0.3",
    "boundary-iou": "37d2558",
    "BRAVO toolkit": "d54005d",
    "vis4d": "1.0.0",
}
DIFFER = {
    ("bdd100k", "miou"),
    ("pytorch-ood", "auprc_success"),
    ("pytorch-ood", "auprc_error"),
    ("pytorch-ood", "ood auprc"),
    ("torch-uncertainty", "temperature"),
    *(("torch-uncertainty", name) for name in ("adaptive_ece", "aurc", "augrc")),
    *(("torch-uncertainty", name) for name in ("risk_at_80_coverage", "coverage_at_5_risk")),
    ("netcal", "adaptive_ece"),
    ("vis4d", "miou shift stray"),
}
"""Where a peer gives another number, for the reason that the page says."""


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The script that makes the page."""
    spec = importlib.util.spec_from_file_location("metric_peers", ROOT / "benchmarks" / "metric_peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peers(made: ModuleType) -> dict[str, Any]:
    return json.loads(made.KEPT.read_text())


def test_the_peers_are_of_the_versions_that_the_page_names(peers: dict[str, Any]) -> None:
    assert {name: peers[name]["version"] for name in PINNED} == PINNED


def test_our_figures_are_those_of_the_peers_but_where_the_page_says_so(
    made: ModuleType, peers: dict[str, Any]
) -> None:
    own = made.ours()
    compared = 0
    for peer, found in peers.items():
        for name, value in found["figures"].items():
            same = made.same(name, own[name], value)
            assert same == ((peer, name) not in DIFFER), (peer, name, own[name], value)
            compared += 1
    assert compared >= 64
    assert own["miou labelled"] == pytest.approx(peers["bdd100k"]["figures"]["miou"], abs=made.CLOSE)
    assert own["auprc_success"] < peers["pytorch-ood"]["figures"]["auprc_success"]


def test_the_page_is_what_the_script_makes_of_them(made: ModuleType, peers: dict[str, Any]) -> None:
    text = made.PAGE.read_text()
    assert made.page(text, made.tables(made.ours(), peers)) == text


def test_every_figure_that_evaluate_gives_stands_on_the_page(made: ModuleType, tmp_path: Path) -> None:
    page = made.PAGE.read_text()
    draw = np.random.default_rng(3)
    given: set[str] = set()
    for kind, mask, label in (("cityscapes", _CITYSCAPES, 7), ("smiyc", _SMIYC, 1)):
        root = tmp_path / kind
        image = mask["image"]
        for path, pixels in (
            (root / "photos" / image, draw.integers(0, 255, (16, 24, 3), np.uint8)),
            (
                root / "photos" / mask["mask"],
                np.pad(np.zeros((16, 12), np.uint8), ((0, 0), (0, 12)), constant_values=label),
            ),
            (root / "pred" / image.replace(".png", "_pred.png"), np.zeros((16, 24), np.uint8)),
            (root / "pred" / image.replace(".png", "_conf.png"), draw.integers(0, 65536, (16, 24), np.uint16)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        (root / "m.yaml").write_text(
            "version: 1\noutput: run\nmodels: [{name: a, arch: external}]\n"
            f"datasets: [{{name: d, type: {kind}, root: photos, split: {mask['split']}}}]\n"
        )
        words = ["evaluate", "-m", str(root / "m.yaml"), "--predictions", str(root / "pred"), "--processes", "1"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *words, "--json", "-"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)
        given |= {*found["scores"]["ensemble"]} - {"images", "pixels"}
    assert {"miou", "miou_classes", "iou", "auprc_error", "auprc", "fpr95"} <= given
    assert sorted(name for name in given if f"`{name}`" not in page) == []


_CITYSCAPES = {
    "image": "leftImg8bit/val/ulm/ulm_000000_000000_leftImg8bit.png",
    "mask": "gtFine/val/ulm/ulm_000000_000000_gtFine_labelIds.png",
    "split": "val",
}
_SMIYC = {
    "image": "dataset_AnomalyTrack/images/validation0000.png",
    "mask": "dataset_AnomalyTrack/labels_masks/validation0000_labels_semantic.png",
    "split": "anomaly",
}
