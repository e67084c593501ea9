"""The newcomer's walk, as the newcomer takes it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hmsa_pipeline.datasets.dataset_specs import NAMES
from hmsa_pipeline.datasets.layout.find_images import list_images
from hmsa_pipeline.models import checkpoint, registry
from hmsa_pipeline.pipeline.commands import demo as commands_demo
from hmsa_pipeline.pipeline.config.load_manifest import SHIPPED
from hmsa_pipeline.pipeline.demo import members, plan, steps, train
from hmsa_pipeline.pipeline.demo import run as run_module
from hmsa_pipeline.pipeline.demo.summary import summary
from hmsa_pipeline.pipeline.report.tables import TITLES
from hmsa_pipeline.pipeline.scoring.figures.names import NUMBERS
from PIL import Image
from safetensors.torch import load_file

from ..documents import DOCS, PAGES, ROOT, commands
from . import bench
from .bench import files, run
from .conftest import plain_cpu


def _apart(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own."""
    command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _run(*arguments: str | Path, cwd: Path | None = None) -> bench.Result:
    with contextlib.chdir(cwd or Path.cwd()), plain_cpu():
        return run(*map(str, arguments))


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("with a space")
    result = _run("demo", "--quick", cwd=root)
    assert result.code == 0, result.err
    return root / "demo", result.out


def test_every_drawn_photograph_has_a_class_map_and_a_confidence(walked: tuple[Path, str]) -> None:
    folder, _ = walked
    images = list_images(folder / "data" / "bravo_1.0", "bravo")
    assert len(images) >= 12
    for image in images:
        stem = (folder / "run" / "predictions" / image.path).with_suffix("")
        with Image.open(folder / "data" / "bravo_1.0" / image.path) as photograph:
            size = photograph.size
        for ending, dtype in (("_pred.png", np.uint8), ("_conf.png", np.uint16)):
            with Image.open(f"{stem}{ending}") as picture:
                assert picture.size == size
                assert np.asarray(picture).dtype == dtype


STEPS = ("dump", "ensemble", "evaluate", "search", "calibrate", "ensemble", "evaluate", "submit", "report")
"""What follows when members and data are there."""


def test_it_says_what_it_runs_and_where_the_results_lie(walked: tuple[Path, str]) -> None:
    folder, said = walked
    commands = [line.removeprefix("$ hmsa-pipeline ") for line in said.splitlines() if line.startswith("$ ")]
    names = [command.split()[0] for command in commands]
    assert names == ["dump", "ensemble", "render", "datasets", *STEPS]
    assert shlex.split(commands[4])[:3] == ["dump", "--manifest", str(folder / "manifest.yaml")]
    for name in ("report/index.html", "submission.tar", "run/predictions"):
        assert str(folder / name) in said
        assert (folder / name).exists()


def test_the_first_picture_comes_before_the_long_steps(walked: tuple[Path, str]) -> None:
    folder, said = walked
    (line,) = [line for line in said.splitlines() if line.startswith("first picture: ")]
    picture = Path(line.removeprefix("first picture: "))
    assert picture.is_relative_to(folder)
    with Image.open(picture) as image:
        assert image.format == "PNG"
    assert said.index(line) < said.index("$ hmsa-pipeline datasets draw")


def test_the_members_are_those_of_the_package(walked: tuple[Path, str]) -> None:
    folder, _ = walked
    entries = yaml.safe_load((folder / "manifest.yaml").read_text())["models"]
    assert [entry["name"] for entry in entries] == list(NAMES)
    for entry in entries:
        weights = folder / entry["checkpoint"]
        assert weights.read_bytes() == (members.SHIPPED_MEMBERS / weights.name).read_bytes()
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == entry["sha256"]


def test_the_table_at_the_end(walked: tuple[Path, str]) -> None:
    folder, said = walked
    lines = said[said.index("On the target set") :].splitlines()
    assert lines[1].split() == ["mIoU", "AUROC", "ECE"]
    rows = {line.split()[0]: list(map(float, line.split()[1:])) for line in lines[2:11]}
    assert list(rows) == ["ensemble", *NAMES, "calibrated"]
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    for subject in ("ensemble", "gta5"):
        known = [v for k, v in scores[subject].items() if k.endswith("_miou_valid")]
        assert len(known) == 8
        assert rows[subject][0] == pytest.approx(np.mean(known), abs=5.1e-4)
    sentence = next(line for line in lines if line.startswith("On held-out streets"))
    (own, theirs), best = re.findall(r"0\.\d{3}", sentence), re.findall(r"\((\w+)\)", sentence)[0]
    evaluated = _run("evaluate", "--manifest", folder / "calibrated.yaml", "--per-model", "--json", "-")
    found = [row["scores"] for row in evaluated.figures]
    means = {name: np.mean([scores[name]["miou"] for scores in found]) for name in found[0]}
    assert float(own) == pytest.approx(means.pop("ensemble"), abs=5.1e-4)
    assert float(theirs) == pytest.approx(means[best], abs=5.1e-4)
    assert means[best] == max(means.values())


def test_it_says_whether_seven_members_are_better_than_four(walked: tuple[Path, str], tmp_path: Path) -> None:
    folder, said = walked
    (line,) = [line for line in said.splitlines() if line.startswith("Seven members minus the best four")]
    result = _run("search", "--manifest", folder / "manifest.yaml", "--json", "-")
    rows = {row["name"]: row for row in result.figures["held_out"]}
    lead = [-rows["best 4"]["difference"][name] for name in ("value", "high", "low")]
    assert list(map(float, re.findall(r"[+-]\d\.\d{4}", line))) == pytest.approx(lead, abs=5.1e-5)
    every, four = (rows[name]["figures"]["miou"]["value"] for name in ("all 7", "best 4"))
    assert lead[0] == pytest.approx(every - four)

    for name in ("scores.json", "calibrated.json", "report/report.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / name, tmp_path / name)
    for low, high, verdict in (
        (-0.02, -0.01, "seven are better"),
        (0.01, 0.02, "four are better"),
        (-0.01, 0.02, "not told apart"),
    ):
        rows["best 4"]["difference"] = {"value": (low + high) / 2, "low": low, "high": high}
        (tmp_path / "search.json").write_text(json.dumps(result.figures | {"held_out": [*rows.values()]}))
        wanted = f"{-(low + high) / 2:+.4f}, 95 % interval {-high:+.4f} to {-low:+.4f}: {verdict}."
        assert sum(one.endswith(wanted) for one in summary(plan.DemoPlan(tmp_path, 0))) == 1, verdict


def test_the_report_shows_every_figure(walked: tuple[Path, str]) -> None:
    folder, _ = walked
    report = json.loads((folder / "report" / "report.json").read_text())
    page = (folder / "report" / "index.html").read_text()
    assert report["search"]["members"] == list(NAMES)
    (city,) = (one for one in report["datasets"] if one["dataset"] == "cityscapes_val")
    wanted = {*NUMBERS} - {"auprc"}
    assert wanted <= city["scores"]["ensemble"].keys()
    assert wanted - {"miou_classes"} <= city["intervals"].keys()
    (foreign,) = (one for one in report["datasets"] if one["dataset"] == "bravo_SMIYC")
    assert {"best_f1", "siou", "ppv", "f1"} <= foreign["components"]["scores"]["gta5"].keys()
    for title in {*TITLES.values()}:
        assert f">{title}" in page, title
    for layer in ("entropy", "mutual-information"):
        assert len(list((folder / "report" / "pictures").glob(f"*/uncertainty-{layer}.jpg"))) == page.count(
            f'"uncertainty-{layer}"'
        )
        assert f'"uncertainty-{layer}"' in page
    titles = ("Risk and coverage", "Confusion matrix", "Reliability by predicted class", "Quality and cost")
    assert all(f"<b>{title}.</b>" in page for title in titles)


def test_what_was_done_is_not_done_again(walked: tuple[Path, str]) -> None:
    folder, _ = walked
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = _run("demo", "--quick", cwd=folder.parent)
    assert result.code == 0
    assert result.out.count("done before") == 13
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"manifest.yaml", "members.json", "student.yaml", "one.yaml"}


def test_its_manifest_runs_by_hand_and_finds_everything_done(walked: tuple[Path, str]) -> None:
    folder, _ = walked
    manifest = folder / "calibrated.yaml"
    assert "nothing to do" in _run("dump", "--manifest", manifest).out
    assert "nothing to do" in _run("ensemble", "--manifest", manifest).out
    checked = _run("manifest", "check", "--manifest", manifest)
    assert (checked.code, checked.out.count("MISSING")) == (0, 0)


# ------------------------------------------------------------------ README and docs, word for word


# What would take a test minutes, shorter; all else runs as it stands there.
SHORTER = {
    "datasets draw": ("--size", "64x128"),
    "train --dataset gta5 --data-root drawn": ("--crop-size", "48x64"),
    "train --manifest demo": ("--epochs", "1"),
}


@pytest.fixture
def desk(walked: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which all lies that the documents speak of; commands run there.

    The published checkpoints are the demo's members, and the published network is the demo's.
    """
    demos, _ = walked
    data = demos / "data"
    root, assets = tmp_path / "data", tmp_path / "data" / "assets" / "seg_weights"
    assets.mkdir(parents=True)
    for folder in data.iterdir():
        (root / folder.name).symlink_to(folder)
    shutil.copytree(data / "bravo_1.0" / "bravo_ACDC", root / "photographs")
    for entry in yaml.safe_load((SHIPPED / "bravo.yaml").read_text())["models"]:
        weights = load_file(demos / "members" / f"{entry['name']}.safetensors")
        torch.save({"state_dict": weights}, assets / Path(entry["checkpoint"]).name)
    checkpoint.expected_shapes.cache_clear()  # what other tests have learnt of the published network
    monkeypatch.setitem(registry.SIZES, "hrnet_ocr_mscale", registry.SIZES[bench.TINY])
    monkeypatch.setenv("HMSA_ASSETS", str(assets.parent))
    monkeypatch.setenv("HMSA_DATA_ROOT", str(root))

    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    shutil.copytree(demos, work / "demo", symlinks=True)
    for manifest in (work / "demo").glob("*.yaml"):  # commands are to leave the fixture as it is
        manifest.write_text(manifest.read_text().replace(str(demos), str(work / "demo")))
    (work / "gt.tar").symlink_to(data / "bravo_GT.tar")
    (work / "bravo_SAMPLING.tar").symlink_to(data / "bravo_SAMPLING.tar")
    mine = re.findall(r"`mine.yaml`:\n\n```yaml\n(.*?)```", (DOCS / "start.md").read_text(), re.DOTALL)[0]
    (work / "mine.yaml").write_text(mine.replace("/data", str(root)))
    bravo = yaml.safe_load((SHIPPED / "bravo.yaml").read_text())
    outside = re.findall(r"```yaml\n(models:.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL)[0]
    (work / "my.yaml").write_text(yaml.safe_dump({**bravo, **yaml.safe_load(outside), "output": "runs/my"}))
    for image in list_images(root / "bravo_1.0" / "bravo_ACDC", "bravo"):
        with Image.open(root / "bravo_1.0" / "bravo_ACDC" / image.path) as photograph:
            width, height = photograph.size
        file = (work / "logits" / image.path).with_suffix("")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(f"{file}_logits.npz", logits=np.full((19, height, width), -1, np.float16))
    yield work
    checkpoint.expected_shapes.cache_clear()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_the_page_runs(page: Path, desk: Path) -> None:
    if page.name == "store.md":  # which speaks of stores that are there
        assert run("dump", "--manifest", "bravo.yaml").code == 0
    for command in commands(page):
        words = [re.sub(r"^/data\b", str(desk.parent / "data"), word) for word in command.words]
        if command.need or not words:
            continue
        more = next((more for start, more in SHORTER.items() if shlex.join(words).startswith(start)), ())
        result = run(*words, *more)
        assert result.code == 0, (command.line, result.err)


def test_seven_members_become_one(desk: Path) -> None:
    """The student is another network than the member it begins as, and is scored as the ensemble is."""
    section = {page: _commands_of_the_section(page) for page in ("README.md", "docs/autolabel.md")}
    assert [words[0] for words in section["README.md"]] == ["autolabel", "train", "predict", "evaluate"]
    assert section["docs/autolabel.md"][: len(section["README.md"])] == section["README.md"]
    for words in section["docs/autolabel.md"]:
        result = run(*words)
        assert result.code == 0, (words, result.err)
    (student,) = yaml.safe_load((desk / "demo/one.yaml").read_text())["models"]
    weights = torch.load(desk / "demo" / student["checkpoint"], weights_only=False)["state_dict"]
    begun = load_file(desk / "demo/members/cityscapes.safetensors")
    assert {*weights} == {f"module.{key}" for key in begun}
    moved = [key for key, value in begun.items() if not torch.equal(weights[f"module.{key}"], value.float())]
    assert len(moved) > len(begun) // 2
    images = list_images(desk / "demo/data/bravo_1.0", "bravo")
    stems = [(desk / "demo/one/predictions" / image.path).with_suffix("") for image in images]
    assert all(Path(f"{stem}_pred.png").is_file() for stem in stems)
    labels = json.loads((desk / "demo/labels/bravo_ACDC/labels.json").read_text())
    assert len(labels["members"]) == len(NAMES)
    recipe = yaml.safe_load((desk / "demo/student.yaml").read_text())
    learnt = {source["train"] for source in recipe["data"] if source["type"] == "folder"}
    assert learnt == {path.name for path in (desk / "demo/data/bravo_1.0/bravo_ACDC").iterdir()}


def _commands_of_the_section(page: str) -> list[list[str]]:
    """What the page's section, or paragraph, of the student has our command line do."""
    after = (ROOT / page).read_text().partition("rom seven members to one")[2]
    block = re.findall(r"```console\n(.*?)```", after, re.DOTALL)[0]
    assert block in (ROOT / page).read_text()
    lines = {line.removeprefix("$ ") for line in re.sub(r"\\\n\s*", " ", block).splitlines()}
    return [command.words for command in commands(ROOT / page) if command.line in lines]


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    result = _apart("demo", "--output", in_the_way / "demo")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


# ------------------------------------------------------------------ cut short


class Steps:
    """Stands for the steps; the n-th one, counted from 0, ends with a code or an interruption."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: int, how: int | None) -> None:
        self.words: list[list[str]] = []
        self._stop, self._how = stop, how
        self.signals: list[int] = []
        monkeypatch.setattr(commands_demo, "runner", lambda _: self.here)
        monkeypatch.setattr(steps.subprocess, "Popen", self.apart)
        monkeypatch.setattr(plan.os, "sched_getaffinity", lambda _: {0})
        monkeypatch.setattr(train, "_export", lambda _: None)
        monkeypatch.setattr(run_module, "_first_picture", lambda _: "picture.png")
        monkeypatch.setattr(run_module, "summary", lambda _: ["the end"])

    def here(self, words: Sequence[str]) -> int:
        self.words.append([*words])
        return self.wait()

    def apart(self, command: list[str], **_: Any) -> Steps:
        self.words.append(command[4:])
        return self

    def poll(self) -> None:
        return None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def wait(self) -> int:
        if len(self.words) - 1 != self._stop or self.signals:
            return 0
        if self._how is None:
            raise KeyboardInterrupt
        return self._how


def test_a_step_that_fails_ends_the_walk_and_is_the_first_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("demo", "--quick", "--output", str(tmp_path / "demo"))
    with monkeypatch.context() as patch:
        first = Steps(patch, 5, 1)
        assert run(*options).code == 1
    assert [words[0] for words in first.words] == ["dump", "ensemble", "render", "datasets", "dump", "ensemble"]
    with monkeypatch.context() as patch:
        second = Steps(patch, -1, 0)
        result = run(*options)
    assert (result.code, result.out.splitlines()[-1]) == (0, "the end")
    assert second.words[0] == first.words[-1]
    assert [words[0] for words in second.words] == list(STEPS[1:])


def test_members_are_trained_first_and_one_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("demo", "--quick", "--train", "--output", str(tmp_path / "demo"))
    with monkeypatch.context() as patch:
        first = Steps(patch, 3, 2)
        result = run(*options)
    assert result.code == 2
    assert f"{tmp_path}/demo/training/{NAMES[2]}.log" in result.err
    assert [words[0] for words in first.words] == ["datasets", "train", "train", "train"]
    with monkeypatch.context() as patch:
        second = Steps(patch, -1, 0)
        assert run(*options).code == 0
    assert f"{tmp_path}/demo/training/{NAMES[2]}.yaml" in second.words[0]
    assert [words[0] for words in second.words] == [*["train"] * 5, "dump", "ensemble", "render", *STEPS]


def test_an_interrupted_step_ends_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        steps = Steps(patch, 4, None)
        result = run("demo", "--quick", "--output", str(tmp_path / "demo"))
    assert result.code == 130
    assert steps.words[-1][0] == "dump"
    assert result.err.splitlines()[-1].endswith("run the same command again to go on")


# ------------------------------------------------------------------ members trained here


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Members trained for one epoch, interrupted while they are."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", "demo", "--quick", "--train", "--output", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = [folder / "training" / f"{name}.log" for name in NAMES]
    while not any(log.exists() and log.stat().st_size for log in logs):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=480)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted: what is complete is kept; run the same command again to go on"
    # Nobody is left working.
    there = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in there
    assert not list(folder.rglob("*.partial"))
    done = json.loads((folder / "steps.json").read_text())["steps"]
    assert any("datasets draw" in step for step in done)
    assert not any("dump" in step for step in done)
    result = _apart(*command[4:])
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.mark.slow(every_change=True)
def test_interrupted_training_goes_on_and_ends_with_members_and_their_records(trained: tuple[Path, str]) -> None:
    folder, said = trained
    records = json.loads((folder / "members" / "members.json").read_text())
    assert list(records) == list(NAMES)
    for name, record in records.items():
        weights = folder / "members" / f"{name}.safetensors"
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"]
        assert record["command"] == "hmsa-pipeline demo --train --quick --seed 0"
        log = (folder / "training" / f"{name}.log").read_text()
        assert log.rstrip().endswith("the best of 1 epochs")
        assert f"random weights (seed {record['seed']})" in log
        (epoch,) = json.loads((folder / "training" / name / "history.json").read_text())
        assert (record["miou"], record["iou"]) == (epoch["mean_iou"], epoch["iou"])
        assert f"{name}: mIoU {record['miou']:.3f} on held-out streets of its own dataset" in said
    assert len({record["seed"] for record in records.values()}) == 7


@pytest.mark.slow(every_change=True)
def test_exported_weights_are_the_trained_ones_rounded_to_float16(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    for name in NAMES:
        halved = load_file(folder / "members" / f"{name}.safetensors")
        full = torch.load(folder / "training" / name / "best_weights.pth", weights_only=False)["state_dict"]
        assert {f"module.{key}" for key in halved} == {*full}
        for key, value in halved.items():
            expected = full[f"module.{key}"]
            assert value.dtype == (torch.float16 if expected.is_floating_point() else expected.dtype)
            torch.testing.assert_close(value, expected.to(value.dtype), rtol=0, atol=0)


def test_another_seed_is_another_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("demo", "--quick", "--output", str(tmp_path / "demo"))
    with monkeypatch.context() as patch:
        Steps(patch, 0, 1)
        assert run(*options).code == 1
        before = files(tmp_path)
        for other in (("--seed", "1"), ()):
            said = run(*(options if other else ("demo", "--output", str(tmp_path / "demo"))), *other).refusal()
            assert said.startswith(f"{tmp_path}/demo/manifest.yaml: is not that of this demo and seed; ")
    assert files(tmp_path) == before
