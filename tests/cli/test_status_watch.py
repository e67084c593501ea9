"""`status --watch`: how a run that goes on elsewhere gets on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.pipeline.commands.shared.live import LiveLines
from hmsa_pipeline.pipeline.storage.run_record import record_run
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock

from .bench import Bench, Result

SLEPT: list[float] = []


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What happens between two looks, in its order; after the last of them Ctrl-C is pressed."""
    steps: list[Callable[[], object]] = []
    SLEPT.clear()

    def sleep(seconds: float) -> None:
        SLEPT.append(seconds)
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)
    yield steps
    assert not steps


def looks(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.out.splitlines()]


def lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def change_lock(folder: Path, age: float = 0.0, **facts: Any) -> None:
    """Rewrite what the lock says of its holder, and when it was renewed."""
    path = lock_of(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    os.utime(path, (time.time() - age,) * 2)


def test_a_complete_run_is_said_once(finished: Bench, between: list[Any]) -> None:
    result = finished.run("status", "--watch")
    assert (result.code, result.err, SLEPT) == (0, "", [])
    (line,) = result.out.splitlines()
    assert line.split(maxsplit=1)[1] == "18/18 images; ant 6/6, bee 6/6, cat 6/6; complete"


def test_seconds_pass_from_one_look_to_the_next(empty: Bench, between: list[Any]) -> None:
    between.append(lambda: None)
    result = empty.run("status", "--watch", "2.5")
    assert (result.code, SLEPT) == (130, [2.5, 2.5])
    assert result.err == "interrupted: run the same command again\n"
    assert [line.split(maxsplit=1)[1] for line in result.out.splitlines()] == [
        "0/18 images; ant 0/6, bee 0/6, cat 0/6; "
        "waits: no run works on it; start one, or wait for a job that is queued"
    ] * 2
    assert not empty.output.exists()
    said = empty.run("status", "2.5").refusal()
    assert said == "SECONDS: changes nothing without --watch; leave it out"


def test_a_run_is_followed_until_it_is_complete(full: Bench, between: list[Any]) -> None:
    store, images = full.store("street", "ant"), ["day/a.png", "day/b.jpg", "night/c.png", "night/d.png"]
    aside = full.root / "aside"
    aside.mkdir()
    shards = [full.shard("street", "ant", image) for image in images]
    begin = time.time() - 1000
    for number, shard in enumerate(shards):
        os.utime(shard, (begin + 10 * number,) * 2)
    for model in ("ant", "bee", "cat"):
        for dataset in ("street", "garden"):
            for shard in full.store(dataset, model).glob("*/c.*"):
                if shard not in shards:
                    os.utime(shard, (begin - 5000,) * 2)
    for number in (2, 3):
        shards[number].rename(aside / str(number))
    with contextlib.ExitStack() as stack:
        stack.enter_context(writer_lock(store))
        between += [
            lambda: (aside / "2").rename(shards[2]),
            lambda: (aside / "3").rename(shards[3]),
            stack.close,
        ]
        result = full.run("status", "--watch", "--json", "-")
    assert result.code == 0
    said = looks(result)
    assert [look["total"]["done"] for look in said] == [16, 17, 18, 18]
    assert [look["models"][0]["done"] for look in said] == [4, 5, 6, 6]
    assert {look["total"]["total"] for look in said} == {18}
    # One image every ten seconds, by the times of the shards.
    assert [look["models"][0]["rate"] for look in said] == [*[pytest.approx(0.1)] * 3, None]
    assert [look["models"][1]["rate"] for look in said] == [None] * 4
    assert [look["total"]["seconds_left"] for look in said] == [*map(pytest.approx, (20, 10, 0)), None]
    assert said[0]["models"][0]["state"].startswith(f"street, process {os.getpid()} on ")
    assert [look["complete"] for look in said] == [False, False, False, True]
    assert "0.10 images/s, 00:20 left" in result.err.splitlines()[0]


def test_json_goes_to_a_file_line_by_line(empty: Bench, between: list[Any]) -> None:
    between.append(lambda: None)
    target = empty.root / "looks.json"
    target.write_text("of another run")
    assert empty.run("status", "--watch", "--json", str(target)).code == 130
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [look["total"]["total"] for look in found] == [18, 18]


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ({"pid": 2**22 + 1}, r"street/ant: its run (process 4194305 on {host}) has died; run the same command again"),
        (
            {"host": "node7", "machine": "another"},
            "street/ant: process {pid} on node7 is alive and has written no image for {quiet} s: its workers are "
            "starting, gone or stuck, or one image takes long",
        ),
        (
            {"host": "node7", "machine": "another", "age": 120},
            "street/ant: no sign of life of process {pid} on node7 for 120 s; its lock is free after 300 s",
        ),
    ],
)
def test_it_says_what_the_run_waits_for(full: Bench, between: list[Any], lock: dict[str, Any], said: str) -> None:
    store = full.store("street", "ant")
    for image in ("day/a.png", "day/b.jpg"):
        os.utime(full.shard("street", "ant", image), (time.time() - 200,) * 2)
    for image in ("night/c.png", "night/d.png"):
        full.shard("street", "ant", image).unlink()
    with writer_lock(store):
        host = json.loads(lock_of(store).read_text())["host"]
        change_lock(store, **{"since": "2020-01-01T00:00:00+00:00"} | lock)
        result = full.run("status", "--watch", "--json", "-")
        lock_of(store).unlink()
    (look,) = looks(result)
    (sentence,) = look["waits"]
    expected = said.replace("{host}", host).replace("{pid}", str(os.getpid()))
    if "{quiet}" in expected:
        before, after = expected.split("{quiet}")
        assert sentence.startswith(before) and sentence.endswith(after)
        assert 199 <= int(sentence.removeprefix(before).removesuffix(after)) <= 215
    else:
        assert sentence.replace(" 121 s", " 120 s").replace(" 122 s", " 120 s") == expected


def test_a_fusion_is_followed_too(full: Bench, between: list[Any]) -> None:
    folder = full.predictions / "street"
    away = next(folder.rglob("*_conf.png"))
    content = away.read_bytes()
    away.unlink()
    with contextlib.ExitStack() as stack:
        stack.enter_context(writer_lock(folder))
        between += [lambda: away.write_bytes(content), stack.close]
        result = full.run("status", "--watch", "--json", "-")
    assert result.code == 0
    rows = [look["models"][-1] for look in looks(result)]
    assert [(row["name"], row["done"], row["total"]) for row in rows[:2]] == [
        ("predictions", 3, 4),
        ("predictions", 4, 4),
    ]
    assert rows[2]["name"] == "cat"


def test_predictions_without_stores_are_a_run_too(full: Bench, between: list[Any]) -> None:
    shutil.rmtree(full.logits)
    next(full.predictions.rglob("*_pred.png")).unlink()
    (look,) = looks(full.run("status", "--watch", "--json", "-"))
    assert [(row["name"], row["done"], row["total"]) for row in look["models"]] == [("predictions", 5, 6)]
    assert not look["complete"]


def test_failed_images_end_it_with_their_exit_code(full: Bench, between: list[Any]) -> None:
    full.shard("street", "ant", "day/a.png").unlink()
    record_run(full.output, "dump", "street/ant", {}, failed={"day/a.png": "is no image"})
    result = full.run("status", "--watch")
    assert (result.code, SLEPT) == (1, [])
    assert "ant 5/6" in result.out and result.out.endswith("; complete\n")


def test_a_terminal_shows_the_last_look_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "4")
    stream = Terminal()
    live = LiveLines(stream)
    live.show(["one", "x" * 40], "brief")
    assert stream.getvalue() == f"\rone\x1b[K\n{'x' * 19}\x1b[K\n\x1b[J"
    begin = stream.tell()
    live.show(list("abcde"), "brief")
    assert stream.getvalue()[begin:] == "\x1b[2A\ra\x1b[K\nb\x1b[K\n... 3 more lines\x1b[K\n\x1b[J"
    begin = stream.tell()
    live.show(["end"], "brief")
    assert stream.getvalue()[begin:] == "\x1b[3A\rend\x1b[K\n\x1b[J"
