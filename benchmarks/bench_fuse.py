"""Fusing strips of seven members' logits: by the compiled library, without it, and by PyTorch's own softmax.

    python benchmarks/bench_fuse.py
    python benchmarks/bench_fuse.py --pixels 4096 --members 3

A strip of 16,384 pixels is what `hmsa-pipeline ensemble` fuses at once. Reading logits and writing PNGs are not
counted. All ways run by turns on one thread. Prints for each the median core seconds for an image of 1024x2048 and
its ratio to PyTorch's way; at how many pixels the library gives another label than that, and the largest difference
of a confidence; and whether a bit differs from what is computed without the library. With ``--functions`` the library
is compared with its absence for every pair of label and confidence.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from bench_ensemble import drawn
from harness import machine
from hmsa_pipeline.pipeline.config.calibration_field import MaxLogits
from hmsa_pipeline.pipeline.fusion.fuse import CONFIDENCES, LABELS, Fused, fuse
from hmsa_pipeline.pipeline.fusion.kernel import library
from torch import Tensor

IMAGE = 1024 * 2048
TURNS = ("library", "without", "PyTorch")


def by_torch(members: Sequence[Tensor]) -> Fused:
    """The mean softmax, a member at a time, with room that is used again."""
    z = torch.empty_like(members[0], dtype=torch.float32)
    p, total = torch.empty_like(z), torch.zeros_like(z)
    for member in members:
        torch.softmax(z.copy_(member), 0, out=p)
        total.add_(p, alpha=1 / len(members))
    confidence, label = total.max(0)
    return Fused(label.to(torch.uint8), confidence)


def without(work: Callable[[], Fused]) -> Fused:
    """Do it as if there were no library."""
    with mock.patch.object(library, "library", lambda: None):
        return work()


def by_turns(ways: dict[str, Callable[[], Fused]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            begun = time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=7)
    parser.add_argument("--pixels", type=int, default=16384, help="of a strip, a multiple of 1024")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--functions", action="store_true", help="every pair of label and confidence")
    given = parser.parse_args()
    print(machine())
    if library.library() is None:
        parser.error("there is no compiled library; install the package where there is a C compiler")
    torch.set_num_threads(1)
    rows = given.pixels // 1024
    members = [torch.from_numpy(drawn(m, max(64, rows), 1024))[:, :rows] for m in range(given.members)]
    weights, strips = [1.0] * given.members, IMAGE / members[0][0].numel()
    standards = [MaxLogits(mean=(8.0,) * 19, deviation=(2.0,) * 19)] * given.members
    pairs = [(label, name) for label in LABELS for name in CONFIDENCES] if given.functions else []
    for label, name in pairs:

        def work(label: str = label, name: str = name) -> Fused:
            return fuse(members, weights, None, (), standards, label=label, confidence=name)

        found = by_turns({"library": work, "without": lambda work=work: without(work)}, given.repeats)
        ratio = found["library"] / found["without"]
        print(f"{label:14}{name:20}{strips * found['library']:6.2f} core s  {ratio:.2f}x")
    if pairs:
        return
    ways: dict[str, Callable[[], Fused]] = {
        "library": lambda: fuse(members, weights),
        "without": lambda: without(lambda: fuse(members, weights)),
        "PyTorch": lambda: by_torch(members),
    }
    found = by_turns(ways, given.repeats)
    for name, seconds in found.items():
        print(f"{name:10}{strips * seconds:6.2f} core s an image  {seconds / found['PyTorch']:.2f}x")
    ours, other, plain = (way() for way in ways.values())
    labels = int((ours.label != plain.label).sum())
    apart = float((ours.confidence - plain.confidence).abs().max())
    print(f"library and PyTorch: another label at {labels} pixels, confidence within {apart:.1e}")
    same = torch.equal(ours.label, other.label) and torch.equal(ours.confidence, other.confidence)
    print(f"library and without: {'the same bits' if same else 'other bits'}")


if __name__ == "__main__":
    main()
