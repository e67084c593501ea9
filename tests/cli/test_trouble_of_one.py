"""One store, image or job of many in trouble: the others are done, and what is known of them is kept."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.inference import networks, store_job
from hmsa_pipeline.pipeline.inference.predictor import Predictor
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from hmsa_pipeline.pipeline.store.shard_writer import ShardWriter
from PIL import Image
from torch import Tensor

from .bench import Bench, attributes, changed, files
from .test_interruptions import interrupt_at
from .test_wrong_input import refused

GARDEN = ("--datasets", "garden")
ODD_SIZE = (33, 57)  # of night/c.png alone


# ------------------------------------------------------------------ starting afresh, cut short


def test_a_dump_afresh_that_was_cut_short_goes_on_without_overwrite(
    full: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    street = files(full.logits / "street")
    full.tree["inference"]["scales"] = [1.0]
    full.save()
    with monkeypatch.context() as patch:
        # The first image of the second of three jobs.
        interrupt_at(patch, "pipeline.inference.predictor.normalise", 3)
        assert full.run("dump", "--overwrite", *GARDEN).code == 130
    assert attributes(full.store("garden", "ant"))["scales"] == [1.0]
    assert not full.store("garden", "cat").exists()
    assert len(list(full.store("garden", "bee").glob("*/c.*"))) == 1  # the image in flight is finished
    assert [path.name for path in full.logits.rglob("*") if ".lock" in path.name] == []

    result = full.run("dump", *GARDEN)
    assert (result.code, result.err) == (0, "")
    assert "3 images dumped, 3 complete before, 0 failed" in result.out
    assert [attributes(full.store("garden", name))["scales"] for name in ("ant", "bee", "cat")] == [[1.0]] * 3
    assert files(full.logits / "street") == street


def test_an_ensemble_afresh_that_was_cut_short_goes_on_without_overwrite(
    full: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, entropy = full.root / "other", ("--confidence", "entropy")
    other.mkdir()
    (other / "logits").symlink_to(full.logits)
    assert full.run("ensemble", *entropy, "--output", str(other)).code == 0
    with monkeypatch.context() as patch:
        # Of the first dataset; none of the second is begun.
        interrupt_at(patch, "pipeline.fusion.member_stores.fuse", 1)
        assert full.run("ensemble", "--overwrite", *entropy).code == 130
    assert not list((full.predictions / "garden").rglob("*.png"))

    result = full.run("ensemble", *entropy)
    assert (result.code, result.err) == (0, "")
    assert files(full.predictions) == files(other / "predictions")


# ------------------------------------------------------------------ locks


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_store_locked_beforehand_stops_all_before_anything_starts(full: Bench, options: tuple[str, ...]) -> None:
    full.shard("street", "ant", "day/a.png").unlink()
    full.shard("garden", "cat", "flower.png").unlink()
    store = full.store("garden", "cat")
    with writer_lock(store):
        assert refused(full, "dump", *options).startswith(f"{store}.lock: held by process {os.getpid()} on ")


def test_a_store_locked_later_is_reported_and_the_others_are_done(
    empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, load = empty.store("garden", "ant"), Predictor.__init__
    with contextlib.ExitStack() as somebody_else, monkeypatch.context() as patch:

        def load_and_lock(self: Predictor, *arguments: Any) -> None:
            patch.setattr(Predictor, "__init__", load)
            somebody_else.enter_context(writer_lock(store))
            load(self, *arguments)

        patch.setattr(Predictor, "__init__", load_and_lock)
        networks.LoadedNetworks.key = None  # what an earlier run in this process has loaded
        result = empty.run("dump", "--models", "ant,bee", "--limit", "2")
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith(f"failed: garden/ant: {store}.lock: held by process {os.getpid()} on ")
    assert not store.exists()
    for job in ("street/ant", "street/bee", "garden/bee"):
        assert f"{job}: 2 done, 0 complete before, 0 failed" in result.out
    assert "6 images dumped" in result.out

    result = empty.run("dump", "--models", "ant,bee", "--limit", "2")
    assert (result.code, result.err) == (0, "")
    assert "2 images dumped, 6 complete before, 0 failed" in result.out


def locked(store: Path) -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """Takes the place of `writer_lock`: that of one store cannot be had."""

    def lock(target: Path) -> contextlib.AbstractContextManager[None]:
        if target == store:
            raise StoreError(f"{store}.lock: held by process 1 on elsewhere")
        return writer_lock(target)

    return lock


# ------------------------------------------------------------------ memory and disk

MEMORY = {
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 98765432100 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": MemoryError(),
}


def fail_on_the_odd_one(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the network fail on night/c.png."""
    predict = Predictor.__call__

    def fail(self: Predictor, image: Tensor) -> Tensor:
        if tuple(image.shape[1:]) == ODD_SIZE:
            raise error
        return predict(self, image)

    patch.setattr(Predictor, "__call__", fail)


def assert_the_odd_one_failed(bench: Bench, *options: str) -> None:
    result = bench.run("dump", "--models", "ant", *options)
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith("failed: street/ant: night/c.png: ")
    assert "memory" in line
    assert "street/ant: 3 done, 0 complete before, 1 failed" in result.out
    assert "5 images dumped, 0 complete before, 1 failed" in result.out


@pytest.mark.parametrize("whose", MEMORY)
def test_an_image_too_large_for_the_memory_is_listed_and_the_others_are_done(
    empty: Bench, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    with monkeypatch.context() as patch:
        fail_on_the_odd_one(patch, MEMORY[whose])
        assert_the_odd_one_failed(empty)
    result = empty.run("dump", "--models", "ant")
    assert (result.code, result.err) == (0, "")
    assert "1 image dumped, 5 complete before, 0 failed" in result.out


def test_an_image_too_large_to_decode_is_listed_and_the_others_are_done(
    empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Image.open

    def fail(*arguments: Any, **options: Any) -> Image.Image:
        image = opened(*arguments, **options)
        if image.size == ODD_SIZE[::-1]:
            raise MemoryError
        return image

    monkeypatch.setattr(Image, "open", fail)
    assert_the_odd_one_failed(empty)


def test_another_error_of_the_network_is_no_lack_of_memory(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_the_odd_one(monkeypatch, RuntimeError("The size of tensor a must match the size of tensor b"))
    result = empty.run("dump", "--models", "ant", "--datasets", "street")
    assert result.code == 1
    assert "raised RuntimeError: The size of tensor a must match the size of tensor b" in result.err
    assert "does not fit" not in result.err


def test_a_disk_that_fills_up_later_leaves_the_lines_of_the_jobs_before(
    empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, store = ShardWriter.write, empty.store("garden", "ant")

    def fail(self: ShardWriter, *arguments: Any) -> None:
        if self.path == store:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, *arguments)

    monkeypatch.setattr(ShardWriter, "write", fail)
    result = empty.run("dump", "--models", "ant,bee")
    assert result.code == 2
    assert result.out.startswith("street/ant: 4 done, 0 complete before, 0 failed, ")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert "No space left on device" in line
    assert not empty.store("street", "bee").exists()


# ------------------------------------------------------------------ the record of runs


def record(bench: Bench) -> dict[str, Any]:
    """What ``run.json`` says of the dumps."""
    return json.loads((bench.output / "run.json").read_text())["dump"]


def test_a_dump_with_nothing_to_do_leaves_the_record_as_it_is(full: Bench) -> None:
    before = (full.output / "run.json").read_bytes()
    assert "nothing to do" in full.run("dump").out
    assert (full.output / "run.json").read_bytes() == before


def test_only_the_job_that_had_something_to_do_is_recorded_anew(full: Bench) -> None:
    before = record(full)
    full.shard("garden", "bee", "flower.png").unlink()
    assert full.run("dump").code == 0
    after = record(full)
    assert [job for job in before if after[job] != before[job]] == ["garden/bee"]
    assert (after["garden/bee"]["done"], after["garden/bee"]["failed"]) == (1, [])


def test_a_dump_of_the_first_images_keeps_the_reasons_of_later_failures(empty: Bench) -> None:
    photo, chosen = empty.root / "photos/garden/flower.png", ("--models", "ant", *GARDEN)
    sound = photo.read_bytes()
    photo.write_bytes(bytes(len(sound)))
    assert empty.run("dump", *chosen).code == 1
    reasons = record(empty)["garden/ant"]["failed"]
    assert [failure["image"] for failure in reasons] == ["flower.png"]

    for todo in (False, True):
        if todo:
            empty.shard("garden", "ant", "deep/tree.JPG").unlink()
        assert empty.run("dump", *chosen, "--limit", "1").code == 0
        assert record(empty)["garden/ant"]["failed"] == reasons
    (line,) = empty.run("ensemble", *chosen).err.splitlines()
    assert line == f"failed: garden: flower.png: {reasons[0]['reason']}"

    photo.write_bytes(sound)
    assert empty.run("dump", *chosen).code == 0
    assert record(empty)["garden/ant"]["failed"] == []


@pytest.mark.parametrize("trouble", ["locked", "interrupted"])
def test_a_job_that_did_not_come_so_far_keeps_the_reasons_of_failures(
    empty: Bench, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    chosen = ("--models", "ant", *GARDEN)
    (empty.root / "photos/garden/flower.png").write_bytes(b"no picture")
    assert empty.run("dump", *chosen).code == 1
    reasons = record(empty)["garden/ant"]["failed"]
    empty.shard("garden", "ant", "deep/tree.JPG").unlink()
    with monkeypatch.context() as patch:
        if trouble == "locked":
            patch.setattr(store_job, "writer_lock", locked(empty.store("garden", "ant")))
        else:
            interrupt_at(patch, "pipeline.inference.predictor.normalise", 1)
        assert empty.run("dump", *chosen).code == {"locked": 1, "interrupted": 130}[trouble]
    assert record(empty)["garden/ant"]["failed"] == reasons


# ------------------------------------------------------------------ verify


@pytest.mark.parametrize("content", ["{", '{"zarr_format": 3, "node_type": "group", "attributes": {}}'])
def test_a_store_that_does_not_open_is_reported_and_the_others_are_verified(full: Bench, content: str) -> None:
    (full.store("street", "ant") / "zarr.json").write_text(content)
    shard = full.shard("garden", "cat", "flower.png")
    shard.write_bytes(bytes(shard.stat().st_size))

    def look() -> None:
        result = full.run("verify")
        assert result.code == 1
        assert result.out.startswith("13 images are sound, 1 damaged, ")
        lines = sorted(result.err.splitlines())
        assert len(lines) == 2
        assert lines[0].startswith("damaged: garden/cat: flower.png: ")
        assert lines[1].startswith(f"unreadable: street/ant: {full.store('street', 'ant')}: ")

    assert changed(full.output, look) == set()
    result = full.run("verify", "--repair")
    assert result.code == 1
    assert result.out.endswith("1 moved aside\n")
    assert not shard.exists()


def test_figures_of_verify_tell_a_store_that_does_not_open(full: Bench) -> None:
    shutil.rmtree(full.logits / "street")
    (full.store("garden", "bee") / "zarr.json").write_text("{")
    result = full.run("verify", "--json", "-")
    assert result.code == 1
    sound = {row["model"]: row["sound"] for row in result.figures}
    assert sound == {"ant": 2, "bee": 0, "cat": 2}


# ------------------------------------------------------------------ networks that raise errors


def raising(patch: pytest.MonkeyPatch, when: Callable[[str, Tensor], bool]) -> list[str]:
    """Have networks raise an error of their own where ``when`` says so; the models that did, in their order."""
    whole, raised = Predictor.compute, list[str]()

    def compute(self: Predictor, image: Tensor, gather: torch.device | None) -> Tensor:
        if when(self.member.name, image):
            raised.append(self.member.name)
            raise IndexError("index 19 is out of range")
        return whole(self, image, gather)

    patch.setattr(Predictor, "compute", compute)
    return raised


@pytest.mark.parametrize("command", ["dump", "predict"])
def test_an_error_inside_a_network_costs_its_image_alone(
    empty: Bench, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    raised = raising(monkeypatch, lambda name, image: name == "ant" and tuple(image.shape[1:]) == ODD_SIZE)
    result = empty.run(command, "--models", "ant,bee")
    assert result.code == 1
    (line, *_) = [line for line in result.err.splitlines() if "night/c.png" in line]
    assert "the network of ant raised IndexError: index 19 is out of range (test_trouble_of_one.py, line " in line
    assert "Traceback" not in result.err
    assert raised == ["ant", "ant"]  # it is tried once more
    assert ", 1 failed; " in result.out
    monkeypatch.undo()
    assert empty.run(command, "--models", "ant,bee").code == 0


def test_a_network_that_raises_the_same_error_again_and_again_is_given_up_and_the_next_begins(
    empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        empty.photo(f"street/day/more{number}.png")
    raised = raising(monkeypatch, lambda name, _: name == "ant")
    result = empty.run("dump", "--models", "ant,bee")
    assert (result.code, raised) == (1, ["ant"] * 5)
    problems = [line for line in result.err.splitlines() if line.startswith("failed: ") and "in a row" in line]
    assert [line.split(":")[1] for line in problems] == [" street/ant", " garden/ant"]
    assert "on 5 images in a row; fix the network or its checkpoint" in problems[0]
    assert "2 of 4 jobs could not be done" in result.out
    assert len(list(empty.store("street", "bee").glob("*/c.*"))) == 10
    monkeypatch.undo()
    again = empty.run("dump", "--models", "ant,bee")
    assert (again.code, again.out.splitlines()[-2].split(",")[0]) == (0, "12 images dumped")
