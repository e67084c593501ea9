"""The torch dataset: an image and its mask, decoded, remapped to train ids and transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .decode.tensors import decode_image
from .layout.folder_layout import located

if TYPE_CHECKING:
    from .labels.label_reader import LabelReader
    from .layout.image_mask_pairs import ImageMaskPair

Transform = Callable[[Tensor, Tensor, tuple[int, int] | None], tuple[Tensor, Tensor]]
"""Image (3, H, W), labels (H, W), both uint8, and (x, y) of a centroid or None, to image and labels."""


class SampleRequest(NamedTuple):
    """Which sample is asked for, and all that chance decides about it."""

    image: int
    """Its place in the list of pairs."""
    seed: int
    """Seed of everything random in the transform, -2**63 to 2**64 - 1."""
    centroid: tuple[int, int] | None = None
    """(x, y) in pixels of the frame, which the sample is to show."""


class Sample(NamedTuple):
    """One image with its labels; the loader makes batches of them."""

    image: Tensor
    """(3, h, w) uint8, RGB."""
    labels: Tensor
    """(h, w) uint8 train ids, 255 is ignored."""
    path: str
    """Path of the image, relative to the dataset's root."""


class SegmentationDataset(Dataset[Sample]):
    """The images and masks of one split.

    Args:
        root: the dataset's folder.
        pairs: images and masks below it.
        reader: of the masks.
        transform: what becomes of both; it may draw from torch's global generator of the CPU, and from no other.
    """

    def __init__(self, root: Path, pairs: Sequence[ImageMaskPair], reader: LabelReader, transform: Transform):
        self.root = root
        self.pairs = pairs
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, request: SampleRequest | int) -> Sample:
        """Load a sample, the same in any process for one request; an int ``i`` stands for ``SampleRequest(i, 0)``.

        Raises:
            DatasetError: the image or its mask cannot be read, or they do not fit each other.
            IndexError: there are fewer pairs.
            ValueError: the centroid is outside of the frame.
        """
        index, seed, centroid = SampleRequest(request, 0) if isinstance(request, int) else request
        pair = self.pairs[index]
        image = decode_image(located(self.root, pair.image))
        labels = torch.from_numpy(self.reader.read(pair, (image.shape[1], image.shape[2])))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs too, whose generators nobody puts back afterwards.
            torch.default_generator.manual_seed(seed)
            image, labels = self.transform(image, labels, centroid)
        return Sample(image, labels, pair.image)
