"""What reading and writing add to the forward pass, and the way to the disk alone.

    python benchmarks/bench_dump.py --arch hrnet_ocr_mscale --size 512x1024 --precision bf16 --images 3
    python benchmarks/bench_dump.py --write-only

The baseline is the loop of the research forks: decode, forward pass, `np.savez_compressed`, one after another, with
our network, so that only the loop differs. Beside it the forward pass alone, over photographs in memory, and a block
of `hmsa-pipeline dump` over the same photographs. The way to the disk alone is one thread: float16 logits in memory
to a file, theirs and ours. Cases run by turns, with ``--against`` also those of another build.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_ensemble import drawn
from builds import add_against, builds
from harness import case_name, compare, size, tell
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.files import sha256
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions
from hmsa_pipeline.pipeline.inference.image_block import ImageBlock
from hmsa_pipeline.pipeline.inference.networks import BlockMember
from hmsa_pipeline.pipeline.inference.predictor import InferenceSettings, Predictor
from hmsa_pipeline.pipeline.inference.store_writes import LogitsTarget
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.workers.protocol import ProgressReporter
from PIL import Image

Shape = tuple[int, int]


def store_of(path: Path, photos: list[Path], shape: Shape, encoding: str) -> LogitStore:
    """A store with its table of images and no logits."""
    identity = StoreIdentity(model="it", architecture="external", classes=CLASS_NAMES, encoding=encoding)
    store = LogitStore.create(path, identity, {})
    store.register(Photograph(photo.name, photo.stat().st_size, shape) for photo in photos)
    return store


def block_of(root: Path, photos: list[Path], shape: Shape, setting: InferenceSettings, arch: str) -> ImageBlock:
    """A block of a dump that nobody has the lock of yet."""
    store = store_of(root / "ours.zarr", photos, shape, "lossless")
    checkpoint = root / "weights.pth"
    member = Member(name="it", arch=arch, checkpoint=str(checkpoint))
    target = LogitsTarget(store.writer(), "", {entry.path: entry for entry in store.images})
    return ImageBlock(root, tuple(store.images), (BlockMember(member, sha256(checkpoint), target),), setting)


# ------------------------------------------------------------------ the cases, each in a process of its own


def make_loop(root: Path, photos: list[Path], setting: InferenceSettings, arch: str) -> Callable[[], Any]:
    member = Member(name="it", arch=arch, checkpoint=str(root / "weights.pth"))
    predictor = Predictor(torch.device(setting.device), setting.options, member)

    def work() -> None:
        for photo in photos:
            logits, _ = predictor(decode_image(photo))
            np.savez_compressed(root / f"{photo.stem}.npz", logits=logits.cpu().numpy())

    return work


def make_forward(root: Path, photos: list[Path], setting: InferenceSettings, arch: str) -> Callable[[], Any]:
    member = Member(name="it", arch=arch, checkpoint=str(root / "weights.pth"))
    predictor = Predictor(torch.device(setting.device), setting.options, member)
    images = [decode_image(photo) for photo in photos]

    def work() -> None:
        for image in images:
            predictor(image)

    return work


def make_dump(
    root: Path, photos: list[Path], shape: Shape, setting: InferenceSettings, arch: str
) -> Callable[[], Any]:
    block = block_of(root, photos, shape, setting, arch)
    target = block.members[0].logits_target
    assert target is not None

    def work() -> None:
        for shard in target.writer.path.glob("*/c.*"):
            shard.unlink()
        with writer_lock(target.writer.path) as token:
            object.__setattr__(target, "token", token)
            outcome = block.run(ProgressReporter(lambda: False))
        assert not outcome.failed
        assert not outcome.left

    return work


def make_savez(root: Path, shape: Shape) -> Callable[[], Any]:
    torch.set_num_threads(1)
    logits = drawn(0, *shape)
    return lambda: np.savez_compressed(root / "alone.npz", logits=logits)


def make_shard(root: Path, shape: Shape, encoding: str) -> Callable[[], Any]:
    torch.set_num_threads(1)
    logits = drawn(0, *shape)
    photo = root / "photo.png"
    photo.write_bytes(b"x")
    store = store_of(root / f"{encoding}.zarr", [photo], shape, encoding)
    return lambda: store.write(0, logits)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="hrnet_ocr_mscale")
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--json", type=Path)
    add_against(parser)
    options = parser.parse_args()
    with builds(options.against) as them, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.write_only:
            cases = {
                "savez_compressed": partial(make_savez, root, options.size),
                "a shard, lossless": partial(make_shard, root, options.size, "lossless"),
                "a shard, small": partial(make_shard, root, options.size, "small"),
                "a shard, compact": partial(make_shard, root, options.size, "compact"),
            }
            measured = compare(cases, repeats=options.repeats, builds=them)
            tell(measured, "savez_compressed", builds=them, json_file=options.json)
            return
        torch.manual_seed(0)
        save_checkpoint(root / "weights.pth", build(options.arch), arch=options.arch)
        photos = [root / f"{number}.png" for number in range(options.images)]
        for number, photo in enumerate(photos):
            Image.fromarray(draw_scene(number, *options.size).image).save(photo)
        setting = InferenceSettings(options.device, InferenceOptions(precision=options.precision))
        cases = {
            "decode, forward, savez": partial(make_loop, root, photos, setting, options.arch),
            "forward alone": partial(make_forward, root, photos, setting, options.arch),
            "a block of dump": partial(make_dump, root, photos, options.size, setting, options.arch),
        }
        measured = compare(cases, repeats=options.repeats, builds=them)
        more = {"images": options.images, "size": options.size}
        tell(measured, "decode, forward, savez", builds=them, json_file=options.json, **more)
        for version in them:
            alone, block = (measured[case_name(name, version, them)] for name in ("forward alone", "a block of dump"))
            share = f"{alone.median / block.median:.2f}x the images per second of the forward pass alone"
            print(f"{case_name('a block of dump', version, them)} makes {share}")


if __name__ == "__main__":
    main()
