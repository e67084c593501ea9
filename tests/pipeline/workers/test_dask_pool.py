"""Checks of a worker before it gets blocks."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from dask import config
from distributed import Client
from distributed import LocalCluster as Cluster
from hmsa_pipeline import __version__
from hmsa_pipeline.pipeline.workers.dask_pool import worker_problem
from hmsa_pipeline.pipeline.workers.external_cluster import ExternalCluster

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


def test_a_worker_is_not_lost_because_the_client_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of Dask asks its scheduler every two seconds for everything but the workers."""
    answer = Client.sync

    def long_until_read(client: Client, *words: Any, **options: Any) -> Any:
        answered = answer(client, *words, **options)
        time.sleep(0.05)  # of a busy machine, in which the client's timer asks again
        return answered

    monkeypatch.setattr(Client, "sync", long_until_read)
    where: dict[str, Any] = {"processes": False, "n_workers": 2, "dashboard_address": ":0"}
    cluster: Any = Cluster(**where, threads_per_worker=1, resources={"GPU": 1})
    with cluster, config.set({"distributed.client.scheduler-info-interval": "5ms"}):
        pool = ExternalCluster(cluster.scheduler_address, "cpu", 5.0)
        try:
            pool.start(())
            assert len(pool.workers()) == 2
        finally:
            pool.close()
