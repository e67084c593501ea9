"""On how many pixels of photographs two builds predict the same class, on a CPU.

    python benchmarks/bench_labels.py --against HEAD~10 --photographs DIR --width 1024
    python benchmarks/bench_labels.py --against HEAD~10 --photographs DIR --arch hrnet_tiny_ocr_mscale \
        --checkpoint manifests/demo/gta5.safetensors

Each build runs its own ``hmsa-pipeline predict``. Without a checkpoint the weights are random, under normalisations
that have seen a picture: such a network has far more pixels on the border between two classes than a trained one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from bench_forward import network
from builds import add_against, builds, run_command
from hmsa_pipeline.datasets.decode.arrays import decode_rgb
from hmsa_pipeline.models.checkpoint import save_checkpoint
from PIL import Image


def reduced(photographs: Path, width: int, folder: Path) -> int:
    """Copy photographs as PNG, wide ones reduced; their number."""
    found = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in {".png", ".jpg"})
    folder.mkdir()
    for number, path in enumerate(found):
        image = Image.fromarray(decode_rgb(path))
        if image.width > width:
            image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.BOX)
        image.save(folder / f"{number:03}_{path.stem}.png")
    return len(found)


def main() -> None:
    """Compare, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="hrnet_ocr_mscale")
    parser.add_argument("--checkpoint", type=Path, help="weights; random ones if left out")
    parser.add_argument("--photographs", type=Path, required=True, help="their folder")
    parser.add_argument("--width", type=int, default=4096, help="photographs that are wider are reduced to it")
    add_against(parser)
    options = parser.parse_args()
    if options.against is None:
        parser.error("--against is missing: name the revision to compare with")
    with builds(options.against) as them, tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        count = reduced(options.photographs, options.width, root / "photographs")
        checkpoint = options.checkpoint and options.checkpoint.resolve()
        if checkpoint is None:
            checkpoint = root / "random.pth"
            save_checkpoint(checkpoint, network(options.arch, "cpu"), arch=options.arch)
        manifest = root / "manifest.yaml"  # JSON is YAML
        member = {"name": "it", "arch": options.arch, "checkpoint": str(checkpoint)}
        dataset = {"name": "photographs", "type": "folder", "root": str(root / "photographs")}
        manifest.write_text(
            json.dumps({"version": 1, "output": str(root / "run"), "models": [member], "datasets": [dataset]})
        )
        for number, build in enumerate(them):
            words = ["predict", "--manifest", manifest, "--output", root / str(number), "--workers", "0"]
            run_command(build, [*words, "--device", "cpu", "--precision", "fp32"])
        maps = [sorted((root / str(number)).rglob("*_pred.png")) for number in (0, 1)]
        assert [len(found) for found in maps] == [count, count], maps
        same = pixels = 0
        for path, other in zip(*maps, strict=True):
            equal = np.asarray(Image.open(path)) == np.asarray(Image.open(other))
            same, pixels = same + int(equal.sum()), pixels + equal.size
            print(f"{path.name}: {equal.mean():.6f}", flush=True)
    print(f"the same class on {same / pixels:.6f} of {pixels} pixels of {count} photographs")


if __name__ == "__main__":
    main()
