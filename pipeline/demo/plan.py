"""The plan of a demonstration: its sizes, its paths, its commands, its manifest and its recipes."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...datasets.dataset_specs import NAMES, dataset_spec
from ..config.load_manifest import SHIPPED
from ..submission.bravo_archives import SPLITS
from .members import Record, weights_file

ARCH = "hrnet_tiny_ocr_mscale"
PAGE = "report/index.html"
FIRST_LOOK = "first"
"""Folder of the first picture."""
_FIRST_DATASET = "bravo_synobjs"
LABELS = "labels"
"""Folder of the auto-labels that the student's recipe names."""
_STUDENT = "cityscapes"  # the member that it begins as
_STUDENT_PHOTOGRAPHS, _CONDITIONS = "bravo_ACDC", ("fog", "night", "rain", "snow")
_SCALES = [0.5, 1.0]  # those of training; 2.0 is worse on held-out frames
_SHOWN = ("--confidences", "entropy,mutual-information", "--components", "obstacle")  # on pictures as small as these
_WORKERS = 2  # more would not fit into 1.5 GB of memory


@dataclass(frozen=True)
class DemoSize:
    """Sizes of the demonstration; those of images are (height, width)."""

    test_dozens: int  # images of the target set, in dozens
    test_size: tuple[int, int]
    frames: tuple[int, int]  # of the seven training datasets
    held_out: int  # frames of each that nobody is trained on, for calibration
    train: int  # frames of each to train on, where members are trained
    val: int  # frames of each that a trained member is scored on
    crop: tuple[int, int]
    epochs: int
    pixels: int  # that calibration looks at
    student_epochs: int  # of as many frames as are held out


FULL = DemoSize(
    test_dozens=4,
    test_size=(144, 288),
    frames=(144, 256),
    held_out=4,
    train=720,
    val=48,
    crop=(128, 224),
    epochs=8,
    pixels=50_000,
    student_epochs=30,
)
QUICK = DemoSize(
    test_dozens=1,
    test_size=(64, 128),
    frames=(64, 128),
    held_out=2,
    train=4,
    val=2,
    crop=(48, 64),
    epochs=1,
    pixels=10_000,
    student_epochs=1,
)


Words = tuple[str, ...]
"""A command line without its program."""


@dataclass(frozen=True)
class DemoPlan:
    """Paths and commands of a demonstration.

    Attributes:
        folder: where everything goes, absolute.
        seed: of the streets and, where members are trained, of their first weights.
        quick: do a small part of everything.
        train: train the members instead of taking those of the package.
    """

    folder: Path
    seed: int
    quick: bool = False
    train: bool = False

    @property
    def size(self) -> DemoSize:
        """How much of everything."""
        return QUICK if self.quick else FULL

    @property
    def manifest(self) -> Path:
        """The manifest of all commands but the last ones, which take the calibrated one."""
        return self.folder / "manifest.yaml"

    @property
    def truth(self) -> Path:
        """Labels of the test set."""
        return self.folder / "data" / "bravo_GT.tar"

    @property
    def samples(self) -> Path:
        """The challenge's list of sampled pixels."""
        return self.folder / "data" / "bravo_SAMPLING.tar"

    @property
    def searched(self) -> Path:
        """File of the figures of the search of members."""
        return self.folder / "search.json"

    @property
    def members(self) -> Path:
        """Folder of the members' weights and of their records."""
        return self.folder / "members"

    @property
    def student_recipe(self) -> Path:
        """Recipe of one network that learns from the ensemble's labels."""
        return self.folder / "student.yaml"

    @property
    def student_manifest(self) -> Path:
        """Manifest of that network alone, once it is trained."""
        return self.folder / "one.yaml"

    def training_folder(self, name: str) -> Path:
        """Output folder of a member's training."""
        return self.folder / "training" / name

    def recipe_file(self, name: str) -> Path:
        """Recipe of a member's training."""
        return self.folder / "training" / f"{name}.yaml"

    def draw(self) -> Words:
        """Draw the seven datasets: what members are trained on, or only what calibration needs."""
        size = self.size
        train, val = (size.train, size.val) if self.train else (1, size.held_out)
        numbers = ("--train", str(train), "--val", str(val), "--size", "x".join(map(str, size.frames)))
        # The package's members were trained on the streets of seed 0.
        seed = str(self.seed if self.train else self.seed + 1)
        return ("datasets", "draw", "--output", str(self.folder / "data"), *numbers, "--seed", seed)

    def train_member(self, name: str) -> Words:
        """Train a member, or go on with it."""
        resume = ("--resume",) if (self.training_folder(name) / "checkpoints" / "last.pth").exists() else ()
        return ("train", "--manifest", str(self.recipe_file(name)), "--device", "cpu", *resume)

    def first_look(self) -> list[Words]:
        """List the steps to the first picture: all members' answers about one photograph."""
        one = ("--manifest", str(self.manifest), "--datasets", _FIRST_DATASET, "--limit", "1")
        return [
            ("dump", *one, "--device", "cpu", "--workers", "0"),
            ("ensemble", *one, "--workers", "0"),
            ("render", *one, "--kinds", "sheet", "--write", str(self.folder / FIRST_LOOK)),
        ]

    def main_steps(self) -> list[Words]:
        """List the steps that follow when members and data are there."""
        calibrated = str(self.folder / "calibrated.yaml")
        first, then = ("--manifest", str(self.manifest)), ("--manifest", calibrated)
        truth, samples = ("--ground-truth", str(self.truth)), ("--samples", str(self.samples))
        # For a few images starting workers takes longer than it saves.
        workers = "0" if self.quick else str(min(_WORKERS, cores()))
        return [
            ("dump", *first, "--device", "cpu", "--workers", workers),
            ("ensemble", *first, "--workers", "0"),
            ("evaluate", *first, *truth, *samples, "--per-model", "--json", str(self.folder / "scores.json")),
            ("search", *first, "--json", str(self.searched)),
            ("calibrate", *first, "--pixels", str(self.size.pixels), "--write", calibrated),
            ("ensemble", *then, "--workers", "0", "--overwrite"),
            ("evaluate", *then, *truth, *samples, "--json", str(self.folder / "calibrated.json")),
            ("submit", *then, *samples, "--output", str(self.folder / "submission.tar")),
            ("report", *then, *truth, *_SHOWN, "--write", str(self.folder / "report")),
        ]

    def manifest_text(self, records: dict[str, Record]) -> str:
        """Write the shipped BRAVO manifest for the drawn data: the test set and the seven held-out sets.

        Args:
            records: of the members whose weights are known; the others' are still to be made.
        """
        manifest = yaml.safe_load((SHIPPED / "bravo.yaml").read_text(encoding="utf-8"))
        manifest["output"] = str(self.folder / "run")
        manifest["inference"]["scales"] = _SCALES
        manifest["models"] = [
            {
                "name": name,
                "source": name,
                "arch": ARCH,
                "checkpoint": f"members/{weights_file(name)}",
                **({"sha256": records[name]["sha256"]} if name in records else {}),
            }
            for name in NAMES
        ]
        manifest["datasets"] = _target_set() + [
            {"name": f"{name}_val", "type": name, "root": f"data/{dataset_spec(name).folder}", "split": "val"}
            for name in NAMES
        ]
        what = f"seed {self.seed}{', quick' * self.quick}{', members trained here' * self.train}"
        return f"# The demo of hmsa-pipeline, {what}.\n{yaml.safe_dump(manifest, sort_keys=False)}"

    def recipe_text(self, name: str) -> str:
        """Write the recipe of a member: from random weights of its own, since independent members err differently."""
        recipe = {
            "version": 1,
            "output": str(self.training_folder(name)),
            "arch": ARCH,
            "data": {"type": name, "root": f"../data/{dataset_spec(name).folder}"},
            "epochs": self.size.epochs,
            **self._training(self.size.epochs),
            "seed": len(NAMES) * self.seed + NAMES.index(name),
            "loss": {"criterion": "rmi", "scales": 0.05},
            "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.01},
            "checkpoints": {"minutes": 3.0},
        }
        head = (
            f"# A member of the demo of hmsa-pipeline: the tiny network on drawn streets in the manner of {name}.\n"
        )
        return head + yaml.safe_dump(recipe, sort_keys=False)

    def student_recipe_text(self) -> str:
        """Write the recipe of the student: a member that goes on with the ensemble's labels of the target set."""
        root = f"data/{dataset_spec(_STUDENT).folder}"
        target = {"type": "folder", "root": f"data/bravo_1.0/{_STUDENT_PHOTOGRAPHS}"}
        labels = f"autolabel {LABELS}/{_STUDENT_PHOTOGRAPHS}"
        share = round(1 / (len(_CONDITIONS) + 1), 6)
        # The few labelled frames of the demo are those of val; those of train are even fewer.
        own = {"type": _STUDENT, "root": root, "train": "val", "validation": "train"}
        recipe = {
            "version": 1,
            "output": str(self.folder / "student"),
            "arch": ARCH,
            "data": [
                {**own, "share": share},
                *({**target, "train": one, "labels": labels, "share": share} for one in _CONDITIONS),
            ],
            "init": {"checkpoint": f"members/{weights_file(_STUDENT)}"},
            "epochs": self.size.student_epochs,
            **self._training(self.size.student_epochs),
            "seed": self.seed,
            "loss": {"criterion": "cross_entropy", "scales": 0.05},
            "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01},
        }
        head = "# From seven members to one (docs/autolabel.md); the auto-labels are to lie beside this file.\n"
        return head + yaml.safe_dump(recipe, sort_keys=False)

    def student_manifest_text(self) -> str:
        """Write the manifest of the student alone, on the target set."""
        manifest = {
            "version": 1,
            "output": str(self.folder / "one"),
            "inference": {"scales": _SCALES},
            "models": [{"name": "student", "arch": ARCH, "checkpoint": "student/best_weights.pth"}],
            "datasets": _target_set(),
        }
        head = "# One network in the place of seven, after 'hmsa-pipeline train --manifest student.yaml'.\n"
        return head + yaml.safe_dump(manifest, sort_keys=False)

    def _training(self, epochs: int) -> dict[str, Any]:
        """Settings that all recipes of the demonstration share."""
        return {
            "global_batch": 4,
            "batch_size": 4,
            "precision": "fp32",
            "batch_norm": "local",
            "dropout": 0.0,
            "workers": 0,
            "augmentation": {"crop": list(self.size.crop), "scale": [0.6, 1.5], "color_jitter": 0.25},
            "sampling": {"class_uniform": 0.5, "tile": 64},
            "schedule": {"exponent": 1.0},
            "validation": {"every": epochs, "scales": [1.0]},
        }


def _target_set() -> list[dict[str, str]]:
    return [{"name": f"bravo_{split}", "type": "bravo", "root": f"data/bravo_1.0/bravo_{split}"} for split in SPLITS]


def line(step: Words) -> str:
    """Write a command as one would type it."""
    return shlex.join(("hmsa-pipeline", *step))


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))
