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
from ..errors import ManifestError, StoreError
from ..files import write_text
from ..models.checkpoint import save_checkpoint
from ..models.registry import build
from .manifest import SHIPPED

ARCH = "hrnet_tiny_ocr_mscale"
WEIGHTS = "seg_weights"
STEPS = ("dump", "ensemble", "status")


def run_demo(folder: Path, seed: int) -> int:
    """Draw, save, and run the stages; the exit code of the first one that fails, else 0.

    Args:
        folder: where photographs (``bravo_1.0/``), checkpoints (``seg_weights/``), ``manifest.yaml`` and
            results (``run/``) go. Run again with the same seed, nothing is made twice.
        seed: of the scenes and of the checkpoints' random weights.

    Raises:
        ManifestError: the folder holds another manifest.
        StoreError: the folder cannot be written.
    """
    folder = folder.resolve()
    path, text = folder / "manifest.yaml", _manifest(folder, seed)
    try:
        if path.exists() and path.read_bytes() != text.encode():
            raise ManifestError(f"{path}: is not that of this demo and seed; choose another --output, or remove it")
        print(f"drawing street scenes in {folder / 'bravo_1.0'}", flush=True)
        write_bravo(folder / "bravo_1.0", seed=seed)
        _save_checkpoints(folder, seed)
        write_text(path, text)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from error
    for step in STEPS:
        command = [step, "--manifest", str(path)]
        print(f"\n$ hmsa-pipeline {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, "-P", "-m", "hmsa_pipeline.cli", *command], check=False).returncode
        if code:
            return code
    predictions = folder / "run" / "predictions"
    first = min(predictions.rglob("*_pred.png"))
    print(f"\nlogits:      {folder / 'run' / 'logits'}\npredictions: {predictions}\nfor example: {first}")
    print(f"\nEvery command runs again with --manifest {shlex.quote(str(path))}")
    return 0


def _manifest(folder: Path, seed: int) -> str:
    """The shipped BRAVO manifest at the size of the demo."""
    manifest = yaml.safe_load((SHIPPED / "bravo.yaml").read_text(encoding="utf-8"))
    manifest["output"] = str(folder / "run")
    for member in manifest["models"]:
        member |= {"arch": ARCH, "checkpoint": f"{WEIGHTS}/{_file_name(member['checkpoint'])}"}
    for dataset in manifest["datasets"]:
        dataset["root"] = f"bravo_1.0/{_file_name(dataset['root'])}"
    return f"# The demo of hmsa-pipeline, seed {seed}.\n{yaml.safe_dump(manifest, sort_keys=False)}"


def _save_checkpoints(folder: Path, seed: int) -> None:
    manifest = yaml.safe_load((SHIPPED / "bravo.yaml").read_text(encoding="utf-8"))
    for number, member in enumerate(manifest["models"]):
        torch.manual_seed(1000 * seed + number)
        save_checkpoint(folder / WEIGHTS / _file_name(member["checkpoint"]), build(ARCH), arch=ARCH)


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]
