"""Jobs of ``cluster slurm`` on a real Slurm."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
from hmsa_pipeline.pipeline.storage.slurm import job_is_over

from ..cli.bench import Bench, files, run
from ..cli.faults import wait_for
from ..cli.test_workers import record, shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CPUS = ("--device", "cpu", "--workers-per-node", "1", "--cpus-per-worker", "1", "--time", "50")
# Workers read photographs slowly, so that a job is still at work when something happens to it.
SLOW = """
import multiprocessing, os, pathlib, time

_whole = pathlib.Path.open

def _slowly(path, *arguments, **options):
    if path.suffix == ".png" and "photos" in path.parts and multiprocessing.parent_process() is not None:
        (pathlib.Path(__file__).parent / f"reading-{{os.getpid()}}").touch()
        time.sleep({seconds})
    return _whole(path, *arguments, **options)

pathlib.Path.open = _slowly
"""


def slowly(folder: Path, seconds: float) -> tuple[str, str]:
    """Options of a job whose workers read slowly."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW.format(seconds=seconds))
    return ("--setup", f"export PYTHONPATH={shlex.quote(str(site))}")


class Job:
    """A submitted job."""

    def __init__(self, bench: Bench, folder: Path, *options: str) -> None:
        words = ("cluster", "slurm", "--manifest", str(bench.manifest), "--folder", str(folder), *CPUS, *options)
        result = run(*words, "--submit", "--json", str(folder / "job.json"))
        assert (result.code, result.err) == (0, ""), result
        self.number: str = json.loads((folder / "job.json").read_text())["job"]
        self._log = Path(json.loads((folder / "job.json").read_text())["log"])
        self.file = str(folder / f"scheduler-{self.number}.json")
        assert result.out == f"submitted as job {self.number}; it writes to {self._log}\n"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def shown(self) -> Mapping[str, str]:
        """What Slurm says of the job."""
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", self.number], capture_output=True, text=True, check=True
        )
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    @property
    def state(self) -> str:
        return self.shown()["JobState"]

    def wait(self, until: Callable[[], bool], seconds: float = 900) -> None:
        try:
            wait_for(until, seconds)
        except AssertionError:
            pytest.fail(f"{self.shown()}\n{self.log}")

    def ended(self, seconds: float = 900) -> str:
        """Wait for its end; its state and exit code."""
        self.wait(lambda: self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"), seconds)
        shown = self.shown()
        self.wait(lambda: not self.processes(), 120)
        return f"{shown['JobState']} {shown['ExitCode']}"

    def processes(self) -> list[list[str]]:
        """Processes of it that are there."""
        found = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
        return [words for words in found if any(self.file in word for word in words)]

    def let_time_run_out(self) -> None:
        """Set the time limit to two or three minutes from now, however long the job has been running."""
        hours, minutes, _ = map(int, self.shown()["RunTime"].split(":"))
        self._update(f"TimeLimit={60 * hours + minutes + 3}")

    def requeue_now(self) -> None:
        """Slurm waits two minutes before it starts a requeued job again.

        In the second of the requeue the nodes would refuse it: "Job credential revoked".
        """
        time.sleep(5)
        self._update("StartTime=now", "TimeLimit=50")

    def _update(self, *changes: str) -> None:
        subprocess.run(["scontrol", "update", f"JobId={self.number}", *changes], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "a job's folder"
    made.mkdir()
    return made


def locks(bench: Bench) -> list[str]:
    return [path.name for path in bench.output.rglob("*.lock")]


def test_two_nodes_make_what_one_process_makes(slurm: Path, bench: Bench, reference: Bench, folder: Path) -> None:
    with socket.socket() as taken:  # the port that Dask would take
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", 8786))
        taken.listen()
        job = Job(bench, folder, "--nodes", "2", "--run", "dump,ensemble")
        assert job.ended() == "COMPLETED 0:0", job.log
    assert files(bench.logits) == files(reference.logits)
    assert files(bench.predictions) == files(reference.predictions)
    hands = {name for model in ("ant", "bee") for name in record(bench)[f"street/{model}"]["workers"]}
    assert hands == {"a-0", "b-0"}
    begun = [line.partition(" starts on ")[0] for line in job.log.splitlines() if " starts on " in line]
    assert sorted(begun) == ["0: worker a-0", "1: worker b-0"]
    # Neither Dask's messages nor its tracebacks stand between those of the run.
    assert not re.search(r"distributed|Traceback", job.log), job.log
    assert not list(folder.glob("scheduler-*.json"))


def test_each_worker_has_a_gpu_of_its_own(slurm: Path, bench: Bench, folder: Path) -> None:
    words = ("--gpus-per-node", "2", "--cpus-per-gpu", "1", "--nodes", "2", "--time", "50", "--run", "dump")
    where = ("--manifest", str(bench.manifest), "--folder", str(folder), "--json", str(folder / "job.json"))
    result = run("cluster", "slurm", *where, *words, "--submit")
    assert result.code == 0, result
    said = json.loads((folder / "job.json").read_text())
    log, file = Path(said["log"]), str(folder / f"scheduler-{said['job']}.json")
    seen: dict[str, str] = {}

    def ended() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if file in words and "--name" in words:
                with contextlib.suppress(psutil.NoSuchProcess):
                    seen[words[words.index("--name") + 1]] = process.environ().get("CUDA_VISIBLE_DEVICES", "")
        return log.exists() and "error: --device" in log.read_text()

    wait_for(ended, 900)
    assert seen == {"a-0": "0", "a-1": "1", "b-0": "0", "b-1": "1"}
    # They are no real ones, which the run says, and by which names.
    assert re.search(r"^error: --device cuda: no worker has a GPU \([ab]-[01], ", log.read_text(), re.MULTILINE)


def test_a_cancelled_job_is_not_requeued_and_the_next_goes_on(
    slurm: Path, bench: Bench, reference: Bench, folder: Path
) -> None:
    job = Job(bench, folder, "--nodes", "2", *slowly(folder, 0.5))
    job.wait(lambda: shards(bench) >= 3)
    subprocess.run(["scancel", job.number], check=True)
    assert job.ended().startswith("CANCELLED"), job.log
    assert locks(bench) == []
    assert "goes back into the queue" not in job.log
    left = shards(bench)
    assert 3 <= left < shards(reference)
    job = Job(bench, folder, "--nodes", "2")
    assert job.ended() == "COMPLETED 0:0", job.log
    assert files(bench.logits) == files(reference.logits)
    assert files(bench.predictions) == files(reference.predictions)


def test_a_killed_worker_costs_nothing(slurm: Path, bench: Bench, reference: Bench, folder: Path) -> None:
    job = Job(bench, folder, "--nodes", "2", *slowly(folder, 0.3))
    job.wait(lambda: shards(bench) >= 3)
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if job.file in words and words[-2:] == ["--name", "b-0"]:
            for one in (process, *process.children(recursive=True)):
                one.kill()
    assert job.ended() == "COMPLETED 0:0", job.log
    assert files(bench.logits) == files(reference.logits)
    assert files(bench.predictions) == files(reference.predictions)


def test_near_the_time_limit_a_job_is_requeued_until_all_is_done(
    slurm: Path, bench: Bench, reference: Bench, folder: Path
) -> None:
    job = Job(bench, folder, "--nodes", "2", "--grace", "120", *slowly(folder, 15))
    job.wait(lambda: shards(bench) >= 1)
    job.let_time_run_out()
    job.wait(lambda: "goes back into the queue" in job.log)
    assert locks(bench) == []
    job.wait(lambda: job.state == "PENDING")
    assert 0 < shards(bench) < shards(reference)
    (folder / "site/sitecustomize.py").unlink()
    job.requeue_now()
    assert job.ended() == "COMPLETED 0:0", job.log
    assert job.shown()["Restarts"] == "1"
    assert files(bench.logits) == files(reference.logits)
    assert files(bench.predictions) == files(reference.predictions)


def test_a_run_that_does_not_stop_in_time_is_ended_and_goes_on(
    slurm: Path, bench: Bench, reference: Bench, folder: Path
) -> None:
    job = Job(bench, folder, "--nodes", "2", "--grace", "120", *slowly(folder, 600))
    job.wait(lambda: len(list((folder / "site").glob("reading-*"))) == 2)
    job.let_time_run_out()
    job.wait(lambda: "goes back into the queue" in job.log)
    assert "error: the images in work are not complete after 80 s; ask for a longer --grace" in job.log
    job.wait(lambda: job.state == "PENDING")
    assert len(locks(bench)) == 2  # of the process that was killed
    (folder / "site/sitecustomize.py").unlink()
    job.requeue_now()
    assert job.ended() == "COMPLETED 0:0", job.log
    assert files(bench.logits) == files(reference.logits)
    assert files(bench.predictions) == files(reference.predictions)


def test_a_job_that_makes_room_for_a_more_urgent_one_is_requeued(
    slurm: Path, bench: Bench, reference: Bench, folder: Path
) -> None:
    job = Job(bench, folder, "--nodes", "2", *slowly(folder, 5))
    job.wait(lambda: shards(bench) >= 1)
    urgent = ["srun", "--partition=urgent", "--nodes=2", "--exclusive", "true"]
    subprocess.run(urgent, check=True, capture_output=True, timeout=900)
    job.wait(lambda: job.state == "PENDING")
    assert "Slurm takes the nodes back for another job" in job.log
    assert locks(bench) == []
    (folder / "site/sitecustomize.py").unlink()
    job.requeue_now()
    assert job.ended() == "COMPLETED 0:0", job.log
    assert files(bench.logits) == files(reference.logits)
    assert files(bench.predictions) == files(reference.predictions)


def test_two_submissions_at_once_run_one_after_the_other(
    slurm: Path, bench: Bench, reference: Bench, folder: Path
) -> None:
    first, second = (Job(bench, folder, *slowly_once(folder)) for _ in range(2))
    first.wait(lambda: shards(bench) >= 3)
    assert (second.state, second.shown()["Reason"]) == ("PENDING", "Dependency")
    assert first.ended() == "COMPLETED 0:0", first.log
    assert second.ended() == "COMPLETED 0:0", second.log
    assert "nothing to do: all 48 images are complete" in second.log
    assert files(bench.logits) == files(reference.logits)


def slowly_once(folder: Path) -> tuple[str, ...]:
    return () if (folder / "site").exists() else slowly(folder, 0.3)


def test_the_scheduler_of_another_job_is_refused(slurm: Path, bench: Bench, folder: Path) -> None:
    job = Job(bench, folder, *slowly(folder, 1))
    file = folder / f"scheduler-{job.number}.json"
    job.wait(lambda: shards(bench) >= 1)
    command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", "dump"]
    done = subprocess.run(
        ["srun", "--nodes=1", "--nodelist=b", *command, "--manifest", bench.manifest, "--scheduler", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert f"--scheduler {file}: belongs to Slurm job {job.number}, and this is job " in done.stderr
    subprocess.run(["scancel", job.number], check=True)
    job.ended()


def test_slurm_says_which_jobs_are_over(slurm: Path, bench: Bench, folder: Path) -> None:
    holder = {"slurm_restart": 0, "slurm_cluster": "tests"}
    job = Job(bench, folder, *slowly(folder, 1))
    job.wait(lambda: job.state == "RUNNING")
    assert not job_is_over(holder | {"slurm_job": job.number})
    assert not job_is_over(holder | {"slurm_job": job.number, "slurm_cluster": "another"})
    subprocess.run(["scancel", job.number], check=True)
    job.ended()
    wait_for(lambda: job_is_over(holder | {"slurm_job": job.number}), 30)
    assert job_is_over(holder | {"slurm_job": "99999"})


def test_a_scheduler_that_cannot_start_ends_the_job(slurm: Path, bench: Bench, folder: Path) -> None:
    job = Job(bench, folder, "--interface", "nosuch0")
    assert job.ended() == "FAILED 1:0", job.log
    assert "error: the Dask scheduler ended before it began" in job.log
