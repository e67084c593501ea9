"""Checkpoints as other trainers leave them, and broken ones, where a user meets them: check, dump, predict, train."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source

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


@pytest.mark.parametrize(
    ("precision", "limit", "wider"), [("fp16", "65504", "bf16 or fp32"), ("bf16", "3.3", "fp32")]
)
def test_weights_beyond_the_precision_are_refused_before_anything_starts(
    empty: Bench, monkeypatch: pytest.MonkeyPatch, precision: str, limit: str, wider: str
) -> None:
    def large(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state["ocr.cls_head.weight"][0, 0] = -1e5 if precision == "fp16" else -3.4e38
        return state

    path = rewrite(empty, "bee", large)
    empty.tree["inference"]["precision"] = precision
    before = files(empty.save().root)
    said = f"{path}: 1 weights are beyond {limit}"
    first = f"the largest number of {precision} (first: ocr.cls_head.weight); use precision {wider}"

    # A CPU computes no fp16: there the file can be used, and what it is for a GPU is said.
    checked = run("manifest", "check", "--manifest", str(empty.manifest))
    row = checked.out.splitlines()[1]
    assert checked.code == (0 if precision == "fp16" else 2)
    assert row.startswith("ok      model    bee: " if precision == "fp16" else f"WRONG   model    bee: {said}")
    assert said in row
    assert row.endswith(first)

    for module in ("inference.predictor", "runtime.device"):
        monkeypatch.setattr(f"hmsa_pipeline.pipeline.{module}.resolve_precision", lambda wanted, _: (wanted, None))
    checked = run("manifest", "check", "--manifest", str(empty.manifest))
    assert checked.code == 2
    assert checked.out.splitlines()[1].startswith(f"WRONG   model    bee: {said}")
    for command in ("dump", "predict"):
        refusal = empty.run(command).refusal()
        assert refusal.startswith(said)
        assert refusal.endswith(first)
    assert files(empty.root) == before


def test_a_normalisation_is_folded_before_a_weight_is_called_too_large(
    empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the network computes: what a norm makes small may be large in the file, and the other way round."""
    monkeypatch.setattr(
        "hmsa_pipeline.pipeline.inference.predictor.resolve_precision", lambda wanted, _: (wanted, None)
    )

    def change(weight: float, gain: float) -> Any:
        def changed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            state["backbone.conv1.weight"][0] = weight
            state["backbone.bn1.weight"][:] = gain
            state["backbone.bn1.running_var"][:] = 1.0
            return state

        return changed

    dry = ("--precision", "fp16", "--dry-run")
    rewrite(empty, "bee", change(1e5, 1e-3))
    assert empty.run("dump", *dry).code == 0
    path = rewrite(empty, "cat", change(100.0, 1000.0))
    assert empty.run("dump", *dry).refusal().startswith(f"{path}: 1 weights are beyond 65504")


def test_the_sha256_of_the_manifest_is_checked_without_a_run(empty: Bench) -> None:
    for member in empty.tree["models"][:2]:
        member["sha256"] = hashlib.sha256((empty.root / member["checkpoint"]).read_bytes()).hexdigest()
    good = run("manifest", "check", "--manifest", str(empty.save().manifest))
    ends = [line.endswith(" MB); its sha256 is that of the manifest") for line in good.out.splitlines()]
    assert (good.code, ends[:3]) == (0, [True, True, False])

    empty.tree["models"][1]["sha256"] = "0" * 64
    wrong = run("manifest", "check", "--manifest", str(empty.save().manifest))
    assert (wrong.code, wrong.out.splitlines()[-1]) == (2, "1 of 5 are wrong")
    assert wrong.out.splitlines()[1] == f"WRONG   model    bee: {empty.run('dump').refusal()}"


def test_a_checkpoint_that_the_disk_does_not_give_leaves_the_others_checked(
    empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    empty.tree["models"][0]["sha256"] = "0" * 64
    monkeypatch.setattr("hmsa_pipeline.pipeline.inference.member_network.sha256", fail)
    checked = run("manifest", "check", "--manifest", str(empty.save().manifest))
    lines = checked.out.splitlines()
    assert lines[0] == f"WRONG   model    ant: {empty.root / 'weights/ant.pth'}: cannot be read (Input/output error)"
    assert (checked.code, len(lines)) == (2, 6)
