"""Masks to train ids, whatever way their authors chose to write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DatasetError, first_few
from ..dataset_specs import UNKNOWN, DatasetSpec
from ..decode.arrays import decode_colours, decode_ids
from ..layout.folder_layout import located
from ..layout.image_mask_pairs import ImageMaskPair, panoptic_json
from .mask_reader import MaskReader, file_bytes
from .panoptic import read_categories
from .polygons import draw, draw_files, is_drawn


class LabelReader(MaskReader):
    """Reads the masks of one dataset; small enough to be sent to worker processes.

    Args:
        root: the dataset's folder.
        source: which dataset it is.
        cache: where drawn polygons are kept; if None they are drawn again each time.
    """

    def __init__(self, root: Path, source: DatasetSpec, cache: Path | None = None) -> None:
        super().__init__(root, source.class_count)
        self.source = source
        self.cache = cache
        encodings = {rule.encoding for rule in source.masks} | ({"ids_v2"} if source.labels_v2 else set())
        self._tables = {encoding: source.lookup(encoding) for encoding in encodings}

    def prepare(
        self, pairs: Sequence[ImageMaskPair], advance: Callable[[], None] = lambda: None, processes: int | None = None
    ) -> None:
        """Draw the polygons that are not in the cache yet, or were changed since; others need nothing.

        Args:
            pairs: images and masks.
            advance: called once for each pair, when its mask is ready.
            processes: how many polygon files to draw at a time; None for one a usable core.

        Raises:
            DatasetError: a file of polygons is missing or damaged or holds an unknown label.
            DiskError: the cache cannot be written.
            ValueError: there are polygons and no cache.
        """
        tasks: list[tuple[Path, Path]] = []
        for pair in pairs:
            if pair.encoding == "polygons":
                if self.cache is None:
                    raise ValueError("polygons are drawn into a cache, and there is none")
                task = (located(self.root, pair.mask), self._drawn(self.cache, pair))
                if not is_drawn(*task):
                    tasks.append(task)
                    continue
            advance()
        draw_files(tasks, self._ids(), advance, processes)

    def raw(self, pair: ImageMaskPair) -> NDArray[np.uint8]:
        """The ids (H, W) uint8 as the mask says them: train ids, raw ids, or category ids, as ``pair.encoding`` says.

        Raises:
            DatasetError: the mask is missing, damaged, or not written as its encoding says.
        """
        path = located(self.root, pair.mask)
        match pair.encoding:
            case "train_ids" | "ids" | "ids_v2":
                return decode_ids(path)
            case "red":
                return decode_colours(path)[..., 0]
            case "panoptic":
                return read_categories(path, self.root / panoptic_json(pair.mask))
            case "polygons":
                drawn = self._drawn(self.cache, pair) if self.cache else None
                return decode_ids(drawn) if drawn and is_drawn(path, drawn) else draw(path, self._ids())
            case other:
                raise ValueError(f"unknown encoding '{other}'")

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """The train ids of a mask, (H, W) uint8, from 0, and 255 for what is ignored.

        It must have the ``size`` (height, width) of its image, if that is given; where the source is known for masks
        of another size, it is resized by nearest neighbours.

        Raises:
            DatasetError: as `raw`; the mask has another size than its image; it holds ids that are not in the
                dataset's table.
        """
        raw = self.raw(pair)
        if size is not None and raw.shape != size:
            raw = self._resized(raw, pair, size)
        labels = np.take(self._tables[pair.encoding], raw)
        if (labels == UNKNOWN).any():
            ids = np.unique(raw[labels == UNKNOWN])
            known = "train ids" if pair.encoding == "train_ids" else f"ids of {self.source.title}"
            raise DatasetError(
                f"{located(self.root, pair.mask)}: holds the ids {first_few(ids)}, which are no {known}; "
                "is it the right file, unpacked from the right archive?"
            )
        return labels

    def signature(self, pairs: Sequence[ImageMaskPair]) -> dict[str, object]:
        """List what the train ids depend on beside the masks' sizes: tables, and what panoptic colours mean."""
        beside = sorted({panoptic_json(pair.mask) for pair in pairs if pair.encoding == "panoptic"})
        return {
            "labels": sorted((self.source.labels or {}).items()),
            "resize_masks": self.source.resize_masks,
            "beside": [[path, file_bytes(self.root / path)] for path in beside],
        }

    def mask_path(self, pair: ImageMaskPair) -> Path:
        """Locate the mask of a pair."""
        return located(self.root, pair.mask)

    def _resized(self, raw: NDArray[np.uint8], pair: ImageMaskPair, size: tuple[int, int]) -> NDArray[np.uint8]:
        height, width = size
        if not self.source.resize_masks:
            raise DatasetError(
                f"{located(self.root, pair.mask)}: has {raw.shape[0]} x {raw.shape[1]} pixels, but its image "
                f"{pair.image} has {height} x {width}; they do not belong together, unpack both again"
            )
        return np.array(Image.fromarray(raw).resize((width, height), Image.Resampling.NEAREST))

    def _ids(self) -> Mapping[str, int]:
        """The raw id of each name."""
        return {meaning: raw for raw, (_, meaning) in (self.source.labels or {}).items()}

    def _drawn(self, cache: Path, pair: ImageMaskPair) -> Path:
        """Where the drawn polygons of a pair are kept."""
        return (cache / "masks" / self.source.name / pair.mask).with_suffix(".png")
