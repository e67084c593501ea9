"""What is not as it was, or not as it was meant: photographs that changed, folders of others, empty options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from .bench import Bench, changed, run, stored
from .test_wrong_input import refused

GARDEN = ("--datasets", "garden")


# ------------------------------------------------------------------ photographs that changed or went


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--limit", "1"), ("--json", "-")], ids=" ".join)
def test_a_photograph_that_changed_stops_a_dump_before_any_job(full: Bench, options: tuple[str, ...]) -> None:
    photo = full.root / "photos/garden/deep/tree.JPG"
    before = photo.stat().st_size
    full.photo("garden/deep/tree.JPG", 40, 56, seed=9)
    assert photo.stat().st_size != before
    full.shard("street", "ant", "day/a.png").unlink()  # an earlier job has something to do
    message = refused(full, "dump", *options)
    assert message.startswith(f"{full.store('garden', 'ant')}: ")
    assert "(first: deep/tree.JPG)" in message


def test_a_photograph_that_changed_is_no_matter_to_a_dump_of_other_datasets(full: Bench) -> None:
    full.photo("garden/flower.png", 40, 56, seed=9)
    assert "nothing to do: all 12 images" in full.run("dump", "--datasets", "street").out


def test_a_photograph_of_equal_length_and_other_size_is_dumped_afresh(empty: Bench) -> None:
    photo, length = empty.root / "photos/garden/flower.png", 20_000

    def draw(height: int, width: int) -> None:
        """A photograph of ``length`` bytes: decoders pass over what follows its end."""
        content = empty.photo("garden/flower.png", height, width, seed=height).read_bytes()
        assert len(content) < length
        photo.write_bytes(content.ljust(length, b"\0"))

    for height, width in ((40, 64), (48, 56)):
        draw(height, width)
        result = empty.run("dump", "--overwrite", *GARDEN)
        assert (result.code, result.err) == (0, "")
        assert "6 images dumped, 0 complete before, 0 failed" in result.out
        for model in ("ant", "bee", "cat"):
            assert stored(empty.store("garden", model))["flower.png"].shape == (19, height, width)
        assert empty.run("ensemble", "--overwrite", *GARDEN).code == 0
        with Image.open(empty.predictions / "garden/flower_pred.png") as picture:
            assert picture.size == (width, height)


def test_a_damaged_photograph_that_was_taken_away_is_missed_by_nobody(empty: Bench) -> None:
    photo = empty.root / "photos/garden/flower.png"
    photo.write_bytes(b"no picture")
    assert empty.run("dump", *GARDEN).code == 1
    photo.unlink()
    result = empty.run("dump", *GARDEN)
    assert (result.code, result.err) == (0, "")
    assert result.out == "nothing to do: all 3 images are complete\n"
    result = empty.run("ensemble", *GARDEN)
    assert (result.code, result.err) == (0, "")
    assert "1 image fused, 0 done before, 0 failed" in result.out
    assert "nothing to do" in empty.run("ensemble", *GARDEN).out


def test_a_damaged_photograph_in_whose_place_came_another_of_its_stem(empty: Bench) -> None:
    damaged = empty.root / "photos/garden/1.png"
    damaged.write_bytes(b"no picture")
    assert empty.run("dump", *GARDEN).code == 1
    damaged.unlink()
    empty.photo("garden/1.jpg", 24, 40, seed=9)
    result = empty.run("dump", *GARDEN)
    assert (result.code, result.err) == (0, "")
    assert "3 images dumped, 6 complete before, 0 failed" in result.out
    result = empty.run("ensemble", *GARDEN)
    assert (result.code, result.err) == (0, "")
    assert "3 images fused" in result.out
    with Image.open(empty.predictions / "garden/1_pred.png") as picture:
        assert picture.size == (40, 24)


LONGEST = 255 - len("_pred.png")  # bytes of a stem whose outputs' names a disk still takes


@pytest.mark.parametrize("stem", ["x" * (LONGEST + 1), "ä" * (LONGEST // 2) + "x"])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_name_too_long_for_its_outputs_is_refused_by_name(
    empty: Bench, stem: str, options: tuple[str, ...]
) -> None:
    empty.photo(f"garden/deep/{stem}.png", 16, 24)
    assert f"deep/{stem}.png" in refused(empty, "dump", *options)


@pytest.mark.parametrize("stem", ["x" * 236, "ä" * 118])  # 240 bytes with the suffix, as much as we promise
def test_the_longest_name_that_is_taken_makes_it_through_all_stages(empty: Bench, stem: str) -> None:
    empty.photo(f"garden/deep/{stem}.png", 16, 24)
    for command in ("dump", "ensemble"):
        result = empty.run(command, "--models", "ant", *GARDEN)
        assert (result.code, result.err) == (0, "")
    assert (empty.predictions / f"garden/deep/{stem}_pred.png").exists()


# ------------------------------------------------------------------ the demo in a folder of somebody else


@pytest.mark.parametrize("content", [b"version: 1\nname: mine\n", b"no manifest: [", b"no text: \xff", b""])
def test_the_demo_leaves_somebody_elses_manifest_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.yaml").write_bytes(content)
    message = ""

    def attempt() -> None:
        nonlocal message
        message = run("demo", "--output", str(tmp_path)).refusal()

    assert changed(tmp_path, attempt) == set()
    assert str(tmp_path / "manifest.yaml") in message


def test_the_demo_leaves_a_working_manifest_alone(empty: Bench) -> None:
    assert changed(empty.root, lambda: run("demo", "--output", str(empty.root)).refusal()) == set()


# ------------------------------------------------------------------ options

COMMANDS = ("dump", "ensemble", "status", "verify", "manifest show", "manifest check")
EMPTY = [
    *(
        (command, option, value)
        for command in COMMANDS
        for option, value in (
            ("--output", ""),
            ("--data-root", ""),
            ("--assets", ""),
            ("--models", ","),
            ("--datasets", " , "),
        )
    ),
    ("import-logits --model ant --dataset garden .", "--output", ""),
    ("import-logits --model ant --dataset garden .", "--data-root", ""),
]


@pytest.fixture(scope="module")
def unfinished(finished: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """`finished` with something to do; tests must leave it as it is."""
    bench = finished.copy(tmp_path_factory.mktemp("unfinished") / "bench")
    bench.shard("garden", "ant", "flower.png").unlink()
    return bench


@pytest.mark.parametrize(("command", "option", "value"), EMPTY)
def test_an_empty_option_is_refused(
    unfinished: Bench, monkeypatch: pytest.MonkeyPatch, command: str, option: str, value: str
) -> None:
    monkeypatch.chdir(unfinished.root)

    def attempt() -> None:
        message = run(*command.split(), "--manifest", str(unfinished.manifest), option, value).refusal()
        assert message.startswith(f"{option}: ")
        assert "No such option" not in message

    assert changed(unfinished.root, attempt) == set()


def test_an_empty_folder_for_the_demo_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--output" in run("demo", "--output", "").refusal()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variable", "flag"), [("HMSA_DATA_ROOT", "--data-root"), ("HMSA_ASSETS", "--assets")], ids=lambda text: text
)
def test_every_stage_takes_the_folders_that_an_output_is_named_with(full: Bench, variable: str, flag: str) -> None:
    tree: dict[str, Any] = full.tree | {"output": f"${{{variable}}}/run"}
    full.manifest.write_text(yaml.safe_dump(tree))
    said: dict[str, Callable[[str], bool]] = {
        "status": lambda out: out.count(" / ") == 6,
        "verify": lambda out: out.startswith("18 images are sound"),
        "dump": lambda out: out.startswith("nothing to do: all 18 "),
        "ensemble": lambda out: out.startswith("nothing to do: all 6 "),
    }
    for command, is_right in said.items():
        assert variable in full.run(command).refusal()
        result = full.run(command, flag, str(full.root))
        assert (result.code, result.err) == (0, "")
        assert is_right(result.out), result.out
