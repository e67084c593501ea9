"""What a command says arrives wherever its output goes and however it ends; the exit code is that of its work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from ..limits import PATIENCE
from .bench import Bench

LIST = ("-m", "hmsa_pipeline.cli", "datasets", "list", "gta5")
REFUSED = ("-m", "hmsa_pipeline.cli", "datasets", "list", "no-such-dataset")

# `datasets list` that says one line and then ends as told.
_ENDING = """
import os, signal, sys, time
from hmsa_pipeline import cli
from hmsa_pipeline.pipeline.dataset_tools import guide

def known_sources(names):
    print("said before the end")
    {end}

guide.known_sources = known_sources
sys.argv = ["hmsa-pipeline", "datasets", "list"]
cli.main()
"""


def ending(end: str) -> tuple[str, str]:
    return "-c", _ENDING.format(end=end)


INTERRUPTED = ending("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
KILLED = ending("os.kill(os.getpid(), signal.SIGKILL)")


def python(
    arguments: Sequence[str], out: int | IO[Any], err: int | IO[Any] = subprocess.PIPE, **env: str
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of Python; PYTHONUNBUFFERED is set only by ``env``."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONUNBUF")}
    plain |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-P", *arguments], stdout=out, stderr=err, text=True, env=plain | env, timeout=PATIENCE
    )
    return done.returncode, done.stdout or "", done.stderr or ""


# ------------------------------------------------------------------ long work that is interrupted

_SECOND_IMAGE = """
import itertools, os, signal
from hmsa_pipeline import cli
from hmsa_pipeline.pipeline.inference import predictor

normalise, calls = predictor.normalise, itertools.count(1)

def call(*arguments, **options):
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return normalise(*arguments, **options)

predictor.normalise = call
cli.main()
"""


def test_an_interrupted_run_writes_its_summary_into_a_file(empty: Bench, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        command = ("predict", "--workers", "0", "--manifest", str(empty.manifest))
        assert python(["-c", _SECOND_IMAGE, *command], log, log)[0] == 130
    text = (tmp_path / "log").read_text()
    assert re.search(r"^\d images? predicted, 0 done before, 0 failed", text, re.MULTILINE)
    assert text.splitlines()[-1] == "interrupted: what is complete is kept; run the same command again to go on"


@pytest.mark.parametrize("env", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(("how", "code"), [(INTERRUPTED, 130), (KILLED, -signal.SIGKILL)], ids=["Ctrl-C", "kill -9"])
@pytest.mark.parametrize("file", [False, True], ids=["pipe", "file"])
def test_what_was_said_is_there_however_the_process_ends(
    tmp_path: Path, how: Sequence[str], code: int, file: bool, env: dict[str, str]
) -> None:
    with (tmp_path / "out").open("w") as out:
        result = python(how, out if file else subprocess.PIPE, **env)
    said = (tmp_path / "out").read_text() if file else result[1]
    assert (result[0], said) == (code, "said before the end\n")


def test_a_second_interruption_leaves_no_traceback() -> None:
    code, out, err = python(ending("[os.kill(os.getpid(), n) for n in (2, 15)]; time.sleep(60)"), subprocess.PIPE)
    assert (code, out, err) == (130, "said before the end\n", "interrupted: run the same command again\n")


# ------------------------------------------------------------------ nobody reads, or nobody can


@pytest.mark.parametrize(
    ("arguments", "code"), [(LIST, 0), (REFUSED, 2), (INTERRUPTED, 130)], ids=["done", "refused", "interrupted"]
)
@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
def test_a_reader_that_has_left_does_not_change_the_exit_code(
    arguments: Sequence[str], code: int, closed: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        out, err = (writer if closed in (name, "both") else subprocess.PIPE for name in ("stdout", "stderr"))
        result = python(arguments, out, err)
    finally:
        os.close(writer)
    assert result[0] == code
    for line in result[2].splitlines():
        assert line.startswith(("error: no-such-dataset", "interrupted: ")) and "pipe" not in line


def test_a_reader_that_leaves_early_does_not_change_the_exit_code() -> None:
    assert python([*LIST, "--json", "/dev/stdout"], subprocess.PIPE)[0] == 0
    command = 'set -o pipefail; "$0" -P -m hmsa_pipeline.cli datasets list --json /dev/stdout | head -n 1'
    done = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_under_standard_output_is_an_error_that_is_said_once() -> None:
    with Path("/dev/full").open("w") as full:
        code, _, err = python(LIST, full)
        assert (code, len(err.splitlines())) == (2, 1)
        assert err.startswith("error: standard output: No space left on device")
        assert python(INTERRUPTED, full)[0] in (2, 130)
        assert python(REFUSED, subprocess.PIPE, full)[0] == 2


@pytest.mark.parametrize("shut", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_before_the_start_swallows_what_it_is_given(tmp_path: Path, shut: str) -> None:
    figures = tmp_path / "figures.json"
    command = f'"$0" -P -m hmsa_pipeline.cli datasets list gta5 --json "$1" {shut}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(figures)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(figures.read_text())[0]["name"] == "gta5"


def test_without_standard_error_nothing_slips_between_the_figures() -> None:
    command = '"$0" -P -m hmsa_pipeline.cli datasets list gta5 --json - 2>&-'
    done = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, text=True, timeout=PATIENCE)
    assert json.loads(done.stdout)[0]["name"] == "gta5"


def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    name = tmp_path / "stra\u00dfe"
    words = ["datasets", "draw", "gta5", "--output", str(name), "--train", "1", "--val", "1", "--size", "32x64"]
    code, out, err = python(["-m", "hmsa_pipeline.cli", *words], subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert "stra\\xdfe" in out
