"""Most tests call the command line in their own process: here it is held against processes as users start them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source

from .bench import TINY, Bench, ended, files, run, start


def test_dump_and_ensemble_make_the_same(empty: Bench, finished: Bench) -> None:
    for command in ("dump", "ensemble"):
        result = ended(empty.start(command, "--workers", "0"))
        assert (result.code, result.err) == (0, ""), result
    assert files(empty.logits) == files(finished.logits)
    assert files(empty.predictions) == files(finished.predictions)


@pytest.mark.parametrize(
    "words",
    [
        "predict --workers 0 --dry-run",
        "status --json -",
        "verify --models bee",
        "manifest show",
        "manifest check",
        "evaluate",
    ],
)
def test_what_is_said_is_the_same(finished: Bench, words: str) -> None:
    line = [*words.split(), "--manifest", str(finished.manifest)]
    there, here = ended(start(*line)), run(*line)
    assert there == here
    assert here.out or here.code == 2


def test_pictures_are_the_same(finished: Bench, tmp_path: Path) -> None:
    words = ("render", "--manifest", str(finished.manifest), "--limit", "1", "--datasets", "garden", "--write")
    there, here = ended(start(*words, str(tmp_path / "a"))), run(*words, str(tmp_path / "b"))
    assert (there.code, there.err) == (here.code, here.err) == (0, "")
    assert files(tmp_path / "a") == files(tmp_path / "b") != {}


def test_a_plan_of_training_is_the_same(tmp_path: Path) -> None:
    write_source(tmp_path / "data", "gta5", train=2, val=1, size=(32, 64))
    words = ("train", "--dataset", "gta5", "--data-root", str(tmp_path / "data"), "--arch", TINY, "--init", "random")
    words += ("--crop-size", "32x64", "--global-batch", "2", "--batch-size", "2")
    words += ("--workers", "0", "--device", "cpu", "--dry-run")
    words += ("--output", str(tmp_path / "run"))
    there, here = ended(start(*words)), run(*words)
    memory = re.compile(r"\d+(\.\d+)? [KMG]i?B")  # of this machine, at that moment
    assert (there.code, memory.sub("", there.out), there.err) == (0, memory.sub("", here.out), here.err)
