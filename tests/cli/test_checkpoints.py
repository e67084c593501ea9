"""Checkpoints as other trainers leave them, and broken ones, where a user meets them: check, dump, predict, train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.datasets.worlds import write_source

from .bench import Bench, files, run, stored
from .training import options


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_source(root, "gta5", train=4, val=1, size=(48, 80))
    return root


def rewrite(bench: Bench, name: str, change: Any) -> Path:
    """Save what ``change`` makes of a member's weights in their place."""
    path = bench.root / "weights" / f"{name}.pth"
    state = torch.load(path, weights_only=False)["state_dict"]
    torch.save(change({key.removeprefix("module."): value.clone() for key, value in state.items()}), path)
    return path


def lightning(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    network = {f"model._orig_mod.{key}": value for key, value in state.items()}
    return {"epoch": 3, "state_dict": network | {"criterion.weight": torch.ones(19)}, "callbacks": {}}


def test_a_trainers_file_is_a_member_and_what_was_done_to_it_is_said(
    empty: Bench, world: Path, tmp_path: Path
) -> None:
    before = empty.copy(tmp_path / "before")
    chosen = ("--models", "ant", "--datasets", "garden")
    assert before.run("dump", *chosen).err == ""
    path = rewrite(empty, "ant", lightning)
    note = "weights 'model._orig_mod.' taken off the keys; 1 left out (criterion.weight)"

    checked = run("manifest", "check", "--manifest", str(empty.manifest), *chosen)
    assert (checked.code, checked.err) == (0, "")
    assert checked.out.splitlines()[0].startswith(f"ok      model    ant: {path} (")
    assert checked.out.splitlines()[0].endswith(f" MB); {note}")

    for command in ("dump", "predict"):
        result = empty.run(command, *chosen)
        assert (result.code, result.err) == (0, f"model ant: ant.pth: {note}\n"), result
    ours, plain = (stored(bench.store("garden", "ant")) for bench in (empty, before))
    assert ours.keys() == plain.keys()
    assert all((ours[image] == plain[image]).all() for image in plain)

    result = run(*options(world, tmp_path / "run", "--init", str(path), "--set", "init.fresh=[]", "--dry-run"))
    assert (result.code, result.err.splitlines()[-1]) == (0, f"init: ant.pth: {note}"), result


def test_weights_that_are_no_numbers_are_refused_before_anything_starts(
    empty: Bench, world: Path, tmp_path: Path
) -> None:
    def diverged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state["ocr.cls_head.weight"][3] = float("nan")
        return state

    path = rewrite(empty, "bee", diverged)
    before = files(empty.root)
    said = "1 of 391 keys hold values that no network can use (first: ocr.cls_head.weight holds NaN)"

    result = run("manifest", "check", "--manifest", str(empty.manifest), "--json", "-")
    assert result.code == 2
    states = {row["name"]: row["state"] for row in result.figures}
    assert states == {"ant": "ok", "bee": "WRONG", "cat": "ok", "street": "ok", "garden": "ok"}
    result = run("manifest", "check", "--manifest", str(empty.manifest))
    lines = result.out.splitlines()
    assert lines[1].startswith(f"WRONG   model    bee: {path}: {said}; the training that made it diverged")
    assert lines[-1] == "1 of 5 are wrong"

    for command in ("dump", "predict"):
        assert empty.run(command).refusal().startswith(f"{path}: {said}")
    refusal = run(*options(world, tmp_path / "run", "--init", str(path), "--set", "init.fresh=[]")).refusal()
    assert refusal.startswith(f"{path}: {said}")
    assert files(empty.root) == before
    assert not (tmp_path / "run").exists()


def test_weights_halved_beyond_their_range_are_refused(empty: Bench) -> None:
    def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = [key for key in state if key.endswith("running_var")][5]
        state[key][:] = 1e6
        return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}

    path = rewrite(empty, "bee", halved)
    refusal = empty.run("dump").refusal()
    assert refusal.startswith(f"{path}: 1 of 391 keys hold values that no network can use (first: backbone.")
    assert refusal.endswith("float16 holds nothing above 65504; make the file again from its float32 weights")
