"""Who may import whom, and where Python files may lie, read off the sources themselves."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hmsa_pipeline"

GROUND = {"errors", "files"}
MAY_IMPORT = {
    "cli": {"pipeline"} | GROUND,
    "pipeline": {"pipeline", "models", "datasets"} | GROUND,
    "models": {"models"} | GROUND,
    "datasets": {"datasets"} | GROUND,
    "files": {"errors"},
    "errors": set(),
    "setup": set(),
    "__init__": set(),
}
STAGES = {"dump", "ensemble", "evaluate", "calibrate", "submission", "upload", "bravo_scores", "report"}
STAGES |= {"render", "train", "verify", "import_logits"}
PUT_TOGETHER = {"predict", "demo"}
ONLY_IN = {
    "zarr": ("pipeline/store/logit_store.py", "pipeline/store/fixed_point.py"),
    "numcodecs": ("pipeline/store/logit_store.py", "pipeline/store/shard_file.py"),
    "dask": ("pipeline/workers/dask_pool.py",),
    "distributed": ("pipeline/workers/dask_pool.py",),
    "upath": ("pipeline/storage/filesystem.py",),
}
OTHER_FOLDERS = {"tests", "benchmarks", "docs", "build", "dist", "demo", "runs"}


def python_files(root: Path) -> list[str]:
    """Every Python file of the package, relative to the root; hidden folders and environments left out."""
    found = sorted(path.name for path in root.glob("*.py"))
    for folder in sorted(root.iterdir()):
        apart = folder.name in OTHER_FOLDERS or folder.name.startswith(".") or folder.suffix == ".egg-info"
        if folder.is_dir() and not apart and not (folder / "pyvenv.cfg").exists():
            found += sorted(path.relative_to(root).as_posix() for path in folder.rglob("*.py"))
    return found


def imported(file: str, source: str) -> tuple[set[str], set[str]]:
    """What ``file`` imports: modules of the package (``pipeline.store``), and those of others, by dots.

    A name taken from a package may be a module or not; it counts as one either way.
    """
    folder = Path(file).parent.parts
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            outside |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(folder) + 1, f"{file}:{node.lineno} leaves the package"
            above = folder[: len(folder) + 1 - node.level]
            base = ".".join([*above, *([node.module] if node.module else [])])
            inside |= {f"{base}.{alias.name}".removeprefix(".") for alias in node.names}
    return inside, outside


def problems(file: str, source: str) -> list[str]:
    """What one source file does against the rules of the house."""
    inside, outside = imported(file, source)
    room = file.removesuffix(".py").split("/")[0]
    rooms = {module.split(".")[0] for module in inside} - {"__version__"}
    found = [f"{room} must not import {other}" for other in sorted(rooms - MAY_IMPORT[room])]

    tops = {module.split(".")[0] for module in outside}
    own = tops & {PACKAGE, *MAY_IMPORT}
    found += [f"{name} must be imported relatively" for name in sorted(own)]
    found += [
        f"only {ONLY_IN[name][0]} may import {name}" for name in sorted(tops) if file not in ONLY_IN.get(name, file)
    ]

    if room == "pipeline":
        name = Path(file).stem
        stages = {module.split(".")[1] for module in inside if module.startswith("pipeline.")} & STAGES
        stages -= {name}
        if stages and name in STAGES:
            found.append(f"stage {name} must not import stage {', '.join(sorted(stages))}")
        elif len(stages) > 1 and name not in PUT_TOGETHER:
            found.append(f"{name} must not put stages together ({', '.join(sorted(stages))})")
    return found


@pytest.mark.parametrize("file", python_files(ROOT))
def test_imports_follow_the_arrows(file: str) -> None:
    assert problems(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("models/a.py", "from ..datasets import images", "models must not import datasets"),
        ("models/a.py", "from ..pipeline.store import LogitStore", "models must not import pipeline"),
        ("datasets/worlds/a.py", "from ...models.hmsa import HMSA", "datasets must not import models"),
        ("datasets/a.py", "def f():\n    from ..cli import main", "datasets must not import cli"),
        ("cli.py", "from .models import registry", "cli must not import models"),
        ("cli.py", "from . import datasets", "cli must not import datasets"),
        ("files.py", "from .pipeline import store", "files must not import pipeline"),
        ("errors.py", "from .files import sha256", "errors must not import files"),
        ("models/a.py", "import hmsa_pipeline.errors", "hmsa_pipeline must be imported relatively"),
        ("models/a.py", "from datasets import layouts", "datasets must be imported relatively"),
        ("pipeline/inference/dump.py", "import zarr.storage", "only pipeline/store/logit_store.py may import zarr"),
        ("models/a.py", "from numcodecs import Blosc", "only pipeline/store/logit_store.py may import numcodecs"),
        (
            "pipeline/inference/dump.py",
            "from dask import delayed",
            "only pipeline/workers/dask_pool.py may import dask",
        ),
        ("pipeline/inference/dump.py", "from .ensemble import fuse", "stage dump must not import stage ensemble"),
        ("pipeline/inference/dump.py", "from . import train", "stage dump must not import stage train"),
        ("pipeline/inference/dump.py", "from ..pipeline.report import x", "stage dump must not import stage report"),
        (
            "pipeline/fusion/fuse.py",
            "from . import dump, train",
            "scores must not put stages together (dump, train)",
        ),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str, problem: str) -> None:
    assert problems(file, source) == [problem]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "cli.py",
            "from . import __version__\nfrom .pipeline import dump, ensemble\nfrom .errors import HmsaError",
        ),
        ("pipeline/store/logit_store.py", "import zarr\nfrom .. import __version__\nfrom ..files import write_json"),
        ("pipeline/demo.py", "from . import dump, ensemble\nfrom ..datasets.worlds import bravo"),
        ("pipeline/workers/dask_pool.py", "from dask.distributed import Client\nfrom .dump import run"),
        ("datasets/worlds/a.py", "from ..taxonomy import PALETTE\nfrom .b import draw\nimport torch"),
    ],
)
def test_a_right_import_is_let_through(file: str, source: str) -> None:
    assert problems(file, source) == []


def test_no_import_leaves_the_package() -> None:
    with pytest.raises(AssertionError, match="leaves the package"):
        problems("models/a.py", "from ...elsewhere import x")


def test_the_root_holds_no_other_python_file() -> None:
    allowed = {"cli.py", "errors.py", "files.py", "__init__.py", "setup.py"}
    assert {file for file in python_files(ROOT) if "/" not in file} <= allowed


def test_folders_that_hold_python_files_are_packages() -> None:
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    folders = {Path(file).parent for file in python_files(ROOT)}
    names = [".".join([PACKAGE, *folder.parts]) for folder in folders]
    assert {*names} <= {*setup.call_args.kwargs["packages"]}
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_python_files_are_those_of_the_package(tmp_path: Path) -> None:
    for file in ("a.py", "models/b.py", "models/losses/c.py", "tests/d.py", ".venv/e.py", "env/lib/f.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "env/pyvenv.cfg").touch()
    assert python_files(tmp_path) == ["a.py", "models/b.py", "models/losses/c.py"]
