"""The kit for a GPU: what can be wrong without one is found here, because time on one is short."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from .limits import PATIENCE

ROOT = Path(__file__).parents[1]
KIT = ROOT / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def kit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_kit", KIT / "run.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["gpu_kit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow(every_change=True)
def test_a_rehearsal_runs_every_step(kit: ModuleType, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(KIT / "run.py"), "--out", str(tmp_path), "--rehearse"],
        capture_output=True,
        text=True,
        check=False,
    )
    results = {result["step"]: result for result in json.loads((tmp_path / "results.json").read_text())}
    assert [name for name, result in results.items() if "error" in result] == [], done.stdout
    assert list(results) == [step.name for step in kit.STEPS]
    assert done.returncode == 0, done.stdout
    failed = [row for result in results.values() for row in result["rows"] if "error" in row]
    assert failed == []
    cases = {name: [row["case"] for row in result["rows"]] for name, result in results.items()}
    assert cases["forward"] == [
        "plain eager, as research forks",
        "ours",
        "ours, cudnn.benchmark",
        "ours, CUDA graph",
    ]
    assert cases["compile"] == ["ours", "compile default", "compile default, CUDA graph"]
    assert cases["autotune"][1] == "compile max-autotune-no-cudagraphs"
    assert results["forward"]["facts"]["graph_gives_the_same_bits"]
    assert results["forward"]["rows"][1]["argmax_as_eager"] > 0.99
    assert results["train"]["rows"][0]["steps"] == 2
    assert len(cases["dump"]) == len(cases["predict"]) == len(cases["train-checkpointing"]) == 1
    assert cases["precision"] == ["fp16 against fp32", "bf16 against fp32"]
    # Every test for a GPU that there is was collected.
    assert int(re.findall(r"(\d+)(?:/\d+)? tests? collected", results["tests"]["facts"]["summary"])[0]) >= 14
    table = (tmp_path / "table.txt").read_text()
    assert table in done.stdout
    assert all(f"== {step.name} (" in table for step in kit.STEPS)
    assert json.loads((tmp_path / "steps" / "dump.json").read_text()) == results["dump"]


def test_all_limits_together_are_eight_minutes(kit: ModuleType) -> None:
    assert sum(step.seconds for step in kit.STEPS) <= 480


@pytest.fixture
def _steps_of_ours(kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the kit's steps one that hangs, with a child, after a row, one that fails, and one that does not."""
    program = tmp_path / "steps.py"
    program.write_text(
        "import json, subprocess, sys, time\n"
        "name, path = sys.argv[1], sys.argv[3]\n"
        "rows = [{'case': 'first', 'seconds': 1}]\n"
        "json.dump({'step': name, 'rows': rows, 'facts': {'card': 'x'}}, open(path, 'w'))\n"
        "if name == 'hangs':\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(7200)'])\n"
        "    print(child.pid, flush=True)\n"
        "    open(sys.argv[0].replace('steps.py', 'hanging'), 'w').close()\n"
        "    time.sleep(7200)\n"
        "if name == 'fails':\n"
        "    raise ValueError('no such thing')\n"
    )
    monkeypatch.setattr(kit, "HERE", tmp_path)
    steps = tuple(kit.Step(name, limit) for name, limit in (("hangs", 4), ("fails", PATIENCE), ("works", PATIENCE)))
    monkeypatch.setattr(kit, "STEPS", steps)


@pytest.mark.usefixtures("_steps_of_ours")
def test_one_step_that_hangs_or_fails_costs_only_itself(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(out), "--budget", str(3 * PATIENCE)])
    wait = subprocess.Popen.wait

    def limited(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        """The limit of the first step begins once its row is written, which takes a busy machine long."""
        end = time.monotonic() + PATIENCE
        while timeout == 4 and not (tmp_path / "hanging").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", limited)
    assert kit.main() == 1
    hung, failed, worked = json.loads((out / "results.json").read_text())
    assert hung["error"] == "was killed at its limit of 4 s"
    assert hung["rows"] == failed["rows"] == worked["rows"] == [{"case": "first", "seconds": 1}]
    assert failed["error"] == "exit 1: ValueError: no such thing"
    assert "Traceback" in failed["tail"]
    assert "error" not in worked
    child = Path(f"/proc/{hung['tail'].split()[0]}/stat")
    end = time.monotonic() + PATIENCE
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":  # a zombie until init looks
        assert time.monotonic() < end, "the child of a killed step lives on"
        time.sleep(0.1)
    assert "FAILED: was killed at its limit of 4 s" in capsys.readouterr().out


_COMMAND = """
import sys
sys.path.insert(0, {kit!r})
import pathlib, types, steps
sys.executable = {python!r}
steps.command(types.SimpleNamespace(work=pathlib.Path({folder!r})), "dump")
"""


def test_what_a_command_says_is_kept_although_it_is_killed(tmp_path: Path) -> None:
    """It has been passed on before the command ends, so that it stands in the step's log when both are killed."""
    command = tmp_path / "python"
    command.write_text(
        f"#!{sys.executable}\nimport sys, time\nprint('0 of 32 images')\nprint('no memory', file=sys.stderr)\n"
        "time.sleep(7200)\n"
    )
    command.chmod(0o755)
    program = _COMMAND.format(kit=str(KIT), python=str(command), folder=str(tmp_path))
    log = tmp_path / "log"
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with log.open("wb") as output:
        step = subprocess.Popen(
            [sys.executable, "-u", "-c", program], stdout=output, stderr=output, env=bare, start_new_session=True
        )
    try:
        end = time.monotonic() + PATIENCE
        while step.poll() is None and time.monotonic() < end and len(log.read_text().splitlines()) < 2:
            time.sleep(0.1)
        assert step.poll() is None, log.read_text()
    finally:
        os.killpg(step.pid, signal.SIGKILL)
        step.wait()
    assert log.read_text().splitlines() == ["0 of 32 images", "no memory"]


@pytest.mark.usefixtures("_steps_of_ours")
def test_no_step_is_begun_when_the_time_is_over(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path / "out"), "--budget", "4"])
    assert kit.main() == 1
    errors = [result.get("error") for result in json.loads((tmp_path / "out" / "results.json").read_text())]
    assert errors == ["was killed at its limit of 4 s", "no time was left", "no time was left"]


@pytest.mark.usefixtures("_steps_of_ours")
def test_a_compiler_that_was_killed_gets_what_is_left(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, int]] = []

    def run_step(step: object, seconds: float, options: Namespace, work: Path) -> dict[str, object]:
        tried.append((step.name, round(seconds)))  # type: ignore[attr-defined]
        error = {} if len(tried) > 2 else {"error": f"was killed at its limit of {seconds:.0f} s"}
        return {"step": step.name, "rows": [{"case": "x"}], "facts": {}, "seconds": 1, **error}  # type: ignore[attr-defined]

    monkeypatch.setattr(kit, "run_step", run_step)
    monkeypatch.setattr(kit, "STEPS", (kit.Step("compile", 4, again=True), kit.Step("dump", 5)))
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path), "--budget", "100"])
    assert kit.main() == 1  # dump was killed, too, and is not tried again
    assert tried == [("compile", 4), ("dump", 5), ("compile", 100)]
    assert "error" not in json.loads((tmp_path / "results.json").read_text())[0]


def test_the_wheels_to_carry_are_what_the_package_needs() -> None:
    lines = (KIT / "requirements.txt").read_text().splitlines()
    carried = {re.split("[>=<]", line)[0]: line for line in lines if not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    there = {"torch", "torchvision", "numpy", "pillow"}
    needed = {re.split("[>=<!]", line)[0] for line in project["dependencies"]} - there
    assert needed | {"tensorboard", "hypothesis", "pytest", "pytest-timeout", "setuptools"} == carried.keys()


def test_what_is_not_there_is_refused_before_anything_runs(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="2"):
        kit.main()
    assert "is not there; correct the path, or leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
