"""Images per second of the training loader at GTA5's size, and of the forward and backward pass that it feeds.

    python benchmarks/bench_loader.py --workers 1 2
    python benchmarks/bench_loader.py --workers 8 16 --arch hrnet_ocr_mscale       # with a GPU: fp16
    python benchmarks/bench_loader.py --arch hrnet_tiny_ocr_mscale --steps 1       # without one: fp32

Drawn frames of 1914x1052 lie in files as GTA5's do: PNG, and palette PNG for the raw ids. Half of the crops are
around centroids, as in training. Prints JSON: milliseconds of each step of the loader in one thread, images per
second by number of worker processes, and, if a network is named, its images per second with the training loss and
the loader's as multiples of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hmsa_pipeline.datasets.class_uniform import tile_centroids
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair
from hmsa_pipeline.datasets.segmentation_dataset import Sample, SampleRequest, SegmentationDataset
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from hmsa_pipeline.datasets.taxonomy import IGNORE, PALETTE
from hmsa_pipeline.datasets.transforms import TrainTransform
from hmsa_pipeline.models.losses.training_loss import training_loss
from hmsa_pipeline.models.registry import ARCHITECTURES, build
from PIL import Image
from torch.utils.data import DataLoader

FRAME = (1052, 1914)
TILE = 1024


def write_frames(root: Path, count: int) -> tuple[list[ImageMaskPair], list[np.ndarray]]:
    """Drawn frames below ``root`` as GTA5 stores them, and their centroids (class, x, y)."""
    raw_ids = np.zeros(256, dtype=np.uint8)
    for raw, (train, _) in (dataset_spec("gta5").labels or {}).items():
        if train != IGNORE and raw >= 0:
            raw_ids[train] = raw
    pairs, centroids = [], []
    for number in range(count):
        scene = draw_scene(number, *FRAME)
        pair = ImageMaskPair(f"images/{number:05d}.png", f"labels/{number:05d}.png", "ids")
        mask = Image.fromarray(raw_ids[scene.mask])
        mask.putpalette([level for colour in PALETTE for level in colour])
        for path, picture in ((pair.image, Image.fromarray(scene.image)), (pair.mask, mask)):
            (root / path).parent.mkdir(exist_ok=True)
            picture.save(root / path)
        pairs.append(pair)
        centroids.append(tile_centroids(scene.mask, TILE))
    return pairs, centroids


def draws(count: int, centroids: Sequence[np.ndarray]) -> list[SampleRequest]:
    """What to load; every second one around a centroid."""
    chosen = []
    for number in range(count):
        image = number % len(centroids)
        _, x, y = centroids[image][number % len(centroids[image])].tolist()
        chosen.append(SampleRequest(image, number, (x, y) if number % 2 else None))
    return chosen


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return round(1000 * statistics.median(times), 1)


def steps(dataset: SegmentationDataset, todo: Sequence[SampleRequest], repeats: int) -> dict[str, float]:
    """How long each step of the loader takes in one thread."""
    torch.set_num_threads(1)
    pair = dataset.pairs[0]
    image, labels = decode_image(dataset.root / pair.image), torch.from_numpy(dataset.reader.read(pair))
    once, again = iter(list(todo) * repeats), iter(list(todo) * repeats)

    def transform() -> None:
        draw = next(once)
        torch.manual_seed(draw.seed)
        dataset.transform(image, labels, draw.centroid)

    return {
        "image": milliseconds(lambda: decode_image(dataset.root / pair.image), repeats),
        "labels": milliseconds(lambda: dataset.reader.read(pair, FRAME), repeats),
        "transform": milliseconds(transform, repeats),
        "all": milliseconds(lambda: dataset[next(again)], repeats),
    }


def loader_speed(dataset: SegmentationDataset, todo: list[SampleRequest], batch: int, workers: int) -> float:
    """Images per second of worker processes that are already at work."""
    loader = DataLoader(dataset, batch, sampler=todo, num_workers=workers, persistent_workers=workers > 0)
    for _ in loader:  # processes start
        pass
    begun = time.perf_counter()
    images = sum(len(sample.path) for sample in loader)
    return images / (time.perf_counter() - begun)


def network_speed(arch: str, sample: Sample, device: torch.device, repeats: int) -> dict[str, Any]:
    """Images per second of forward, training loss and backward; fp16 on a GPU, fp32 elsewhere."""
    on_gpu = device.type == "cuda"
    torch.set_num_threads(os.cpu_count() or 1)
    model = build(arch).to(device).train()
    images, labels = normalise(sample.image.to(device)), sample.labels.to(device).long()
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    times = []
    for _ in range(repeats + 1):  # the first one chooses kernels
        begun = time.perf_counter()
        model.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            loss = training_loss(model(images), labels).total
        scaler.scale(loss).backward()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    figures: dict[str, Any] = {
        "arch": arch,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "precision": "fp16" if on_gpu else "fp32",
        "batch": len(images),
        "images_per_second": round(len(images) / statistics.median(times[1:]), 3),
    }
    if on_gpu:
        figures["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return figures


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description="Images per second of the training loader at GTA5's size, as JSON.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=48, help="loaded per number of workers")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--crop", type=int, nargs=2, default=FRAME, metavar=("H", "W"))
    parser.add_argument("--blur", action="store_true", help="with Gaussian blur")
    parser.add_argument("--rand-augment", type=int, nargs=2, metavar=("N", "M"))
    parser.add_argument("--arch", choices=ARCHITECTURES, help="on a GPU hrnet_ocr_mscale, elsewhere none")
    parser.add_argument("--steps", type=int, default=5, help="forward and backward passes")
    parser.add_argument("--repeats", type=int, default=15, help="of each step of the loader")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arch = args.arch or ("hrnet_ocr_mscale" if device.type == "cuda" else None)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pairs, centroids = write_frames(root, 4)
        transform = TrainTransform(
            tuple(args.crop),
            gaussian_blur=args.blur,
            rand_augment=tuple(args.rand_augment) if args.rand_augment else None,
        )
        dataset = SegmentationDataset(root, pairs, LabelReader(root, dataset_spec("gta5")), transform)
        todo = draws(args.images, centroids)
        figures: dict[str, Any] = {
            "frame": FRAME,
            "crop": args.crop,
            "image_bytes": [(root / pair.image).stat().st_size for pair in pairs],
            "cores": os.cpu_count(),
            "milliseconds": steps(dataset, todo, args.repeats),
            "loader_images_per_second": {
                workers: round(loader_speed(dataset, todo, args.batch, workers), 2) for workers in args.workers
            },
        }
        if arch:
            sample = next(iter(DataLoader(dataset, args.batch, sampler=todo)))
            network = network_speed(arch, sample, device, args.steps)
            speeds = figures["loader_images_per_second"].items()
            figures["network"] = network
            figures["loader / network"] = {
                workers: round(speed / network["images_per_second"], 2) for workers, speed in speeds
            }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
