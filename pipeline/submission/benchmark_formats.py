"""File formats of the benchmarks' own tools and servers: how the file of an image is called, and what it holds.

Where each fact comes from stands beside it; docs/submissions.md says it for users.
"""

from __future__ import annotations

import importlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.dataset_specs import dataset_spec
from ...datasets.decode.arrays import decode_grey
from ...datasets.layout.folder_layout import output_stem
from ...datasets.taxonomy import NUM_CLASSES
from ...errors import DatasetError, HmsaError, first_few
from ..fusion.grey_png import encode_png
from ..fusion.prediction_files import prediction_names, read_confidence, read_label

BRAVO = "bravo"
"""The format of `submission`, which is a tar file and led by the challenge's sampling file."""

_VALUE = "value"


class UploadFormat(ABC):
    """One benchmark.

    Attributes:
        name: as ``--format`` takes it.
        photographs: how they are called, for people.
        package: what has to be installed, with the extra that brings it; None if nothing more.
        takes_classes: whether its files hold classes, which are the 19 of Cityscapes.
    """

    name: str
    photographs: str
    package: tuple[str, str] | None = None
    takes_classes = True

    @abstractmethod
    def target(self, image: str) -> str | None:
        """The path in the submission of the file of ``image``, which begins with the dataset's own folder.

        None if the image is none of this benchmark.
        """

    @abstractmethod
    def key(self, name: str) -> str | None:
        """Key by which the benchmark knows a submitted file; None if it would not look at a file of this name."""

    @abstractmethod
    def sources(self, image: str) -> list[str]:
        """Files of predictions that the file of ``image`` is made of, below the dataset's folder."""

    @abstractmethod
    def encode(self, folder: Path, image: str) -> tuple[bytes, tuple[int, int]]:
        """The content of an image's file, and its size (height, width); DatasetError if the prediction is unfit."""

    @abstractmethod
    def decode(self, content: bytes, path: Path) -> np.ndarray:
        """The (H, W) values in a submitted file; DatasetError, named ``path``, if the benchmark cannot use it."""


class LabelMaps(UploadFormat):
    """A PNG of 8 bits for each image.

    Args:
        name: of the format.
        photographs: how they are called.
        image: finds in a photograph's stem, without folders, what its file is named by.
        file: finds in a submitted file's stem what the benchmark knows it by.
        named: the path in the submission, with that as ``{}``.
        ids: the dataset whose table gives the ids; None for train ids.
    """

    def __init__(self, name: str, photographs: str, image: str, file: str, named: str, ids: str | None) -> None:
        self.name, self.photographs = name, photographs
        self._image, self._file, self._named, self._ids = re.compile(image), re.compile(file), named, ids

    def target(self, image: str) -> str | None:
        found = self._image.fullmatch(output_stem(_base(image)))
        return self._named.format(found[1]) if found else None

    def key(self, name: str) -> str | None:
        base = _base(name)
        found = self._file.fullmatch(base.removesuffix(".png")) if base.endswith(".png") else None
        return found[1] if found else None

    def sources(self, image: str) -> list[str]:
        return [prediction_names(image)[0]]

    def encode(self, folder: Path, image: str) -> tuple[bytes, tuple[int, int]]:
        label = read_label(folder / self.sources(image)[0])
        if self._ids is not None:
            label = dataset_spec(self._ids).label_ids()[label]
        return encode_png(label), (label.shape[0], label.shape[1])

    def decode(self, content: bytes, path: Path) -> np.ndarray:
        ids = decode_grey(content, path)
        if ids.dtype != np.uint8:
            raise DatasetError(f"{path}: holds 16 bits a pixel; ids take 8")
        there = np.unique(ids)
        if self._ids is None:
            if wrong := there[there >= NUM_CLASSES].tolist():
                raise DatasetError(
                    f"{path}: holds {first_few(wrong)}, but {self.name} takes train ids, 0 to {NUM_CLASSES - 1}; "
                    "are these label ids?"
                )
            return ids
        dataset = dataset_spec(self._ids)
        if wrong := sorted(set(there.tolist()) - set(dataset.labels or ())):
            raise DatasetError(f"{path}: holds {first_few(wrong)}, which are no label ids of {dataset.title}")
        void = sorted(set(there.tolist()) - set(dataset.label_ids().tolist()))
        if void and there[-1] < NUM_CLASSES:
            raise DatasetError(
                f"{path}: holds {first_few(void)}, which as label ids are no classes, and nothing above "
                f"{NUM_CLASSES - 1}; are these train ids? {self.name} takes label ids"
            )
        return ids


class AnomalyScores(UploadFormat):
    """A score for each pixel, higher where it is stranger: 1 - confidence, as SegmentMeIfYouCan's toolkit reads it.

    Its reader (road-anomaly-benchmark, ``evaluation.py`` and ``datasets/dataset_io.py``) opens
    ``<DIR_OUTPUTS>/anomaly_p/<method>/<dataset>/<image>.hdf5`` and takes the array ``value``; datasets and images are
    named in ``datasets/tracks.py``. It writes float16 and reads any type; ours is float32, which loses nothing.

    Args:
        method: how the toolkit will call the method.
    """

    name = "smiyc"
    takes_classes = False
    package = ("h5py", "hmsa-pipeline[smiyc]")
    photographs = (
        "dataset_AnomalyTrack/images/<name>, dataset_ObstacleTrack/images/<name> (or RoadAnomaly21, RoadObsticle21), "
        "or leftImg8bit/<split>/<scene>/<name>_leftImg8bit of LostAndFound"
    )
    _FOLDERS: Mapping[str, str] = {
        "dataset_AnomalyTrack": "AnomalyTrack-all",
        "RoadAnomaly21": "AnomalyTrack-all",
        "dataset_ObstacleTrack": "ObstacleTrack-all",
        "RoadObsticle21": "ObstacleTrack-all",
        "RoadObstacle21": "ObstacleTrack-all",
    }
    _TRACK = re.compile(r"(?:.*/)?(?P<folder>[^/]+)/images/(?P<name>[^/]+)")
    _LOST = re.compile(
        r"(?:.*/)?leftImg8bit/(?P<split>train|test)/[^/]+/(?P<name>\d\d_[^/]+_\d{6}_\d{6})_leftImg8bit"
    )

    def __init__(self, method: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", method):
            raise HmsaError(f"--method: {method!r} cannot name a folder; use letters, digits and . _ -")
        self._method = method

    def target(self, image: str) -> str | None:
        stem = output_stem(image)
        if (found := self._TRACK.fullmatch(stem)) and found["folder"] in self._FOLDERS:
            dataset = self._FOLDERS[found["folder"]]
        elif found := self._LOST.fullmatch(stem):
            dataset = f"LostAndFound-{found['split']}"
        else:
            return None
        return f"anomaly_p/{self._method}/{dataset}/{found['name']}.hdf5"

    def key(self, name: str) -> str | None:
        parts = name.split("/")
        # A check of a submission need not know what its method is called.
        return "/".join(parts[-2:]) if name.endswith(".hdf5") and len(parts) >= 2 else None

    def sources(self, image: str) -> list[str]:
        return [prediction_names(image)[1]]

    def encode(self, folder: Path, image: str) -> tuple[bytes, tuple[int, int]]:
        confidence = read_confidence(folder / self.sources(image)[0])
        # The middle of the interval that a stored confidence stands for; 17 bits, so that float32 is exact.
        score = np.float32(1) - (confidence.astype(np.float32) + np.float32(0.5)) / np.float32(65536)
        file = io.BytesIO()
        with _h5py().File(file, "w") as group:
            group.create_dataset(_VALUE, data=score, compression="gzip", compression_opts=4, shuffle=True)
        return file.getvalue(), (score.shape[0], score.shape[1])

    def decode(self, content: bytes, path: Path) -> np.ndarray:
        try:
            with _h5py().File(io.BytesIO(content), "r") as group:
                if _VALUE not in group:
                    raise DatasetError(f"{path}: holds no array '{_VALUE}', which the toolkit reads")
                value = np.squeeze(np.asarray(group[_VALUE]))
        except OSError as error:
            raise DatasetError(f"{path}: is no HDF5 file, or damaged; write it again") from error
        if value.ndim != 2 or value.dtype.kind != "f":
            raise DatasetError(
                f"{path}: '{_VALUE}' is {value.dtype} of shape {value.shape}; a float (H, W) is expected"
            )
        if not np.isfinite(value).all():
            raise DatasetError(f"{path}: '{_VALUE}' holds numbers that are not finite")
        return value


def _h5py() -> Any:
    return importlib.import_module("h5py")  # of an extra


def _base(path: str) -> str:
    return path.rpartition("/")[2]


_MAPS = (
    # evalPixelLevelSemanticLabeling.py of cityscapesScripts 2.3.0, which its authors say the server goes by:
    # <city>_123456_123456*.png, found at any depth, exactly one for each image; label ids.
    LabelMaps(
        "cityscapes",
        "<city>_<6 digits>_<6 digits>_leftImg8bit",
        r"([^_]+_\d{6}_\d{6})(?:_.*)?",
        r"([^_]+_\d{6}_\d{6}).*",
        "{}_labelIds.png",
        "cityscapes",
    ),
    # Train ids and the photographs' names, as those who submit have written them since 2021: folder labelTrainIds.
    LabelMaps(
        "acdc",
        "<recording>_frame_<6 digits>_rgb_anon",
        r"(.+_frame_\d{6}_rgb_anon)",
        r"(.+_frame_\d{6}_rgb_anon)",
        "labelTrainIds/{}.png",
        None,
    ),
    # The label policy of WildDash 2 (wilddash_scripts, wd2_unified_label_policy.json), whose ids RVC 2022 takes, too.
    LabelMaps("wilddash", "any name", r"(.+)", r"(.+)", "{}.png", "wilddash"),
)
FORMATS: tuple[str, ...] = (BRAVO, *(one.name for one in _MAPS), AnomalyScores.name)
"""Values of ``--format``."""


def upload_format(name: str, method: str | None = None) -> UploadFormat:
    """A format of `FORMATS` other than `BRAVO`; ``method`` is for ``smiyc``, None for ``hmsa-pipeline``."""
    if name == AnomalyScores.name:
        return AnomalyScores("hmsa-pipeline" if method is None else method)
    return next(one for one in _MAPS if one.name == name)
