"""A small project on the disk, and the command line run on it, within this process or in one of its own."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import typer
import yaml
import zarr
from hmsa_pipeline import cli
from PIL import Image

from ..limits import PATIENCE
from . import forked

TINY = "hrnet_tiny_ocr_mscale"


@dataclass(frozen=True)
class Result:
    """What a command left behind: its exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def figures(self) -> Any:
        """Standard output of ``--json -``, which must be JSON and nothing else."""
        return json.loads(self.out)

    def refusal(self, code: int = 2) -> str:
        """The one line that wrong input gets, without ``error: ``; nothing else may have been said."""
        assert (self.code, self.out) == (code, ""), self
        (line,) = self.err.splitlines()
        assert line.startswith("error: "), self
        return line.removeprefix("error: ")


class _LeftError(Exception):
    """Takes the place of `os._exit`, which would end the tests too."""


_exit, _tests = os._exit, os.getpid()


def _leave(code: int) -> None:
    if os.getpid() != _tests:  # a process that was forked off has an end of its own
        _exit(code)
    raise _LeftError(code)


@dataclass
class Bench:
    """A manifest ``tree`` over photographs and checkpoints below ``root``; `save` writes it down."""

    root: Path
    tree: dict[str, Any]

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.yaml"

    @property
    def output(self) -> Path:
        return self.root / "run"

    @property
    def logits(self) -> Path:
        return self.output / "logits"

    @property
    def predictions(self) -> Path:
        return self.output / "predictions"

    def save(self) -> Bench:
        self.manifest.write_text(yaml.safe_dump(self.tree | {"output": str(self.output)}, sort_keys=False))
        return self

    def copy(self, root: Path) -> Bench:
        """All of it at another place, times included."""
        shutil.copytree(self.root, root)
        return Bench(root, copy.deepcopy(self.tree)).save()

    def photo(self, path: str, height: int = 48, width: int = 80, seed: int = 0) -> Path:
        """Draw a photograph at ``<root>/photos/<path>``."""
        file = self.root / "photos" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, height, width)).save(file)
        return file

    def store(self, dataset: str, model: str) -> Path:
        return self.logits / dataset / f"{model}.zarr"

    def shard(self, dataset: str, model: str, image: str) -> Path:
        """The file that holds the logits of one image."""
        entry = next(e for e in listed(self.store(dataset, model)) if e["path"] == image)
        return self.store(dataset, model) / entry["array"] / f"c.{entry['row']}.0.0.0"

    def run(self, command: str, *options: str) -> Result:
        """A command on the manifest, in this process."""
        return run(command, "--manifest", str(self.manifest), *options)

    def start(self, command: str, *options: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A command on the manifest, begun in a process of its own, whose imports are done where that can be."""
        return start_forked(command, "--manifest", str(self.manifest), *options, env=env)


_make_command = typer.main.get_command
# Typer works all options out again at every call, which a process of its own does once.
_command_of_all = functools.cache(lambda: _make_command(cli.app))


def _get_command(app: typer.Typer) -> Any:
    return _command_of_all() if app is cli.app else _make_command(app)


def run(*argv: str) -> Result:
    """A command line in this process, which does the work itself unless it is told who is to do it."""
    if argv[:1] in [("autolabel",), ("dump",), ("ensemble",), ("predict",)] and not {
        "--workers",
        "--scheduler",
        "--help",
    } & set(argv):
        argv = (argv[0], "--workers", "0", *argv[1:])
    if argv[:1] in [("report",), ("search",)] and not {"--processes", "--help"} & set(argv):
        argv = (argv[0], "--processes", "1", *argv[1:])
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            mock.patch.object(sys, "argv", ["hmsa-pipeline", *argv]),
            mock.patch.object(typer.main, "get_command", _get_command),
            mock.patch.object(os, "_exit", _leave),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            cli.main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except _LeftError as end:
        code = end.args[0]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Result(code or 0, out.getvalue(), _without_progress(err.getvalue()))


def start(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A command line begun in a process of its own, as users begin it."""
    return start_python("-m", "hmsa_pipeline.cli", *argv, env=env)


def start_forked(*argv: str, env: Mapping[str, str] | None = None) -> Any:
    """What `start` does, in a process whose imports are done, unless ``env`` has what is read before they are."""
    if not forked.AVAILABLE or forked.read_at_start(env or {}):
        return start(*argv, env=env)
    return forked.start(*argv, env=env)


def start_python(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Python begun in a process of its own, with one thread and no GPU."""
    plain = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-P", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | plain | dict(env or {}),
    )


def ended(process: subprocess.Popen[str]) -> Result:
    """Wait for what `start` began."""
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err, err
    return Result(process.returncode, out, _without_progress(err))


# What is said every 30 s where standard error is no terminal: on a busy machine more often than on another.
_PROGRESS = re.compile(r"^.*total \d+/\d+ \w+s, .* left\n", re.MULTILINE)


def _without_progress(err: str) -> str:
    return _PROGRESS.sub("", err)


def quiet(err: str) -> list[str]:
    """What stands on standard error beside the address of the dashboard, which shows only where bokeh is."""
    return [line for line in err.splitlines() if not line.startswith("dashboard: ") and not _LOST.match(line)]


_LOST = re.compile(r"worker (\S+) was lost at [\dT:+-]+: it (?:was at \S+ of|had a block of|had no image)")


def lost(err: str) -> list[str]:
    """The workers that standard error says were lost, in their order."""
    return [found[1] for line in err.splitlines() if (found := _LOST.match(line))]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Coloured squares under a little noise, (height, width, 3) uint8."""
    draw = np.random.default_rng(seed)
    squares = draw.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    return (squares[:height, :width] + draw.integers(0, 50, (height, width, 3))).astype(np.uint8)


def attributes(store: Path) -> dict[str, Any]:
    """What a store says of itself, read without zarr."""
    return json.loads((store / "zarr.json").read_text())["attributes"]


def listed(store: Path) -> list[dict[str, Any]]:
    """The store's table of images, as plain zarr-python gives it."""
    group = zarr.open_group(store, mode="r")
    count: Any = group.attrs["images"]
    if not count:
        return []
    paths, numbers = (np.asarray(group[name][:count]) for name in ("images/path", "images/numbers"))  # type: ignore[index]
    names = ("bytes", "height", "width", "row")
    rows = [dict(zip(names, row, strict=True)) for row in numbers.tolist()]
    return [
        {"path": str(path), **row, "array": f"{row['height']}x{row['width']}"}
        if row["row"] >= 0
        else {"path": str(path), "bytes": row["bytes"], **dict.fromkeys(("height", "width", "row", "array"))}
        for path, row in zip(paths, rows, strict=True)
    ]


def stored(store: Path) -> dict[str, np.ndarray]:
    """Every image's logits as plain zarr-python gives them, NaN where there are none."""
    group = zarr.open_group(store, mode="r")
    images = listed(store)
    return {e["path"]: np.asarray(group[e["array"]][e["row"]]) for e in images if e["array"]}  # type: ignore[index]


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file below ``folder``."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    """When every file below ``folder`` was last written, in nanoseconds."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def counted(images: int) -> str:
    """Return ``1 image`` or ``2 images``, as the last lines of commands have it."""
    return f"{images} image{'' if images == 1 else 's'}"


def changed(folder: Path, work: Callable[[], object]) -> set[str]:
    """The files below ``folder`` that ``work`` made, wrote again or removed."""
    before = times(folder) if folder.exists() else {}
    work()
    after = times(folder) if folder.exists() else {}
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
