"""``run.json``: what was run, kept by several processes at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline import __version__, files
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.storage.run_record import failures, gone, now, read_runs, record_gone, record_run

from ...limits import PATIENCE

WRITE = """
import sys
from pathlib import Path
from hmsa_pipeline.pipeline.storage.run_record import record_run

for number in range(20):
    record_run(Path(sys.argv[1]), "dump", f"street/{sys.argv[2]}-{number}", {}, failed={}, done=number)
"""


def test_the_time_is_in_utc_to_the_second() -> None:
    time = datetime.fromisoformat(now())
    assert time.utcoffset() == UTC.utcoffset(None)
    assert time.microsecond == 0
    assert abs((datetime.now(UTC) - time).total_seconds()) < 10


def test_a_run_is_kept_with_its_facts_its_version_and_its_manifest(tmp_path: Path) -> None:
    record_run(tmp_path / "out", "dump", "street/ant", {"version": 1}, done=3, failed={})
    runs = json.loads((tmp_path / "out" / "run.json").read_text())
    finished = runs["dump"]["street/ant"].pop("finished")
    assert datetime.fromisoformat(finished).tzinfo is not None
    assert runs == {
        "dump": {"street/ant": {"version": __version__, "done": 3, "failed": [], "manifest": {"version": 1}}}
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_a_run_takes_the_place_of_its_forerunner_and_of_no_other(tmp_path: Path) -> None:
    for done in (1, 2):
        record_run(tmp_path, "dump", "street/ant", {}, failed={}, done=done)
    record_run(tmp_path, "dump", "street/bee", {}, failed={}, done=3)
    record_run(tmp_path, "ensemble", "street", {}, failed={}, done=4)
    found = {
        (command, subject): run["done"] for command, of in read_runs(tmp_path).items() for subject, run in of.items()
    }
    assert found == {("dump", "street/ant"): 2, ("dump", "street/bee"): 3, ("ensemble", "street"): 4}


def test_processes_that_write_at_once_lose_nothing_of_one_another(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, tmp_path, str(name)]) for name in range(4)]
    assert [writer.wait(timeout=PATIENCE) for writer in writers] == [0] * 4
    runs = read_runs(tmp_path)["dump"]
    assert {subject: run["done"] for subject, run in runs.items()} == {
        f"street/{name}-{number}": number for name in range(4) for number in range(20)
    }
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"dump": 3}', "\xff"])
def test_a_damaged_record_stops_no_work(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    assert read_runs(tmp_path) == {}
    assert failures(tmp_path, "street") == {}
    record_run(tmp_path, "dump", "street/ant", {}, failed={}, done=1)
    assert read_runs(tmp_path)["dump"]["street/ant"]["done"] == 1


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    assert read_runs(tmp_path / "nowhere") == {}
    assert failures(tmp_path / "nowhere", "street") == {}


def test_failures_are_those_of_one_dataset_whoever_filled_the_store(tmp_path: Path) -> None:
    def failed(*images: str) -> dict[str, str]:
        return {image: f"{image} is odd" for image in images}

    record_run(tmp_path, "dump", "street/ant", {}, failed=failed("a.png", "b.png"))
    record_run(tmp_path, "dump", "street/bee", {}, failed=failed("b.png"))
    record_run(tmp_path, "import-logits", "street/cat", {}, failed=failed("c.png"))
    record_run(tmp_path, "dump", "street2/ant", {}, failed=failed("d.png"))
    record_run(tmp_path, "ensemble", "street", {}, failed=failed("e.png"))
    assert failures(tmp_path, "street") == {f"{name}.png": f"{name}.png is odd" for name in "abc"}
    record_run(tmp_path, "dump", "street/ant", {}, failed={})
    assert failures(tmp_path, "street").keys() == {"b.png", "c.png"}


def test_a_record_that_cannot_be_written_is_one_line_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_run(tmp_path, "dump", "street/ant", {}, failed={}, done=1)
    before = (tmp_path / "run.json").read_bytes()

    def full(_path: Path, _pieces: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "fill", full)
    with pytest.raises(StoreError, match=r"run\.json: cannot be written \(No space left on device\)"):
        record_run(tmp_path, "dump", "street/bee", {}, failed={}, done=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"run.json": before}


def test_a_run_with_nothing_to_do_leaves_the_entry_of_the_one_that_did_it(tmp_path: Path) -> None:
    record_run(tmp_path, "dump", "street/ant", {}, failed={}, done=3, seconds=7.5)
    before = (tmp_path / "run.json").read_bytes()
    record_run(tmp_path, "dump", "street/ant", {"changed": True}, failed={}, idle=True, done=0, seconds=0.1)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_run_says_nothing_of_the_failures_of_images_that_it_did_not_look_at(tmp_path: Path) -> None:
    record_run(tmp_path, "dump", "street/ant", {}, failed={"a.png": "odd", "b.png": "odd", "c.png": "odd"})
    record_run(tmp_path, "dump", "street/ant", {}, failed={"a.png": "odder"}, looked_at={"a.png", "b.png"})
    assert failures(tmp_path, "street") == {"a.png": "odder", "c.png": "odd"}
    record_run(tmp_path, "dump", "street/ant", {}, failed={}, looked_at={"a.png"}, idle=True)
    assert failures(tmp_path, "street") == {"c.png": "odd"}


def test_images_are_gone_until_the_folder_holds_them_again(tmp_path: Path) -> None:
    record_gone(tmp_path, "street", {"a.png", "b.png"}, {"c.png"})
    record_gone(tmp_path, "garden", set(), {"c.png"})
    assert (gone(tmp_path, "street"), gone(tmp_path, "garden")) == ({"a.png", "b.png"}, set())
    record_gone(tmp_path, "street", set(), {"a.png", "c.png"})
    assert gone(tmp_path, "street") == {"b.png"}
