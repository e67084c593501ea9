"""Work that is cut short, by a signal or by a kill, and then goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock

from .bench import Bench, Result, changed, counted, ended, files, start_python
from .conftest import plain_cpu
from .test_evaluate import scored

__all__ = ["scored"]

IMAGES = 16
AGAIN = "interrupted: what is complete is kept; run the same command again to go on"


@pytest.fixture(scope="module")
def street(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two members and enough work for a signal to fall into the middle of it; nothing is done yet."""
    bench = fresh.copy(tmp_path_factory.mktemp("street") / "bench")
    shutil.rmtree(bench.root / "photos")
    for number in range(IMAGES):
        bench.photo(f"street/{number:02}.png", *((64, 96), (61, 95))[number % 2], seed=number)
    bench.tree["models"] = bench.tree["models"][:2]
    bench.tree["datasets"] = bench.tree["datasets"][:1]
    bench.tree["inference"]["flip"] = True
    return bench.save()


@pytest.fixture(scope="module")
def reference(street: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same, done in one go; tests must leave it as it is."""
    bench = street.copy(tmp_path_factory.mktemp("reference") / "bench")
    with plain_cpu():
        assert bench.run("dump").code == 0
        assert bench.run("ensemble").code == 0
    return bench


@pytest.fixture
def bench(street: Bench, tmp_path: Path) -> Bench:
    """`street` to work on."""
    return street.copy(tmp_path / "bench")


@pytest.fixture
def dumped(reference: Bench, tmp_path: Path) -> Bench:
    """`reference` to work on, without predictions."""
    bench = reference.copy(tmp_path / "bench")
    shutil.rmtree(bench.predictions)
    return bench


def shards(bench: Bench, model: str) -> int:
    return len(list(bench.store("street", model).glob("*/c.*")))


def predictions(bench: Bench) -> int:
    return len(list(bench.predictions.rglob("*_pred.png")))


def send(process: subprocess.Popen[str], number: signal.Signals, when: Callable[[], bool]) -> None:
    """Send a signal at the first moment at which ``when`` holds."""
    while not when():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(number)


MOMENTS: dict[str, Callable[[Bench], bool]] = {
    "the first store is under way": lambda bench: shards(bench, "ant") >= 3,
    "the second store is under way": lambda bench: shards(bench, "bee") >= 2,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_dump_that_was_killed_goes_on_to_the_same_bytes(bench: Bench, reference: Bench, moment: str) -> None:
    process = bench.start("dump")
    send(process, signal.SIGKILL, lambda: MOMENTS[moment](bench))
    assert ended(process).code == -signal.SIGKILL
    assert MOMENTS[moment](bench)
    complete = shards(bench, "ant") + shards(bench, "bee")
    assert complete < 2 * IMAGES  # it was in the middle
    assert list(bench.logits.rglob("*.lock")) != []

    result = bench.run("dump")
    assert (result.code, result.err) == (0, "")
    assert f"{counted(2 * IMAGES - complete)} dumped, {complete} complete before, 0 failed" in result.out
    assert files(bench.logits) == files(reference.logits)


# Runs a command in children of one process that has all imports behind it. The n-th is killed at the n-th moment
# at which a file is about to take its place or weights are about to be loaded; its output is n in the folder given,
# and {} in the words of the command.
KILLED_EVERYWHERE = """
import itertools, os, shutil, signal, sys
from pathlib import Path
import torch
from hmsa_pipeline import cli
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.fusion import ensemble
from hmsa_pipeline.pipeline.inference import predictor
from hmsa_pipeline.pipeline.workers import dask_pool

folder, before, *command = sys.argv[1:]
with torch.device("meta"):
    build("hrnet_tiny_ocr_mscale")  # imports the rest of torch

def dying(function, moments):
    def call(*arguments):
        if next(moments) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call

for n in itertools.count():
    output = f"{folder}/{n}"
    if before:
        shutil.copytree(before, output, symlinks=True)
    child = os.fork()
    if not child:
        moments = itertools.count(n, -1)
        Path.replace = dying(Path.replace, moments)
        predictor.Predictor.__init__ = dying(predictor.Predictor.__init__, moments)
        words = [word.replace("{}", output) for word in command]
        sys.argv = ["hmsa-pipeline", *words, "--workers", "0", "--output", output]
        try:
            cli.main()
        except SystemExit as end:
            os._exit(end.code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
"""


def killed_everywhere(folder: Path, before: Path | None, *command: str) -> list[Path]:
    """The outputs of a command that was killed at every moment that matters; the last one was not."""
    folder.mkdir()
    result = ended(start_python("-c", KILLED_EVERYWHERE, str(folder), str(before or ""), *command))
    assert result.code == 0, result
    return sorted(folder.iterdir(), key=lambda path: int(path.name))


@pytest.mark.slow(every_change=True)
def test_wherever_a_dump_is_killed_it_goes_on_to_the_same_bytes(street: Bench, tmp_path: Path) -> None:
    options = ("--models", "ant", "--limit", "2")
    outputs = killed_everywhere(tmp_path / "killed", None, "dump", "--manifest", str(street.manifest), *options)
    assert len(outputs) >= 8  # the group, its attributes, two arrays, the weights, two shards, the record
    whole = files(outputs[-1] / "logits")
    for output in outputs[:-1]:
        assert files(output / "logits") != whole or not (output / "run.json").exists()
        assert street.run("dump", *options, "--output", str(output)).code == 0
        assert files(output / "logits") == whole


def test_wherever_an_ensemble_is_killed_it_goes_on_to_the_same_bytes(reference: Bench, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "logits").symlink_to(reference.logits)
    command = ("ensemble", "--manifest", str(reference.manifest), "--limit", "2")
    outputs = killed_everywhere(tmp_path / "killed", tmp_path / "before", *command)
    assert len(outputs) >= 6  # two class maps and confidences, two records
    whole = files(outputs[-1] / "predictions")
    assert len(whole) == 5
    for output in outputs[:-1]:
        assert reference.run("ensemble", "--limit", "2", "--output", str(output)).code == 0
        assert files(output / "predictions") == whole


def test_a_dump_that_was_interrupted_says_how_to_go_on(bench: Bench, reference: Bench) -> None:
    process = bench.start("dump")
    send(process, signal.SIGINT, lambda: shards(bench, "ant") >= 3)
    result = ended(process)
    assert result.code == 130
    assert result.err.splitlines()[-1] == AGAIN
    complete = shards(bench, "ant")
    assert 3 <= complete < IMAGES
    assert f"{counted(complete)} dumped, 0 complete before, 0 failed" in result.out
    left = [path.name for path in bench.logits.rglob("*") if path.name.endswith((".lock", ".partial"))]
    assert left == []
    kept = {name: content for name, content in files(bench.logits).items() if "/c." in name}
    assert kept.items() <= files(reference.logits).items()

    assert bench.run("dump").code == 0
    assert files(bench.logits) == files(reference.logits)


def children(process: int) -> set[int]:
    """Processes that any of its threads began."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    found: set[int] = set()
    for task in tasks:
        with contextlib.suppress(OSError):  # a thread that has just ended
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


@pytest.mark.slow(every_change=True)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found below /proc")
def test_ctrl_c_while_workers_start_leaves_no_traceback_of_theirs(bench: Bench) -> None:
    """A terminal sends it to all of them, and a worker imports for seconds before it can handle it."""
    process = bench.start("dump", "--workers", "2")
    send(process, signal.SIGCONT, lambda: len(children(process.pid)) >= 3)  # with Python's resource tracker
    for _ in range(10):
        for child in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.code == 130
    assert result.err.splitlines()[-1] == AGAIN
    assert "Traceback" not in result.err


# Fusing is quick: the process sends itself the signal, at the fifth image.
INTERRUPTED_ITSELF = """
import itertools, os, signal, sys
from hmsa_pipeline import cli
from hmsa_pipeline.pipeline.fusion import member_stores

fuse, calls = member_stores.fuse, itertools.count(1)

def fuse_and_signal(*arguments, **options):
    if next(calls) == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return fuse(*arguments, **options)

member_stores.fuse = fuse_and_signal
cli.main()
"""


def test_an_ensemble_that_was_interrupted_says_how_to_go_on(dumped: Bench, reference: Bench) -> None:
    result = ended(
        start_python("-c", INTERRUPTED_ITSELF, "ensemble", "--workers", "0", "--manifest", str(dumped.manifest))
    )
    assert result.code == 130
    assert result.err.splitlines()[-1] == AGAIN
    complete = predictions(dumped)
    assert 4 <= complete < IMAGES
    assert f"{counted(complete)} fused, 0 done before, 0 failed" in result.out
    assert files(dumped.predictions).items() <= files(reference.predictions).items()

    assert f"{counted(IMAGES - complete)} fused, {complete} done before" in dumped.run("ensemble").out
    assert files(dumped.predictions) == files(reference.predictions)


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, function: str, call: int, number: signal.Signals = signal.SIGINT
) -> None:
    """Send this process a signal at the n-th call of a function of the package."""
    module, name = function.rsplit(".", 1)
    whole = getattr(importlib.import_module(f"hmsa_pipeline.{module}"), name)
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return whole(*arguments, **options)

    monkeypatch.setattr(f"hmsa_pipeline.{function}", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_the_network_has_done_before_an_interruption_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "pipeline.inference.predictor.normalise", 5, number)
        result = bench.run("dump", "--json", "-")
    assert (result.code, shards(bench, "ant")) == (130, 5)  # the one in the network is finished
    assert [(job["job"], job["done"]) for job in result.figures] == [("street/ant", 5)]
    assert result.err.splitlines()[-1] == AGAIN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_before_the_work_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # without a handler of ours, it would end the tests
    try:
        interrupt_at(monkeypatch, "pipeline.inference.member_network.sha256", 2, number)
        found: list[Result] = []
        assert changed(bench.root, lambda: found.append(bench.run("dump"))) == set()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (found[0].code, found[0].err.splitlines()[-1]) == (130, AGAIN)
    assert not bench.output.exists()


def test_one_that_starts_afresh_goes_on_without_overwrite(dumped: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "pipeline.inference.predictor.normalise", 3)
        result = dumped.run("dump", "--overwrite", "--models", "ant")
    assert (result.code, shards(dumped, "ant")) == (130, 3)
    assert result.err.splitlines()[-1].endswith("run the same command again without --overwrite to go on")
    assert f"{IMAGES - 3} images dumped, 3 complete before" in dumped.run("dump", "--models", "ant").out


def test_an_interrupted_import_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.tree["models"] = [{"name": "dog", "arch": "external"}]
    bench.save()
    for number in range(IMAGES):
        shape = (19, *((64, 96), (61, 95))[number % 2])
        np.savez(bench.root / f"{number:02}_logits.npz", logits=np.full(shape, -1, np.float16))
    command = ("import-logits", "--model", "dog", "--dataset", "street", str(bench.root))
    with monkeypatch.context() as patch:
        interrupt_at(patch, "pipeline.external.import_logits._read", 4)
        result = bench.run(*command)
    assert (result.code, shards(bench, "dog")) == (130, 3)
    assert result.err.splitlines()[-1] == AGAIN
    assert f"{IMAGES - 3} images imported, 3 complete before" in bench.run(*command).out


def test_a_prediction_that_lacked_a_member_never_passes_for_one_of_all(
    dumped: Bench, reference: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the run that makes it again is cut short and the logits that came are old."""
    late = [dumped.shard("street", "bee", f"{number:02}.png") for number in range(IMAGES)]
    contents = [shard.read_bytes() for shard in late]
    for shard in late:
        shard.unlink()
    assert dumped.run("ensemble", "--allow-missing").code == 0
    assert predictions(dumped) == IMAGES
    for shard, content in zip(late, contents, strict=True):
        shard.write_bytes(content)
        os.utime(shard, ns=(0, 0))
    with monkeypatch.context() as patch:
        interrupt_at(patch, "pipeline.fusion.member_stores.fuse", 1)
        assert dumped.run("ensemble").code == 130
    assert dumped.run("ensemble").code == 0
    assert files(dumped.predictions) == files(reference.predictions)


def test_a_run_beside_a_living_one_is_refused(bench: Bench) -> None:
    store = bench.store("street", "bee")
    with writer_lock(store):
        message = bench.run("dump", "--models", "bee").refusal()
        assert message.startswith(f"{store}.lock: held by process {os.getpid()} on ")
        assert not store.exists()
        assert bench.run("dump", "--models", "ant", "--limit", "1").code == 0  # another store is another's work
    assert bench.run("dump", "--models", "bee", "--limit", "1").code == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("evaluate", "interrupted: run the same command again"),
        ("evaluate --processes 2", "interrupted: run the same command again"),
        ("calibrate --write c.yaml", "interrupted: run the same command again"),
        ("report --write report", AGAIN),
    ],
)
def test_commands_that_wait_for_a_mask_are_interrupted(
    scored: Bench, tmp_path: Path, command: str, said: str
) -> None:
    bench = scored.copy(tmp_path / "bench")
    mask = next((bench.root / "photos").rglob("val/**/*_labelIds.png"))
    mask.unlink()
    os.mkfifo(mask)  # whoever reads it waits
    written = tmp_path / "written.yaml"
    process = bench.start(*command.replace("c.yaml", str(written)).replace(" report", f" {tmp_path}/report").split())
    with mask.open("wb"):  # opens when it is read
        process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.code == 130
    assert result.err.splitlines()[-1] == said
    assert "Traceback" not in result.err
    assert not written.exists()
