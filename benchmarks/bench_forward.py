"""Time and memory of the network at three scales: the straightforward way, and ours.

    python benchmarks/bench_forward.py --size 512x1024 --repeats 3
    python benchmarks/bench_forward.py --size 1024x2048 --device cuda --precision fp16

The baseline is written as research forks write it: every scale in full, at its own resolution, every map enlarged to
that resolution, the auxiliary scores and the attention of every scale kept, normalisation as it was trained, under
autocast where the precision is a half one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import compare, size, tell
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.inference import prepare
from hmsa_pipeline.models.registry import build
from torch import Tensor

SCALES = (0.5, 1.0, 2.0)
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def network(arch: str, device: str) -> HMSA:
    torch.manual_seed(0)
    model = build(arch).to(device)
    assert isinstance(model, HMSA)
    return model


def pixels(shape: tuple[int, int], device: str) -> Tensor:
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1)).to(device)


def up(x: Tensor, shape: Any) -> Tensor:
    return F.interpolate(x, tuple(shape), mode="bilinear", align_corners=False)


def straightforward(model: HMSA, images: Tensor) -> Tensor:
    """Three scales, everything enlarged and kept."""
    outputs = {}
    for scale in SCALES:
        x = (
            images
            if scale == 1.0
            else F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        )
        out = model.ocr(model.backbone(x))
        outputs[scale] = {
            "scores": up(out.scores, x.shape[-2:]),
            "auxiliary": up(out.auxiliary, x.shape[-2:]),
            "attention": torch.sigmoid(up(model.scale_attn(out.features), x.shape[-2:])),
        }
    blended = None
    for scale in sorted(SCALES, reverse=True):
        scores, attention = outputs[scale]["scores"], outputs[scale]["attention"]
        if blended is None:
            blended = scores
        elif scale >= 1.0:
            blended = attention * scores + (1 - attention) * up(blended, scores.shape[-2:])
        else:
            shape = blended.shape[-2:]
            blended = up(attention * scores, shape) + (1 - up(attention, shape)) * blended
    assert blended is not None
    return blended.float()


def make_baseline(arch: str, shape: tuple[int, int], device: str, precision: str) -> Callable[[], Tensor]:
    model, images, dtype = network(arch, device), pixels(shape, device), DTYPES[precision]

    @torch.no_grad()
    def work() -> Tensor:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            return straightforward(model, images)

    return work


def make_ours(arch: str, shape: tuple[int, int], device: str, precision: str) -> Callable[[], Tensor]:
    dtype = DTYPES[precision]
    model = prepare(network(arch, device), dtype)
    images = pixels(shape, device).to(dtype or torch.float32, memory_format=torch.channels_last)

    @torch.inference_mode()
    def work() -> Tensor:
        return model.predict(images, SCALES)

    return work


def agreement(arch: str, shape: tuple[int, int], device: str, precision: str) -> str:
    """How far the two are apart, in float32 and in the precision asked for."""
    expected = make_baseline(arch, shape, device, "fp32")().float()
    lines = []
    for each in dict.fromkeys(("fp32", precision)):
        found = make_ours(arch, shape, device, each)().float()
        same = (found.argmax(1) == expected.argmax(1)).float().mean().item()
        far = (found.softmax(1) - expected.softmax(1)).abs()
        lines.append(f"{each}: argmax agrees on {same:.6f}, |dp| mean {far.mean():.2e}, at most {far.max():.2e}")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="hrnet_ocr_mscale")
    parser.add_argument("--size", type=size, default=(512, 1024), metavar="HxW")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    arguments = (options.arch, options.size, options.device)
    cases = {
        "straightforward, fp32": partial(make_baseline, *arguments, "fp32"),
        f"ours, {options.precision}": partial(make_ours, *arguments, options.precision),
    }
    if options.precision != "fp32":
        cases[f"straightforward, {options.precision}"] = partial(make_baseline, *arguments, options.precision)
    measured = compare(cases, repeats=options.repeats)
    baseline = "straightforward, fp32" if options.device == "cpu" else f"straightforward, {options.precision}"
    tell(measured, baseline, json_file=options.json, size=options.size, precision=options.precision)
    print(agreement(*arguments, options.precision))


if __name__ == "__main__":
    main()
