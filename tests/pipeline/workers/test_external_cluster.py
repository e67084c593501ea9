"""Which workers of a running cluster a run takes, and how long it waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline import __version__
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.pipeline.workers import external_cluster
from hmsa_pipeline.pipeline.workers.external_cluster import ExternalCluster


def described(name: str, device: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": __version__,
        "torch": torch.__version__,
        "device": device,
        "model": device,
        "host": "node",
        "missing": [],
        "sees": True,
    }


class NoClient:
    status = "running"

    def subscribe_topic(self, *_: object) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(external_cluster.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(external_cluster.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(external_cluster, "refuse_scheduler_of_another_job", lambda *_: None)
    return now


def join(arrivals: Sequence[tuple[float, str, str]], device: str, clock: list[float]) -> ExternalCluster:
    """A cluster whose workers come so many seconds after the run began: (seconds, name, device)."""
    begun = clock[0]

    class Scripted(ExternalCluster):
        def _connect(self) -> Any:
            return NoClient()

        def _describe_workers(self, required_paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
            return {
                f"tcp://{name}": described(name, kind) for after, name, kind in arrivals if clock[0] - begun >= after
            }

    return Scripted("tcp://node:8786", device, 60.0)


def test_auto_takes_the_gpus_though_a_worker_without_one_came_first(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = join([(0, "broken", "cpu"), (4, "good", "cuda"), (5, "late", "cuda")], "auto", clock)
    assert cluster.device == "cuda"
    assert cluster.describe() == ["good on node: cuda"]
    cluster.start(())
    assert capsys.readouterr().err.splitlines() == [
        "left out: worker broken on node: has no GPU, and its logits would differ; use it in a run with --device cpu"
    ]
    assert cluster._may_work("tcp://good", {"name": "good"})
    assert not cluster._may_work("tcp://broken", {"name": "broken"})


def test_auto_waits_a_moment_only_and_again_after_each_that_comes(clock: list[float]) -> None:
    cluster = join([(0, "first", "cpu"), (8, "second", "cpu"), (60, "too late", "cuda")], "auto", clock)
    assert cluster.device == "cpu"
    assert clock[0] - 1000.0 == pytest.approx(8 + external_cluster.SETTLE_SECONDS, abs=1.0)


def test_cpu_waits_for_nobody_and_takes_all(clock: list[float]) -> None:
    cluster = join([(0, "first", "cpu"), (0, "second", "cuda")], "cpu", clock)
    assert (clock[0], cluster.device, len(cluster.describe())) == (1000.0, "cpu", 2)


def test_cuda_is_refused_where_no_worker_has_a_gpu(clock: list[float]) -> None:
    with pytest.raises(ManifestError, match=r"^--device cuda: no worker has a GPU \(first\); use --device cpu$"):
        join([(0, "first", "cpu")], "cuda", clock)
