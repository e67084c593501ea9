"""A Dask cluster that runs already, its scheduler and workers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client
from hmsa_pipeline import __version__

from .bench import Bench, ended, files, lost, quiet
from .faults import gated, kill, wait_for
from .test_workers import IMAGES, bench, record, reference, shards, street

__all__ = ["bench", "reference", "street"]

SLOW = """
import pathlib, time

_whole = pathlib.Path.open

def _slowly(path, *arguments, **options):
    if path.suffix == ".png":
        time.sleep(1)
    return _whole(path, *arguments, **options)

pathlib.Path.open = _slowly
"""


class Cluster:
    """``dask scheduler`` and ``dask worker``, begun as `docs/cluster.md` says."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.file = folder / "scheduler.json"
        self._folder = folder
        words = ("--scheduler-file", str(self.file), "--port", "0", "--no-dashboard", *options)
        self.scheduler = self._begin("scheduler", *words)
        wait_for(lambda: self.file.exists() and self.file.stat().st_size > 0)
        self.workers: list[subprocess.Popen[bytes]] = []

    def _begin(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        plain = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"} | more
        log = (self._folder / f"{words[0]}-{time.monotonic_ns()}.log").open("wb")
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "dask", *words], stdout=log, stderr=log, env=os.environ | plain
        )

    def worker(self, name: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        words = ("--scheduler-file", str(self.file), "--name", name, "--nthreads", "1", "--local-directory")
        one = self._begin(
            "worker",
            *words,
            str(self._folder),
            "--no-dashboard",
            *(options or ("--resources", "GPU=1")),
            **environment,
        )
        self.workers.append(one)
        return one

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.send_signal(signal.SIGTERM)
        for process in (*self.workers, self.scheduler):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with contextlib.closing(Cluster(folder)) as made:
        yield made


def test_a_running_cluster_makes_what_one_process_makes(bench: Bench, reference: Bench, cluster: Cluster) -> None:
    for name in ("here", "there"):
        cluster.worker(name)
    where = ("--scheduler", str(cluster.file))
    planned = ended(bench.start("dump", *where, "--dry-run"))
    assert planned.code == 0, planned
    assert "worker here on " in planned.out

    result = ended(bench.start("dump", *where))
    assert (result.code, quiet(result.err)) == (0, []), result
    assert files(bench.logits) == files(reference.logits)
    hands = {name for model in ("ant", "bee") for name in record(bench)[f"street/{model}"]["workers"]}
    assert hands <= {"here", "there"}
    result = ended(bench.start("ensemble", *where))
    assert (result.code, quiet(result.err)) == (0, [])
    assert files(bench.predictions) == files(reference.predictions)
    # It passes work on unopened; with torch in it, it would take more than 500 MiB.
    assert psutil.Process(cluster.scheduler.pid).memory_info().rss < 250 * 2**20


@pytest.mark.slow(every_change=True)
def test_a_scheduler_that_vanishes_ends_the_run_and_it_goes_on(
    bench: Bench, reference: Bench, cluster: Cluster
) -> None:
    cluster.worker("here")
    process = bench.start("dump", "--scheduler", str(cluster.file), "--device", "cpu")
    wait_for(lambda: shards(bench) >= 3)
    cluster.scheduler.kill()
    result = ended(process)
    assert result.code == 75
    assert len(quiet(result.err)) == 1, result.err
    (line,) = quiet(result.err)
    assert line.startswith(f"error: --scheduler {cluster.file}: is gone; start it again")
    assert 3 <= shards(bench) <= 2 * IMAGES
    assert [path.name for path in bench.logits.rglob("*") if path.name.endswith(".lock")] == []
    assert bench.run("dump").code == 0
    assert files(bench.logits) == files(reference.logits)


@pytest.mark.slow(every_change=True)
def test_a_lost_worker_of_a_running_cluster_costs_nothing(bench: Bench, reference: Bench, cluster: Cluster) -> None:
    killed = cluster.worker("lost", "--resources", "GPU=1", "--no-nanny")
    cluster.worker("kept")
    process = bench.start("dump", "--scheduler", str(cluster.file), "--device", "cpu")
    wait_for(lambda: shards(bench) >= 3)
    kill(killed)
    result = ended(process)
    assert (result.code, quiet(result.err), lost(result.err)) == (0, [], ["lost"])
    assert files(bench.logits) == files(reference.logits)


@pytest.mark.slow(every_change=True)
def test_a_worker_that_comes_after_the_last_one_has_gone_goes_on_with_its_block(
    bench: Bench, reference: Bench, cluster: Cluster
) -> None:
    nanny = psutil.Process(cluster.worker("last", **gated(bench.root, "02")).pid)
    process = bench.start("dump", "--scheduler", str(cluster.file), "--device", "cpu")
    wait_for(lambda: shards(bench) >= 2)
    for one in (nanny, *nanny.children(recursive=True)):
        kill(one)
    assert process.stderr is not None
    while "waiting for one up to" not in (line := process.stderr.readline()):
        assert line, "it ended"
    cluster.worker("next")
    result = ended(process)
    assert result.code == 0, result
    assert files(bench.logits) == files(reference.logits)
    assert [path.name for path in bench.output.glob(".*")] == []


@pytest.mark.slow(every_change=True)
def test_a_run_without_workers_that_is_told_to_stop_does_not_wait_for_one(bench: Bench, cluster: Cluster) -> None:
    nanny = psutil.Process(cluster.worker("last", **gated(bench.root, "02")).pid)
    process = bench.start("dump", "--scheduler", str(cluster.file), "--device", "cpu")
    wait_for(lambda: shards(bench) >= 2)
    for one in (nanny, *nanny.children(recursive=True)):
        kill(one)
    assert process.stderr is not None
    while "waiting for one up to" not in (line := process.stderr.readline()):
        assert line, "it ended"
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 130
    assert [path.name for path in bench.output.rglob("*.lock")] == []


@pytest.mark.slow(every_change=True)
def test_workers_that_come_later_help_if_they_fit(
    bench: Bench, reference: Bench, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import hmsa_pipeline\nhmsa_pipeline.__version__ = '0.0.1'\n")
    # It takes some seconds until the others are there; the first one must not be done by then.
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW)
    cluster.worker("first", PYTHONPATH=str(slow))
    process = bench.start("dump", "--scheduler", str(cluster.file), "--device", "cpu")
    wait_for(lambda: shards(bench) >= 1)
    cluster.worker("late")
    cluster.worker("old", PYTHONPATH=str(tmp_path / "site"))
    result = ended(process)
    assert result.code == 0, result
    (line,) = quiet(result.err)
    assert line.startswith("left out: worker old on ")
    assert line.endswith(f": has hmsa-pipeline 0.0.1, this process {__version__}; install the same")
    hands = {name for model in ("ant", "bee") for name in record(bench)[f"street/{model}"]["workers"]}
    assert hands == {"first", "late"}
    assert files(bench.logits) == files(reference.logits)
    assert [path.name for path in bench.output.glob(".*")] == []


def test_a_scheduler_without_workers_for_us_is_said_so(bench: Bench, cluster: Cluster) -> None:
    cluster.worker("plain", "--resources", "CPU=1")
    message = bench.run("dump", "--scheduler", str(cluster.file), "--patience", "3").refusal(75)
    assert message.startswith(f"--scheduler {cluster.file}: no worker with the resource GPU=1 was there for 3 s")
    assert not bench.output.exists()


@pytest.mark.slow(every_change=True)
def test_a_worker_that_its_memory_limit_pauses_is_said_so(bench: Bench, cluster: Cluster) -> None:
    cluster.worker("small", "--resources", "GPU=1", "--memory-limit", "20MiB", "--no-nanny")
    # Until it first looks at its memory it would be given work.
    with Client(scheduler_file=str(cluster.file)) as client:
        wait_for(lambda: [w["status"] for w in client.scheduler_info()["workers"].values()] == ["paused"])
    message = bench.run("dump", "--scheduler", str(cluster.file), "--patience", "3").refusal(75)
    assert "worker small is paused: it takes most of its memory limit of 20 MiB" in message
    assert "--memory-limit 0" in message
    assert "no worker with the resource" not in message
    assert not bench.output.exists()


@pytest.mark.slow(every_change=True)
def test_a_worker_that_its_memory_limit_ends_is_said_so(bench: Bench, cluster: Cluster) -> None:
    """Torch takes more than the limit, so that its nanny ends it when it is first asked for something."""
    cluster.worker("small", "--resources", "GPU=1", "--memory-limit", "200MiB")
    message = bench.run("dump", "--scheduler", str(cluster.file), "--patience", "20").refusal(75)
    assert "memory limit of 200 MiB" in message
    assert "--memory-limit 0" in message
    assert "install it" not in message


def test_nobody_at_the_address_is_said_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmsa_pipeline.pipeline.workers.external_cluster.CONNECT_SECONDS", 1.0)
    message = bench.run("dump", "--scheduler", "tcp://127.0.0.1:1").refusal()
    assert message.startswith("--scheduler tcp://127.0.0.1:1: nobody answers there")
