"""Progress: bars on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from hmsa_pipeline.pipeline.runtime import progress as progress_module
from hmsa_pipeline.pipeline.runtime.progress import LOG_SECONDS, Progress


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_log_gets_a_line_every_thirty_seconds_with_rate_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100) as progress:
        progress.job("street/ant", 60)
        for _ in range(60):
            clock.now += 1.0
            progress.advance()
        progress.job("street/bee", 40)
        for _ in range(30):
            clock.now += 1.0
            progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "street/ant 30/60, total 30/100 images, 1.00 images/s, 01:10 left",
        "street/ant 60/60, total 60/100 images, 1.00 images/s, 00:40 left",
        "street/bee 30/40, total 90/100 images, 1.00 images/s, 00:10 left",
    ]


def test_one_slow_image_gets_one_line_however_long_it_took(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "tile") as progress:
        progress.job("street/ant", 3)
        clock.now += 100 * LOG_SECONDS
        progress.advance()
        progress.advance()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "street/ant 1/3, total 1/3 tiles, 0.00 tiles/s, 1:40:00 left"


def test_short_work_and_no_work_say_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(0) as progress:
        progress.job("street/ant", 0)
    with Progress(2) as progress:
        progress.job("street/ant", 2)
        progress.advance()
        clock.now += 1
        progress.advance()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_two_bars_and_notes_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(progress_module.sys, "stderr", terminal)
    with Progress(5) as progress:
        progress.job("street/ant", 2)
        progress.advance()
        progress.advance()
        progress_module.say("interrupted: 2 are done")
        progress.job("street/bee", 3)
        for _ in range(3):
            progress.advance()
    shown = terminal.getvalue()
    assert re.search(r"total: 100%.* 5/5 ", shown)
    assert re.search(r"street/ant:.* 0/2 ", shown)
    assert re.search(r"street/bee:.* 0/3 ", shown)
    assert "interrupted: 2 are done\n" in shown


def test_a_line_stays_short_however_many_workers_there_are(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(500) as progress:
        for number in range(32):
            job = "bravo_outofcontext/cityscapes" if number % 4 else "bravo_ACDC/bdd100k"
            progress.job(job, 10, f"node{number // 8}-{number % 8}")
        for worker in ("node3-7", "node3-6", "nobody"):
            progress.drop(worker)
        clock.now += 31
        progress.advance(20)
        for job in range(30):
            progress.job(f"dataset{job}/" + "model" * 20, 10, f"node{job // 8}-{job % 8}")
        clock.now += 31
        progress.advance()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "22 workers bravo_outofcontext/cityscapes, 8 workers bravo_ACDC/bdd100k, total 20/500 images"
    )
    assert second.startswith("30 workers, total 21/500 images")
    assert max(len(first), len(second)) < 120


def test_a_note_is_a_line_of_its_own_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1):
        progress_module.say("a line")
    assert capsys.readouterr() == ("", "a line\n")
