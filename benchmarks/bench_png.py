"""Encoding of drawn class maps and confidences of 1024x2048: ours against Pillow's, by turns in one run.

    python benchmarks/bench_png.py --repeats 9

Prints JSON: for each kind of map and file the median CPU seconds of both, and the ratios of time and of bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
import zlib
from collections.abc import Callable

import torch
from hmsa_pipeline.pipeline.fusion.fuse import quantise
from hmsa_pipeline.pipeline.fusion.grey_png import encode_png
from numpy.typing import NDArray
from PIL import Image

SIZE = (1024, 2048)
WAVES = {  # amplitude of logits by cells along the height
    "unsure": {8: 2.0, 32: 1.5, 128: 1.0},
    "sure": {4: 12.0, 16: 6.0},
    "noise": {1024: 3.0},
}


def draw(waves: dict[int, float]) -> tuple[NDArray, NDArray]:
    """Class map uint8 and confidence uint16 of smooth random logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(19, *SIZE)
    for cells, amplitude in waves.items():
        coarse = torch.randn(1, 19, cells, 2 * cells, generator=generator)
        logits += amplitude * torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0]
    confidence, label = logits.softmax(0).max(0)
    return label.byte().numpy(), quantise(confidence).numpy()


def pillow(pixels: NDArray) -> bytes:
    """A filter chosen for every row, run lengths and Huffman's code."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return png.getvalue()


def seconds(work: Callable[[NDArray], bytes], pixels: NDArray) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    work(pixels)
    return time.process_time() - begun


def compare(pixels: NDArray, repeats: int) -> dict[str, float]:
    """Time and size of both."""
    pairs = [(seconds(encode_png, pixels), seconds(pillow, pixels)) for _ in range(repeats)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "ours": round(ours, 4),
        "pillow": round(theirs, 4),
        "time": round(statistics.median(a / b for a, b in pairs), 2),
        "bytes": round(len(encode_png(pixels)) / len(pillow(pixels)), 3),
    }


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    found = {}
    for kind, waves in WAVES.items():
        label, confidence = draw(waves)
        found[kind] = {"class map": compare(label, repeats), "confidence": compare(confidence, repeats)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
