"""docs/metrics.md: our metrics beside those of other packages, which ran once; see benchmarks/metric_peers.py."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.pipeline.report.records import DatasetSummary
from hmsa_pipeline.pipeline.scoring.calibration.calibrate import HeldOutScores
from hmsa_pipeline.pipeline.scoring.calibration.conformal import SetScores
from hmsa_pipeline.pipeline.scoring.figures.names import LISTS, NUMBERS
from hmsa_pipeline.pipeline.scoring.figures.set_coverage import coverage_figures
from hmsa_pipeline.pipeline.scoring.pixel_counts import PixelCounts
from PIL import Image

from .cli.bench import run

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


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a labelled image of Cityscapes with its objects, and of one of SMIYC, both predicted."""
    root = tmp_path_factory.mktemp("labelled")
    draw = np.random.default_rng(3)
    half = np.pad(np.zeros((16, 12), np.uint16), ((0, 0), (0, 12)), constant_values=1)
    for dataset, image, masks in (("c", _CITY_IMAGE, _CITY_MASKS), ("s", _SMIYC_IMAGE, _SMIYC_MASKS)):
        predicted = str(root / "run" / "predictions" / dataset / image.rpartition(".")[0])
        files = {root / dataset / image: draw.integers(0, 255, (16, 24, 3), np.uint8)}
        for mask, value in masks.items():
            files[root / dataset / mask] = (half * value).astype(np.uint16 if value > 255 else np.uint8)
        files[Path(f"{predicted}_pred.png")] = np.zeros((16, 24), np.uint8)
        files[Path(f"{predicted}_conf.png")] = draw.integers(0, 65536, (16, 24), np.uint16)
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    manifest = root / "m.yaml"
    manifest.write_text(
        f"version: 1\noutput: '{root}/run'\nmodels: [{{name: a, arch: external}}]\ndatasets:\n"
        "- {name: c, type: cityscapes, root: c, split: val}\n"
        "- {name: s, type: smiyc, root: s, split: anomaly}\n"
    )
    return manifest


def on_the_page(names: set[str], made: ModuleType) -> None:
    page = made.PAGE.read_text()
    assert sorted(name for name in names if f"`{name}`" not in page) == []


def test_every_figure_that_evaluate_gives_stands_on_the_page(made: ModuleType, labelled: Path) -> None:
    city, odd = run("evaluate", "-m", str(labelled), "--components", "anomaly", "--json", "-").figures
    given = {*city["scores"]["ensemble"], *odd["scores"]["ensemble"], *city["left_out"]}
    assert {"miou", "miou_classes", "iou", "iiou", "miiou", "auprc_error", "auprc", "fpr95", "nll"} <= given
    assert "iiou" not in city["left_out"], "the objects are there"
    components = odd["components"]
    given |= {*components} - {"scores"} | {*components["scores"]["ensemble"]}
    assert {"siou", "ppv", "f1", "best_f1"} <= given
    on_the_page(given - {"images", "pixels"}, made)
    assert {*NUMBERS, *LISTS} <= given, "there are no other names of figures"


def test_every_figure_of_whole_images_stands_on_the_page(made: ModuleType, labelled: Path) -> None:
    found = run("evaluate", "-m", str(labelled), "--ood-datasets", "s", "--json", "-").figures["figures"][0]
    given = {*found} - {"dataset", "confidence", "aggregate"}
    assert {"auroc", "auprc", "fpr95", "images_in"} <= given
    on_the_page(given, made)


def test_every_figure_of_bravos_tar_files_stands_on_the_page(made: ModuleType) -> None:
    folder = ROOT / "tests" / "data" / "bravo_submission"
    tars = [
        word for name in ("ground-truth", "samples", "submission") for word in (f"--{name}", folder / _TARS[name])
    ]
    found = run("evaluate", *map(str, tars), "--json", "-").figures
    given = {*found} - {name for name in found if name.endswith("_hmean")} - {"bravo_index"}
    on_the_page({re.sub(r"^[a-zA-Z]+_|_(valid|ood)$", "", name) for name in given} | {"*_hmean", "bravo_index"}, made)
    assert len(given) > 30


def test_every_figure_of_sets_calibration_and_report_stands_on_the_page(made: ModuleType) -> None:
    (found,) = coverage_figures(np.ones((4, 1)), [])
    assert {*found} <= {field.name for field in fields(SetScores)}
    judged = {field.name for field in fields(HeldOutScores)}
    summary = DatasetSummary("d", [], counts={"ensemble": PixelCounts()}).as_json()
    about = {"dataset", "images", "scores", "bootstrap", "intervals", "average", "left_out", "confidence", "members"}
    shown = {*summary} - about - {"by_image", "worst_by_class", "failed"}
    assert {"disagreement", "information", "predicted_class_ece"} <= shown
    on_the_page({*found} - {"name", "images"} | judged | shown | {"gain", "wrong"}, made)


_CITY_IMAGE = "leftImg8bit/val/ulm/ulm_000000_000000_leftImg8bit.png"
_CITY_MASKS = {
    f"gtFine/val/ulm/ulm_000000_000000_gtFine_{what}.png": value
    for what, value in (("labelIds", 26), ("instanceIds", 26001))
}
"""Files, and the id of one half of their pixels: a car."""
_SMIYC_IMAGE = "dataset_AnomalyTrack/images/validation0000.png"
_SMIYC_MASKS = {"dataset_AnomalyTrack/labels_masks/validation0000_labels_semantic.png": 1}
_TARS = {"ground-truth": "gt.tar", "samples": "samples.tar", "submission": "submission.tar"}
