"""Checks of a worker before it gets blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline import __version__
from hmsa_pipeline.pipeline.workers.dask_pool import worker_problem

GOOD: dict[str, Any] = {
    "name": "ant",
    "host": "hill",
    "version": __version__,
    "torch": torch.__version__,
    "device": "cpu",
    "missing": [],
    "sees": True,
}
REQUIRED = (Path("/out"), Path("/photos"))


@pytest.mark.parametrize("device", ["cpu", "cuda", None])
def test_a_worker_that_fits_has_no_problem(device: str | None) -> None:
    assert worker_problem(GOOD | {"device": device or "cpu"}, REQUIRED, device) is None


def test_a_gpu_may_work_where_all_work_on_the_cpu() -> None:
    assert worker_problem(GOOD | {"device": "cuda"}, REQUIRED, "cpu") is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"version": "0.0.1"}, "has hmsa-pipeline 0.0.1, this process "),
        ({"torch": "1.0"}, "has torch 1.0, this process "),
        ({"device": "cpu"}, "has no GPU, and its logits would differ"),
        ({"missing": ["/photos"]}, "does not see /photos; share it"),
        ({"sees": "Forbidden"}, r"cannot read /out \(Forbidden\)"),
        ({"sees": False}, "its /out is another folder"),
    ],
)
def test_what_does_not_fit_is_said(wrong: dict[str, Any], said: str) -> None:
    found = GOOD | {"device": "cuda"} | wrong
    assert re.match(rf"worker ant on hill: {said}", worker_problem(found, REQUIRED, "cuda") or "")
