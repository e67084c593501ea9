"""Blocks, handed to workers that do as they are told, die, hang or go away: every image is done or listed."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hmsa_pipeline.errors import DiskError, StoreError
from hmsa_pipeline.pipeline.runtime.progress import Progress
from hmsa_pipeline.pipeline.workers.jobs import JobImage, JobSummary
from hmsa_pipeline.pipeline.workers.protocol import (
    BlockResult,
    BlockStatus,
    OnEvent,
    ProgressReporter,
    WorkerDied,
    Workers,
)
from hmsa_pipeline.pipeline.workers.retries import IN_FLIGHT
from hmsa_pipeline.pipeline.workers.scheduler import run_jobs
from hypothesis import given, settings
from hypothesis import strategies as st


@dataclass
class MemoryJob:
    """A store in memory."""

    name: str
    images: list[str]
    key: str = "net"
    refusal: Exception | None = None
    done: list[str] = field(default_factory=list)
    held: bool = False
    swept: int = 0

    def open(self) -> list[JobImage]:
        if self.refusal:
            raise self.refusal
        self.held = True
        return [JobImage(path, 100) for path in self.images]

    def block(self, paths: Sequence[str]) -> MemoryBlock:
        return MemoryBlock(self, tuple(paths))

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        return [path for path in paths if path not in self.done]

    def sweep(self) -> None:
        assert self.held
        self.swept += 1

    def close(self) -> None:
        self.held = False


@dataclass(frozen=True)
class MemoryBlock:
    job: MemoryJob
    paths: tuple[str, ...]

    def run(self, report: ProgressReporter) -> BlockResult:
        raise NotImplementedError


class ScriptedPool:
    """Workers by name; an image's fate is in its name: ``kill``, ``hang``, ``fail``, ``full`` or none."""

    def __init__(self, workers: int, seed: int = 0, deaths: float = 0.0) -> None:
        self._draw, self._deaths = random.Random(seed), deaths
        self._workers = [f"w{n}" for n in range(workers)]
        self._given: dict[int, tuple[MemoryBlock, str]] = {}
        self._hanging: set[int] = set()
        self._killed: list[int] = []
        self.started = self.stopped = 0
        self.blocks: list[tuple[str, str, int]] = []

    def start(self, required_paths: tuple[Path, ...]) -> None:
        self.started += 1

    def describe(self) -> list[str]:
        return []

    def workers(self) -> list[str]:
        return self._workers

    def submit(self, number: int, block: MemoryBlock, worker: str) -> None:  # type: ignore[override]
        assert block.job.held
        assert worker not in [other for _, other in self._given.values()]
        self._given[number] = block, worker
        self.blocks.append((worker, block.job.key, len(block.paths)))

    def wait(self, is_stopping: Callable[[], bool], on_event: OnEvent) -> None:
        assert self._given, "no worker has a block though images are left: the run would wait for ever"
        while self._killed:
            number = self._killed.pop()
            del self._given[number]
            on_event(number, WorkerDied())
        ready = [number for number in self._given if number not in self._hanging]
        if not ready:
            return
        number = self._draw.choice(ready)
        block, _ = self._given[number]
        result = BlockResult(seconds=1.0)
        for position, path in enumerate(block.paths):
            if path in block.job.done:
                continue
            if "hang" in path:
                on_event(number, BlockStatus(position, path, 1e6))
                self._hanging.add(number)
                return
            if "kill" in path or self._draw.random() < self._deaths:
                del self._given[number]
                on_event(number, WorkerDied())
                return
            if "full" in path:
                result.disk_problem = "the disk is full"
                result.left = block.paths[position:]
                break
            if "broken" in path:
                result.network_problem, result.failed[path] = "the network is broken", "broken"
                result.left = block.paths[position + 1 :]
                break
            if "bug" in path:
                del self._given[number]
                on_event(number, RuntimeError("a bug"))
                return
            if "fail" in path:
                result.failed[path] = "no picture"
            else:
                block.job.done.append(path)
            on_event(number, BlockStatus(position + 1))
        del self._given[number]
        on_event(number, result)

    is_reachable = True

    def loss_hint(self, worker: str) -> str | None:
        return "look at its log"

    def stop(self) -> None:
        self.stopped += 1

    def kill(self, number: int) -> None:
        self._hanging.discard(number)
        self._killed.append(number)

    def close(self) -> None:
        raise AssertionError("the caller closes the pool")


def run(jobs: Sequence[MemoryJob], pool: ScriptedPool) -> dict[str, JobSummary]:
    summaries: dict[str, JobSummary] = {}

    def ended(position: int, summary: JobSummary) -> None:
        assert jobs[position].name not in summaries
        summaries[jobs[position].name] = summary

    with Progress(0) as progress:
        run_jobs(jobs, Workers(pool, torch.device("cpu"), None, 60.0), progress, ended, ())  # type: ignore[arg-type]
    assert not any(job.held for job in jobs)
    return summaries


FATES = st.sampled_from(["", "", "", "", "fail"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(FATES, max_size=80), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.sampled_from([None, "kill", "hang"]),
)
def test_every_image_is_done_once_or_listed(
    fates: list[list[str]], workers: int, seed: int, bad_image: str | None
) -> None:
    jobs = [
        MemoryJob(f"s{i}", [f"{n}{fate}" for n, fate in enumerate(row)], f"net{i % 2}") for i, row in enumerate(fates)
    ]
    if bad_image:
        jobs[0].images.insert(len(jobs[0].images) // 2, bad_image)
    summaries = run(jobs, ScriptedPool(workers, seed))
    for job in jobs:
        summary = summaries[job.name]
        bad = {path for path in job.images if path.strip("0123456789")}
        assert sorted(job.done) == sorted(set(job.images) - bad)
        assert set(summary.failed) == bad
        assert summary.done == len(job.done)
        assert (summary.problem, summary.interrupted) == (None, False)


def test_an_image_that_kills_is_given_four_workers_and_no_innocent_is_listed() -> None:
    job = MemoryJob("s", [f"{n}" for n in range(60)] + ["kill"] + [f"{n}" for n in range(60, 200)])
    pool = ScriptedPool(2)
    summary = run([job], pool)["s"]
    assert set(summary.failed) == {"kill"}
    assert "4 workers died" in summary.failed["kill"]
    assert len(job.done) == 200
    assert sum(size == 1 for _, _, size in pool.blocks) <= IN_FLIGHT + 10


def test_workers_that_die_at_once_with_a_job_each_try_each_others_images() -> None:
    jobs = [MemoryJob(name, [f"{n}" for n in range(24)], name) for name in ("ant", "bee")]
    pool = ScriptedPool(2)
    submit = pool.submit

    def dying(number: int, block: MemoryBlock, worker: str) -> None:
        submit(number, block, worker)
        if number < 2:
            pool.kill(number)

    pool.submit = dying  # type: ignore[method-assign]
    summaries = run(jobs, pool)
    assert [summaries[name].done for name in ("ant", "bee")] == [24, 24]
    assert all(sorted(job.done) == sorted(job.images) for job in jobs)
    alone = [(worker, key) for worker, key, size in pool.blocks if size == 1]
    assert {("w1", "ant"), ("w0", "bee")} <= {*alone}


def test_workers_that_always_die_end_the_job_and_not_the_run() -> None:
    jobs = [MemoryJob("s", [f"kill{n}" for n in range(100)]), MemoryJob("t", ["a", "b"], "other")]
    pool = ScriptedPool(1)
    summaries = run(jobs, pool)
    assert "workers die whatever image they work on" in str(summaries["s"].problem)
    assert len(summaries["s"].failed) == 3
    assert summaries["t"].done == 2
    assert len(pool.blocks) < 20


def test_a_network_that_is_given_up_ends_all_its_jobs_and_no_other() -> None:
    jobs = [
        MemoryJob("street/ant", ["a", "broken", "b"], key="ant"),
        MemoryJob("garden/ant", ["c"], key="ant"),
        MemoryJob("street/bee", ["a", "b"], key="bee"),
    ]
    found = run(jobs, ScriptedPool(1))
    assert [found[job.name].problem for job in jobs] == ["the network is broken"] * 2 + [None]
    assert found["street/ant"].failed == {"broken": "broken"}
    assert jobs[1].done == []
    assert jobs[2].done == ["a", "b"]


def test_a_lost_worker_is_said_with_its_image(capsys: pytest.CaptureFixture[str]) -> None:
    run([MemoryJob("street/ant", ["a", "kill", "b"])], ScriptedPool(2))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("worker w")]
    assert len(lines) == 4
    first = (
        r"worker w\d was lost at \d{4}-\d\d-\d\dT[\d:+-]+: it (was at|had a block).* of street/ant; look at its log"
    )
    assert all(re.fullmatch(first, line) for line in lines)


def test_a_worker_that_leaves_between_blocks_is_said() -> None:
    progress = Progress(0)
    pool = ScriptedPool(2)
    shown: list[str] = []
    pool.workers = lambda: pool._workers if len(pool.blocks) < 2 else ["w1"]  # type: ignore[method-assign]
    progress.drop = shown.append  # type: ignore[method-assign]
    job = MemoryJob("street/ant", [f"{number}" for number in range(40)])
    run_jobs([job], Workers(pool, torch.device("cpu"), None, 60.0), progress, lambda *_: None, ())  # type: ignore[arg-type]
    assert shown == ["w0"]
    assert len(job.done) == 40


def test_a_worker_keeps_what_it_has_loaded() -> None:
    jobs = [MemoryJob(f"{model}/{data}", [f"{n}" for n in range(200)], model) for model in "abc" for data in "xy"]
    pool = ScriptedPool(3)
    summaries = run(jobs, pool)
    assert all(summary.done == 200 for summary in summaries.values())
    for name in ("w0", "w1", "w2"):
        keys = [key for worker, key, _ in pool.blocks if worker == name]
        changes = sum(a != b for a, b in itertools.pairwise(keys))
        assert changes <= 6, keys  # to its own model, and to what is left at the end


def test_idle_workers_take_what_is_left() -> None:
    pool = ScriptedPool(4)
    run([MemoryJob("s", [f"{n}" for n in range(100)])], pool)
    assert {worker for worker, _, _ in pool.blocks} == {"w0", "w1", "w2", "w3"}


def test_work_that_is_refused_is_reported_and_the_rest_is_done() -> None:
    jobs = [MemoryJob("s", ["a"], refusal=StoreError("in use")), MemoryJob("t", ["a"])]
    summaries = run(jobs, ScriptedPool(1))
    assert (summaries["s"].problem, summaries["t"].done) == ("in use", 1)


def test_nothing_to_do_starts_nobody() -> None:
    pool = ScriptedPool(1)
    assert run([MemoryJob("s", [])], pool)["s"].done == 0
    assert pool.started == 0


def test_a_full_disk_ends_the_run_and_keeps_what_is_done() -> None:
    jobs = [MemoryJob("s", ["a", "b", "full", "c"]), MemoryJob("t", ["a"], "other")]
    with pytest.raises(DiskError, match="the disk is full"):
        run(jobs, ScriptedPool(1))
    assert jobs[0].done == ["a", "b"]
    assert jobs[1].done == []
    assert not jobs[0].held


def test_a_bug_is_raised_and_locks_are_given_back() -> None:
    job = MemoryJob("s", ["a", "bug"])
    with pytest.raises(RuntimeError, match="a bug"):
        run([job], ScriptedPool(1))
    assert not job.held


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_workers_that_die_now_and_then_cost_no_image(seed: int) -> None:
    job = MemoryJob("s", [f"{n}" for n in range(150)])
    summary = run([job], ScriptedPool(3, seed, deaths=0.02))["s"]
    assert len(job.done) + len(summary.failed) == 150
    assert summary.done == len(job.done)
    assert len(job.done) == len(set(job.done))


def test_what_dead_writers_left_is_removed_once_nobody_writes_any_more_and_only_where_somebody_wrote() -> None:
    written, done_before = MemoryJob("s", ["a", "kill", "b"]), MemoryJob("t", [])
    run([written, done_before], ScriptedPool(2))
    assert (written.swept, done_before.swept) == (1, 0)


def test_what_cannot_be_removed_does_not_fail_the_run() -> None:
    class Stuck(MemoryJob):
        def sweep(self) -> None:
            raise PermissionError

    summary = run([Stuck("s", ["a", "b"])], ScriptedPool(1))["s"]
    assert (summary.done, summary.problem) == (2, None)


class CountedImage:
    """An image whose pixels are asked for; counts how often."""

    asked = 0

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def pixels(self) -> int:
        CountedImage.asked += 1
        return 100


class CountedJob(MemoryJob):
    def open(self) -> list[JobImage]:
        self.held = True
        return [CountedImage(path) for path in self.images]  # type: ignore[misc]


def test_what_is_looked_at_for_blocks_grows_with_the_images_and_not_with_their_square() -> None:
    job = CountedJob("s", [f"{n}" for n in range(20_000)])
    assert run([job], ScriptedPool(4))["s"].done == 20_000
    assert CountedImage.asked <= 8 * 20_000
