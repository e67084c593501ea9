"""The walk a newcomer takes: seven schools and one exam are drawn, and then the commands of every day do the rest.

Each step runs as the command line that is printed before it, in a process of its own. A step that was finished is not
done again.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from .. import __version__
from ..datasets.dataset_specs import NAMES, dataset_spec
from ..datasets.synthetic.write_bravo import write_bravo
from ..errors import ManifestError, StoreError
from ..files import write_json, write_text
from .config.load_manifest import SHIPPED
from .submission.bravo_archives import SPLITS, write_samples
from .training.log import HISTORY
from .training.plan import WEIGHTS

_WORKERS = 2  # more would not fit into 2 GB of memory
ARCH = "hrnet_tiny_ocr_mscale"
PAGE = "report/index.html"
INITIAL_WEIGHTS_OF = {
    "bdd100k": "mapillary",
    "idd": "cityscapes",
    "wilddash": "cityscapes",
    "gta5": "mapillary",
    "shift": "mapillary",
}
"""Whose weights a member begins with, as the published checkpoints tell by their names; others begin with nothing."""


@dataclass(frozen=True)
class DemoSize:
    """How much of everything there is.

    Attributes:
        train: frames of each school to learn from.
        val: frames of each to score on and to calibrate with.
        frames: their (height, width).
        crop: what is cut out of them.
        epochs: how often each is looked at by those who begin with nothing, and by their descendants.
        exam: dozens of photographs.
        photographs: (height, width) of most of them.
        pixels: how many of the labelled ones calibration looks at.
    """

    train: int
    val: int
    frames: tuple[int, int]
    crop: tuple[int, int]
    epochs: tuple[int, int]
    exam: int
    photographs: tuple[int, int]
    pixels: int


WHOLE = DemoSize(
    train=40,
    val=4,
    frames=(144, 256),
    crop=(96, 160),
    epochs=(56, 17),
    exam=3,
    photographs=(144, 288),
    pixels=100_000,
)
QUICK = DemoSize(
    train=4, val=2, frames=(64, 128), crop=(48, 64), epochs=(1, 1), exam=1, photographs=(64, 128), pixels=10_000
)


@dataclass(frozen=True)
class _Step:
    """One command line."""

    words: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"hmsa-pipeline {shlex.join(self.words)}"


@dataclass(frozen=True)
class _DemoPlan:
    """All that a demo consists of."""

    folder: Path
    seed: int
    extent: DemoSize

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.yaml"

    @property
    def truth(self) -> Path:
        return self.folder / "data" / "bravo_GT.tar"

    @property
    def samples(self) -> Path:
        return self.folder / "data" / "bravo_SAMPLING.tar"

    def school(self, name: str) -> Path:
        """Where a member is trained."""
        return self.folder / "schools" / name

    def recipe(self, name: str) -> Path:
        return self.folder / "schools" / f"{name}.yaml"

    @property
    def workers(self) -> int:
        """Processes that look at the exam; where there is little to see, starting them takes longer than it saves."""
        return 0 if self.extent is QUICK else min(_WORKERS, _cores())

    def draw(self) -> _Step:
        extent = self.extent
        size = "x".join(map(str, extent.frames))
        numbers = ("--train", str(extent.train), "--val", str(extent.val), "--size", size, "--seed", str(self.seed))
        return _Step(("datasets", "draw", "--output", str(self.folder / "data"), *numbers))

    def train(self, name: str) -> _Step:
        again = ("--resume",) if (self.school(name) / "checkpoints" / "last.pth").exists() else ()
        return _Step(("train", "--manifest", str(self.recipe(name)), "--device", "cpu", *again))

    def after(self) -> list[_Step]:
        """List the steps that follow training."""
        own, warm = str(self.manifest), str(self.folder / "calibrated.yaml")
        tars = ("--ground-truth", str(self.truth), "--samples", str(self.samples))
        figures = [str(self.folder / f"{name}.json") for name in ("scores", "calibrated")]
        return [
            _Step(("dump", "--manifest", own, "--device", "cpu", "--workers", str(self.workers))),
            _Step(("ensemble", "--manifest", own, "--workers", "0")),
            _Step(("evaluate", "--manifest", own, *tars, "--per-model", "--json", figures[0])),
            _Step(("calibrate", "--manifest", own, "--pixels", str(self.extent.pixels), "--write", warm)),
            _Step(("ensemble", "--manifest", warm, "--workers", "0", "--overwrite")),
            _Step(("evaluate", "--manifest", warm, *tars, "--per-model", "--json", figures[1])),
            _Step(("submit", "--manifest", warm, *tars[2:], "--output", str(self.folder / "submission.tar"))),
            _Step(("report", "--manifest", warm, *tars[:2], "--write", str(self.folder / "report"))),
        ]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def run_demo(folder: Path, seed: int, *, quick: bool = False) -> int:
    """Draw, train, and run the stages; the exit code of the first one that fails, else 0.

    Args:
        folder: where everything goes. Run again with the same seed, nothing is made twice.
        seed: of the streets and of the members' first weights.
        quick: whether a small part of everything will do.

    Raises:
        ManifestError: the folder holds another manifest.
        StoreError: the folder cannot be written.
    """
    walk = _DemoPlan(folder.resolve(), seed, QUICK if quick else WHOLE)
    text = _manifest(walk)
    try:
        if walk.manifest.exists() and walk.manifest.read_bytes() != text.encode():
            raise ManifestError(
                f"{walk.manifest}: is not that of this demo and seed; choose another --output, or remove it"
            )
        print(f"drawing an exam of the BRAVO challenge's kind in {walk.folder / 'data'}", flush=True)
        extent = walk.extent
        photographs = walk.folder / "data" / "bravo_1.0"
        write_bravo(photographs, seed=seed, size=extent.photographs, each=extent.exam, truth=walk.truth)
        if not walk.samples.exists():
            write_samples(walk.truth, walk.samples)
        for name in NAMES:
            write_text(walk.recipe(name), _recipe(walk, name))
        write_text(walk.manifest, text)
    except OSError as error:
        raise StoreError(f"{walk.folder}: cannot be written ({error.strerror}); choose another --output") from error
    done = _Done(walk.folder / "steps.json")
    code = _take(done, walk.draw()) or _train_member(done, walk)
    for step in walk.after() if not code else ():
        if code := _take(done, step):
            break
    if not code:
        for line in _summary(walk):
            print(line)
    return code


class _Done:
    """Which steps are finished, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._steps: list[str] = json.loads(path.read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError, TypeError):
            self._steps = []

    def __contains__(self, step: str) -> bool:
        return step in self._steps

    def add(self, step: str) -> None:
        """Remember it."""
        self._steps.append(step)
        write_json(self._path, {"version": __version__, "steps": self._steps})


def _take(done: _Done, step: _Step) -> int:
    """Run a step unless it is done; its exit code."""
    print(f"\n$ {step.line}", flush=True)
    if step.line in done:
        print("done before", flush=True)
        return 0
    process = _begun(step)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _stop([process])
        raise
    if not code:
        done.add(step.line)
    return code


def _train_member(done: _Done, walk: _DemoPlan) -> int:
    """Train the members that are not there, parents first; the first exit code but 0."""
    left = [name for name in NAMES if f"trained {name}" not in done]
    crew = max(1, min(len(left), _cores()))
    print(f"\ntraining {len(left)} of {len(NAMES)} members, {crew} at a time; each keeps a log", flush=True)
    for generation in (
        [name for name in left if name not in INITIAL_WEIGHTS_OF],
        [name for name in left if name in INITIAL_WEIGHTS_OF],
    ):
        if code := _train_generation(done, walk, generation, crew):
            return code
    return 0


def _train_generation(done: _Done, walk: _DemoPlan, names: Sequence[str], crew: int) -> int:
    """Train members that do not wait for each other, ``crew`` at a time; the first exit code but 0."""
    running: list[subprocess.Popen[bytes]] = []

    def train(name: str) -> int:
        step = walk.train(name)
        log = walk.school(name).with_suffix(".log")
        with log.open("ab") as said:
            process = _begun(step, threads=max(1, _cores() // crew), out=said)
            running.append(process)
            code = process.wait()
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            print(f"$ {step.line}\nfailed: {' '.join(last)} ({log})", file=sys.stderr, flush=True)
        else:
            done.add(f"trained {name}")
            # With its line's end, which print writes by itself: another thread's line could come between.
            print(f"$ {step.line}\n  {_validation_score(walk, name)} ({log})\n", end="", flush=True)
        return code

    with ThreadPoolExecutor(crew) as pool:
        futures = [pool.submit(train, name) for name in names]
        try:
            for future in futures:
                if code := future.result():
                    return code
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(running)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return 0


def _begun(step: _Step, *, threads: int | None = None, out: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """A step in a process of its own, which an interrupted terminal does not reach: it is told once, by `_stop`."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *step.words]
    return subprocess.Popen(command, stdout=out, stderr=out, env=environment, process_group=0)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let them finish what is in hand and wait for it; another interruption leaves them to themselves."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        process.wait()


def _validation_score(walk: _DemoPlan, name: str) -> str:
    """How a member does in its own school."""
    history = json.loads((walk.school(name) / HISTORY).read_text(encoding="utf-8"))
    return f"mIoU {100 * max(epoch['mean_iou'] or 0.0 for epoch in history):.1f} % on its own streets"


def _summary(walk: _DemoPlan) -> list[str]:
    """The table in which the ensemble leads, or does not, and where things lie."""
    raw, warm = (json.loads((walk.folder / f"{name}.json").read_text()) for name in ("scores", "calibrated"))
    rows = [(name, _means(raw[name])) for name in raw]
    rows.append(("calibrated", _means(warm["ensemble"])))
    wide = max(len(name) for name, _ in rows)
    lines = ["", "On the exam (means over its subsets):", f"{'':{wide}}   mIoU  AUROC    ECE"]
    lines += [f"{name:{wide}}  " + "  ".join(f"{value:.3f}" for value in values) for name, values in rows]
    on_streets = _on_streets(walk)
    best = max((name for name in on_streets if name != "ensemble"), key=on_streets.__getitem__)
    return [
        *lines,
        "",
        f"On streets of the schools that nobody learnt from, the ensemble has mIoU {on_streets['ensemble']:.3f}, "
        f"the best member ({best}) {on_streets[best]:.3f}.",
        "",
        f"report:      {walk.folder / PAGE}",
        f"predictions: {walk.folder / 'run' / 'predictions'}",
        f"submission:  {walk.folder / 'submission.tar'}",
        "",
        f"Every command runs again with --manifest {shlex.quote(str(walk.manifest))}",
    ]


def _means(figures: dict[str, Any]) -> tuple[float, float, float]:
    """mIoU, AUROC and ECE of a subject, each as the mean over the subsets that have it."""
    found = []
    for name in ("miou", "auroc", "ece"):
        values = [value for key, value in figures.items() if key.endswith(f"_{name}_valid") and value is not None]
        found.append(sum(values) / max(1, len(values)))
    return found[0], found[1], found[2]


def _on_streets(walk: _DemoPlan) -> dict[str, float]:
    """mIoU of calibrated ensemble and members on what the schools kept for scoring, the mean over the schools."""
    report = json.loads((walk.folder / PAGE).with_name("report.json").read_text())
    rows = [one["scores"] for one in report["datasets"] if one["dataset"].endswith("_val")]
    return {name: sum(row[name]["miou"] or 0.0 for row in rows) / len(rows) for name in rows[0]}


def _manifest(walk: _DemoPlan) -> str:
    """The shipped BRAVO manifest over what was drawn: the exam, and what each school kept for scoring."""
    manifest = yaml.safe_load((SHIPPED / "bravo.yaml").read_text(encoding="utf-8"))
    manifest["output"] = str(walk.folder / "run")
    manifest["models"] = [
        {"name": name, "source": name, "arch": ARCH, "checkpoint": f"schools/{name}/{WEIGHTS}"} for name in NAMES
    ]
    manifest["datasets"] = [
        {"name": f"bravo_{split}", "type": "bravo", "root": f"data/bravo_1.0/bravo_{split}"} for split in SPLITS
    ] + [
        {"name": f"{name}_val", "type": name, "root": f"data/{dataset_spec(name).folder}", "split": "val"}
        for name in NAMES
    ]
    head = f"# The demo of hmsa-pipeline, seed {walk.seed}{', quick' if walk.extent is QUICK else ''}.\n"
    return head + yaml.safe_dump(manifest, sort_keys=False)


def _recipe(walk: _DemoPlan, name: str) -> str:
    """A short way to a member that knows something: from random weights, or from those of another member."""
    extent = walk.extent
    parent = INITIAL_WEIGHTS_OF.get(name)
    epochs = extent.epochs[parent is not None]
    recipe = {
        "version": 1,
        "output": str(walk.school(name)),
        "arch": ARCH,
        "data": {"type": name, "root": f"../data/{dataset_spec(name).folder}"},
        **({"init": {"checkpoint": str(walk.school(parent) / WEIGHTS)}} if parent else {}),
        "epochs": epochs,
        "global_batch": 2,  # small batches: many steps in a minute
        "batch_size": 2,
        "precision": "fp32",
        "batch_norm": "local",
        "dropout": 0.0,
        "workers": 0,
        "seed": walk.seed,
        "augmentation": {"crop": list(extent.crop), "scale": [0.75, 1.5], "color_jitter": 0.25},
        "sampling": {"class_uniform": 0.5, "tile": 64},
        "loss": {"criterion": "rmi", "scales": 0.0},
        "optimizer": {"name": "adamw", "lr": 0.01 if parent else 0.02, "weight_decay": 0.01},
        "schedule": {"exponent": 1.0},
        "validation": {"every": epochs, "scales": [1.0]},
    }
    head = f"# A school of the demo of hmsa-pipeline: the tiny network on drawn streets like those of {name}.\n"
    return head + yaml.safe_dump(recipe, sort_keys=False)
