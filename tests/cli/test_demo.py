"""The newcomer's walk, as the newcomer takes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.layouts import list_images
from PIL import Image


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "with a space"
    result = _run("demo", "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_every_drawn_photograph_has_a_class_map_and_a_confidence(walked: tuple[Path, str]) -> None:
    folder, _ = walked
    images = list_images(folder / "bravo_1.0", "bravo")
    assert len(images) >= 12
    for image in images:
        stem = (folder / "run" / "predictions" / image.path).with_suffix("")
        with Image.open(folder / "bravo_1.0" / image.path) as photograph:
            size = photograph.size
        for ending, dtype in (("_pred.png", np.uint8), ("_conf.png", np.uint16)):
            with Image.open(f"{stem}{ending}") as picture:
                assert picture.size == size
                assert np.asarray(picture).dtype == dtype


def test_it_says_what_it_runs_and_where_the_results_lie(walked: tuple[Path, str]) -> None:
    folder, said = walked
    for command in ("dump", "ensemble", "status"):
        assert f"$ hmsa-pipeline {command} --manifest '{folder / 'manifest.yaml'}'" in said
    assert str(folder / "run" / "predictions") in said


def test_its_manifest_runs_by_hand_and_finds_everything_done(walked: tuple[Path, str]) -> None:
    folder, _ = walked
    manifest = folder / "manifest.yaml"
    assert "nothing to do" in _run("dump", "--manifest", manifest).stdout
    assert "nothing to do" in _run("ensemble", "--manifest", manifest).stdout
    checked = _run("manifest", "check", "--manifest", manifest)
    assert (checked.returncode, checked.stdout.count("MISSING")) == (0, 0)


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    result = _run("demo", "--output", in_the_way / "demo")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
