"""Time and memory of the network at three scales: the straightforward way, and ours.

    python benchmarks/bench_forward.py --size 512x1024 --repeats 3
    python benchmarks/bench_forward.py --size 512x1024 --against HEAD~10 --no-baseline
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

import numpy as np
import torch
import torch.nn.functional as F
from builds import add_against, builds
from harness import compare, size, tell
from hmsa_pipeline.datasets.decode.arrays import decode_rgb
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.models.checkpoint import load_weights
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.hrnet import join
from hmsa_pipeline.models.ocr import OCRHead, OCROutput, gather_regions
from hmsa_pipeline.models.prepare_inference import prepare_for_inference
from hmsa_pipeline.models.registry import build
from PIL import Image
from torch import Tensor

SCALES = (0.5, 1.0, 2.0)
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def network(arch: str, device: str) -> HMSA:
    """Random weights under normalisations that have seen a picture."""
    torch.manual_seed(0)
    model = build(arch)
    assert isinstance(model, HMSA)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    with torch.no_grad():
        model.train()(pixels((128, 256), "cpu"))
    return model.eval().to(device)


def pixels(shape: tuple[int, int], device: str) -> Tensor:
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1)).to(device)


def up(x: Tensor, shape: Any) -> Tensor:
    return F.interpolate(x, tuple(shape), mode="bilinear", align_corners=False)


def head(ocr: OCRHead, x: Tensor) -> OCROutput:
    """The OCR head on features of one size, layer by layer."""
    auxiliary, features = ocr.aux_head(x), ocr.conv3x3_ocr(x)
    features = ocr.ocr_distri_head(features, gather_regions(features, auxiliary))
    return OCROutput(ocr.cls_head(features), auxiliary, features)


def straightforward(model: HMSA, images: Tensor) -> Tensor:
    """Three scales, everything enlarged and kept."""
    outputs = {}
    for scale in SCALES:
        x = (
            images
            if scale == 1.0
            else F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        )
        out = head(model.ocr, join(model.backbone(x)))
        outputs[scale] = {
            "scores": up(out.scores, x.shape[-2:]),
            "auxiliary": up(out.auxiliary, x.shape[-2:]),
            "attention": up(torch.sigmoid(model.scale_attn(out.features)), x.shape[-2:]),
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
    model = prepare_for_inference(network(arch, device), dtype)
    images = pixels(shape, device).to(dtype or torch.float32, memory_format=torch.channels_last)

    @torch.inference_mode()
    def work() -> Tensor:
        return model.predict(images, SCALES)

    return work


def differences(expected: Tensor, found: Tensor) -> tuple[float, float, float]:
    """Share of the pixels of the same class; mean and largest difference of probabilities."""
    far = (found.softmax(1) - expected.softmax(1)).abs()
    return (found.argmax(1) == expected.argmax(1)).float().mean().item(), far.mean().item(), far.max().item()


@torch.inference_mode()
def agreement(arch: str, checkpoint: Path, photographs: Path, width: int, device: str, precision: str) -> str:
    """How far a network's answers in ``precision`` are from those in float32, over photographs, wide ones reduced."""

    def loaded(dtype: torch.dtype | None) -> HMSA:
        model = build(arch)
        assert isinstance(model, HMSA)
        load_weights(model, checkpoint, arch)
        return prepare_for_inference(model.to(device), dtype)  # type: ignore[return-value]

    dtype = DTYPES[precision] or torch.float32
    whole, half = loaded(None), loaded(DTYPES[precision])
    rows = []
    for path in sorted(p for p in photographs.rglob("*") if p.suffix.lower() in {".png", ".jpg"}):
        photograph = Image.fromarray(decode_rgb(path))
        if photograph.width > width:
            photograph = photograph.resize((width, round(photograph.height * width / photograph.width)), Image.BOX)
        images = normalise(torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None].to(device))
        rows.append(differences(whole.predict(images, SCALES), half.predict(images.to(dtype), SCALES)))
    same, mean, most = zip(*rows, strict=True)
    return (
        f"{precision} against fp32 over {len(rows)} photographs: argmax agrees on {sum(same) / len(same):.5f} of the "
        f"pixels, |dp| mean {sum(mean) / len(mean):.2e}, at most {max(most):.2e}"
    )


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="hrnet_ocr_mscale")
    parser.add_argument("--size", type=size, default=(512, 1024), metavar="HxW")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-baseline", action="store_true", help="run ours alone, to compare builds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="a trained network, to say what half precision costs")
    parser.add_argument("--photographs", type=Path, help="the folder of what it looks at for that")
    parser.add_argument("--width", type=int, default=4096, help="photographs that are wider are reduced to it")
    parser.add_argument("--agreement-only", action="store_true", help="say only what half precision costs")
    add_against(parser)
    options = parser.parse_args()
    if options.checkpoint and options.photographs:
        print(
            agreement(
                options.arch,
                options.checkpoint,
                options.photographs,
                options.width,
                options.device,
                options.precision,
            ),
            flush=True,
        )
    if options.agreement_only:
        return
    arguments = (options.arch, options.size, options.device)
    cases = {f"ours, {options.precision}": partial(make_ours, *arguments, options.precision)}
    if not options.no_baseline:
        cases = {"straightforward, fp32": partial(make_baseline, *arguments, "fp32"), **cases}
    if options.precision != "fp32" and not options.no_baseline:
        cases[f"straightforward, {options.precision}"] = partial(make_baseline, *arguments, options.precision)
    with builds(options.against) as them:
        measured = compare(cases, repeats=options.repeats, builds=them)
    baseline = "straightforward, fp32" if options.device == "cpu" else f"straightforward, {options.precision}"
    if options.no_baseline:
        baseline = f"ours, {options.precision}"
    tell(measured, baseline, builds=them, json_file=options.json, size=options.size, precision=options.precision)
    if options.no_baseline:
        return
    ways = [make(*arguments, "fp32")().float() for make in (make_baseline, make_ours)]
    same, mean, most = differences(*ways)
    print(f"ours against the baseline in fp32: argmax agrees on {same:.6f}, |dp| mean {mean:.1e}, at most {most:.1e}")


if __name__ == "__main__":
    main()
