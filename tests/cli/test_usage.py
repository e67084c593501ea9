"""What the command line itself refuses, and where figures may go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..limits import PATIENCE
from .bench import Bench, changed, ended, run, start

MISUSES: dict[tuple[str, ...], str] = {  # the words of a misuse -> the one of them that is named
    ("dunp",): "'dunp'",
    ("dump", "--modles", "ant"): "--modles",
    ("dump", "--limit", "0"): "'--limit'",
    ("ensemble", "--limit", "-3"): "'--limit'",
    ("dump", "--limit", "many"): "'--limit'",
    ("dump", "--models"): "'--models'",
    ("dump", "extra"): "(extra)",
    ("import-logits", "--model", "ant", "--dataset", "street"): "'FOLDER'",
    ("import-logits", "folder", "--dataset", "street"): "'--model'",
    ("manifest",): "command",
    ("demo", "--seed", "-1"): "'--seed'",
}


@pytest.mark.parametrize("words", MISUSES, ids=" ".join)
def test_a_misuse_gets_one_line(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    message = run(*words).refusal()
    assert MISUSES[words] in message
    assert message.endswith("; see --help")
    assert not list(tmp_path.iterdir())


def test_a_misuse_in_a_process_of_its_own() -> None:
    result = ended(start("dump", "--limit", "0"))
    assert "'--limit'" in result.refusal()


FIGURES = ["dump", "ensemble", "status", "verify", "manifest show", "manifest check"]


@pytest.mark.parametrize("command", FIGURES)
def test_figures_that_cannot_be_written_stop_a_command_before_it_begins(empty: Bench, command: str) -> None:
    (empty.root / "file").write_text("in the way")
    for place in ("file/figures.json", "photos"):
        target = str(empty.root / place)

        def attempt(target: str = target) -> None:
            message = run(*command.split(), "--manifest", str(empty.manifest), "--json", target).refusal()
            assert message.startswith(f"--json {target}: cannot be written (")

        assert changed(empty.root, attempt) == set()


def test_figures_into_a_pipe_leave_the_pipe_what_it_is(empty: Bench) -> None:
    pipe = empty.root / "pipe"
    os.mkfifo(pipe)
    process = empty.start("status", "--json", str(pipe))
    assert pipe.read_text().startswith("[")
    assert ended(process).code == 0
    assert pipe.is_fifo()


def test_an_error_in_debug_mode_keeps_its_traceback() -> None:
    process = start("--debug", "status", "--manifest", "nowhere.yaml")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "Traceback" in err
    assert "nowhere.yaml: no such manifest" in err
