"""Recipes with several sources, and auto-labels made by hand, for tests of training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hmsa_pipeline.datasets.auto_labels import confidence_name, label_name
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.decode.image_header import read_size
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from PIL import Image

from .bench import TINY, run
from .conftest import plain_cpu

Map = np.ndarray[Any, np.dtype[np.uint8]]

RECIPE: dict[str, Any] = {
    "version": 1,
    "arch": TINY,
    "epochs": 1,
    "global_batch": 2,
    "batch_size": 2,
    "workers": 0,
    "precision": "fp32",
    "batch_norm": "frozen",
    "augmentation": {"crop": [32, 64]},
    "sampling": {"class_uniform": 0.5, "tile": 32},
    "loss": {"criterion": "cross_entropy"},
    "optimizer": {"lr": 0.01},
    "validation": {"scales": [1.0]},
}


def recipe(path: Path, data: Any, **changes: Any) -> Path:
    """A recipe at ``path`` that writes beside it."""
    tree = {**RECIPE, "output": str(path.parent / "unnamed"), "data": data, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def source(root: Path, **changes: Any) -> dict[str, Any]:
    """GTA5 at ``root`` as an entry of ``data``."""
    return {"type": "gta5", "root": str(root), **changes}


def own_labels(root: Path) -> dict[str, Map]:
    """The masks of the training split of a drawn GTA5, by photograph."""
    reader = LabelReader(root, dataset_spec("gta5"))
    pairs = list_pairs(root, "gta5", "train")
    return {pair.image: reader.read(pair, read_size(root / pair.image)) for pair in pairs}


def write_auto_labels(
    folder: Path,
    root: Path,
    labels: dict[str, Map],
    confidence: Callable[[Map], Map] = lambda labels: np.full_like(labels, 255),
    classes: Sequence[str] = CLASS_NAMES,
) -> Path:
    """Labels and their confidence, as ``autolabel`` writes them."""
    shutil.rmtree(folder, ignore_errors=True)
    facts = {}
    for photograph, found in labels.items():
        for name, pixels in ((label_name(photograph), found), (confidence_name(photograph), confidence(found))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
        facts[photograph] = [(root / photograph).stat().st_size, *found.shape]
    record = {
        "format_version": 1,
        "complete": True,
        "dataset": "extra",
        "format": "train-ids",
        "classes": [{"name": name, "threshold": 0.1} for name in classes],
    }
    (folder / "labels.json").write_text(json.dumps(record))
    (folder / "photographs.json").write_text(json.dumps(facts))
    return folder


def words(manifest: Path, output: Path, *more: str) -> list[str]:
    """The command that trains by a recipe."""
    return ["train", "--manifest", str(manifest), "--output", str(output), *more]


def trained(manifest: Path, output: Path, *more: str) -> Path:
    """Train by a recipe; the output."""
    with plain_cpu():
        result = run(*words(manifest, output, *more))
    assert result.code == 0, result
    return output
