"""Time and peak memory of ``hmsa-pipeline ensemble`` over seven members at 1024x2048.

    python benchmarks/bench_ensemble.py --images 4

Logits are drawn (smooth, so that they compress about as real ones do) and imported as seven external
members; then the command runs in a process of its own. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from PIL import Image

MEMBERS = 7
SIZE = (1024, 2048)


def command(*arguments: str | Path) -> None:
    """Run one hmsa-pipeline command; its output goes to standard error."""
    subprocess.run(
        [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *map(str, arguments)], check=True, stdout=sys.stderr
    )


def prepare(root: Path, images: int) -> Path:
    """Photographs, a manifest, and the members' filled stores below ``root``; the manifest's path."""
    draw = np.random.default_rng(0)
    names = [f"member{number}" for number in range(MEMBERS)]
    (root / "photos").mkdir()
    for image in range(images):
        Image.new("RGB", SIZE[::-1]).save(root / "photos" / f"{image}.jpg")
    manifest = {
        "version": 1,
        "output": str(root / "run"),
        "models": [{"name": name, "arch": "external"} for name in names],
        "datasets": [{"name": "photos", "type": "folder", "root": "photos"}],
    }
    path = root / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest))
    coarse = (len(CLASS_NAMES), SIZE[0] // 4, SIZE[1] // 4)
    for name in names:
        folder = root / "logits" / name
        folder.mkdir(parents=True)
        for image in range(images):
            logits = 4 * draw.standard_normal(coarse, dtype=np.float32)
            np.savez(folder / f"{image}_logits.npz", logits=logits.repeat(4, 1).repeat(4, 2).astype(np.float16))
        command("import-logits", folder, "--manifest", path, "--model", name, "--dataset", "photos")
    return path


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        manifest = prepare(Path(folder), images)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        begun = time.perf_counter()
        command("ensemble", "--manifest", manifest)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        record = json.loads((Path(folder) / "run" / "run.json").read_text())
    if peak == before:
        raise SystemExit("the import took more memory than the fusion: its peak cannot be told")
    figures = {
        "images": images,
        "members": MEMBERS,
        "size": SIZE,
        "cores": os.cpu_count(),
        "seconds_whole_command": round(seconds, 2),
        "seconds_per_image": round(record["ensemble"]["photos"]["seconds"] / images, 3),
        "peak_memory_gb": round(peak * 1024 / 1e9, 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
