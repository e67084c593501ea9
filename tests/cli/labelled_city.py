"""A drawn Cityscapes with coarsely labelled images and with logits of three members, for the tests of autolabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.layout.find_images import list_images
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.fusion.fuse import fuse, quantise
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

from .bench import Bench, stored

MODELS = ("ant", "bee", "cat")
TEMPERATURES, WEIGHTS = (1.0, 1.5, 0.8), (1.0, 2.0, 1.0)
SIZE = (48, 96)


def draw_city(root: Path) -> Bench:
    """Three images of ``val`` with masks, four of ``train_extra`` with coarse ones, and logits of all of them."""
    city = write_source(root / "data", "cityscapes", train=4, val=3, size=SIZE)
    lookup = dataset_spec("cityscapes").lookup("ids")
    truth = {}
    for pair in list_pairs(city, "cityscapes", "train"):
        image = "leftImg8bit/train_extra/" + pair.image.partition("/train/")[2]
        mask = "gtCoarse/train_extra/" + pair.mask.partition("/train/")[2].replace("_gtFine_", "_gtCoarse_")
        for path in (image, mask):
            (city / path).parent.mkdir(parents=True, exist_ok=True)
        (city / image).write_bytes((city / pair.image).read_bytes())
        raw = ids(city / pair.mask)
        truth[image] = lookup[raw]
        # Every other block of 8 x 8 pixels is labelled.
        rows, columns = np.indices(raw.shape) // 8
        Image.fromarray(np.where((rows + columns) % 2 == 0, raw, 0).astype(np.uint8)).save(city / mask)
    fine = {pair.image: lookup[ids(city / pair.mask)] for pair in list_pairs(city, "cityscapes", "val")}
    tree: dict[str, Any] = {
        "version": 1,
        "models": [
            {"name": name, "arch": "external", "temperature": heat, "weight": weight}
            for name, heat, weight in zip(MODELS, TEMPERATURES, WEIGHTS, strict=True)
        ],
        "datasets": [
            {"name": "fine", "type": "cityscapes", "root": str(city), "split": "val"},
            {"name": "extra", "type": "cityscapes", "root": str(city), "split": "train_extra"},
        ],
    }
    bench = Bench(root, tree).save()
    for seed, name in enumerate(MODELS):
        for dataset, split, labels in (("fine", "val", fine), ("extra", "train_extra", truth)):
            fill(bench.store(dataset, name), name, city, split, labels, seed)
    return bench


def ids(path: Path) -> np.ndarray:
    """The grey values (H, W) uint8 of a mask."""
    with Image.open(path) as file:
        return np.asarray(file)


def truth_of(bench: Bench, dataset: str) -> dict[str, np.ndarray]:
    """Image -> (H, W) uint8 train ids of its mask, 255 where nothing is labelled."""
    entry = next(one for one in bench.tree["datasets"] if one["name"] == dataset)
    root, lookup = Path(entry["root"]), dataset_spec("cityscapes").lookup("ids")
    return {pair.image: lookup[ids(root / pair.mask)] for pair in list_pairs(root, "cityscapes", entry["split"])}


def fill(store: Path, name: str, city: Path, split: str, truth: dict[str, np.ndarray], seed: int) -> None:
    """Write logits that mostly say what the labels say, each member wrong in places of its own."""
    photographs = [Photograph(one.path, one.bytes, SIZE) for one in list_images(city, "cityscapes", split)]
    made = LogitStore.create(store, StoreIdentity(model=name, architecture="external", classes=CLASS_NAMES), {})
    made.register(photographs)
    for index, entry in enumerate(made.images):
        draw = np.random.default_rng([seed, index, len(split)])
        labels = np.where(truth[entry.path] == 255, 8, truth[entry.path]).astype(np.int64)
        other = draw.integers(0, 19, (SIZE[0] // 6, SIZE[1] // 6)).repeat(6, 0).repeat(6, 1)
        wrong = draw.random((SIZE[0] // 6, SIZE[1] // 6)).repeat(6, 0).repeat(6, 1) < 0.2
        said = np.where(wrong, other, labels)
        logits = draw.normal(0, 1, (19, *SIZE))
        strength = draw.uniform(1.0, 14.0, SIZE)
        np.put_along_axis(logits, said[None], np.take_along_axis(logits, said[None], 0) + strength, 0)
        made.write(index, logits.astype(np.float16))


class Teacher:
    """The answer of all members to one image, in NumPy and in double precision, from what zarr-python reads.

    Attributes:
        label: (H, W) train ids of the highest mean softmax.
        confidence: (H, W) float64.
        votes: (H, W), the number of members whose highest logit is the label's.
        levels: (H, W) uint16, the confidence as the package rounds it, in single precision.
    """

    def __init__(self, bench: Bench, dataset: str, image: str) -> None:
        shares = np.array(WEIGHTS) / sum(WEIGHTS)
        halves = [stored(bench.store(dataset, name))[image] for name in MODELS]
        logits = [z.astype(np.float64) for z in halves]
        mean = np.zeros(logits[0].shape)
        for z, heat, share in zip(logits, TEMPERATURES, shares, strict=True):
            powers = np.exp(z / heat - (z / heat).max(0))
            mean += share * powers / powers.sum(0)
        self.label, self.confidence = mean.argmax(0), mean.max(0)
        own = self.label[None]
        self.votes = sum((np.take_along_axis(z, own, 0)[0] == z.max(0)).astype(int) for z in logits)
        self.levels = quantise(fuse([torch.from_numpy(z) for z in halves], WEIGHTS, TEMPERATURES).confidence).numpy()

    def inside(self, distance: int) -> np.ndarray:
        """Pixels that have no other class within ``distance`` rows and columns."""
        found = np.zeros(self.label.shape, bool)
        for y, x in np.ndindex(found.shape):
            window = self.label[max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1]
            found[y, x] = (window == self.label[y, x]).all()
        return found
