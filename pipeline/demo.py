"""The walk a newcomer takes: drawn photographs and seven small checkpoints, then the commands of every day.

Each step runs as the command line that is printed before it, in a process of its own.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from ..datasets.worlds import write_bravo
from ..errors import StoreError
from ..files import write_text
from ..models.checkpoint import save_checkpoint
from ..models.registry import build
from .manifest import SHIPPED

ARCH = "hrnet_tiny_ocr_mscale"
STEPS = ("dump", "ensemble", "status")


def run_demo(folder: Path, seed: int) -> int:
    """Draw, save, and run the stages; the exit code of the first one that fails, else 0.

    Args:
        folder: where photographs (``bravo_1.0/``), checkpoints (``seg_weights/``), ``manifest.yaml`` and
            results (``run/``) go. Run again with the same seed, nothing is made twice.
        seed: of the scenes and of the checkpoints' random weights.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = folder.resolve()
    try:
        print(f"drawing street scenes in {folder / 'bravo_1.0'}", flush=True)
        write_bravo(folder / "bravo_1.0", seed=seed)
        manifest = _write_manifest(folder, seed)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from error
    for step in STEPS:
        command = [step, "--manifest", str(manifest)]
        print(f"\n$ hmsa-pipeline {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, "-P", "-m", "hmsa_pipeline.cli", *command], check=False).returncode
        if code:
            return code
    predictions = folder / "run" / "predictions"
    first = min(predictions.rglob("*_pred.png"))
    print(f"\nlogits:      {folder / 'run' / 'logits'}\npredictions: {predictions}\nfor example: {first}")
    print(f"\nEvery command runs again with --manifest {shlex.quote(str(manifest))}")
    return 0


def _write_manifest(folder: Path, seed: int) -> Path:
    """The shipped BRAVO manifest at the size of the demo, and the checkpoints that it names."""
    manifest = yaml.safe_load((SHIPPED / "bravo.yaml").read_text(encoding="utf-8"))
    manifest["output"] = str(folder / "run")
    for number, member in enumerate(manifest["models"]):
        name = member["checkpoint"].rpartition("/")[2]
        member |= {"arch": ARCH, "checkpoint": f"seg_weights/{name}"}
        torch.manual_seed(1000 * seed + number)
        save_checkpoint(folder / "seg_weights" / name, build(ARCH), arch=ARCH)
    for dataset in manifest["datasets"]:
        dataset["root"] = f"bravo_1.0/{dataset['root'].rpartition('/')[2]}"
    path = folder / "manifest.yaml"
    write_text(path, yaml.safe_dump(manifest, sort_keys=False))
    return path
