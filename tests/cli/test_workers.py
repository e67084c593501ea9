"""Commands whose work is done by other processes, as users run them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hmsa_pipeline.errors import StoreError

from .bench import Bench, counted, ended, files, lost, quiet
from .conftest import plain_cpu
from .faults import gated, kill, slow, troubled, wait_for, workers

IMAGES = 24


@pytest.fixture(scope="module")
def street(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two members and work for some seconds; nothing is done yet."""
    bench = fresh.copy(tmp_path_factory.mktemp("street") / "bench")
    shutil.rmtree(bench.root / "photos")
    for number in range(IMAGES):
        bench.photo(f"street/{number:02}.png", 64, 96, seed=number)
    bench.tree["models"] = bench.tree["models"][:2]
    bench.tree["datasets"] = bench.tree["datasets"][:1]
    return bench.save()


@pytest.fixture(scope="module")
def reference(street: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same, done in one go by one process; tests must leave it as it is."""
    bench = street.copy(tmp_path_factory.mktemp("reference") / "bench")
    with plain_cpu():
        assert bench.run("dump").code == 0
        assert bench.run("ensemble").code == 0
    return bench


@pytest.fixture
def bench(street: Bench, tmp_path: Path) -> Bench:
    return street.copy(tmp_path / "bench")


def shards(bench: Bench) -> int:
    return len(list(bench.logits.rglob("c.*.0.0.0")))


def record(bench: Bench, command: str = "dump") -> dict[str, Any]:
    return json.loads((bench.output / "run.json").read_text())[command]


def test_two_workers_make_what_one_process_makes(bench: Bench, reference: Bench) -> None:
    result = ended(bench.start("dump", "--workers", "2"))
    assert (result.code, quiet(result.err)) == (0, [])
    assert files(bench.logits) == files(reference.logits)
    hands = [record(bench)[f"street/{model}"]["workers"] for model in ("ant", "bee")]
    assert {name for hand in hands for name in hand} == {"cpu0", "cpu1"}
    assert "images by worker: cpu0 " in result.out
    assert [sum(hand.values()) for hand in hands] == [IMAGES, IMAGES]

    result = ended(bench.start("ensemble", "--workers", "2"))
    assert (result.code, quiet(result.err)) == (0, [])
    assert files(bench.predictions) == files(reference.predictions)


def test_a_worker_that_dies_costs_nothing(bench: Bench, reference: Bench) -> None:
    process = bench.start("dump", "--workers", "2")
    wait_for(lambda: shards(bench) >= 3)
    kill(workers(process.pid)[0])
    result = ended(process)
    assert (result.code, quiet(result.err)) == (0, [])
    assert lost(result.err) in (["cpu0"], ["cpu1"])
    assert files(bench.logits) == files(reference.logits)


def test_all_workers_that_die_at_once_cost_nothing(bench: Bench, reference: Bench) -> None:
    process = bench.start("dump", "--workers", "2", env=gated(bench.root, "03"))
    wait_for(lambda: shards(bench) == 6)  # three of each member; both workers hold images
    for worker in workers(process.pid):
        kill(worker)
    (bench.root / "site" / "go").touch()
    result = ended(process)
    assert (result.code, quiet(result.err)) == (0, [])
    assert sorted(lost(result.err)) == ["cpu0", "cpu1"]
    assert files(bench.logits) == files(reference.logits)


@pytest.mark.slow(every_change=True)
def test_a_worker_whose_next_process_starts_slowly_is_waited_for(bench: Bench, reference: Bench) -> None:
    process = bench.start("dump", "--workers", "1", "--models", "ant", env=slow(bench.root, 4.0))
    wait_for(lambda: shards(bench) >= 3)
    kill(workers(process.pid)[0])
    result = ended(process)
    assert (result.code, quiet(result.err), lost(result.err)) == (0, [], ["cpu"])
    assert files(bench.store("street", "ant")) == files(reference.store("street", "ant"))


@pytest.mark.slow(every_change=True)
def test_an_image_that_kills_workers_is_given_up_and_the_others_are_done(bench: Bench, reference: Bench) -> None:
    shutil.copy(bench.root / "photos/street/05.png", bench.root / "photos/street/kill.png")
    result = ended(bench.start("dump", "--workers", "1", "--models", "ant", env=troubled(bench.root)))
    assert result.code == 1
    (line,) = quiet(result.err)
    assert line.startswith("failed: street/ant: kill.png: 4 workers died while it was made")
    assert lost(result.err) == ["cpu"] * 4
    assert "it was at kill.png of street/ant" in result.err
    assert f"street/ant: {IMAGES} done, 0 complete before, 1 failed" in result.out
    made = {
        name: content
        for name, content in files(bench.store("street", "ant")).items()
        if "/c." in name and "images/" not in name
    }
    assert made.items() <= files(reference.store("street", "ant")).items()
    assert [failure["image"] for failure in record(bench)["street/ant"]["failed"]] == ["kill.png"]


def test_a_worker_that_hangs_is_stopped_and_its_image_listed(bench: Bench) -> None:
    shutil.copy(bench.root / "photos/street/05.png", bench.root / "photos/street/hang.png")
    options = ("--workers", "1", "--models", "ant", "--image-timeout", "8")
    result = ended(bench.start("dump", *options, env=troubled(bench.root)))
    assert result.code == 1
    (line,) = quiet(result.err)
    assert line.startswith("failed: street/ant: hang.png: was still in work after 8 s")
    assert lost(result.err) == []  # it was not: the run itself ended it
    assert f"street/ant: {IMAGES} done, 0 complete before, 1 failed" in result.out


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow(every_change=True)), signal.SIGTERM]
)
def test_workers_finish_what_is_in_flight_when_the_run_is_told_to_stop(
    bench: Bench, reference: Bench, number: signal.Signals
) -> None:
    process = bench.start("dump", "--workers", "2")
    wait_for(lambda: shards(bench) >= 3)
    for one in (process, *workers(process.pid)):  # a terminal and a batch system tell them all
        one.send_signal(number)
    result = ended(process)
    assert result.code == 130
    complete = shards(bench)
    assert 3 <= complete < 2 * IMAGES
    assert f"{counted(complete)} dumped, 0 complete before, 0 failed" in result.out
    assert [path.name for path in bench.logits.rglob("*") if path.name.endswith((".lock", ".partial"))] == []
    assert f"{complete} complete before" in bench.run("dump").out
    assert files(bench.logits) == files(reference.logits)


def test_a_block_ends_after_the_images_in_flight(bench: Bench) -> None:
    process = bench.start("dump", "--workers", "1", "--models", "ant", env=gated(bench.root, "02"))
    wait_for(lambda: shards(bench) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "interrupted: the images in flight" not in (line := process.stderr.readline()):
        assert line, "it ended"
    time.sleep(3)  # the message reaches the worker, which reads the third image of its first eight
    (bench.root / "site/go").touch()
    assert ended(process).code == 130
    assert shards(bench) == 3


@pytest.mark.slow(every_change=True)
def test_a_second_ctrl_c_stops_at_once(bench: Bench, reference: Bench) -> None:
    shutil.copy(bench.root / "photos/street/05.png", bench.root / "photos/street/hang.png")
    process = bench.start("dump", "--workers", "1", env=troubled(bench.root))
    wait_for(lambda: shards(bench) >= 20)
    process.send_signal(signal.SIGINT)
    with pytest.raises(AssertionError):
        wait_for(lambda: process.poll() is not None, 2)
    crew = workers(process.pid)
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in crew), 60)
    (bench.root / "photos/street/hang.png").unlink()
    assert bench.run("dump").code == 0


@pytest.mark.slow(every_change=True)
def test_workers_die_with_a_run_that_was_killed(bench: Bench, reference: Bench) -> None:
    process = bench.start("dump", "--workers", "2")
    wait_for(lambda: shards(bench) >= 3)
    crew = workers(process.pid)
    assert len(crew) == 2
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in crew), 60)
    result = bench.run("dump")
    assert (result.code, result.err) == (0, "")
    assert files(bench.logits) == files(reference.logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "2", "--scheduler", "tcp://127.0.0.1:1"), "--workers: a running cluster has its own"),
        (("--scheduler", "nowhere.json"), "--scheduler nowhere.json: is neither an address"),
        (("--device", "cuda:0,0"), "--device cuda:0,0: names a device twice"),
        (("--device", "cuda:0,1"), "--device cuda:0: 0 CUDA devices are there"),
    ],
)
def test_a_crew_that_cannot_be_is_refused(empty: Bench, options: tuple[str, ...], message: str) -> None:
    if "--workers" not in options and "--scheduler" not in options:
        options = (*options, "--workers", "1")
    assert empty.run("dump", *options).refusal().startswith(message)
    assert not empty.output.exists()


def test_the_plan_says_who_would_do_it_and_how_much_room_there_is(empty: Bench) -> None:
    result = empty.run("dump", "--workers", "2", "--dry-run")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[-3:-1] == ["worker cpu0: CPU, 1 threads", "worker cpu1: CPU, 1 threads"]
    assert lines[-1].endswith(" free there")
    assert not empty.output.exists()


@pytest.mark.gpu
def test_a_worker_on_a_gpu_makes_what_this_process_makes_there(bench: Bench) -> None:
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    alone = ("--device", "cuda:0", "--workers", "0", "--output", str(bench.root / "alone"))
    assert ended(bench.start("dump", *alone, env=visible)).code == 0
    result = ended(bench.start("dump", "--device", "cuda", env=visible))
    assert result.code == 0, result
    assert files(bench.logits) == files(bench.root / "alone/logits")
    assert set(record(bench)["street/ant"]["workers"]) <= {f"gpu{n}" for n in range(16)}


def test_predictions_that_are_another_runs_end_the_run(bench: Bench, reference: Bench) -> None:
    """Its lock was taken over while its workers were at work: they stop, and it says so."""
    shutil.copytree(reference.logits, bench.logits)
    lock = bench.predictions / "street.lock"
    with mock.patch(
        "hmsa_pipeline.pipeline.fusion.ensemble_block.require_held", side_effect=StoreError(f"{lock}: is gone")
    ):
        assert bench.run("ensemble").refusal() == f"{lock}: is gone"


def test_a_store_that_is_another_runs_is_left_alone(bench: Bench) -> None:
    with mock.patch(
        "hmsa_pipeline.pipeline.inference.store_writes.require_held", side_effect=StoreError("the lock is gone")
    ):
        result = bench.run("dump", "--models", "ant")
    assert result.code == 1
    assert result.err == "failed: street/ant: the lock is gone\n"
    assert shards(bench) == 0
