"""Who may import whom, and where Python files may lie, read off the sources themselves."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hmsa_pipeline"

EVERYBODY = {"errors", "files", "text"}
"""What every package may import."""
PIPELINE = {
    "config": {"storage", "datasets", "models.registry"},
    "storage": set(),
    "runtime": set(),
    "store": {"storage", "runtime"},
    "workers": {"storage", "runtime"},
    "cluster": {"config", "storage", "workers"},
    "fusion": {"config", "store", "storage", "workers", "runtime", "datasets"},
    "submission": {"fusion", "config", "storage", "runtime", "datasets"},
    "inference": {"fusion", "config", "store", "storage", "workers", "runtime", "datasets", "models"},
    "external": {"inference", "fusion", "config", "store", "storage", "runtime", "datasets", "models"},
    "scoring": {"submission", "fusion", "config", "store", "storage", "runtime", "datasets"},
    "search": {"scoring", "pictures", "fusion", "config", "store", "storage", "runtime", "datasets"},
    "pictures": {"fusion", "datasets"},
    "autolabel": {"scoring", "pictures", "fusion", "config", "store", "storage", "workers", "runtime", "datasets"},
    "report": {"search", "scoring", "pictures", "fusion", "config", "store", "storage", "runtime", "datasets"},
    "multiscale": {"inference", "pictures", "fusion", "config", "runtime", "datasets", "models"},
    "exporting": {"inference", "config", "datasets", "models"},
    "training": {"config", "scoring", "pictures", "store", "storage", "runtime", "datasets", "models"},
    "dataset_tools": {"config", "pictures", "runtime", "datasets"},
    "demo": {"config", "submission", "training", "datasets", "models"},
}
"""Package of the pipeline -> the packages that it may import. Between packages there is no circle."""
MAY_IMPORT = {
    **PIPELINE,
    "commands": {*PIPELINE},
    "cli": {"commands", "runtime"},
    "models": set(),
    "datasets": set(),
    "files": {"errors"},
    "errors": set(),
    "text": set(),
    "setup": set(),
}
STAGES = {
    *("pipeline.inference.dump", "pipeline.inference.predict", "pipeline.external.import_logits"),
    *("pipeline.fusion.ensemble", "pipeline.scoring.evaluate", "pipeline.scoring.evaluate_bravo"),
    *(
        "pipeline.scoring.calibration.calibrate",
        "pipeline.submission.submit_bravo",
        "pipeline.submission.submit_dataset",
    ),
    *("pipeline.report.build_report", "pipeline.report.render", "pipeline.training.run"),
    *("pipeline.autolabel.run", "pipeline.multiscale.render_scales", "pipeline.search.run"),
    "pipeline.exporting.export",
}
"""Modules that do a whole command's work; only commands and the demo may put two of them together."""
ONLY_IN = {
    "zarr": ("pipeline/store/",),
    "numcodecs": ("pipeline/store/",),
    "pcodec": ("pipeline/store/",),
    "dask": ("pipeline/workers/",),
    "distributed": ("pipeline/workers/",),
    "obstore": ("pipeline/storage/",),
    "boto3": ("pipeline/storage/object_client.py",),
    "botocore": ("pipeline/storage/object_client.py",),
    "typer": ("cli.py", "pipeline/commands/"),
    "matplotlib": (
        *("pipeline/report/plots.py", "pipeline/search/plot.py"),
        *("pipeline/training/log.py", "pipeline/dataset_tools/class_chart.py"),
    ),
    "tensorboard": ("pipeline/training/log.py",),
    "transformers": ("models/adapters/",),
    "segmentation_models_pytorch": ("models/adapters/",),
    "timm": ("models/adapters/",),
    "onnx": ("models/adapters/", "models/export/"),
    "onnxruntime": ("models/adapters/", "models/export/"),
    "onnxscript": ("models/export/",),
    "openvino": ("models/export/",),
}
"""Library -> the files and folders that may import it."""
MOST_FILES, MOST_LINES, MOST_LINES_OF_CLI = 15, 420, 200
WITHOUT_TORCH = (
    *("pipeline.commands", "pipeline.config", "pipeline.storage", "pipeline.pictures", "pipeline.dataset_tools"),
    *("pipeline.store", "datasets.layout", "datasets.labels", "datasets.decode"),
    *("pipeline.inference.inputs", "models.checkpoint_files"),
)
MAY_LOAD_TORCH = {"datasets.decode.tensors"}
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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            outside |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return inside, outside


def package_of(module: str) -> str:
    """The part of the house that a module belongs to, such as ``store`` or ``datasets``."""
    parts = module.split(".")
    if parts[0] != "pipeline":
        return parts[0]
    return parts[1] if len(parts) > 1 else "pipeline"


def is_allowed(package: str, module: str) -> bool:
    """Whether files of ``package`` may import ``module``."""
    other = package_of(module)
    if other in {package, "__version__"} | (EVERYBODY if package not in {"errors", "files", "text"} else set()):
        return True
    allowed = MAY_IMPORT.get(package, set())
    return other in allowed or any(module.startswith(one + ".") for one in allowed if "." in one)


def problems(file: str, source: str) -> list[str]:
    """List what one source file does against the rules of the house."""
    inside, outside = imported(file, source)
    module = file.removesuffix(".py").replace("/", ".")
    package = package_of(module)
    wrong = sorted({package_of(other) for other in inside if not is_allowed(package, other)})
    found = [f"{package} must not import {other}" for other in wrong]

    tops = {other.split(".")[0] for other in outside}
    own = tops & {PACKAGE, "pipeline", "models", "datasets", "cli", "errors", "files"}
    found += [f"{name} must be imported relatively" for name in sorted(own)]
    found += [
        f"only {ONLY_IN[name][0]} may import {name}"
        for name in sorted(tops & ONLY_IN.keys())
        if not file.startswith(ONLY_IN[name])
    ]

    stages = {stage for stage in STAGES if any(other == stage or other.startswith(stage + ".") for other in inside)}
    stages -= {module}
    if stages and module in STAGES:
        found.append(f"stage {module} must not import stage {', '.join(sorted(stages))}")
    elif len(stages) > 1 and package not in {"commands", "demo"}:
        found.append(f"{module} must not put stages together ({', '.join(sorted(stages))})")
    return found


@pytest.mark.parametrize("file", python_files(ROOT))
def test_imports_follow_the_arrows(file: str) -> None:
    assert problems(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("models/a.py", "from ..datasets import images", "models must not import datasets"),
        ("models/a.py", "from ..pipeline.store import LogitStore", "models must not import store"),
        ("datasets/synthetic/a.py", "from ...models.hmsa import HMSA", "datasets must not import models"),
        ("datasets/a.py", "def f():\n    from ..cli import main", "datasets must not import cli"),
        ("cli.py", "from .models import registry", "cli must not import models"),
        ("cli.py", "from .pipeline.store import verify", "cli must not import store"),
        ("files.py", "from .pipeline import store", "files must not import store"),
        ("errors.py", "from .files import sha256", "errors must not import files"),
        ("models/a.py", "import hmsa_pipeline.errors", "hmsa_pipeline must be imported relatively"),
        ("models/a.py", "from datasets import layouts", "datasets must be imported relatively"),
        ("pipeline/store/a.py", "from ..config.manifest import Manifest", "store must not import config"),
        ("pipeline/store/a.py", "from ..workers import jobs", "store must not import workers"),
        ("pipeline/fusion/a.py", "from ..commands.shared import output", "fusion must not import commands"),
        ("pipeline/config/a.py", "from ...models.hmsa import HMSA", "config must not import models"),
        ("pipeline/inference/dump.py", "import zarr.storage", "only pipeline/store/ may import zarr"),
        ("models/a.py", "from numcodecs import Blosc", "only pipeline/store/ may import numcodecs"),
        ("pipeline/inference/dump.py", "from dask import delayed", "only pipeline/workers/ may import dask"),
        ("pipeline/report/page.py", "import typer", "only cli.py may import typer"),
        (
            "pipeline/inference/dump.py",
            "from .predict import plan_predict",
            "stage pipeline.inference.dump must not import stage pipeline.inference.predict",
        ),
        (
            "pipeline/scoring/evaluate.py",
            "from .calibration import calibrate",
            "stage pipeline.scoring.evaluate must not import stage pipeline.scoring.calibration.calibrate",
        ),
        (
            "pipeline/inference/inputs.py",
            "from . import dump, predict",
            "pipeline.inference.inputs must not put stages together (pipeline.inference.dump, "
            "pipeline.inference.predict)",
        ),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str, problem: str) -> None:
    assert problems(file, source) == [problem]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli.py", "from . import __version__\nfrom .pipeline.commands import dump\nfrom .errors import HmsaError"),
        ("pipeline/store/a.py", "import zarr\nfrom ... import __version__\nfrom ...files import write_json"),
        ("pipeline/config/a.py", "from ...models.registry import ARCHITECTURES"),
        ("pipeline/commands/a.py", "import typer\nfrom ..inference import dump, predict"),
        ("pipeline/workers/a.py", "from dask.distributed import Client\nfrom ..runtime.device import resolve_device"),
        ("datasets/synthetic/a.py", "from ..taxonomy import PALETTE\nfrom .b import draw\nimport torch"),
    ],
)
def test_a_right_import_is_let_through(file: str, source: str) -> None:
    assert problems(file, source) == []


def test_between_packages_there_is_no_circle() -> None:
    left = {package: {name for name in allowed if name in MAY_IMPORT} for package, allowed in MAY_IMPORT.items()}
    while free := [package for package, allowed in left.items() if not allowed & left.keys()]:
        for package in free:
            del left[package]
    assert left == {}


def test_every_package_has_its_row() -> None:
    packages = {package_of(file.removesuffix(".py").replace("/", ".")) for file in python_files(ROOT)}
    assert packages - {"pipeline", "__init__"} == {*MAY_IMPORT}


def test_no_folder_and_no_file_is_too_large() -> None:
    files = [file for file in python_files(ROOT) if not file.endswith("__init__.py")]
    folders = Counter(str(Path(file).parent) for file in files)
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}
    lines = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: count for file, count in lines.items() if count > MOST_LINES} == {}
    assert lines["cli.py"] <= MOST_LINES_OF_CLI


def test_what_only_reads_files_does_not_wait_for_torch() -> None:
    modules = [file.removesuffix(".py").replace("/", ".") for file in python_files(ROOT)]
    chosen = [m.removesuffix(".__init__") for m in modules if m.startswith(WITHOUT_TORCH) and m not in MAY_LOAD_TORCH]
    code = (
        "import importlib, sys\n"
        f"for name in {chosen}:\n"
        f"    importlib.import_module(f'{PACKAGE}.{{name}}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


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
