"""Every option changes something, or is refused in a line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .bench import Bench, changed, run

FOLDERS = {"HMSA_DATA_ROOT": "--data-root", "HMSA_ASSETS": "--assets"}

STAGES = {  # each command that reads a manifest, with what else it needs to begin
    "dump": (),
    "predict": (),
    "ensemble": (),
    "status": (),
    "verify": (),
    "evaluate": (),
    "evaluate --per-model": (),
    "calibrate": ("--write", "new.yaml"),
    "render": ("--write", "new"),
    "report": ("--write", "new"),
    "submit": ("--samples", "samples.tar", "--output", "new.tar"),
    "submit --format cityscapes": ("--datasets", "street", "--output", "new.zip"),
    "import-logits --model ant --dataset garden .": (),
    "manifest show": (),
    "manifest check": (),
}


@pytest.mark.parametrize("flag", FOLDERS.values())
@pytest.mark.parametrize("command", STAGES)
def test_a_folder_that_no_path_asks_for_is_refused(
    full: Bench, monkeypatch: pytest.MonkeyPatch, command: str, flag: str
) -> None:
    """The manifest of `full` holds no variable."""
    monkeypatch.chdir(full.root)

    def attempt() -> None:
        said = run(*command.split(), "--manifest", str(full.manifest), *STAGES[command], flag, ".").refusal()
        assert said.startswith(f"{flag}: changes nothing")

    assert changed(full.root, attempt) == set()


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("evaluate", "--models", "ant"), "--models"),
        (("evaluate", "--predictions", "p", "--output", "o"), "--output"),
        (("evaluate", "--ground-truth", "g", "--samples", "s", "--models", "ant"), "--models"),
        (("evaluate", "--ground-truth", "g", "--samples", "s", "--datasets", "street"), "--datasets"),
        (("evaluate", "--ground-truth", "g", "--samples", "s", "--predictions", "p", "--output", "o"), "--output"),
        *(
            (("evaluate", "--ground-truth", "g", "--samples", "s", "--submission", "t", flag, "x"), flag)
            for flag in ("--output", "--models", "--datasets", "--data-root", "--assets")
        ),
        (("report", "--write", "new", "--no-members", "--models", "ant"), "--models"),
        (("submit", "--check", "t", "--data-root", "x"), "--data-root"),
        (("submit", "--samples", "s", "--output", "t", "--predictions", "p", "--assets", "x"), "--assets"),
        *(
            ((command, "--workers", "0", "--image-timeout", "5"), "--image-timeout")
            for command in ("dump", "predict", "ensemble")
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_an_option_without_effect_is_refused(
    full: Bench, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], flag: str
) -> None:
    monkeypatch.chdir(full.root)

    def attempt() -> None:
        assert (
            run(words[0], "--manifest", str(full.manifest), *words[1:])
            .refusal()
            .startswith(f"{flag}: changes nothing")
        )

    assert changed(full.root, attempt) == set()


def test_a_data_root_beside_the_root_itself_is_refused(tmp_path: Path) -> None:
    said = run("datasets", "check", "gta5", "--root", str(tmp_path), "--data-root", str(tmp_path)).refusal()
    assert said == "--data-root: changes nothing beside --root; leave it out"
    words = ("train", "--dataset", "gta5", "--root", str(tmp_path), "--data-root", str(tmp_path), "--dry-run")
    assert run(*words).refusal().startswith("--data-root: changes nothing")


FILES = [
    *((command, "--json") for command in ("status", "evaluate", "manifest check", "datasets list")),
    ("evaluate", "--csv"),
    ("calibrate", "--write"),
]


@pytest.mark.parametrize(("command", "flag"), FILES)
@pytest.mark.parametrize("place", ["photos", "manifest.yaml/below", ""])
def test_a_file_that_cannot_be_written_is_named_with_its_option(
    full: Bench, monkeypatch: pytest.MonkeyPatch, command: str, flag: str, place: str
) -> None:
    monkeypatch.chdir(full.root)
    manifest = () if command.startswith("datasets") else ("--manifest", str(full.manifest))

    def attempt() -> None:
        said = run(*command.split(), *manifest, flag, place).refusal()
        assert said.startswith(f"{flag} {place}: cannot be written (" if place else f"{flag}: an empty name")

    assert changed(full.root, attempt) == set()


@pytest.mark.parametrize("command", ["render", "report"])
@pytest.mark.parametrize("place", ["manifest.yaml", "manifest.yaml/below", "/proc/below"])
def test_a_folder_that_cannot_be_written_is_named_with_its_option(
    full: Bench, monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    monkeypatch.chdir(full.root)

    def attempt() -> None:
        said = run(command, "--manifest", str(full.manifest), "--write", place).refusal()
        assert said.startswith(f"--write {place}: cannot be written (")

    assert changed(full.root, attempt) == set()


@pytest.mark.parametrize("command", [command for command in STAGES if not command.startswith("submit")])
def test_an_output_that_is_a_file_or_below_one_is_refused_as_such(
    full: Bench, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(full.root)

    def attempt() -> None:
        for output in (full.manifest, full.manifest / "below"):
            words = (*command.split(), "--manifest", str(full.manifest), *STAGES[command])
            said = run(*words, "--output", str(output)).refusal()
            assert said.startswith(
                f"{output}: cannot be written ({full.manifest} is a file); choose another --output"
            )

    assert changed(full.root, attempt) == set()


EMPTY = {
    "evaluate": ("--predictions", "--ground-truth", "--samples", "--submission"),
    "submit": ("--samples", "--output", "--predictions", "--check"),
    "calibrate": ("--write",),
    "render": ("--write",),
    "report": ("--write", "--ground-truth"),
    "train": ("--root", "--cache"),
}


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command, flags in EMPTY.items() for flag in flags], ids=" ".join
)
def test_an_empty_name_is_blamed_on_its_own_option(command: str, flag: str) -> None:
    assert run(command, flag, "").refusal().startswith(f"{flag}: an empty name names nothing")


def test_an_empty_folder_of_logits_is_blamed_on_the_argument() -> None:
    said = run("import-logits", "--model", "ant", "--dataset", "garden", "").refusal()
    assert said.startswith("FOLDER: an empty name names nothing")
