"""The wheel holds the package, all of it and nothing else, and works where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from hmsa_pipeline.pipeline.fusion.kernel.library import library

from ..limits import PATIENCE
from .bench import Bench

ROOT = Path(__file__).parents[2]
FOLDERS = ("datasets", "manifests", "models", "pipeline")
# As colleagues add them, none of them listed anywhere.
ADDED = {
    "datasets/specs/new_data.yaml": "name: new\n",
    "datasets/tables/new.csv": "1,2\n",
    "manifests/deep/er/new.yaml": "version: 1\n",
    "models/new_family/__init__.py": '"""New."""\n',
    "models/new_family/net.py": "A = 1\n",
    "pipeline/report/template/icons/new.svg": "<svg/>\n",
}
NOT_PACKAGED = {
    "tests/test_x.py": "",
    "benchmarks/bench_x.py": "",
    "docs/x.md": "",
    "findings/x.sh": "",
    "runs/x.py": "",
}


LIBRARY = "pipeline/fusion/kernel/_library.abi3.so"
COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
FUSE = """
import torch
from hmsa_pipeline.pipeline.fusion.fuse import fuse
from hmsa_pipeline.pipeline.fusion.kernel.library import library
source = torch.Generator().manual_seed(0)
members = [(4 * torch.randn(19, 500, generator=source)).half() for _ in range(3)]
label, confidence = fuse(members, [1.0, 2.0, 1.0])
print(library() is not None, label.tolist(), confidence.view(torch.int32).tolist())
"""


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_caches(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__" or name.startswith(".") or name.endswith(".so")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as somebody has it who added files."""
    source = tmp_path_factory.mktemp("source") / "repository"
    source.mkdir()
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(file, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=without_caches)
    for name, content in (ADDED | NOT_PACKAGED).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    return source


def packaged(source: Path) -> set[str]:
    """What must be in the wheel."""
    names = {path.relative_to(source).as_posix() for folder in FOLDERS for path in (source / folder).rglob("*.*")}
    names = {name for name in names if (source / name).is_file()}
    return names | {"__init__.py", "cli.py", "errors.py", "files.py"}


def build_wheel(source: Path, made: Path, env: dict[str, str] | None = None) -> Path:
    shutil.rmtree(source / "build", ignore_errors=True)  # what was compiled before
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run(sys.executable, "-P", "-m", "pip", "wheel", *options, "--wheel-dir", made, source, env=env)
    (wheel,) = made.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def inside(wheel: Path) -> set[str]:
    """Files of the package in a wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    return {name.removeprefix("hmsa_pipeline/") for name in names if name.startswith("hmsa_pipeline/")}


def install(wheel: Path, target: Path) -> Path:
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    run(sys.executable, "-P", "-m", "pip", "install", *options, "--target", target, wheel)
    return target


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel and nothing that it needs."""
    return install(wheel, tmp_path_factory.mktemp("installed"))


def hmsa(installed: Path, folder: Path, *words: str | Path) -> tuple[int, str]:
    """The command of the installed wheel, which finds other packages where this Python does, run in ``folder``."""
    env = os.environ | {"PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(installed / "bin" / "hmsa-pipeline"), *(str(word) for word in words)]
    done = subprocess.run(
        command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
    )
    return done.returncode, done.stdout


def test_a_wheel_holds_all_files_of_the_package_and_no_others(source: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert inside(wheel) - {LIBRARY} == packaged(source)
    assert inside(wheel) >= ADDED.keys()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"hmsa_pipeline"}


def has_library(installed: Path) -> tuple[bool, str]:
    """Whether the installed package loads its compiled library, and what it fuses."""
    env = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    found, _, fused = run(sys.executable, "-P", "-c", FUSE, env=env, cwd=installed).partition(" ")
    return found == "True", fused


@pytest.mark.skipif(COMPILER is None or sys.platform == "win32", reason="there is no compiler here")
def test_a_compiler_makes_a_library_and_without_one_the_same_is_fused(
    source: Path, wheel: Path, installed: Path, tmp_path: Path
) -> None:
    assert LIBRARY in inside(wheel)
    assert "abi3" in wheel.name, "it does not depend on the version of Python"
    plain = build_wheel(source, tmp_path / "wheel", os.environ | {"CC": str(tmp_path / "none")})
    assert inside(plain) == inside(wheel) - {LIBRARY}
    without, expected = has_library(install(plain, tmp_path / "plain"))
    with_library, fused = has_library(installed)
    assert not without
    assert with_library == (library() is not None)
    assert fused == expected


def test_a_source_distribution_gives_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    run(sys.executable, "-P", "-c", code, tmp_path, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert packaged(unpacked) == packaged(source)


def test_the_installed_command_works_without_the_repository(installed: Path, full: Bench, tmp_path: Path) -> None:
    code, out = hmsa(installed, tmp_path, "--help")
    assert (code, "report" in out) == (0, True)
    where = run(
        sys.executable, "-P", "-c", "import hmsa_pipeline; print(hmsa_pipeline.__file__)",
        env=os.environ | {"PYTHONPATH": str(installed)}, cwd=tmp_path,
    )  # fmt: skip
    assert Path(where.strip()).is_relative_to(installed)

    words = (
        "--data-root",
        tmp_path,
        "--assets",
        tmp_path,
        "--output",
        tmp_path / "out",
        "--json",
        tmp_path / "m.json",
    )
    code, out = hmsa(installed, tmp_path, "manifest", "check", "--manifest", "bravo.yaml", *words)
    assert (code, "MISSING" in out) == (2, True), out  # the shipped manifest is there, what it names is not
    assert len(json.loads((tmp_path / "m.json").read_text())) >= 8

    code, out = hmsa(installed, tmp_path, "datasets", "list")
    assert code == 0, out
    known = {path.stem for path in (ROOT / "datasets" / "specs").glob("*.yaml")}
    assert known
    assert {line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")} >= known

    page = tmp_path / "report"
    code, out = hmsa(installed, tmp_path, "report", "--manifest", full.manifest, "--write", page)
    assert code == 0, out
    for data in ("report.css", "report.js"):
        assert (page / data).read_bytes() == (ROOT / "pipeline" / "report" / "template" / data).read_bytes()
