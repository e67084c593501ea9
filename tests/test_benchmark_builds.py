"""The benchmarks' option --against: two builds of the package by turns, one of them from a worktree of git."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .limits import PATIENCE

ROOT = Path(__file__).parents[1]
SCRIPTS = ("builds.py", "build_process.py", "harness.py")
BENCHMARK = """
import sys
from functools import partial
from builds import NOW, BuildProcess, builds, run_command
from harness import compare, tell, tell_commands

def version():
    import hmsa_pipeline
    return hmsa_pipeline.VERSION, 1 + 1

def codecs():
    from importlib.metadata import entry_points
    return [f"{one.name} = {one.value}" for one in entry_points(group="zarr.codecs") if "hmsa" in one.value]

def make(count):
    from hmsa_pipeline import FILL
    return lambda: bytearray(FILL * count)

def gone():
    import hmsa_pipeline.gone

def leaves():
    import os
    os._exit(3)

def main():
    revision, what = sys.argv[1:]
    with builds(revision) as them:
        if what == "versions":
            for build in them:
                with BuildProcess(build) as process:
                    print(build.name, *process.call(version))
        elif what == "codecs":
            with BuildProcess(them[0]) as process:
                print(them[0].name, process.call(codecs))
        elif what == "compare":
            found = compare({"bytes": partial(make, 2**20)}, repeats=3, builds=them)
            tell(found, "bytes", builds=them)
        elif what == "command":
            tell_commands({build.name: [run_command(build, ["--version"], every=0.01)] for build in them}, revision)
        elif what == "wait":
            print(them[0].paths[1], flush=True)
            import time
            time.sleep(600)
        else:
            with BuildProcess(them[0]) as process:
                process.call({"gone": gone, "leaves": leaves}[what])

if __name__ == "__main__":
    main()
"""
PACKAGE = """
VERSION = {version!r}
FILL = {fill}
"""
COMMAND = """
import sys
print(sys.modules["hmsa_pipeline"].VERSION)
print("trouble", file=sys.stderr)
sys.exit({code})
"""


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts what it puts into the background with Ctrl-C ignored; tests that send it need it heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *settings, *words], check=True, capture_output=True, text=True)
    return done.stdout


def write_package(folder: Path, version: str, fill: int, code: int = 0) -> None:
    (folder / "__init__.py").write_text(PACKAGE.format(version=version, fill=fill))
    (folder / "cli.py").write_text(COMMAND.format(code=code))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package of two commits, ``old`` and the present one; what is installed here is a third."""
    folder = tmp_path / "repository"
    (folder / "benchmarks").mkdir(parents=True)
    for script in SCRIPTS:
        shutil.copy(ROOT / "benchmarks" / script, folder / "benchmarks")
    (folder / "benchmarks" / "bench_tiny.py").write_text(BENCHMARK)
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(folder))
    write_package(folder, "of the old commit", 8)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "old")
    git(folder, "tag", "old")
    write_package(folder, "of this tree", 1)
    git(folder, "commit", "--quiet", "--all", "-m", "new")
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "hmsa_pipeline").symlink_to(folder)
    return folder


def start(repository: Path, *words: str) -> subprocess.Popen[str]:
    installed = repository.parent / "installed"
    return subprocess.Popen(
        [sys.executable, "-P", repository / "benchmarks" / "bench_tiny.py", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{repository / 'benchmarks'}{os.pathsep}{installed}",
            "TMPDIR": str(repository.parent),
        },
    )


def run(repository: Path, *words: str) -> tuple[str, str, int]:
    process = start(repository, *words)
    out, err = process.communicate(timeout=PATIENCE)
    return out, err, process.returncode


def left_over(repository: Path) -> list[str]:
    """What the benchmark left: worktrees beside the repository itself, and folders."""
    worktrees = git(repository, "worktree", "list", "--porcelain").count("worktree ") - 1
    return [*map(str, repository.parent.glob("against-*")), *["worktree"] * worktrees]


def test_each_build_imports_its_own_package(repository: Path) -> None:
    out, err, code = run(repository, "old", "versions")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["old of the old commit 2", "now of this tree 2"]
    assert left_over(repository) == []


def test_functions_are_those_of_the_builds_own_benchmark(repository: Path) -> None:
    script = repository / "benchmarks" / "bench_tiny.py"
    script.write_text(script.read_text().replace("1 + 1", "1 + 2"))
    out, _, _ = run(repository, "old", "versions")
    assert out.splitlines() == ["old of the old commit 2", "now of this tree 3"]


def test_a_benchmark_that_the_revision_lacks_is_this_trees(repository: Path) -> None:
    git(repository, "rm", "--quiet", "--cached", "benchmarks/bench_tiny.py")
    git(repository, "commit", "--quiet", "-m", "without")
    out, err, _ = run(repository, "HEAD", "versions")
    assert (out.splitlines(), err) == (["HEAD of this tree 2", "now of this tree 2"], "")


def test_cases_are_compared_with_themselves_in_the_other_build(repository: Path) -> None:
    out, err, code = run(repository, "old", "compare")
    assert (code, err) == (0, "")
    lines = out.splitlines()[1:]
    assert [line[:12].strip(" .0123456789") for line in lines] == ["bytes, old", "bytes, now"]
    memory = [float(line.split("core s,")[1].split()[0]) for line in lines]
    assert memory[0] == pytest.approx(8, abs=2)
    assert memory[1] == pytest.approx(1, abs=1)
    assert "1.00x time" in lines[0]
    assert float(lines[1].rsplit(",", 1)[1].split("x")[0]) == pytest.approx(memory[1] / memory[0], abs=0.1)


def test_commands_are_run_and_measured(repository: Path) -> None:
    out, err, code = run(repository, "old", "command")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["old", "now"]
    assert all(float(line.split()[1]) > 0 for line in out.splitlines())


def test_what_an_old_build_cannot_do_is_said_in_one_line(repository: Path) -> None:
    _, err, code = run(repository, "old", "gone")
    assert code == 1
    assert err.splitlines() == [
        "error: old: bench_tiny.gone: ModuleNotFoundError: No module named 'hmsa_pipeline.gone'; "
        "this build cannot run the benchmark"
    ]
    assert left_over(repository) == []


def test_a_command_that_fails_is_named_with_its_last_line(repository: Path) -> None:
    write_package(repository, "of a third commit", 1, code=2)
    git(repository, "commit", "--quiet", "--all", "-m", "third")
    _, err, code = run(repository, "HEAD", "command")
    assert code == 1
    wanted = "error: HEAD: hmsa-pipeline --version: trouble; this build cannot run the benchmark"
    assert err.splitlines() == [wanted]


def test_a_process_that_ends_is_named(repository: Path) -> None:
    _, err, code = run(repository, "old", "leaves")
    assert (err.splitlines(), code) == (["error: old: its process ended (3)"], 1)


def test_an_unknown_revision_is_named(repository: Path) -> None:
    _, err, code = run(repository, "nosuch", "versions")
    assert (err.splitlines(), code) == (["error: --against nosuch: no such revision; git log lists them"], 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_worktree_goes_when_the_benchmark_is_interrupted(repository: Path, number: int) -> None:
    process = start(repository, "old", "wait")
    assert process.stdout is not None
    tree = Path(process.stdout.readline().strip()).parent
    assert (tree / "cli.py").exists()
    assert len(left_over(repository)) == 2
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode
    assert not tree.exists()
    assert left_over(repository) == []


def test_entry_points_are_those_of_the_revision(repository: Path) -> None:
    (repository / "pyproject.toml").write_text(
        "[project]\nname = 'hmsa-pipeline'\n"
        "[project.entry-points.'zarr.codecs']\n'tiny' = 'hmsa_pipeline.tiny:Codec'\n"
    )
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "codec")
    out, err, _ = run(repository, "HEAD", "codecs")
    assert (out.splitlines(), err) == (["HEAD ['tiny = hmsa_pipeline.tiny:Codec']"], "")


def test_extension_modules_are_built_in_the_worktree(repository: Path) -> None:
    script = "import sys  # ext_modules\nopen('__init__.py', 'a').write(f'VERSION = {sys.argv[2:]}')\n"
    (repository / "setup.py").write_text(script)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "compiled")
    out, err, _ = run(repository, "HEAD", "versions")
    assert err == ""
    assert out.splitlines()[0] == "HEAD ['build_ext', '--inplace'] 2"


def test_extension_modules_that_cannot_be_built_end_the_benchmark(repository: Path) -> None:
    (repository / "setup.py").write_text("raise SystemExit('no compiler')  # ext_modules")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "compiled")
    _, err, code = run(repository, "HEAD", "versions")
    wanted = "error: --against HEAD: its extension modules cannot be built (no compiler)"
    assert (err.splitlines(), code) == ([wanted], 1)
    assert left_over(repository) == []


def test_a_benchmark_of_this_repository_runs_against_a_revision(tmp_path: Path) -> None:
    """bench_listing, whose revision is a commit of the package's own files."""
    folder = tmp_path / "repository"
    for name in ("datasets", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "errors.py", "files.py"):
        shutil.copy(ROOT / name, folder)
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    words = [sys.executable, "-P", "-m", "bench_listing", "--images", "20", "--turns", "1", "--against", "HEAD"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "benchmarks")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["cityscapes, HEAD", "cityscapes, now", "cityscapes"]
    assert len(lines) == 9
