from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build

from . import forked
from .bench import TINY, Bench
from .remembered import remembered

MODELS = ("ant", "bee", "cat")


@contextlib.contextmanager
def plain_cpu() -> Iterator[None]:
    """One thread and no GPU, as for the commands in processes of their own: only then are equal bits to be had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        yield
    torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Remember during the tests of this folder, fixtures included; pytest asks this about those of others, too."""
    with remembered() if item.path.is_relative_to(Path(__file__).parent) else contextlib.nullcontext():
        return (yield)


@pytest.fixture(autouse=True)
def _plain_cpu() -> Iterator[None]:
    with plain_cpu():
        yield


@pytest.fixture(autouse=True)
def _slow_ones_begin_as_users_begin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("slow"):
        monkeypatch.setattr(forked, "AVAILABLE", False)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts what it puts into the background with Ctrl-C ignored; tests that send it need it heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HMSA_ASSETS", "HMSA_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Three tiny members, six photographs in two datasets, nothing computed; tests take a `copy`."""
    root = tmp_path_factory.mktemp("bench")
    models = []
    for seed, name in enumerate(MODELS):
        torch.manual_seed(seed)
        save_checkpoint(root / "weights" / f"{name}.pth", build(TINY), arch=TINY)
        models.append({"name": name, "arch": TINY, "checkpoint": f"weights/{name}.pth"})
    tree = {
        "version": 1,
        "inference": {"scales": [0.5, 1.0, 2.0], "precision": "fp32"},
        "models": models,
        "datasets": [
            {"name": "street", "type": "bravo", "root": "photos/street"},
            {"name": "garden", "type": "folder", "root": "photos/garden"},
        ],
    }
    bench = Bench(root, tree)
    bench.photo("street/day/a.png", seed=1)
    bench.photo("street/day/b.jpg", seed=2)
    bench.photo("street/night/c.png", 33, 57, seed=3)
    bench.photo("street/night/d.png", seed=4)
    bench.photo("garden/flower.png", 40, 64, seed=5)
    bench.photo("garden/deep/tree.JPG", 40, 64, seed=6)
    return bench.save()


@pytest.fixture(scope="session")
def finished(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """All of `fresh` dumped and fused; tests must leave it as it is, or take a `copy`."""
    bench = fresh.copy(tmp_path_factory.mktemp("finished") / "bench")
    with plain_cpu():
        for command in ("dump", "ensemble"):
            result = bench.run(command)
            assert (result.code, result.err) == (0, ""), result
    return bench


@pytest.fixture
def empty(fresh: Bench, tmp_path: Path) -> Bench:
    """A copy of `fresh` to work on."""
    return fresh.copy(tmp_path / "bench")


@pytest.fixture
def full(finished: Bench, tmp_path: Path) -> Bench:
    """A copy of `finished` to work on."""
    return finished.copy(tmp_path / "bench")
