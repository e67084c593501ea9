"""Labels a block of images of one dataset, in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...datasets.auto_labels import CITYSCAPES, confidence_name, label_name
from ...datasets.dataset_specs import dataset_spec
from ...datasets.labels.label_reader import LabelReader
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, StoreError
from ..fusion.ensemble_block import EnsembleBlock, FusionTask
from ..fusion.grey_png import encode_png
from ..storage.filesystem import write_bytes
from ..store.logit_store import LogitStore
from .pixels import ask_teacher, decide
from .settings import AutolabelSettings

COUNTS = "counts"
"""Key of the text in a class map's file that holds its `LabelCounts`."""


@dataclass(frozen=True)
class AutolabelBlock(EnsembleBlock):
    """Some images of one dataset, to be labelled.

    Attributes:
        settings: those of the run.
        levels: lowest level of confidence that is kept, of each class.
        reader: of the dataset's own labels; None if they do not matter.
        pairs: image -> its mask, for the reader.
    """

    settings: AutolabelSettings = field(default_factory=AutolabelSettings)
    levels: tuple[int, ...] = ()
    reader: LabelReader | None = None
    pairs: Mapping[str, ImageMaskPair] = field(default_factory=dict)

    def fuse_image(self, stores: list[LogitStore | None], task: FusionTask) -> None:
        """Label one image and write its two files, the class map last: it says that both are there."""
        image = task.entry.path
        members = [member for member, _ in self.members]
        having = [store for store in stores if store is not None]
        answer = ask_teacher(members, having, image, self.functions, self.settings)
        coarse = None
        if self.reader is not None:
            try:
                coarse = self.reader.read(self.pairs[image], (answer.label.shape[0], answer.label.shape[1]))
            except DatasetError as error:
                raise StoreError(str(error)) from error
        labels, confidence, counts = decide(answer, self.levels, coarse, self.settings.coarse)
        if self.settings.format == CITYSCAPES:
            labels = np.take(_label_ids(), labels)
        text = {COUNTS: counts.as_text()}
        write_bytes(self.folder / confidence_name(image), encode_png(confidence))
        write_bytes(self.folder / label_name(image, self.settings.format), encode_png(labels, text))


def _label_ids() -> np.ndarray:
    """Make the table (256,) uint8 from train ids to label ids; 0, which is unlabeled, for the rest."""
    table = np.zeros(256, np.uint8)
    ids = dataset_spec("cityscapes").label_ids()
    table[: len(ids)] = ids
    table[IGNORE] = 0
    return table
