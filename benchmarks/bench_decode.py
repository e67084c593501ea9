"""Decoding of one drawn 1024x2048 scene: ours against torchvision's, PNG and JPEG, in turns in one run.

    python benchmarks/bench_decode.py --repeats 9

Prints JSON: median seconds of both and their ratio. Needs torchvision (the ``test`` extra).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from PIL import Image
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

SIZE = (1024, 2048)


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(path: Path, repeats: int) -> dict[str, float]:
    """Median seconds of both decoders, which must agree on every pixel."""

    def theirs() -> torch.Tensor:
        return torchvision_decode(str(path), mode=ImageReadMode.RGB)

    if not torch.equal(decode_image(path), theirs()):
        raise SystemExit(f"{path.suffix}: the decoders disagree")
    pairs = [(seconds(lambda: decode_image(path)), seconds(theirs)) for _ in range(repeats)]
    ours, others = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"ours": round(ours, 4), "torchvision": round(others, 4), "ratio": round(ours / others, 2)}


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    scene = Image.fromarray(draw_scene(0, *SIZE).image)
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for suffix, options in ((".png", {}), (".jpg", {"quality": 92})):
            path = Path(folder, f"scene{suffix}")
            scene.save(path, **options)
            figures[suffix] = compare(path, repeats)
    print(json.dumps({"size": SIZE, **figures}))


if __name__ == "__main__":
    main()
