"""Two builds of the package by turns: this tree's, and that of any revision, in a worktree of git.

The benchmarks' option ``--against REV`` needs nothing installed beside the environment that runs the benchmark: a
folder in which ``hmsa_pipeline`` links to the worktree goes first on the path of the processes that run it. Functions
are taken from the revision's own ``benchmarks/``, because only they know how that build's functions are called; this
tree's serve a revision that has no such file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
_TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Build:
    """One version of the package.

    Attributes:
        name: what its figures are called.
        paths: folders that go first on the path of its processes; one of them holds its benchmarks.
    """

    name: str
    paths: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        """Return the variables of a process that imports this build."""
        paths = [*map(str, self.paths), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def command(self, *words: str | Path) -> list[str]:
        """Return the command line of ``hmsa-pipeline``; it needs the build's `environment`."""
        return [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *map(str, words)]


NOW = Build("now", (HERE,))
"""This tree's, as it is installed."""


def add_against(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--against`` to a benchmark."""
    parser.add_argument(
        "--against", metavar="REV", help="run this revision of the repository, too, by turns with this tree"
    )


@contextlib.contextmanager
def builds(revision: str | None) -> Iterator[tuple[Build, ...]]:
    """Give this tree's build, after that of a revision if one is named, whose worktree is there as long.

    Args:
        revision: a commit, branch or tag; None for this tree alone.

    Raises:
        SystemExit: there is no such revision, or git cannot make a worktree of it.
    """
    if revision is None:
        yield (NOW,)
        return
    commit = _git(revision, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    before = signal.signal(signal.SIGTERM, _end)  # so that the worktree goes, too, when a scheduler ends the run
    try:
        with tempfile.TemporaryDirectory(prefix="against-") as scratch:
            tree, importable = Path(scratch, "tree"), Path(scratch, "import")
            try:
                _git(revision, "worktree", "add", "--quiet", "--detach", str(tree), commit)
                _compile(tree, revision)
                importable.mkdir()
                (importable / "hmsa_pipeline").symlink_to(tree)
                _write_metadata(tree / "pyproject.toml", importable)
                yield Build(revision, (importable, tree / "benchmarks", HERE)), NOW
            finally:
                subprocess.run(
                    ["git", "-C", HERE.parent, "worktree", "remove", "--force", tree],
                    check=False,
                    capture_output=True,
                )
    finally:
        signal.signal(signal.SIGTERM, before)


def _compile(tree: Path, revision: str) -> None:
    """Build a revision's extension modules in its tree, as an installation would."""
    script = tree / "setup.py"
    if not script.exists() or "ext_modules" not in script.read_text():
        return
    words = [sys.executable, script, "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise SystemExit(f"error: --against {revision}: its extension modules cannot be built ({said})")


def _write_metadata(pyproject: Path, folder: Path) -> None:
    """Write a revision's own entry points as an installation would, to be found before those that are installed."""
    if not pyproject.exists():
        return
    project = tomllib.loads(pyproject.read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in names.items()) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(_TERMINATED)


def _git(revision: str, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", HERE.parent, *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"error: --against {revision}: git is not installed; install it") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or "no such revision; git log lists them"
        raise SystemExit(f"error: --against {revision}: {said}")
    return done.stdout.strip()


class BuildProcess:
    """A process of a build, which calls functions of its benchmarks one after another. Ends with its ``with`` block.

    Args:
        build: whose package is imported.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        # A group of its own: Ctrl-C is for the benchmark, which then ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", HERE / "build_process.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=build.environment(),
            process_group=0,
        )

    def __enter__(self) -> BuildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of a benchmark's module, or one of its name in the build's own; its result."""
        return self._ask("call", function, arguments, named)

    def make(self, case: Callable[..., Any], warmups: int) -> None:
        """Make the work of a case, a function or a partial of one, and do it ``warmups`` times."""
        function, arguments, named = case, (), {}
        if isinstance(case, functools.partial):
            function, arguments, named = case.func, case.args, case.keywords
        self._ask("make", function, arguments, named, warmups)

    def run(self) -> tuple[float, float]:
        """Do the work once; seconds, and seconds of all cores together."""
        return self._ask("run")

    def memory(self) -> tuple[float, float | None]:
        """MiB by which the process, and what it allocated on a GPU, grew while it did the work."""
        return self._ask("memory")

    def _ask(
        self,
        what: str,
        function: Callable[..., Any] | None = None,
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
        *more: Any,
    ) -> Any:
        place = None if function is None else (_module(function), function.__name__)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            # Arguments may be of classes that the other build lacks; it answers that in place of a result.
            pickle.dump((what, place, pickle.dumps((arguments, named or {})), *more), self._process.stdin)
            self._process.stdin.flush()
            good, answer = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise SystemExit(f"error: {self.build.name}: its process ended ({self._process.wait()})") from None
        if good:
            return answer
        line, traceback = answer
        if self.build == NOW:
            raise SystemExit(traceback)
        what = f"{place[0]}.{place[1]}: " if place else ""
        raise SystemExit(f"error: {self.build.name}: {what}{line}; this build cannot run the benchmark")


def _module(function: Callable[..., Any]) -> str:
    name = function.__module__
    return Path(sys.modules[name].__file__ or "").stem if name == "__main__" else name


class Peak:
    """The most memory that this process' descendants held together, in GB (proportional set size).

    Args:
        every: seconds between two looks.
    """

    def __init__(self, every: float = 0.1) -> None:
        self.most = 0.0
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(self._every):
            held = 0
            for child in me.children(recursive=True):
                try:
                    held += child.memory_full_info().pss
                except psutil.Error:
                    continue
            self.most = max(self.most, held / 1e9)


@dataclass(frozen=True)
class Ran:
    """What a command took.

    Attributes:
        first: seconds to its first line on standard output, and to its end if it prints none.
        seconds: to its end.
        cores: seconds of all cores together, of it and its own processes.
        memory: GB of all of them at the peak.
    """

    first: float
    seconds: float
    cores: float
    memory: float


def run_command(build: Build, words: Sequence[str | Path], every: float = 0.1, code: int = 0) -> Ran:
    """Run a command of ``hmsa-pipeline`` and measure it.

    Args:
        build: of the package.
        words: after ``hmsa-pipeline``.
        every: seconds between two looks at its memory.
        code: exit code that it must have.

    Raises:
        SystemExit: it has another one; with its last line.
    """
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (
        Peak(every) as peak,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            build.command(*words), stdout=subprocess.PIPE, stderr=errors, env=build.environment()
        ) as process,
    ):
        assert process.stdout is not None
        try:
            process.stdout.readline()
            first = time.perf_counter() - begun
            process.stdout.read()
            process.wait()
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - begun
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode != code:
        what = f"{build.name}: hmsa-pipeline {words[0]}: {said[-1] if said else process.returncode}"
        raise SystemExit(f"error: {what}; this build cannot run the benchmark")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(first, seconds, cores, peak.most)
