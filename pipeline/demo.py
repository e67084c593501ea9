"""The demonstration: seven training sets and one test set are drawn, and the other commands do the rest.

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
from ..errors import ManifestError, StoreError, reason
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
"""Member -> the member whose weights it starts from, as the names of the published checkpoints say; others start from
random weights."""


@dataclass(frozen=True)
class DemoSize:
    """Sizes of the demonstration; those of images are (height, width)."""

    train: int  # frames of each of the seven sets
    val: int
    frames: tuple[int, int]
    crop: tuple[int, int]
    epochs: tuple[int, int]  # of members that start from random weights, and from another member's
    test_dozens: int  # images of the test set, in dozens
    test_size: tuple[int, int]
    pixels: int  # that calibration looks at


FULL = DemoSize(
    train=40,
    val=4,
    frames=(144, 256),
    crop=(96, 160),
    epochs=(56, 17),
    test_dozens=3,
    test_size=(144, 288),
    pixels=100_000,
)
QUICK = DemoSize(
    train=4, val=2, frames=(64, 128), crop=(48, 64), epochs=(1, 1), test_dozens=1, test_size=(64, 128), pixels=10_000
)


Words = tuple[str, ...]
"""A command line without its program."""


@dataclass(frozen=True)
class _DemoPlan:
    """Paths and commands of a demonstration."""

    folder: Path
    seed: int
    size: DemoSize

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.yaml"

    @property
    def truth(self) -> Path:
        return self.folder / "data" / "bravo_GT.tar"

    @property
    def samples(self) -> Path:
        return self.folder / "data" / "bravo_SAMPLING.tar"

    def training_folder(self, name: str) -> Path:
        """Output folder of a member's training."""
        return self.folder / "schools" / name

    def recipe(self, name: str) -> Path:
        return self.folder / "schools" / f"{name}.yaml"

    @property
    def workers(self) -> int:
        """Worker processes for the test set; for a few images starting them takes longer than it saves."""
        return 0 if self.size is QUICK else min(_WORKERS, _cores())

    def draw(self) -> Words:
        size = self.size
        frames = "x".join(map(str, size.frames))
        numbers = ("--train", str(size.train), "--val", str(size.val), "--size", frames, "--seed", str(self.seed))
        return ("datasets", "draw", "--output", str(self.folder / "data"), *numbers)

    def train(self, name: str) -> Words:
        resume = ("--resume",) if (self.training_folder(name) / "checkpoints" / "last.pth").exists() else ()
        return ("train", "--manifest", str(self.recipe(name)), "--device", "cpu", *resume)

    def after_training(self) -> list[Words]:
        """List the steps that follow training."""
        calibrated = str(self.folder / "calibrated.yaml")
        first, then = ("--manifest", str(self.manifest)), ("--manifest", calibrated)
        truth, samples = ("--ground-truth", str(self.truth)), ("--samples", str(self.samples))
        scored = (*truth, *samples, "--per-model", "--json")
        return [
            ("dump", *first, "--device", "cpu", "--workers", str(self.workers)),
            ("ensemble", *first, "--workers", "0"),
            ("evaluate", *first, *scored, str(self.folder / "scores.json")),
            ("calibrate", *first, "--pixels", str(self.size.pixels), "--write", calibrated),
            ("ensemble", *then, "--workers", "0", "--overwrite"),
            ("evaluate", *then, *scored, str(self.folder / "calibrated.json")),
            ("submit", *then, *samples, "--output", str(self.folder / "submission.tar")),
            ("report", *then, *truth, "--write", str(self.folder / "report")),
        ]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def run_demo(folder: Path, seed: int, *, quick: bool = False) -> int:
    """Draw, train, and run the stages; return the exit code of the first one that fails, else 0.

    Args:
        folder: where everything goes; ManifestError if it holds another manifest. Run again with the same seed,
            nothing is made twice.
        seed: of the streets and of the members' first weights.
        quick: do a small part of everything.
    """
    plan = _DemoPlan(folder.resolve(), seed, QUICK if quick else FULL)
    text = _manifest(plan)
    try:
        if plan.manifest.exists() and plan.manifest.read_bytes() != text.encode():
            raise ManifestError(
                f"{plan.manifest}: is not that of this demo and seed; choose another --output, or remove it"
            )
        print(f"drawing an exam of the BRAVO challenge's kind in {plan.folder / 'data'}", flush=True)
        size = plan.size
        test_set = plan.folder / "data" / "bravo_1.0"
        write_bravo(test_set, seed=seed, size=size.test_size, each=size.test_dozens, truth=plan.truth)
        if not plan.samples.exists():
            write_samples(plan.truth, plan.samples)
        for name in NAMES:
            write_text(plan.recipe(name), _recipe(plan, name))
        write_text(plan.manifest, text)
    except OSError as error:
        raise StoreError(f"{plan.folder}: cannot be written ({reason(error)}); choose another --output") from error
    finished = _FinishedSteps(plan.folder / "steps.json")
    code = _run_step(finished, plan.draw()) or _train_members(finished, plan)
    for step in plan.after_training() if not code else ():
        if code := _run_step(finished, step):
            break
    if not code:
        for line in _summary(plan):
            print(line)
    return code


class _FinishedSteps:
    """The finished steps, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.steps: list[str] = json.loads(path.read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError, TypeError):
            self.steps = []

    def add(self, step: str) -> None:
        """Remember it."""
        self.steps.append(step)
        write_json(self._path, {"version": __version__, "steps": self.steps})


def _line(step: Words) -> str:
    return shlex.join(("hmsa-pipeline", *step))


def _run_step(finished: _FinishedSteps, step: Words) -> int:
    """Run a step unless it is done; its exit code."""
    print(f"\n$ {_line(step)}", flush=True)
    if _line(step) in finished.steps:
        print("done before", flush=True)
        return 0
    process = _start_process(step)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _stop([process])
        raise
    if not code:
        finished.add(_line(step))
    return code


def _train_members(finished: _FinishedSteps, plan: _DemoPlan) -> int:
    """Train the members that are missing, those that others start from first; return the first exit code but 0."""
    left = [name for name in NAMES if f"trained {name}" not in finished.steps]
    parallel = max(1, min(len(left), _cores()))
    print(f"\ntraining {len(left)} of {len(NAMES)} members, {parallel} at a time; each keeps a log", flush=True)
    first = [name for name in left if name not in INITIAL_WEIGHTS_OF]
    then = [name for name in left if name in INITIAL_WEIGHTS_OF]
    return _train_generation(finished, plan, first, parallel) or _train_generation(finished, plan, then, parallel)


def _train_generation(finished: _FinishedSteps, plan: _DemoPlan, names: Sequence[str], parallel: int) -> int:
    """Train members that do not need one another, ``parallel`` at a time; return the first exit code but 0."""
    running: list[subprocess.Popen[bytes]] = []

    def train(name: str) -> int:
        step = plan.train(name)
        log = plan.training_folder(name).with_suffix(".log")
        with log.open("ab") as output:
            process = _start_process(step, threads=max(1, _cores() // parallel), out=output)
            running.append(process)
            code = process.wait()
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            print(f"$ {_line(step)}\nfailed: {' '.join(last)} ({log})", file=sys.stderr, flush=True)
        else:
            finished.add(f"trained {name}")
            # With its line's end, which print writes by itself: another thread's line could come between.
            print(f"$ {_line(step)}\n  {_validation_score(plan, name)} ({log})\n", end="", flush=True)
        return code

    with ThreadPoolExecutor(parallel) as pool:
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


def _start_process(
    step: Words, *, threads: int | None = None, out: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a step in its own process group: Ctrl-C in the terminal does not reach it, `_stop` passes it on once."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *step]
    return subprocess.Popen(command, stdout=out, stderr=out, env=environment, process_group=0)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt the processes once and wait until they have saved; a second interruption leaves them running."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        process.wait()


def _validation_score(plan: _DemoPlan, name: str) -> str:
    """Score of a member on its own validation set, for people."""
    history = json.loads((plan.training_folder(name) / HISTORY).read_text(encoding="utf-8"))
    return f"mIoU {100 * max(epoch['mean_iou'] or 0.0 for epoch in history):.1f} % on its own streets"


def _summary(plan: _DemoPlan) -> list[str]:
    """The last lines: scores of members and ensemble, and where the results are."""
    raw, calibrated = (json.loads((plan.folder / f"{name}.json").read_text()) for name in ("scores", "calibrated"))
    rows = [(name, _means(raw[name])) for name in raw]
    rows.append(("calibrated", _means(calibrated["ensemble"])))
    wide = max(len(name) for name, _ in rows)
    lines = ["", "On the exam (means over its subsets):", f"{'':{wide}}   mIoU  AUROC    ECE"]
    lines += [f"{name:{wide}}  " + "  ".join(f"{value:.3f}" for value in values) for name, values in rows]
    by_member = _mean_validation_miou(plan)
    best = max((name for name in by_member if name != "ensemble"), key=by_member.__getitem__)
    return [
        *lines,
        "",
        f"On streets of the schools that nobody learnt from, the ensemble has mIoU {by_member['ensemble']:.3f}, "
        f"the best member ({best}) {by_member[best]:.3f}.",
        "",
        f"report:      {plan.folder / PAGE}",
        f"predictions: {plan.folder / 'run' / 'predictions'}",
        f"submission:  {plan.folder / 'submission.tar'}",
        "",
        f"Every command runs again with --manifest {shlex.quote(str(plan.manifest))}",
    ]


def _means(figures: dict[str, Any]) -> list[float]:
    """mIoU, AUROC and ECE of a subject, each as the mean over the subsets that have it."""
    found = []
    for name in ("miou", "auroc", "ece"):
        values = [value for key, value in figures.items() if key.endswith(f"_{name}_valid") and value is not None]
        found.append(sum(values) / max(1, len(values)))
    return found


def _mean_validation_miou(plan: _DemoPlan) -> dict[str, float]:
    """mIoU of the calibrated ensemble and of the members on the validation sets, the mean over the sets."""
    report = json.loads((plan.folder / PAGE).with_name("report.json").read_text())
    rows = [one["scores"] for one in report["datasets"] if one["dataset"].endswith("_val")]
    return {name: sum(row[name]["miou"] or 0.0 for row in rows) / len(rows) for name in rows[0]}


def _manifest(plan: _DemoPlan) -> str:
    """The shipped BRAVO manifest for the drawn data: the test set and the seven validation sets."""
    manifest = yaml.safe_load((SHIPPED / "bravo.yaml").read_text(encoding="utf-8"))
    manifest["output"] = str(plan.folder / "run")
    manifest["models"] = [
        {"name": name, "source": name, "arch": ARCH, "checkpoint": f"schools/{name}/{WEIGHTS}"} for name in NAMES
    ]
    manifest["datasets"] = [
        {"name": f"bravo_{split}", "type": "bravo", "root": f"data/bravo_1.0/bravo_{split}"} for split in SPLITS
    ] + [
        {"name": f"{name}_val", "type": name, "root": f"data/{dataset_spec(name).folder}", "split": "val"}
        for name in NAMES
    ]
    head = f"# The demo of hmsa-pipeline, seed {plan.seed}{', quick' if plan.size is QUICK else ''}.\n"
    return head + yaml.safe_dump(manifest, sort_keys=False)


def _recipe(plan: _DemoPlan, name: str) -> str:
    """A short training recipe: from random weights, or from those of another member."""
    size = plan.size
    initial = INITIAL_WEIGHTS_OF.get(name)
    epochs = size.epochs[initial is not None]
    recipe = {
        "version": 1,
        "output": str(plan.training_folder(name)),
        "arch": ARCH,
        "data": {"type": name, "root": f"../data/{dataset_spec(name).folder}"},
        **({"init": {"checkpoint": str(plan.training_folder(initial) / WEIGHTS)}} if initial else {}),
        "epochs": epochs,
        "global_batch": 2,  # small batches: many steps in a minute
        "batch_size": 2,
        "precision": "fp32",
        "batch_norm": "local",
        "dropout": 0.0,
        "workers": 0,
        "seed": plan.seed,
        "augmentation": {"crop": list(size.crop), "scale": [0.75, 1.5], "color_jitter": 0.25},
        "sampling": {"class_uniform": 0.5, "tile": 64},
        "loss": {"criterion": "rmi", "scales": 0.0},
        "optimizer": {"name": "adamw", "lr": 0.01 if initial else 0.02, "weight_decay": 0.01},
        "schedule": {"exponent": 1.0},
        "validation": {"every": epochs, "scales": [1.0]},
    }
    head = f"# A school of the demo of hmsa-pipeline: the tiny network on drawn streets like those of {name}.\n"
    return head + yaml.safe_dump(recipe, sort_keys=False)
