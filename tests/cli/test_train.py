"""Training as its user meets it: from the files of each dataset to a member that `dump` runs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hmsa_pipeline import files
from hmsa_pipeline.datasets.dataset_specs import NAMES, dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.checkpoint import read_state_dict, save_checkpoint
from hmsa_pipeline.models.registry import build
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from .bench import TINY, changed, run
from .conftest import plain_cpu
from .training import farthest, history, last, options, same_bits, weights


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All seven datasets, drawn."""
    root = tmp_path_factory.mktemp("worlds")
    for name in NAMES:
        # Of WildDash a tenth is scored.
        write_source(root, name, train=9 if name == "wilddash" else 4, val=2, size=(48, 80))
    return root


def trained(root: Path, output: Path, *more: str, dataset: str = "gta5") -> Path:
    """The output of a run that ended well."""
    result = run(*options(root, output, *more, dataset=dataset))
    assert result.code == 0, result
    return output


@pytest.fixture(scope="module")
def plain(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch with nothing changed; tests must leave it as it is."""
    with plain_cpu():
        return trained(worlds, tmp_path_factory.mktemp("plain") / "run", "--epochs", "1")


@pytest.mark.parametrize("dataset", NAMES)
def test_every_dataset_is_learnt_from_its_own_files(worlds: Path, tmp_path: Path, dataset: str) -> None:
    output = trained(worlds, tmp_path / "run", "--epochs", "2", dataset=dataset)
    rows = history(output)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]["total"]) and 0 <= row["mean_iou"] <= 1 for row in rows)
    assert set(read_state_dict(output / "best_weights.pth")) == set(build(TINY).state_dict())
    with Image.open(output / "progress.png") as chart:
        assert chart.size == (880, 990)
    board = EventAccumulator(str(output / "tensorboard")).Reload()
    assert {"loss/total", "loss/main", "loss/auxiliary", "loss/scale 0.5", "lr", "iou/mean", "iou/road"} <= (
        tags := set(board.Tags()["scalars"])
    )
    assert {"speed/images_per_second", "memory/peak_bytes"} <= tags
    assert board.Tags()["images"][0] == "gallery/0"
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    assert recipe["data"]["type"] == dataset
    assert recipe["arch"] == TINY


def test_what_was_trained_is_dumped_and_fused_and_scores_as_in_validation(worlds: Path, tmp_path: Path) -> None:
    output = trained(worlds, tmp_path / "run", "--epochs", "4", "--lr", "0.05", "--set", "validation.every=4")
    manifest = tmp_path / "manifest.yaml"
    tree = {
        "version": 1,
        "output": str(tmp_path / "fused"),
        "models": [{"name": "own", "arch": TINY, "checkpoint": str(output / "best_weights.pth")}],
        "datasets": [{"name": "val", "type": "gta5", "root": str(worlds / "GTA5"), "split": "val"}],
    }
    manifest.write_text(yaml.safe_dump(tree))
    for command in ("dump", "ensemble"):
        result = run(command, "--manifest", str(manifest))
        assert result.code == 0, result

    reader = LabelReader(worlds / "GTA5", dataset_spec("gta5"))
    matrix = np.zeros((19, 19), np.int64)
    pairs = list_pairs(worlds / "GTA5", "gta5", "val")
    for pair in pairs:
        with Image.open(tmp_path / "fused/predictions/val" / pair.image.replace(".png", "_pred.png")) as image:
            predicted = np.asarray(image)
        labels = reader.read(pair, predicted.shape)
        for label, prediction in zip(labels[labels < 19], predicted[labels < 19], strict=True):
            matrix[label, prediction] += 1
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    iou = {name: hits[i] / union[i] if union[i] else None for i, name in enumerate(CLASS_NAMES)}
    found = history(output)[-1]["iou"]
    assert {name for name in iou if iou[name] is None} == {name for name in found if found[name] is None}
    # Logits are stored in half precision, which changes the answer of a pixel here and there.
    assert found == pytest.approx({name: value and pytest.approx(value, abs=0.02) for name, value in iou.items()})
    assert len(pairs) == 2


def test_the_checkpoint_itself_is_a_member_too(plain: Path) -> None:
    from_checkpoint = read_state_dict(plain / "checkpoints" / "best.pth")
    assert same_bits(dict(from_checkpoint), dict(read_state_dict(plain / "best_weights.pth")))


def test_a_batch_made_up_by_accumulation_gives_the_same_network(worlds: Path, tmp_path: Path) -> None:
    same = ("--epochs", "2", "--global-batch", "4", "--batch-norm", "frozen", "--set", "dropout=0.0")
    whole = trained(worlds, tmp_path / "whole", *same, "--batch-size", "4")
    parts = trained(worlds, tmp_path / "parts", *same, "--batch-size", "1")
    fresh = trained(worlds, tmp_path / "short", *same, "--batch-size", "4", "--limit", "2")
    assert farthest(weights(whole), weights(parts)) < 1e-5
    assert farthest(weights(whole), weights(fresh)) > 1e-3
    for a, b in zip(history(whole), history(parts), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_checkpointed_activations_change_nothing(worlds: Path, plain: Path, tmp_path: Path) -> None:
    thrifty = trained(worlds, tmp_path / "thrifty", "--epochs", "1", "--activation-checkpointing")
    assert same_bits(weights(plain), weights(thrifty))


@pytest.mark.slow(every_change=True)
def test_a_compiled_network_learns_the_same(worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph is captured but not turned into machine code, which takes minutes."""
    compiled = []
    compile_network = nn.Module.compile

    def compile_plainly(network: nn.Module) -> None:
        compiled.append(type(network).__name__)
        compile_network(network, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_plainly)
    same = ("--epochs", "1", "--limit", "2")
    plain, other = trained(worlds, tmp_path / "plain", *same), trained(worlds, tmp_path / "other", *same, "--compile")
    assert compiled == ["HMSA"]
    assert farthest(weights(plain), weights(other)) < 1e-5


def test_the_same_seed_gives_the_same_network_and_another_one_another(
    worlds: Path, plain: Path, tmp_path: Path
) -> None:
    second = trained(worlds, tmp_path / "second", "--epochs", "1")
    other = trained(worlds, tmp_path / "other", "--epochs", "1", "--seed", "1")
    assert same_bits(weights(plain), weights(second))
    assert not same_bits(weights(plain), weights(other))


@pytest.mark.slow(every_change=True)
def test_worker_processes_change_nothing(worlds: Path, tmp_path: Path) -> None:
    without = trained(worlds, tmp_path / "without", "--epochs", "2")
    two = trained(worlds, tmp_path / "two", "--epochs", "2", "--workers", "2")
    assert same_bits(weights(without), weights(two))


@pytest.mark.parametrize(
    "more",
    [
        ("--loss", "cross_entropy", "--optimizer", "adamw", "--lr", "0.001"),
        ("--loss", "image_weighted", "--batch-norm", "local", "--set", "schedule.name=poly2"),
        ("--precision", "bf16", "--set", "sampling.class_uniform=0"),
        ("--loss", "cross_entropy", "--set", "loss.border_relaxation=1", "--precision", "bf16"),
        ("--set", "augmentation.gaussian_blur=true", "--set", "augmentation.rand_augment.operations=2"),
    ],
    ids=" ".join,
)
def test_other_choices_of_a_recipe_train_as_well(
    worlds: Path, plain: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    output = trained(worlds, tmp_path / "run", "--epochs", "1", *more)
    assert np.isfinite(history(output)[0]["loss"]["total"])
    assert not same_bits(weights(output), weights(plain))


def test_layers_that_start_afresh_are_named_and_the_others_come_from_the_file(worlds: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = build(TINY, num_classes=65)
    save_checkpoint(tmp_path / "vistas.pth", model, arch=TINY, num_classes=65)
    # At such a rate nothing moves: what the network starts from can be seen in what is saved.
    words = ("--epochs", "1", "--lr", "1e-30", "--init", str(tmp_path / "vistas.pth"))
    result = run(*options(worlds, tmp_path / "run", *words, "--set", "init.fresh=[ocr.cls_head, ocr.aux_head.2]"))
    assert result.code == 0, result
    assert f"network: {TINY}, from {tmp_path / 'vistas.pth'}\n" in result.out
    assert "fresh:   ocr.cls_head, ocr.aux_head.2 (from random weights)\n" in result.out
    found, given = weights(tmp_path / "run"), model.state_dict()
    for key, value in found.items():
        if value.is_floating_point() and "running" not in key:
            fresh = key.startswith(("ocr.cls_head.", "ocr.aux_head.2."))
            kept = value.shape == given[key].shape and torch.allclose(value, given[key], rtol=0, atol=1e-20)
            assert kept != fresh, key


def test_every_so_many_epochs_one_is_kept_for_good(worlds: Path, tmp_path: Path) -> None:
    more = ("--epochs", "4", "--set", "checkpoints.every=2", "--set", "validation.every=3")
    output = trained(worlds, tmp_path / "run", *more)
    names = {path.name for path in (output / "checkpoints").iterdir()}
    assert names >= {"last.pth", "best.pth", "epoch_0002.pth", "epoch_0004.pth"}
    assert not names & {"epoch_0001.pth", "epoch_0003.pth"}
    assert [row["mean_iou"] is not None for row in history(output)] == [False, False, True, True]
    assert same_bits(last(output)["state_dict"], weights_of(output / "checkpoints/epoch_0004.pth"))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in read_state_dict(path).items()}


def test_figures_are_those_of_the_history(worlds: Path, tmp_path: Path) -> None:
    result = run(*options(worlds, tmp_path / "run", "--epochs", "2", "--json", "-"))
    assert result.figures == history(tmp_path / "run")
    assert "epoch 2/2: loss" in result.err


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(worlds: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = options(worlds, output, "--dry-run", "--global-batch", "4")
    assert changed(tmp_path, lambda: run(*words)) == set()
    lines = run(*words).out.splitlines()
    assert lines[0].startswith("data:    gta5, 4 images to learn from, 2 to score on; ")
    assert "175 epochs, 4 images a step = 1 x 2 x 2 (processes x batch x accumulation), crop 32x64" in lines[2]


def test_a_finished_run_has_nothing_left_to_do(worlds: Path, tmp_path: Path) -> None:
    output = trained(worlds, tmp_path / "run", "--epochs", "1")

    def again() -> None:
        result = run(*options(worlds, output, "--epochs", "1", "--resume"))
        assert (result.code, result.out) == (0, f"nothing to do: all 1 epochs are trained; {output}\n")

    assert changed(output, again) == set()


class Killed(BaseException):
    """Takes the place of a kill: nothing that we wrote may handle it."""


@pytest.mark.slow(every_change=True)
def test_killed_before_any_file_takes_its_place_nothing_is_missing_in_the_end(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--epochs", "2", "--set", "checkpoints.every=1")
    whole = trained(worlds, tmp_path / "whole", *more)
    replace = Path.replace
    cache = tmp_path / "whole" / "cache"  # which has its own test
    for turn in itertools.count(1):
        output, left = tmp_path / f"run{turn}", turn

        def or_die(path: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            return replace(path, target)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Path, "replace", or_die)
            run(*options(worlds, output, *more, "--cache", str(cache)))
            break
        trained(worlds, output, *more, "--cache", str(cache), "--resume")
        for name in ("best_weights.pth", "progress.png", "recipe.yaml"):
            assert (output / name).exists(), (turn, name)
        assert (output / "best_weights.pth").read_bytes() == (whole / "best_weights.pth").read_bytes(), turn
        for name in ("best.pth", "last.pth", "epoch_0001.pth", "epoch_0002.pth"):
            found, expected = (weights_of(where / "checkpoints" / name) for where in (output, whole))
            assert same_bits(found, expected), (turn, name)
        assert [row["iou"] for row in history(output)] == [row["iou"] for row in history(whole)], turn
    assert turn > 10


def test_a_full_disk_stops_the_run_and_says_how_to_go_on(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = trained(worlds, tmp_path / "run", "--epochs", "2")
    before = weights(output)

    def full(path: Path, pieces: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    words = options(worlds, tmp_path / "other", "--epochs", "2", "--cache", str(output / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "fill", full)
        result = run(*words)
    (line,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert result.code == 2
    assert line.startswith(
        f"error: {tmp_path / 'other'}: cannot be written (No space left on device); free some space"
    )
    assert "--resume" in line
    assert run(*words, "--resume").code == 0
    assert same_bits(weights(tmp_path / "other"), before)


def test_overwrite_begins_afresh(worlds: Path, tmp_path: Path) -> None:
    output = trained(worlds, tmp_path / "run", "--epochs", "2", "--set", "checkpoints.every=2")
    trained(worlds, output, "--epochs", "1", "--overwrite")
    assert len(history(output)) == 1
    assert not (output / "checkpoints/epoch_0002.pth").exists()


@pytest.mark.slow(every_change=True)
def test_a_minute_of_training_would_tell_streets_from_skies(tmp_path: Path) -> None:
    """The shipped demo for a third of its time; benchmarks/RESULTS.md has what all of it reaches."""
    drawn = run(
        *("datasets", "draw", "shift", "--output", str(tmp_path / "drawn"), "--style", "tinted"),
        *("--size", "192x308", "--train", "24", "--val", "4"),
    )
    assert drawn.code == 0, drawn
    words = ("--data-root", str(tmp_path / "drawn"), "--output", str(tmp_path / "run"), "--workers", "0")
    result = run("train", "--manifest", "demo", *words, "--epochs", "8")
    assert result.code == 0, result
    (row,) = (row for row in history(tmp_path / "run") if row["mean_iou"] is not None)
    # One class everywhere has a mean of 0.03; what is reached differs by some hundredths from processor to processor.
    assert row["mean_iou"] > 0.2
    assert row["iou"]["road"] > 0.8
