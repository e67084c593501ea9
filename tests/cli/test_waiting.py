"""Runs that wait until another run has left their output, and locks of Slurm jobs that are over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hmsa_pipeline.pipeline.commands.shared import waiting
from hmsa_pipeline.pipeline.workers import recorded_jobs

from ..limits import PATIENCE
from .bench import Bench, Result, ended, files, start_python
from .faults import wait_for

HOLD = """
import sys, time
from pathlib import Path
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock

with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(target: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until it is given a line."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def waited(bench: Bench, target: Path, *words: str) -> Result:
    """Run a command beside a holder, which leaves once the command has said that it waits."""
    child = hold(target)
    process = bench.start(*words)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(f"waiting since 0 s: {target}.lock: held by process {child.pid} on "), line
    child.communicate("\n", timeout=PATIENCE)
    return ended(process)


def test_dump_waits_for_the_run_that_holds_its_output(empty: Bench, finished: Bench) -> None:
    result = waited(empty, empty.store("street", "ant"), "dump", "--workers", "0", "--wait")
    assert (result.code, result.err) == (0, "")
    assert files(empty.logits) == files(finished.logits)


def test_predict_waits_for_the_run_that_holds_its_output(empty: Bench, finished: Bench) -> None:
    result = waited(empty, empty.predictions / "street", "predict", "--workers", "0", "--wait")
    assert (result.code, result.err) == (0, "")
    assert {name for name in files(empty.predictions) if name.endswith(".png")} == {
        name for name in files(finished.predictions) if name.endswith(".png")
    }


def test_ensemble_waits_for_the_run_that_holds_its_output(full: Bench) -> None:
    result = waited(full, full.predictions / "street", "ensemble", "--workers", "0", "--wait")
    assert (result.code, result.err) == (0, "")
    assert "nothing to do" in result.out


def test_autolabel_waits_for_the_run_that_holds_its_output(full: Bench, tmp_path: Path) -> None:
    words = ("autolabel", "--write", str(tmp_path / "labels"), "--allow-empty", "--workers", "0")
    result = waited(full, tmp_path / "labels/street", *words, "--wait")
    assert (result.code, result.err) == (0, "")
    assert "6 images labelled, 0 done before, 0 failed" in result.out


def test_a_requeued_job_waits_and_others_do_not(full: Bench) -> None:
    target = full.store("street", "ant")
    child = hold(target)
    with mock.patch.dict(os.environ, {"SLURM_RESTART_COUNT": "1"}):
        assert full.run("dump", "--no-wait").refusal().startswith(f"{target}.lock: held by process {child.pid}")
        with mock.patch.object(waiting, "sleep", lambda seconds: child.communicate("\n", timeout=PATIENCE)):
            result = full.run("dump")
    assert (result.code, len(result.err.splitlines())) == (0, 1), result
    child = hold(target)
    assert full.run("dump").refusal().startswith(f"{target}.lock: held by process {child.pid}")
    child.communicate("\n", timeout=PATIENCE)


def test_a_line_a_minute_says_for_what_it_waits(full: Bench) -> None:
    target, clock = full.store("street", "ant"), [0.0]
    child = hold(target)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] == 150:
            child.communicate("\n", timeout=PATIENCE)

    with mock.patch.multiple(waiting, sleep=sleep, monotonic=lambda: clock[0]):
        result = full.run("dump", "--wait")
    assert [line.partition(":")[0] for line in result.err.splitlines()] == [
        f"waiting since {seconds} s" for seconds in (0, 60, 120)
    ]


# ------------------------------------------------------------------ two runs that start in the same moment

# Both have made their plans before either begins; whoever has a store's lock keeps it until the other has ended.
RACER = """
import os, sys, time
from pathlib import Path
from hmsa_pipeline import cli
from hmsa_pipeline.pipeline.inference.store_job import StoreJob
from hmsa_pipeline.pipeline.workers import recorded_jobs

folder = Path(sys.argv[1])
run_jobs, open_store = recorded_jobs.run_jobs, StoreJob.open

def wait_for(when):
    while not when():
        time.sleep(0.01)

def run_together(*arguments):
    (folder / f"planned-{os.getpid()}").touch()
    wait_for(lambda: len([*folder.glob("planned-*")]) == 2)
    return run_jobs(*arguments)

def open_and_hold(job):
    images = open_store(job)
    wait_for(lambda: (folder / "go").exists())
    return images

recorded_jobs.run_jobs, StoreJob.open = run_together, open_and_hold
sys.argv[:2] = ["hmsa-pipeline"]
cli.main()
"""


@pytest.mark.slow(every_change=True)
def test_of_two_runs_at_once_one_wins_and_the_other_is_told(empty: Bench, finished: Bench, tmp_path: Path) -> None:
    words = ("-c", RACER, str(tmp_path), "dump", "--workers", "0", "--manifest", str(empty.manifest))
    racers = [start_python(*words) for _ in range(2)]
    try:
        wait_for(lambda: any(racer.poll() is not None for racer in racers), 60)
    finally:
        (tmp_path / "go").touch()
        results = [ended(racer) for racer in racers]
    (loser, other), (winner, won) = sorted(zip(racers, results, strict=True), key=lambda one: -one[1].code)
    lock = f"{empty.store('street', 'ant')}.lock"
    assert other.refusal().startswith(f"{lock}: held by process {winner.pid} on "), loser
    assert (won.code, won.err) == (0, "")
    assert files(empty.logits) == files(finished.logits)


def beaten(target: Path, held: list[subprocess.Popen[str]]) -> Callable[..., bool]:
    """Takes the place of `run_jobs`: the first time, another process takes ``target`` between plan and start."""
    run_jobs = recorded_jobs.run_jobs

    def run(*arguments: Any) -> bool:
        if not held:
            held.append(hold(target))
        return run_jobs(*arguments)

    return run


@pytest.mark.parametrize("command", ["dump", "predict", "ensemble"])
def test_a_run_that_is_beaten_between_plan_and_start_begins_nothing_or_waits(
    full: Bench, finished: Bench, command: str
) -> None:
    shutil.rmtree(full.predictions if command == "ensemble" else full.output)
    target = full.store("street", "ant") if command == "dump" else full.predictions / "street"
    held: list[subprocess.Popen[str]] = []

    def made() -> dict[str, bytes]:
        """Class maps, confidences and shards; of a store's table there are files before its first image."""
        found = {name: data for name, data in files(full.output).items() if "/images/" not in name}
        return {name: data for name, data in found.items() if name.endswith(".png") or "/c." in name}

    before = made()
    with mock.patch.object(recorded_jobs, "run_jobs", beaten(target, held)):
        refusal = full.run(command).refusal()
    assert refusal.startswith(f"{target}.lock: held by process {held[0].pid} on ")
    assert made() == before
    held.pop().communicate("\n", timeout=PATIENCE)

    with (
        mock.patch.object(recorded_jobs, "run_jobs", beaten(target, held)),
        mock.patch.object(waiting, "sleep", lambda seconds: held[0].communicate("\n", timeout=PATIENCE)),
    ):
        result = full.run(command, "--wait")
    (line,) = result.err.splitlines()
    assert line.startswith(f"waiting since 0 s: {target}.lock: held by process {held[0].pid} on ")
    assert result.code == 0
    assert made().items() <= files(finished.output).items()
    assert len(made()) == len(before) + {"dump": 18, "predict": 12, "ensemble": 12}[command]


# ------------------------------------------------------------------ jobs of Slurm that are over


def commands(folder: Path, squeue: str, cluster: str = "here") -> dict[str, str]:
    """A Slurm whose squeue does as the shell lines say; what the environment holds to find it."""
    folder.mkdir()
    for name, text in (("squeue", squeue), ("scontrol", f"echo 'ClusterName             = {cluster}'")):
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{text}\n')
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def left(target: Path, **changes: object) -> None:
    """The lock of a process of another host that renewed it just now."""
    holder = {"host": "elsewhere", "machine": "another", "pid": 7, "started": "1", "since": "today", "token": "old"}
    job = {"slurm_job": "12", "slurm_restart": 0, "slurm_cluster": "here"}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f"{target.name}.lock").write_text(json.dumps(holder | job | changes))


OVER = [
    "true",
    "echo COMPLETED",
    "echo PENDING",
    "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
]
DOUBT = ["echo RUNNING", "echo COMPLETING", "echo SUSPENDED", "printf 'RUNNING\\nCOMPLETED\\n'", "exit 1"]


@pytest.mark.parametrize("squeue", OVER)
def test_the_lock_of_a_job_that_is_over_is_free(full: Bench, tmp_path: Path, squeue: str) -> None:
    left(full.store("street", "ant"))
    with mock.patch.dict(os.environ, commands(tmp_path / "bin", squeue)):
        assert full.run("dump").code == 0
    assert "--noheader --jobs=12 --format=%T" in (tmp_path / "bin/asked").read_text().splitlines()


@pytest.mark.parametrize("squeue", [*DOUBT, "sleep 7200"])
def test_in_doubt_a_lock_is_held(full: Bench, tmp_path: Path, squeue: str) -> None:
    left(full.store("street", "ant"))
    with (
        mock.patch.dict(os.environ, commands(tmp_path / "bin", squeue)),
        mock.patch("hmsa_pipeline.pipeline.storage.slurm._SECONDS", 1),
    ):
        assert "held by process 7 on elsewhere" in full.run("dump").refusal()


@pytest.mark.parametrize(
    "changes",
    [
        {"slurm_cluster": "another"},
        {"slurm_cluster": ""},
        {"slurm_job": "12; rm"},
        {"slurm_job": 12},
        {"slurm_job": None},
        {"slurm_restart": None},
    ],
)
def test_a_lock_of_another_cluster_or_of_no_job_is_held(
    full: Bench, tmp_path: Path, changes: dict[str, object]
) -> None:
    left(full.store("street", "ant"), **changes)
    with mock.patch.dict(os.environ, commands(tmp_path / "bin", "true")):
        assert "held by process 7 on elsewhere" in full.run("dump").refusal()


@pytest.mark.parametrize(("restart", "is_free"), [("1", True), ("0", False), (None, False)])
def test_the_lock_that_the_job_held_before_it_was_requeued_is_free(
    full: Bench, tmp_path: Path, restart: str | None, is_free: bool
) -> None:
    left(full.store("street", "ant"))
    job = {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "here"} | ({"SLURM_RESTART_COUNT": restart} if restart else {})
    # The same job runs now, which says nothing of its earlier start.
    with mock.patch.dict(os.environ, commands(tmp_path / "bin", "echo RUNNING") | job):
        result = full.run("dump", "--no-wait")
    assert (result.code == 0) == is_free, result


def test_a_lock_names_the_job_of_its_holder(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "here", "SLURM_RESTART_COUNT": "3"}
    target = tmp_path / "store"
    with mock.patch.dict(os.environ, job):
        child = hold(target)
    lock = json.loads((tmp_path / "store.lock").read_text())
    assert {key: value for key, value in lock.items() if key.startswith("slurm")} == {
        "slurm_job": "12",
        "slurm_restart": 3,
        "slurm_cluster": "here",
    }
    child.communicate("\n", timeout=PATIENCE)
    child = hold(target)
    assert not [key for key in json.loads((tmp_path / "store.lock").read_text()) if key.startswith("slurm")]
    child.communicate("\n", timeout=PATIENCE)
    wait_for(lambda: not (tmp_path / "store.lock").exists())
