"""RMI loss, forward and backward: time and peak memory of ours against the plain way; prints JSON.

The plain way follows the formulas: one-hot labels, everything for the whole batch at once, 9 + 9 shifted maps in
float64, an inverse. Each version runs in a process of its own, so that neither finds the other's memory.

    python benchmarks/bench_rmi.py --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from hmsa_pipeline.models.losses.rmi import POOL, RADIUS, REGION_SHARE, RIDGE, rmi_loss
from torch import Tensor


def plain_rmi_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """What `rmi_loss` computes, from the formulas."""
    valid = (labels != 255)[:, None].to(logits.dtype)
    one_hot = F.one_hot(labels.where(labels != 255, 0), logits.shape[1]).permute(0, 3, 1, 2) * valid
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, weight=valid, reduction="sum")

    def patches(maps: Tensor) -> Tensor:
        pooled = F.avg_pool2d(maps, POOL, padding=POOL // 2)
        height, width = (side - RADIUS + 1 for side in pooled.shape[-2:])
        shifted = [
            pooled[..., y : y + height, x : x + width].flatten(2) for y in range(RADIUS) for x in range(RADIUS)
        ]
        stack = torch.stack(shifted, dim=2).double()
        return stack - stack.mean(dim=3, keepdim=True)

    of_labels, of_scores = patches(one_hot), patches(logits.sigmoid() * valid)
    ridge = RIDGE * torch.eye(RADIUS**2, dtype=torch.float64, device=logits.device)
    shared = of_labels @ of_scores.mT
    inverse = torch.linalg.inv(of_scores @ of_scores.mT + ridge)
    rest = of_labels @ of_labels.mT - shared @ inverse @ shared.mT
    region = torch.logdet(rest + ridge).mean(dim=0).sum() / (2 * RADIUS**2)
    return ((1 - REGION_SHARE) * cross_entropy / (valid.sum() + 1) + REGION_SHARE * region).to(logits.dtype)


VERSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ours": rmi_loss, "plain": plain_rmi_loss}


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(version: str, shape: list[int], repeats: int, threads: int, device: str) -> dict[str, float]:
    """Seconds (the best of ``repeats``) and peak MiB beyond scores and labels, of which the gradient is a part."""
    torch.set_num_threads(threads)
    loss_of = VERSIONS[version]
    images, classes, height, width = shape
    generator = torch.Generator(device).manual_seed(0)
    # On a small input first: libraries that load themselves on first use are none of the loss' memory.
    loss_of(
        torch.zeros(1, classes, 32, 32, device=device, requires_grad=True), torch.zeros(1, 32, 32).long().to(device)
    ).backward()
    logits = torch.empty(shape, device=device).normal_(std=4, generator=generator).requires_grad_()
    blocks = torch.randint(classes, (images, 1, height // 16, width // 16), device=device, generator=generator)
    labels = F.interpolate(blocks.float(), (height, width)).long()[:, 0]
    labels[:, :16] = 255

    on_gpu = device.startswith("cuda")
    before = torch.cuda.memory_allocated() if on_gpu else resident()
    seconds, value = [], 0.0
    for _ in range(repeats):
        logits.grad = None
        start = time.perf_counter()
        loss = loss_of(logits, labels)
        loss.backward()
        value = loss.item()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(min(seconds), 3), "peak_mib": round((peak - before) / 2**20, 1), "loss": value}


def main() -> None:
    """Read the command line, measure each version in a process of its own, print."""
    parser = argparse.ArgumentParser(
        description="RMI loss: time and peak memory of ours against the plain way, as JSON."
    )
    parser.add_argument("--shape", type=int, nargs=4, default=[2, 19, 512, 1024], metavar=("N", "C", "H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=VERSIONS, help="measure this version, in this process")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.shape, args.repeats, args.threads, args.device)))
        return
    results = {}
    for version in VERSIONS:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", version]
        results[version] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ratios = {key: round(results["plain"][key] / results["ours"][key], 2) for key in ("seconds", "peak_mib")}
    print(json.dumps({"shape": args.shape, "device": args.device, **results, "plain / ours": ratios}, indent=2))


if __name__ == "__main__":
    main()
