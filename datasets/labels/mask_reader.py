"""Labels of photographs, wherever they come from: masks, auto-labels, or none at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DatasetError, cannot_read, first_few
from ..auto_labels import RECORD, AutoLabels
from ..decode.image_header import read_size
from ..layout.folder_layout import located
from ..layout.image_mask_pairs import ImageMaskPair
from ..taxonomy import IGNORE, NUM_CLASSES

SURE = 255
"""Confidence of labels that people made, in the levels of auto-labels."""


class MaskReader:
    """Reads train ids of the photographs below one folder; small enough to be sent to worker processes.

    Args:
        root: the dataset's folder.
        classes: how many there are; train ids are below it.
    """

    def __init__(self, root: Path, classes: int = NUM_CLASSES) -> None:
        self.root, self.classes = root, classes

    def prepare(
        self, pairs: Sequence[ImageMaskPair], advance: Callable[[], None] = lambda: None, processes: int | None = None
    ) -> None:
        """Make once what `read` needs.

        Args:
            pairs: photographs and their labels.
            advance: called once for each pair, when its labels can be read.
            processes: how many files to prepare at a time; None for one a usable core.

        Raises:
            DatasetError: as `read`.
        """
        for _ in pairs:
            advance()

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Read train ids, (H, W) uint8, 255 is ignored.

        Args:
            pair: the photograph and its labels.
            size: (height, width) of the photograph; None if nobody looked.

        Raises:
            DatasetError: the labels are missing or damaged, or do not fit the photograph.
        """
        raise NotImplementedError

    def read_confidence(self, pair: ImageMaskPair, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read the confidence of the labels, (H, W) uint8, 255 for certain; DatasetError as `read`.

        Args:
            pair: the photograph and its labels.
            size: (height, width) of the photograph.
        """
        return np.full(size, SURE, np.uint8)

    def signature(self, pairs: Sequence[ImageMaskPair]) -> dict[str, object]:
        """List what the train ids depend on beside the sizes of the files, in types that JSON can hold."""
        raise NotImplementedError

    def mask_path(self, pair: ImageMaskPair) -> Path:
        """Locate the file of the labels of a pair."""
        raise NotImplementedError


class AutoLabelReader(MaskReader):
    """Reads auto-labels; pairs hold the photograph's path, their masks' paths are not looked at.

    Args:
        root: the folder of the photographs.
        labels: the folder of labels.
        threshold: pixels of a lower confidence are ignored, beside those ignored already; None for none.
        weigh: False if all labels count as certain.
    """

    def __init__(
        self, root: Path, labels: AutoLabels, threshold: float | None = None, *, weigh: bool = False
    ) -> None:
        super().__init__(root, len(labels.classes))
        self.labels = labels
        self.threshold = threshold
        self.weigh = weigh

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """See `MaskReader.read`."""
        found = self.labels.read(pair.image, self.threshold)
        return self._of_size(found, pair, size) if size is not None else found

    def read_confidence(self, pair: ImageMaskPair, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `MaskReader.read_confidence`."""
        if not self.weigh:
            return super().read_confidence(pair, size)
        return self._of_size(self.labels.read_confidence(pair.image), pair, size)

    def signature(self, pairs: Sequence[ImageMaskPair]) -> dict[str, object]:
        """See `MaskReader.signature`."""
        record = self.labels.folder / RECORD
        return {"auto_labels": record.read_text(encoding="utf-8"), "threshold": self.threshold}

    def mask_path(self, pair: ImageMaskPair) -> Path:
        """See `MaskReader.mask_path`."""
        return self.labels.label_path(pair.image)

    def _of_size(self, found: NDArray[np.uint8], pair: ImageMaskPair, size: tuple[int, int]) -> NDArray[np.uint8]:
        if found.shape != size:
            raise DatasetError(
                f"{self.mask_path(pair)}: has {found.shape[0]} x {found.shape[1]} pixels, but its photograph "
                f"{pair.image} has {size[0]} x {size[1]}; make the labels again with 'hmsa-pipeline autolabel'"
            )
        return found


class NoLabels(MaskReader):
    """Gives labels of which every pixel is ignored."""

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """See `MaskReader.read`."""
        return np.full(size or read_size(located(self.root, pair.image)), IGNORE, np.uint8)

    def signature(self, pairs: Sequence[ImageMaskPair]) -> dict[str, object]:
        """See `MaskReader.signature`."""
        return {"labels": None}

    def mask_path(self, pair: ImageMaskPair) -> Path:
        """See `MaskReader.mask_path`; the photograph itself."""
        return located(self.root, pair.image)


def auto_label_pairs(labels: AutoLabels, root: Path, photographs: Sequence[str]) -> list[ImageMaskPair]:
    """Pair photographs with their auto-labels.

    Args:
        labels: the folder of labels.
        root: the folder of the photographs.
        photographs: their paths below ``root``.

    Raises:
        DatasetError: a photograph has no labels, is another than the one that was labelled, or a file is missing.
    """
    labels.require_photographs({path: file_bytes(located(root, path)) for path in photographs})
    if absent := [path for path in photographs if not labels.label_path(path).is_file()]:
        raise DatasetError(
            f"{labels.folder}: lacks the labels of {len(absent)} of {len(photographs)} photographs "
            f"({first_few([str(labels.label_path(path)) for path in absent], 1)}); make them again with "
            "'hmsa-pipeline autolabel'"
        )
    return [ImageMaskPair(path, str(labels.label_path(path)), "auto_labels") for path in photographs]


def file_bytes(path: Path) -> int:
    """Return the size of a file; DatasetError if it cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
