"""Which pixels of an image are counted, and for what: all labelled ones alike, or by BRAVO's protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....datasets.layout.image_mask_pairs import ImageMaskPair
from ....datasets.taxonomy import IGNORE
from ...scoring.bravo_protocol import WITH_INVALID, WITHOUT_CLASSES, labels_of

_NO_CLASS = 254
"""Label of a sampled pixel that has none: every class is wrong there, as in the toolkit."""


@dataclass(frozen=True)
class Part:
    """Pixels that are counted alike.

    Attributes:
        labels: (H, W) uint8 train ids, or 0 and 1 for ``ood``; 255 for a pixel that is not counted.
        ood: whether the labels say what is out of distribution.
        by_class: whether the pixels of each class are counted.
        by_level: whether those of each level of confidence are counted.
        row: of `Totals.levels` that the part's row 0 is added to; its row 1 goes to the next one, if there is one.
    """

    labels: np.ndarray
    ood: bool = False
    by_class: bool = True
    by_level: bool = True
    row: int = 0


@dataclass(frozen=True)
class BravoSubset:
    """Where the labels of one of BRAVO's subsets are, so that any process can read them.

    Attributes:
        name: of the subset.
        ground_truth, samples: the challenge's tar files.
    """

    name: str
    ground_truth: Path
    samples: Path

    @property
    def rows(self) -> int:
        """Rows of `Totals.levels`."""
        return 3 if self.name in WITH_INVALID - WITHOUT_CLASSES else 2

    def parts(self, pair: ImageMaskPair, size: tuple[int, int]) -> list[Part]:
        """Return what is counted of an image: classes of all valid pixels, confidences of the sampled ones.

        Args:
            pair: the image, and its file of train ids.
            size: rows and columns of its logits.

        Raises:
            DatasetError: labels or samples cannot be read, or are of another size.
        """
        found = labels_of(self.ground_truth, self.samples, pair.mask, size)
        samples = found.samples
        ids, valid = found.ids.ravel(), found.valid[samples]
        sampled = np.full((3, ids.size), IGNORE, np.uint8)
        sampled[0, samples] = np.where(valid, np.where(ids == IGNORE, _NO_CLASS, ids)[samples], IGNORE)
        sampled[1, samples] = ~valid
        sampled[2, samples] = np.where(valid, IGNORE, 1)
        classes, odd, invalid = sampled.reshape(3, *size)
        if self.name in WITHOUT_CLASSES:
            return [Part(odd, ood=True)]
        kept = np.where(found.kept, ids, IGNORE).astype(np.uint8).reshape(size)
        parts = [Part(kept, by_level=False), Part(classes, by_class=False)]
        return parts if self.rows == 2 else [*parts, Part(invalid, ood=True, row=2)]
