"""A training run that is killed, stopped or shared between processes ends with the same network."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source

from ..limits import PATIENCE
from .bench import ended, start, start_forked, start_python
from .faults import Hold
from .training import farthest, history, last, options, same_bits, weights

EPOCHS = ("--epochs", "3")
EVERY_STEP = ("--set", "checkpoints.minutes=0.000001")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_source(root, "gta5", train=10, val=2, size=(48, 80), seed=1)
    return root


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    result = ended(start_forked(*options(world, output, *EPOCHS)))
    assert result.code == 0, result
    return output


def interrupted(words: list[str], output: Path, folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Begin a run and send it a signal in its second epoch: how it ended, and what it said of that."""
    hold = Hold(folder, saves=10)
    process = (start if "--gpus" in words else start_forked)(*words, env=hold.environment())
    hold.wait(process)
    saved = last(output)
    assert (saved["epoch"], 0 < saved["training"]["step"] < 5) == (1, True)
    process.send_signal(number)
    hold.release()
    _out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    return process.returncode, err


def equal_runs(a: Path, b: Path) -> bool:
    """Whether two runs ended alike: the network to the bit, and in what was written down of the losses."""
    one, other = last(a), last(b)
    keys = ("state_dict", "optimizer", "epoch", "mean_iu")
    own = (a / "best_weights.pth").read_bytes() == (b / "best_weights.pth").read_bytes()
    # Added up in other portions, sums of float32 differ in their last digits.
    losses = [[pytest.approx(row["loss"], rel=1e-5) for row in history(a)], [row["loss"] for row in history(b)]]
    return own and losses[0] == losses[1] and all(same_bits(one[key], other[key]) for key in keys)


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow(every_change=True))],
    ids=lambda n: n.name,
)
def test_a_run_goes_on_to_the_same_bits(world: Path, whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "run"
    words = options(world, output, *EPOCHS, *EVERY_STEP)
    code, err = interrupted(words, output, tmp_path / "hold", number)
    if number != signal.SIGKILL:
        assert code == 130
        assert err.endswith("interrupted: what is complete is kept; run the same command with --resume to go on\n")
    assert len(history(output)) == 1

    result = ended(start_forked(*words, "--resume"))
    assert result.code == 0, result
    assert "from epoch 2, step " in result.out
    assert equal_runs(output, whole)


def test_killed_before_anything_was_saved_it_begins_again(world: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start_forked(*options(world, output, *EPOCHS))
    while not (output / "recipe.yaml").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    result = ended(start_forked(*options(world, output, *EPOCHS, "--resume")))
    assert result.code == 0, result
    assert "resume: no run lies in the output yet, a new one begins" in result.err
    assert equal_runs(output, whole)


@pytest.mark.slow(every_change=True)
def test_two_processes_give_the_network_of_one(world: Path, tmp_path: Path) -> None:
    """BatchNorm is frozen: synchronised norms need GPUs."""
    same = (*EPOCHS, "--global-batch", "4", "--batch-norm", "frozen", "--set", "dropout=0.0", "--device", "cpu")
    one, two, torchrun = (tmp_path / name for name in ("one", "two", "torchrun"))
    results = [
        ended(start_forked(*options(world, one, *same, "--batch-size", "4"))),
        ended(start(*options(world, two, *same, "--batch-size", "2", "--gpus", "2"))),
        ended(
            start_python(
                *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hmsa_pipeline.cli"),
                *options(world, torchrun, *same, "--batch-size", "1"),
            )
        ),
    ]
    assert [result.code for result in results] == [0, 0, 0], results
    assert results[1].out.count("epoch 3/3:") == results[2].out.count("epoch 3/3:") == 1
    for output in (two, torchrun):
        assert farthest(weights(one), weights(output)) < 1e-5
        assert [row["iou"] for row in history(output)] == [pytest.approx(row["iou"]) for row in history(one)]
    assert len(last(two)["training"]["rng"]) == 2


@pytest.mark.slow(every_change=True)
def test_stopped_with_two_processes_it_goes_on_with_one(world: Path, tmp_path: Path) -> None:
    same = (*EPOCHS, "--batch-norm", "frozen", "--set", "dropout=0.0", "--device", "cpu", *EVERY_STEP)
    same = (*same, "--batch-size", "1")
    output, whole = tmp_path / "run", tmp_path / "whole"
    words = options(world, output, *same, "--gpus", "2")
    code, err = interrupted(words, output, tmp_path / "hold", signal.SIGINT)
    assert code == 130, err
    assert err.count("interrupted:") == 1
    for where, more in ((output, ("--resume",)), (whole, ())):
        result = ended(start_forked(*options(world, where, *same, *more)))
        assert result.code == 0, result
    assert farthest(weights(output), weights(whole)) < 1e-5


@pytest.mark.slow(every_change=True)
def test_a_process_that_dies_takes_the_others_with_it(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = options(world, output, "--epochs", "60", "--batch-size", "1", "--batch-norm", "frozen", "--device", "cpu")
    process = start(*words, "--gpus", "2")
    while not (output / "history.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-f", f"hmsa_pipeline.cli.*{output}"], capture_output=True, text=True, check=True
    ).stdout.split()
    workers = [int(pid) for pid in children if int(pid) != process.pid]
    assert len(workers) == 2, children
    subprocess.run([sys.executable, "-c", f"import os; os.kill({workers[1]}, 9)"], check=True)
    _out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode not in (0, 130)
    assert "Traceback" not in err, err
    left = subprocess.run(
        ["pgrep", "-f", f"hmsa_pipeline.cli.*{output}"], capture_output=True, text=True, check=False
    )
    assert left.stdout == ""
