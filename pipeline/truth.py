"""What is known of a dataset's pixels: their classes, or what of them is out of distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datasets.labels import LabelReader
from ..datasets.pairs import Pair, list_pairs
from ..datasets.smiyc import SMIYC, MaskReader
from ..datasets.sources import NAMES, source
from .counts import Counts, count, count_ood
from .manifest import DatasetEntry

LABELLED = (*NAMES, SMIYC)
"""The types of dataset that have labels."""


@dataclass(frozen=True)
class Truth:
    """A dataset's labels.

    Attributes:
        reader: of the masks.
        pairs: the images that have one, in the order of their paths.
    """

    reader: LabelReader | MaskReader
    pairs: tuple[Pair, ...]

    @property
    def ood(self) -> bool:
        """Whether the labels say what is out of distribution."""
        return isinstance(self.reader, MaskReader)

    def read(self, pair: Pair, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 train ids, or 0 and 1 if `ood`; 255 where nothing is known.

        Raises:
            DatasetError: the mask cannot be read, or is not of ``size``.
        """
        return self.reader.read(pair, size)

    def count(self, label: np.ndarray, confidence: np.ndarray, truth: np.ndarray) -> Counts:
        """One image's counts; see `counts.count` and `counts.count_ood`."""
        return count_ood(confidence, truth) if self.ood else count(label, confidence, truth)


def truth_of(entry: DatasetEntry, limit: int | None = None) -> Truth:
    """The labels of a manifest's dataset.

    Args:
        entry: of one of the types in `LABELLED`.
        limit: of how many images, from the first; None for all.

    Raises:
        DatasetError: masks are missing, or the folder is not as its layout says.
        ManifestError: the root holds an environment variable that is not set.
    """
    root = entry.root_path()
    if entry.type == SMIYC:
        masks = MaskReader(root)
        return Truth(masks, tuple(masks.pairs(entry.split)[:limit]))
    pairs = list_pairs(root, entry.type, entry.split)
    return Truth(LabelReader(root, source(entry.type)), tuple(pairs[:limit]))
