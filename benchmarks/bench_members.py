"""Dumping another library's network, against a plain loop around the library.

    python benchmarks/bench_members.py --size 512x1024 --images 4
    python benchmarks/bench_members.py --network mask2former-tiny

The baseline is what somebody writes who knows the library: read the photograph, its processor without resizing, the
network, scores enlarged to the photograph's size, `np.savez_compressed` of float16, one photograph after another.
Ours is a block of `hmsa-pipeline dump` at scale 1, which writes the same scores as logits. Beside it the network
alone, over pixels in memory. Weights are random, sizes those of SegFormer-B0 and of Mask2Former with Swin-T. Cases
run by turns.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

import numpy as np
import torch
from bench_dump import store_of
from harness import compare, size, tell
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions
from hmsa_pipeline.pipeline.inference.image_block import ImageBlock
from hmsa_pipeline.pipeline.inference.member_network import digest_of
from hmsa_pipeline.pipeline.inference.networks import BlockMember
from hmsa_pipeline.pipeline.inference.predictor import InferenceSettings
from hmsa_pipeline.pipeline.inference.store_writes import LogitsTarget
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from hmsa_pipeline.pipeline.workers.protocol import ProgressReporter
from PIL import Image
from torch.nn import functional

Shape = tuple[int, int]
NETWORKS = ("segformer-b0", "mask2former-tiny")


def save_network(name: str, folder: Path) -> None:
    """Save a network of the library with random weights, and its processor."""
    import transformers as hf

    torch.manual_seed(0)
    labels = dict(enumerate(CLASS_NAMES))
    named = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if name == "segformer-b0":
        network: Any = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**named))
        processor: Any = hf.SegformerImageProcessor()
    else:
        network = hf.Mask2FormerForUniversalSegmentation(hf.Mask2FormerConfig(**named))
        processor = hf.Mask2FormerImageProcessor()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def library_scores(network: Any, pixels: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Scores (1, 19, H, W) as the library's documentation computes them."""
    output = network(pixel_values=pixels)
    if hasattr(output, "class_queries_logits"):
        share = output.class_queries_logits.softmax(-1)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", share, output.masks_queries_logits.sigmoid())
    else:
        scores = output.logits
    return functional.interpolate(scores, shape, mode="bilinear", align_corners=False)


def _library(root: Path) -> tuple[Any, Any]:
    import transformers as hf

    network: Any = hf.AutoModelForSemanticSegmentation
    if (root / "network/config.json").read_text().find("Mask2Former") > 0:
        network = hf.AutoModelForUniversalSegmentation
    return network.from_pretrained(root / "network").eval(), hf.AutoImageProcessor.from_pretrained(root / "network")


# ------------------------------------------------------------------ the cases, each in a process of its own


def make_loop(root: Path, photos: list[Path], shape: Shape) -> Callable[[], Any]:
    network, processor = _library(root)

    def work() -> None:
        for photo in photos:
            with Image.open(photo) as image, torch.inference_mode():
                inputs = processor(image.convert("RGB"), return_tensors="pt", do_resize=False)
                scores = library_scores(network, inputs["pixel_values"], shape)
            np.savez_compressed(root / f"{photo.stem}.npz", logits=scores[0].half().numpy())

    return work


def make_forward(root: Path, photos: list[Path], shape: Shape) -> Callable[[], Any]:
    network, _ = _library(root)
    images = [decode_image(photo)[None] / 255 for photo in photos]

    def work() -> None:
        with torch.inference_mode():
            for image in images:
                library_scores(network, image, shape)

    return work


def make_dump(root: Path, photos: list[Path], shape: Shape) -> Callable[[], Any]:
    store = store_of(root / "ours.zarr", photos, shape, "lossless")
    member = Member(name="it", arch="transformers", checkpoint=str(root / "network"))
    target = LogitsTarget(store.writer(), "", {entry.path: entry for entry in store.images})
    setting = InferenceSettings("cpu", InferenceOptions(scales=(1.0,), precision="fp32"), torch.get_num_threads())
    block = ImageBlock(root, tuple(store.images), (BlockMember(member, digest_of(member), target),), setting)

    def work() -> None:
        for shard in target.writer.path.glob("*/c.*"):
            shard.unlink()
        with writer_lock(target.writer.path) as token:
            object.__setattr__(target, "token", token)
            outcome = block.run(ProgressReporter(lambda: False))
        assert not outcome.failed
        assert not outcome.left

    return work


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--size", type=size, default=(512, 1024), metavar="HxW")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_network(options.network, root / "network")
        photos = []
        for number in range(options.images):
            photos.append(root / f"{number}.png")
            Image.fromarray(draw_scene(number, *options.size).image).save(photos[-1])
        cases = {
            "library loop": partial(make_loop, root, photos, options.size),
            "network alone": partial(make_forward, root, photos, options.size),
            "dump": partial(make_dump, root, photos, options.size),
        }
        measured = compare(cases, repeats=options.repeats)
        tell(measured, "library loop", json_file=options.json, network=options.network, images=options.images)


if __name__ == "__main__":
    main()
