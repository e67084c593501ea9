"""``kill -9`` at random moments, a disk that fills, a folder that turns read-only: minutes, so marked slow."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from .bench import Bench, ended, files, quiet, times
from .faults import kill, wait_for, workers
from .test_cluster import Cluster, cluster
from .test_workers import IMAGES, bench, record, reference, shards, street

__all__ = ["bench", "cluster", "reference", "street"]

pytestmark = pytest.mark.slow


def seeds(count: int, of_every_change: int) -> list[Any]:
    """The numbers below ``count``, one of them marked."""
    mark = pytest.mark.slow(every_change=True)
    return [pytest.param(seed, marks=mark if seed == of_every_change else ()) for seed in range(count)]


SECONDS = 9.0  # that a whole run takes, about


def complete(bench: Bench) -> dict[str, int]:
    """When every shard was written."""
    return {name: time for name, time in times(bench.logits).items() if "/c." in name and "partial" not in name}


def resumed(bench: Bench, reference: Bench) -> None:
    """Run to the end: the same bytes, and nothing that was complete was touched."""
    before = complete(bench) if bench.logits.exists() else {}
    result = bench.run("dump")
    assert (result.code, result.err) == (0, "")
    assert complete(bench).items() >= before.items()
    assert files(bench.logits) == files(reference.logits)


@pytest.mark.parametrize("seed", seeds(7, of_every_change=3))
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(bench: Bench, reference: Bench, seed: int) -> None:
    process = bench.start("dump", "--workers", "2")
    time.sleep(random.Random(seed).uniform(0.0, SECONDS))
    crew = workers(process.pid)
    process.kill()
    ended(process)
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in crew))
    resumed(bench, reference)


@pytest.mark.parametrize("seed", seeds(7, of_every_change=5))
def test_workers_killed_at_any_moment_cost_nothing(bench: Bench, reference: Bench, seed: int) -> None:
    process, draw = bench.start("dump", "--workers", "2"), random.Random(seed)
    for _ in range(2):
        time.sleep(draw.uniform(0.0, SECONDS / 2))
        if crew := workers(process.pid):
            kill(draw.choice(crew))
    result = ended(process)
    assert (result.code, quiet(result.err)) == (0, []), result
    assert files(bench.logits) == files(reference.logits)
    done = [record(bench)[f"street/{model}"] for model in ("ant", "bee")]
    assert [entry["done"] for entry in done] == [IMAGES, IMAGES]


@pytest.mark.parametrize("seed", range(6))
def test_nannies_killed_at_any_moment_cost_nothing(
    bench: Bench, reference: Bench, cluster: Cluster, seed: int
) -> None:
    cluster.worker("kept")
    lost = cluster.worker("lost")
    process = bench.start("dump", "--scheduler", str(cluster.file))
    time.sleep(random.Random(seed).uniform(2.0, SECONDS))
    children = psutil.Process(lost.pid).children(recursive=True)
    kill(lost)
    result = ended(process)
    assert (result.code, quiet(result.err)) == (0, []), result
    assert files(bench.logits) == files(reference.logits)
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in children))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB, of which a run may use what `store_writes.RESERVE_BYTES` leaves."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow(every_change=True)
def test_a_run_stops_before_the_disk_is_full_and_goes_on(bench: Bench, reference: Bench, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"\0" * (3 * 2**20))
    result = ended(bench.start("dump", "--workers", "2", "--output", str(small_disk / "run")))
    assert result.code == 2
    (line,) = quiet(result.err)
    assert line.startswith(f"error: {small_disk}/run/logits/street/")
    assert "too few to go on safely" in line
    assert shutil.disk_usage(small_disk).free > 2**20
    assert list(small_disk.rglob("*.lock")) == []
    stores = small_disk / "run/logits"
    made = [name for name in files(stores) if "/c." in name]
    assert 0 < len(made) < 2 * IMAGES
    shutil.copytree(stores, bench.logits)
    resumed(bench, reference)


def test_a_folder_that_turns_read_only_ends_the_run(bench: Bench, reference: Bench) -> None:
    if os.geteuid() == 0 and subprocess.run(["which", "chattr"], capture_output=True).returncode:
        pytest.skip("root writes into read-only folders")
    process = bench.start("dump", "--workers", "1", "--models", "ant")
    array = bench.store("street", "ant") / "64x96"
    wait_for(lambda: shards(bench) >= 3)
    if subprocess.run(["chattr", "+i", str(array)], capture_output=True).returncode:
        array.chmod(0o555)
    try:
        result = ended(process)
    finally:
        subprocess.run(["chattr", "-i", str(array)], capture_output=True)
        array.chmod(0o755)
    assert result.code == 2
    assert "cannot be written" in quiet(result.err)[-1]
    assert 3 <= shards(bench) < IMAGES
    assert bench.run("dump").code == 0
    assert files(bench.logits) == files(reference.logits)
