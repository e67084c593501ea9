"""docs/metrics.md: our metrics beside those of other packages, which ran once; see benchmarks/metric_peers.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PINNED = {
    "cityscapesScripts": "2.3.0",
    "bdd100k": "1.0.1",
    "torchmetrics": "1.9.0",
    "torch-uncertainty": "0.13.0",
    "pytorch-ood": "0.4.0",
    "netcal": "1.4.0",
    "BRAVO toolkit": "d54005d",
}
DIFFER = {
    ("bdd100k", "miou"),
    ("pytorch-ood", "auprc_success"),
    ("pytorch-ood", "auprc_error"),
    ("pytorch-ood", "ood auprc"),
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
            same = own[name] == pytest.approx(value, abs=made.CLOSE)
            assert same == ((peer, name) not in DIFFER), (peer, name, own[name], value)
            compared += 1
    assert compared >= 35
    assert own["miou labelled"] == pytest.approx(peers["bdd100k"]["figures"]["miou"], abs=made.CLOSE)
    assert own["auprc_success"] < peers["pytorch-ood"]["figures"]["auprc_success"]


def test_the_page_is_what_the_script_makes_of_them(made: ModuleType, peers: dict[str, Any]) -> None:
    text = made.PAGE.read_text()
    assert made.page(text, made.tables(made.ours(), peers)) == text
