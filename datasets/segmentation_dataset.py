"""The torch dataset: an image and its labels, decoded, remapped to train ids and transformed."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .decode.tensors import decode_image
from .labels.mask_reader import SURE
from .layout.folder_layout import located
from .transforms import TrainTransform

if TYPE_CHECKING:
    from .labels.mask_reader import MaskReader
    from .layout.image_mask_pairs import ImageMaskPair

CONFIDENCE, PROBABILITIES = "confidence", "probabilities"

Transform = Callable[[Tensor, Tensor, tuple[int, int] | None], tuple[Tensor, Tensor]]
"""Image (3, H, W), labels (H, W), both uint8, and (x, y) of a centroid or None, to image and labels."""


class SoftTargets(Protocol):
    """Class probabilities of photographs, such as those of an ensemble; sent to worker processes."""

    def read(self, image: str, window: tuple[int, int, int, int]) -> Tensor:
        """Read a part of a photograph, (C, h, w) float32.

        Args:
            image: the photograph's path below the dataset's root.
            window: top, bottom, left, right in pixels, bottom and right exclusive.
        """
        ...


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
    more: Mapping[str, Tensor] = MappingProxyType({})
    """Maps that were asked for: `CONFIDENCE` (h, w) uint8 of the labels, 255 for certain; `PROBABILITIES` (C, h, w)
    float16 of the soft targets, 0 where they say nothing."""


class SegmentationDataset(Dataset[Sample]):
    """The images and labels of one split.

    Args:
        root: the dataset's folder.
        pairs: images and masks below it.
        reader: of the labels.
        transform: what becomes of both; it may draw from torch's global generator of the CPU, and from no other.
        confidence: give the confidence of the labels, too; ``transform`` is a `TrainTransform` then.
        soft_targets: C, and where the probabilities of C classes come from (None: 0 everywhere); None if samples have
            none. ``transform`` is a `TrainTransform` otherwise.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[ImageMaskPair],
        reader: MaskReader,
        transform: Transform,
        *,
        confidence: bool = False,
        soft_targets: tuple[int, SoftTargets | None] | None = None,
    ):
        self.root = root
        self.pairs = pairs
        self.reader = reader
        self.transform = transform
        self.confidence = confidence
        self.soft_targets = soft_targets

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
        size = image.shape[1], image.shape[2]
        labels = torch.from_numpy(self.reader.read(pair, size))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs too, whose generators nobody puts back afterwards.
            torch.default_generator.manual_seed(seed)
            if not (self.confidence or self.soft_targets):
                image, labels = self.transform(image, labels, centroid)
                return Sample(image, labels, pair.image, {})
            assert isinstance(self.transform, TrainTransform)
            image, labels, placement = self.transform.placed(image, labels, centroid)
        more: dict[str, Tensor] = {}
        top, bottom, left, right = placement.source
        if self.confidence:
            levels = torch.from_numpy(self.reader.read_confidence(pair, size))
            more[CONFIDENCE] = placement.ids(levels[top:bottom, left:right], SURE)
        if self.soft_targets:
            classes, targets = self.soft_targets
            more[PROBABILITIES] = (
                torch.zeros(classes, *labels.shape, dtype=torch.float16)
                if targets is None
                else placement.probabilities(targets.read(pair.image, placement.source)).half()
            )
        return Sample(image, labels, pair.image, more)

    def image_path(self, index: int) -> Path:
        """Locate an image by its place in the list of pairs."""
        return located(self.root, self.pairs[index].image)


class MixedDataset(Dataset[Sample]):
    """Several datasets, whose images are numbered through.

    Args:
        parts: the datasets, in order.
    """

    def __init__(self, parts: Sequence[SegmentationDataset]) -> None:
        self.parts = parts
        self._starts = [0, *itertools.accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, request: SampleRequest | int) -> Sample:
        """Load a sample; see `SegmentationDataset`.

        Raises:
            DatasetError, IndexError, ValueError: as there.
        """
        request = SampleRequest(request, 0) if isinstance(request, int) else request
        part, place = self._part(request.image)
        return part[request._replace(image=place)]

    def image_path(self, index: int) -> Path:
        """Locate an image by its number."""
        part, place = self._part(index)
        return part.image_path(place)

    def _part(self, index: int) -> tuple[SegmentationDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return self.parts[number], index - self._starts[number]
