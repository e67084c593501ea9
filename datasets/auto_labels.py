"""Folder of auto-labels: class maps of a teacher for training, with 255 where it is unsure, and its confidence.

    DIR/<dataset>/labels/<path of the photograph, suffix .png>      8 bits: train ids, 255 where unsure
    DIR/<dataset>/confidence/<path of the photograph, suffix .png>  8 bits: floor(256 c), at most 255
    DIR/<dataset>/labels.json         what made them: stores, thresholds, share kept and precision of each class
    DIR/<dataset>/photographs.json    path of each labelled photograph -> [bytes, height, width]
    DIR/<dataset>/contact_sheet.png   some of them, for people

In the format ``cityscapes`` the labels are label ids, 0 where unsure, under names that tools for Cityscapes look for
(see `label_name`). A confidence c is at least a threshold t as far as 8 bits tell if its level is at least
`confidence_level` of t: t is rounded up to a multiple of 1/256, so no pixel below t is kept. ``autolabel`` applies
the same rounding, so that a threshold applied later keeps the pixels that it would have kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, cannot_read, first_few
from .dataset_specs import UNKNOWN, dataset_spec
from .decode.arrays import decode_ids
from .layout.folder_layout import output_stem
from .taxonomy import IGNORE

FORMAT_VERSION = 1
LABELS, CONFIDENCE = "labels", "confidence"
RECORD, PHOTOGRAPHS, SHEET = "labels.json", "photographs.json", "contact_sheet.png"

TRAIN_IDS, CITYSCAPES = "train-ids", "cityscapes"
FORMATS: tuple[str, ...] = (TRAIN_IDS, CITYSCAPES)
"""Values of ``--format``, the default first."""

CONFIDENCE_LEVELS = 256
"""Levels of a stored confidence; level q stands for q / 256 to (q + 1) / 256."""
MAX_THRESHOLD = (CONFIDENCE_LEVELS - 1) / CONFIDENCE_LEVELS
"""Highest threshold that 8 bits can apply, 0.996."""

_AGAIN = "make the labels again with 'hmsa-pipeline autolabel --overwrite'"


@dataclass(frozen=True)
class PhotographFacts:
    """Size of a labelled photograph's file in bytes, and its height and width in pixels."""

    bytes: int
    height: int
    width: int


@dataclass(frozen=True)
class AutoLabels:
    """The auto-labels of one dataset.

    Attributes:
        folder: ``DIR/<dataset>``.
        dataset: name of the dataset in the manifest that they were made with.
        format: one of `FORMATS`.
        classes: names of the C classes, in train-id order.
        thresholds: confidence from which pixels of each class were kept; None for a class of which none was.
        photographs: path below the dataset's root -> facts, of all that have labels.
        record: the content of ``labels.json``.
    """

    folder: Path
    dataset: str
    format: str
    classes: tuple[str, ...]
    thresholds: tuple[float | None, ...]
    photographs: Mapping[str, PhotographFacts]
    record: Mapping[str, Any]

    def label_path(self, photograph: str) -> Path:
        """Locate the class map of a photograph, given by its path below the dataset's root."""
        return self.folder / label_name(photograph, self.format)

    def confidence_path(self, photograph: str) -> Path:
        """Locate the confidence of a photograph."""
        return self.folder / confidence_name(photograph)

    def require_photographs(self, sizes: Mapping[str, int]) -> None:
        """Check that photographs are those that were labelled.

        Args:
            sizes: path below the dataset's root -> size of the file in bytes, of now.

        Raises:
            DatasetError: one has no labels, or another size than when it was labelled.
        """
        if missing := [path for path in sizes if path not in self.photographs]:
            raise DatasetError(
                f"{self.folder}: has no labels of {len(missing)} of {len(sizes)} photographs "
                f"({first_few(sorted(missing), 2)}); make them with 'hmsa-pipeline autolabel', or name the dataset "
                "and split that were labelled"
            )
        if changed := [path for path, now in sizes.items() if self.photographs[path].bytes != now]:
            raise DatasetError(
                f"{self.folder}: {len(changed)} photographs have another size in bytes than when they were labelled "
                f"({first_few(sorted(changed), 2)}); put the old files back, or {_AGAIN}"
            )

    def require_classes(self, classes: Sequence[str]) -> None:
        """Raise DatasetError unless the labels are of these classes, in this order."""
        if self.classes != tuple(classes):
            raise DatasetError(
                f"{self.folder}: has labels of {len(self.classes)} classes ({first_few(self.classes, 3)}), not of "
                f"the {len(classes)} that are trained ({first_few(classes, 3)}); {_AGAIN}, with a teacher of these"
            )

    def require_threshold(self, threshold: float) -> None:
        """Raise DatasetError if a threshold, applied on top, is out of range or lets every kept pixel pass."""
        if not 0 < threshold <= MAX_THRESHOLD:
            raise DatasetError(
                f"{self.folder}: a threshold of {threshold:g} cannot be applied to a confidence of 8 bits; take one "
                f"above 0 and at most {MAX_THRESHOLD:.3f}"
            )
        applied = [limit for limit in self.thresholds if limit is not None]
        if applied and threshold < min(applied):
            raise DatasetError(
                f"{self.folder}: a threshold of {threshold:g} brings nothing back: pixels below {min(applied):.4g} "
                "are 255 in the labels; make them with a lower --threshold, or leave it out"
            )

    def read(self, photograph: str, threshold: float | None = None) -> NDArray[np.uint8]:
        """Read the train ids of a photograph, (H, W) uint8, 255 where the teacher was unsure.

        Args:
            photograph: its path below the dataset's root.
            threshold: also give 255 where the confidence is below this one; see `require_threshold`.

        Raises:
            DatasetError: a file is missing, damaged, of another size than the photograph, or holds other ids.
        """
        path = self.label_path(photograph)
        labels = self._decoded(path, photograph)
        if self.format == CITYSCAPES:
            labels = np.take(dataset_spec("cityscapes").lookup("ids"), labels)
            wrong = labels == UNKNOWN
        else:
            wrong = (labels >= len(self.classes)) & (labels != IGNORE)
        if wrong.any():
            raise DatasetError(f"{path}: holds ids that are none of {self.format}; {_AGAIN}")
        if threshold is not None:
            labels[self.read_confidence(photograph) < confidence_level(threshold)] = IGNORE
        return labels

    def read_confidence(self, photograph: str) -> NDArray[np.uint8]:
        """Read the confidence of a photograph, (H, W) uint8: floor(256 c), at most 255; DatasetError as `read`."""
        return self._decoded(self.confidence_path(photograph), photograph)

    def _decoded(self, path: Path, photograph: str) -> NDArray[np.uint8]:
        pixels = decode_ids(path)
        facts = self.photographs.get(photograph)
        if facts is not None and pixels.shape != (facts.height, facts.width):
            raise DatasetError(
                f"{path}: has {pixels.shape[0]} x {pixels.shape[1]} pixels, its photograph {facts.height} x "
                f"{facts.width}; {_AGAIN}"
            )
        return pixels


def label_name(photograph: str, format: str = TRAIN_IDS) -> str:
    """Name the class map of a photograph below ``DIR/<dataset>``.

    In the format ``cityscapes`` the folder ``leftImg8bit`` becomes ``gtFine``, and the ending ``_leftImg8bit`` of the
    name becomes ``_gtFine_labelIds``, which other names get, too.

    Args:
        photograph: its path below the dataset's root.
        format: one of `FORMATS`.
    """
    stem = output_stem(photograph)
    if format == TRAIN_IDS:
        return f"{LABELS}/{stem}.png"
    *folders, name = stem.split("/")
    folders = ["gtFine" if folder == "leftImg8bit" else folder for folder in folders]
    return "/".join([LABELS, *folders, f"{name.removesuffix('_leftImg8bit')}_gtFine_labelIds.png"])


def confidence_name(photograph: str) -> str:
    """Name the confidence of a photograph, given by its path below the root, below ``DIR/<dataset>``."""
    return f"{CONFIDENCE}/{output_stem(photograph)}.png"


def confidence_level(threshold: float) -> int:
    """Compute the lowest stored level that a threshold keeps: ceil(256 t); ValueError above `MAX_THRESHOLD`."""
    if not 0 <= threshold <= MAX_THRESHOLD:
        raise ValueError(f"threshold {threshold} is not between 0 and {MAX_THRESHOLD}")
    return math.ceil(threshold * CONFIDENCE_LEVELS)


def read_auto_labels(folder: Path) -> AutoLabels:
    """Read what is known of the auto-labels in ``DIR/<dataset>``, or in a ``DIR`` that holds one dataset alone.

    Raises:
        DatasetError: there are none, several datasets, an interrupted run left them incomplete, or their record is
            damaged or of another version.
    """
    if not (folder / RECORD).is_file():
        found = sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
        if len(found) > 1:
            names = first_few([path.name for path in found])
            raise DatasetError(f"{folder}: holds the auto-labels of {len(found)} datasets; name one of {names}")
        if not found:
            raise DatasetError(
                f"{folder}: holds no auto-labels ({RECORD} is not there); make them with 'hmsa-pipeline autolabel'"
            )
        folder = found[0]
    record, listed = _read_json(folder / RECORD), None
    if record.get("format_version") != FORMAT_VERSION:
        raise DatasetError(
            f"{folder / RECORD}: is of format version {record.get('format_version')!r}, and this release reads "
            f"{FORMAT_VERSION}; {_AGAIN}"
        )
    if record.get("complete") is not True:
        raise DatasetError(
            f"{folder}: the run that makes these labels has not ended; run the same 'hmsa-pipeline autolabel' again"
        )
    try:
        listed = _read_json(folder / PHOTOGRAPHS)
        found = AutoLabels(
            folder=folder,
            dataset=str(record["dataset"]),
            format=FORMATS[FORMATS.index(record["format"])],
            classes=tuple(str(one["name"]) for one in record["classes"]),
            thresholds=tuple(None if (t := one["threshold"]) is None else float(t) for one in record["classes"]),
            photographs={path: PhotographFacts(*(int(fact) for fact in facts)) for path, facts in listed.items()},
            record=record,
        )
    except (KeyError, TypeError, ValueError) as error:
        name = RECORD if listed is None else f"{RECORD} or {PHOTOGRAPHS}"
        raise DatasetError(f"{folder}: {name} is damaged ({error!r}); {_AGAIN}") from error
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{cannot_read(path, error)}; {_AGAIN}") from error
    return value
