"""The members that come with the package: what their records say is so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hmsa_pipeline.datasets.dataset_specs import NAMES
from hmsa_pipeline.models.checkpoint import check_weights
from hmsa_pipeline.pipeline.config.load_manifest import SHIPPED
from hmsa_pipeline.pipeline.demo.plan import ARCH, FULL, DemoPlan
from safetensors.torch import load_file

FOLDER = SHIPPED / "demo"
RECORDS = json.loads((FOLDER / "members.json").read_text(encoding="utf-8"))
LARGEST = 6_000_000  # bytes of all seven
ROUNDING = 0.005  # share of pixels that float16 may give another class


def test_there_are_seven_and_they_are_small() -> None:
    assert list(RECORDS) == list(NAMES)
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {"members.json", *(f"{name}.safetensors" for name in NAMES)}
    assert sum((FOLDER / name).stat().st_size for name in files) <= LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_of_the_record(name: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == RECORDS[name]["sha256"]
    assert check_weights(path, ARCH) is None
    assert {value.dtype for key, value in load_file(path).items() if "num_batches" not in key} == {torch.float16}


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_of_a_full_training_from_random_weights_of_its_own(name: str) -> None:
    record = RECORDS[name]
    assert record["command"] == "hmsa-pipeline demo --train --seed 0"
    assert record["images_seen"] >= FULL.epochs * 690
    assert record["held_out"] >= 48
    assert record["miou"] > 0.25
    assert record["changed_by_float16"] <= ROUNDING


def test_members_start_from_other_weights_than_one_another(tmp_path: Path) -> None:
    plan = DemoPlan(tmp_path, 0, train=True)
    assert len({record["seed"] for record in RECORDS.values()}) == 7
    for name in NAMES:
        assert f"\nseed: {RECORDS[name]['seed']}\n" in plan.recipe_text(name)
        assert "init" not in plan.recipe_text(name)
