"""What is out of distribution in the images of SMIYC.

Chan et al., SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation, NeurIPS 2021 (arXiv 2104.14812).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DatasetError
from .layouts import find_images
from .pairs import Pair
from .pixels import decode_ids
from .taxonomy import IGNORE

SMIYC = "smiyc"


class MaskReader:
    """Reads the masks of SMIYC, which lie beside the folder of images.

    Args:
        root: the dataset's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def pairs(self, split: str | None) -> list[Pair]:
        """The images that have a mask, sorted.

        Raises:
            DatasetError: none has one, or the folder is not as its layout says.
        """
        found = []
        for image in find_images(self.root, SMIYC, split):
            folder = Path(image.path).parent.parent / "labels_masks"
            mask = (folder / f"{image.stem}_labels_semantic.png").as_posix()
            if (self.root / mask).is_file():
                found.append(Pair(image.path, mask, "ids"))
        if not found:
            raise DatasetError(
                f"{self.root}: no image has a mask (labels_masks/<name>_labels_semantic.png beside images/); "
                "SMIYC publishes those of its validation images"
            )
        return found

    def read(self, pair: Pair, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) uint8: 0, 1 or 255; DatasetError if the mask is another's, damaged, or holds something else."""
        path = self.root / pair.mask
        mask = decode_ids(path)
        if size is not None and mask.shape != size:
            raise DatasetError(
                f"{path}: is {mask.shape[0]}x{mask.shape[1]}, its image {size[0]}x{size[1]}; unpack both again"
            )
        if not np.isin(mask, (0, 1, IGNORE)).all():
            raise DatasetError(f"{path}: holds other values than 0, 1 and 255; is it the semantic mask of SMIYC?")
        return mask
