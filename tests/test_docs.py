"""The documents: they build without a network, their links lead somewhere, and their commands are ours."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from hmsa_pipeline.cli import app
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.config.field_reference import manifest_fields
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image
from typer.core import TyperGroup

from .documents import DOCS, PAGES, ROOT, commands, names_that_are_not_there

NOBODY = "http://127.0.0.1:9"


def parse(words: list[str]) -> None:
    """Have the command line read the words, and run nothing; raises what a wrong option would."""
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        name, words = words[0], words[1:]
        assert name in command.commands, name
        command = command.commands[name]
    for parameter in command.params:
        parameter.callback = None  # it would look for files
    command.make_context("hmsa-pipeline", list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_the_page_is_one_that_we_have(page: Path) -> None:
    for command in commands(page):
        if command.words:
            try:
                parse(command.words)
            except typer.TyperException as error:
                pytest.fail(f"{page.name}: {command.line}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_the_shipped_manifest_has(page: Path) -> None:
    for command in commands(page):
        if command.words:
            assert names_that_are_not_there(command.words) == [], f"{page.name}: {command.line}"


def test_a_wrong_command_would_be_found() -> None:
    with pytest.raises(typer.TyperException, match="No such option"):
        parse(["dump", "--manifets", "x"])
    assert names_that_are_not_there(["evaluate", "--manifest", "cityscapes", "--compare", "ensemble", "idd"]) == [
        "idd"
    ]
    assert names_that_are_not_there(["dump", "--models", "idd,a", "--datasets", "b"]) == ["a", "b"]
    assert commands(DOCS / "start.md")[0].line.startswith("git clone")
    assert len([command for page in PAGES for command in commands(page) if command.words]) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            name = target.partition("#")[0]
            assert not name or (page.parent / name).exists(), f"{page.name}: {target}"


def test_the_site_builds_without_a_network_and_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "",
            "http_proxy": NOBODY,
            "https_proxy": NOBODY,
            "NO_MKDOCS_2_WARNING": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        made = tmp_path / "site" / ("" if page.stem == "index" else page.stem) / "index.html"
        assert made.is_file(), page.name
        assert "fonts.googleapis" not in made.read_text()


def test_the_page_of_the_manifest_has_every_field() -> None:
    assert (DOCS / "manifest.md").read_text().endswith("\n\n" + manifest_fields())


def test_every_message_that_is_explained_is_one_that_is_said() -> None:
    said = (
        "".join(
            re.sub(r'"\s*\n\s*f?"', "", path.read_text())
            for folder in ("pipeline", "models", "datasets")
            for path in sorted((ROOT / folder).rglob("*.py"))
        )
        + (ROOT / "errors.py").read_text()
    )
    messages = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(messages) > 20
    assert [message for message in messages if message not in said] == []


# ------------------------------------------------------------------ how logits are used


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder with a store where the page says that one is."""
    identity = StoreIdentity(model="cityscapes", architecture="external", classes=CLASS_NAMES)
    store = LogitStore.create(tmp_path / "runs/bravo/logits/bravo_ACDC/cityscapes.zarr", identity, {})
    store.register(Photograph(f"{number}.png", 1, (70, 90)) for number in range(3))
    for number in range(2):
        draw = np.random.default_rng(number)
        store.write(number, draw.standard_normal((len(CLASS_NAMES), 70, 90)).astype(np.float16))
    fog = tmp_path / "runs/bravo/predictions/bravo_ACDC/fog"
    fog.mkdir(parents=True)
    Image.fromarray(np.full((70, 90), 7, np.uint8)).save(fog / "a_pred.png")
    Image.fromarray(np.full((70, 90), 65536 // 4, np.uint16)).save(fog / "a_conf.png")
    return tmp_path


CHECKS = {
    "NumPy": "assert logits.shape == (19, 70, 90) and label.shape == (70, 90)",
    "pandas": "assert logits.shape == (19, 70, 90) and image.row == 1 and len(large) == 0",
    "polars": "assert logits.shape == (19, 70, 90) and image['row'] == 1 and images.height == 3",
    "PyTorch": "assert complete == [0, 1] and top.shape == (19, 64, 90)",
    "dask": "assert mean.shape == (19,) and mean[0] == mean[0]",
    "xarray": "assert road.shape == (70, 90) and bool((road == road).all())",
    "Predictions": "assert set(label.flat) == {7} and abs(confidence - 0.25).max() < 1e-5",
}


@pytest.mark.parametrize("how", CHECKS)
def test_logits_are_used_as_the_page_says(stored: Path, how: str) -> None:
    section = (DOCS / "store.md").read_text().partition(f"## {how}\n")[2]
    program = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0].replace("1080x1920", "70x90")
    _run(stored, f"{program}\n{CHECKS[how]}")


@pytest.mark.parametrize("state", ["missing", "empty", "complete"])
def test_the_page_reads_no_image_that_is_not_complete(stored: Path, state: str) -> None:
    text = (DOCS / "store.md").read_text()
    program = next(
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "zarr.open_group" in block
    )
    for row in range(2):
        shard = stored / f"runs/bravo/logits/bravo_ACDC/cityscapes.zarr/70x90/c.{row}.0.0.0"
        if state == "missing":
            shard.unlink()
        elif state == "empty":
            shard.write_bytes(b"")
    _run(stored, f"{program}\nassert ('logits' in globals()) == {state == 'complete'}")


def _run(folder: Path, program: str) -> None:
    with contextlib.chdir(folder):
        exec(compile(program, "docs/store.md", "exec"), {"__name__": "__main__"})
