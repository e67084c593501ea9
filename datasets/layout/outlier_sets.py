"""Sets of images whose labels say what is out of distribution: where images and masks lie, what masks mean.

Each set is scored on its own: their pixels are never pooled. Sources:

* SegmentMeIfYouCan (Chan et al., NeurIPS 2021 Datasets and Benchmarks, arXiv 2104.14812) and its toolkit
  road-anomaly-benchmark (da3bc77, ``datasets/tracks.py``): two tracks, masks of 0, 1 and 255.
* LostAndFound (Pinggera et al., IROS 2016, arXiv 1609.04653). The same toolkit takes id 1 (free road) as in
  distribution, 2 to 200 (obstacles) as out of it, and leaves 0 (everything else) out; the train ids are 1 and 2.
  It counts 1036 frames for training and 1203 for testing, 6 and 17 of which have masks that label nothing.
* Fishyscapes (Blum et al., IJCV 2021, arXiv 1904.03215) and its code bdl-benchmark (03773d6,
  ``fishyscapes_tfds.py``): masks ``<number>_<name in LostAndFound>_labels.png`` of 0, 1 and 255 beside LostAndFound's
  own images; or ``original/`` and ``labels/`` below ``LostAndFound/`` and ``Static/``, as the forks of SynBoost
  and PEBAL prepare them. Static's images are made by its authors' code from Cityscapes.
* RoadAnomaly (Lis et al., ICCV 2019, arXiv 1904.07595): 0 background, 1 road, 2 anomaly, with one folder of labels
  for each of its 60 frames; all but anomalies are in distribution, as evaluators of whole images count.
* The archive ``Validation_Dataset`` of the forks of Mask2Anomaly (``evalAnomaly.py``): ``images/<n>`` (PNG, WebP and
  JPEG) and ``labels_masks/<n>.png`` in five folders, masks of 0, 1 and 255; those of RoadAnomaly say 2 for 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .folder_layout import FolderLayout, PlacedImage, names_in

LOST_AND_FOUND, FISHYSCAPES, ROAD_ANOMALY = "lostandfound", "fishyscapes", "roadanomaly"
SMIYC, VALIDATION_DATASET = "smiyc", "validation_dataset"

LOST_AND_FOUND_ENDING = "_leftImg8bit"
"""Ending of the names of LostAndFound's images, before their suffix."""
FISHYSCAPES_MASKS = "fishyscapes_lostandfound"
"""The folder of masks that Fishyscapes distributes for LostAndFound's own images."""
NOT_LABELLED = "of LostAndFound, which Fishyscapes does not label"

OUTLIER = {0: 0, 1: 1, 255: 255}
"""Value of a mask -> 0 in distribution, 1 out of it, 255 where nothing is known."""
ROAD_AND_ANOMALY = {0: 0, 1: 0, 2: 1, 255: 255}
LOST_AND_FOUND_IDS = {0: 255, 1: 0, **dict.fromkeys(range(2, 201), 1), 255: 255}
LOST_AND_FOUND_TRAIN_IDS = {0: 255, 1: 0, 2: 1, 255: 255}

VALUES: Mapping[str, Mapping[int, int]] = {
    "outlier": OUTLIER,
    "road_and_anomaly": ROAD_AND_ANOMALY,
    "lost_and_found_ids": LOST_AND_FOUND_IDS,
    "lost_and_found_train_ids": LOST_AND_FOUND_TRAIN_IDS,
}
"""Encoding of a mask -> what its values mean."""


@dataclass(frozen=True, slots=True)
class OutlierSet:
    """One type of dataset.

    Attributes:
        title: its own name.
        layout: where its images lie; its splits, or what it holds under None, are scored one by one.
        masks: split -> where the mask of an image may lie, and its encoding, in the order of preference; under None
            for all splits that are not named. Fields are those of `MaskRule`, ``{folder}`` (the folders above
            the one that holds the images, with a slash) and ``{frame}`` (the stem without LostAndFound's ending);
            a star stands for a number.
        hint: what an error says where no image has a mask.
        counts: split -> how many images its authors distribute masks for.
        source: where `counts` comes from.
        unsure: whether `counts` is what others say of it, and not its authors.
        tracks: split -> its `track`, where that is not ``anomaly``.
    """

    title: str
    layout: FolderLayout
    masks: Mapping[str | None, tuple[tuple[str, str], ...]]
    hint: str
    counts: Mapping[str | None, int] = field(default_factory=dict)
    source: str = ""
    unsure: bool = False
    tracks: Mapping[str | None, str | None] = field(default_factory=dict)

    def track(self, split: str | None) -> str | None:
        """Name the track of SegmentMeIfYouCan whose smallest components count in a split; None if it may be either.

        Its toolkit takes those of the obstacle track for LostAndFound, and those of the anomaly track for
        Fishyscapes.
        """
        return self.tracks.get(split, "anomaly")


def _twice(folder: str, *outer: str) -> tuple[str, ...]:
    """A folder of images at the root, and in each of the folders that archives may unpack into."""
    return (folder, *(f"{name}/{folder}" for name in outer))


_TOOLKIT = "https://github.com/SegmentMeIfYouCan/road-anomaly-benchmark (1c7804e)"
_BUNDLE = ("RoadAnomaly21", "RoadObsticle21", "fs_static", "FS_LostFound_full", "RoadAnomaly")

OUTLIERS: Mapping[str, OutlierSet] = {
    SMIYC: OutlierSet(
        "SegmentMeIfYouCan",
        # The second folder of each track is spelled as the BRAVO archive spells it.
        FolderLayout(
            {
                "anomaly": ("dataset_AnomalyTrack/images", "RoadAnomaly21/images"),
                "obstacle": ("dataset_ObstacleTrack/images", "RoadObsticle21/images"),
                None: ("images",),
            },
        ),
        {None: (("{folder}labels_masks/{stem}_labels_semantic.png", "outlier"),)},
        "labels_masks/<name>_labels_semantic.png beside images/; SMIYC publishes those of its validation images",
        {"anomaly": 10, "obstacle": 30},
        f"{_TOOLKIT}, datasets/tracks.py and tracks_extra.py: expected_length of the validation splits",
        tracks={"obstacle": "obstacle", None: None},
    ),
    LOST_AND_FOUND: OutlierSet(
        "LostAndFound",
        FolderLayout(
            {
                "train": _twice("leftImg8bit/train", "dataset_LostAndFound"),
                "test": _twice("leftImg8bit/test", "dataset_LostAndFound"),
            },
            default="test",
            stem_ending=LOST_AND_FOUND_ENDING,
            fix="unpack leftImg8bit.zip and gtCoarse.zip of LostAndFound into this folder",
        ),
        {
            None: tuple(
                (f"{top}gtCoarse/{{split}}/{{below}}{{stem}}_gtCoarse_{ids}.png", f"lost_and_found_{encoding}")
                for top in ("", "dataset_LostAndFound/")
                for ids, encoding in (("labelIds", "ids"), ("labelTrainIds", "train_ids"))
            )
        },
        "gtCoarse/<split>/<street>/<name>_gtCoarse_labelIds.png; unpack gtCoarse.zip of LostAndFound",
        {"train": 1036, "test": 1203},
        f"{_TOOLKIT}, datasets/tracks.py: expected_length of LostAndFound-train and LostAndFound-test",
        tracks={"train": "obstacle", "test": "obstacle"},
    ),
    FISHYSCAPES: OutlierSet(
        "Fishyscapes",
        FolderLayout(
            {
                "lostandfound": ("LostAndFound/original", "leftImg8bit"),
                "static": ("Static/original",),
            },
            fix="how it must look, see the documentation of out-of-distribution sets",
        ),
        {
            "lostandfound": (
                ("LostAndFound/labels/{below}{stem}.png", "outlier"),
                (f"{FISHYSCAPES_MASKS}/*_{{frame}}_labels.png", "outlier"),
            ),
            "static": (("Static/labels/{below}{stem}.png", "outlier"),),
        },
        "LostAndFound/labels/<name>.png beside LostAndFound/original/, the same for Static/, or "
        "fishyscapes_lostandfound/*_labels.png beside LostAndFound's leftImg8bit/",
        {"lostandfound": 100, "static": 30},
        f"{_TOOLKIT}, datasets/tracks_extra.py; https://arxiv.org/abs/1904.03215 (static)",
    ),
    ROAD_ANOMALY: OutlierSet(
        "RoadAnomaly",
        FolderLayout({None: _twice("frames", "RoadAnomaly_jpg", "dataset_RoadAnomaly")}, left_out_ending=".labels"),
        {None: (("{folder}frames/{below}{stem}.labels/labels_semantic.png", "road_and_anomaly"),)},
        "frames/<name>.labels/labels_semantic.png beside frames/<name>.jpg",
        {None: 60},
        "https://arxiv.org/abs/1904.07595",
    ),
    VALIDATION_DATASET: OutlierSet(
        "Validation_Dataset",
        FolderLayout({name: _twice(f"{name}/images", "Validation_Dataset") for name in _BUNDLE}),
        {
            "RoadAnomaly": (("{folder}labels_masks/{below}{stem}.png", "road_and_anomaly"),),
            None: (("{folder}labels_masks/{below}{stem}.png", "outlier"),),
        },
        "labels_masks/<name>.png beside images/",
        {"RoadAnomaly21": 10, "RoadObsticle21": 30, "fs_static": 30, "FS_LostFound_full": 100, "RoadAnomaly": 60},
        "as many as the sets have that it was made of (above); nobody says how many it holds itself: "
        "https://github.com/shyam671/Mask2Anomaly-Unmasking-Anomalies-in-Road-Scene-Segmentation",
        unsure=True,
        tracks={"RoadObsticle21": "obstacle"},
    ),
}
"""Type, as a manifest names it -> where it lies and what its masks mean."""

OUTLIER_LAYOUTS: Mapping[str, FolderLayout] = {name: one.layout for name, one in OUTLIERS.items()}


def labelled_frames(root: Path, images: Sequence[PlacedImage]) -> tuple[list[PlacedImage], dict[str, int]]:
    """Images of Fishyscapes; of LostAndFound's own, those that have a mask of Fishyscapes.

    Returns:
        those that are left, in their order; and for people what is left out -> how many.
    """
    if not any(image.path.startswith("leftImg8bit/") for image in images):
        return list(images), {}
    masks = names_in(root / FISHYSCAPES_MASKS)
    frames = {name.partition("_")[2].removesuffix("_labels.png") for name in masks if name.endswith("_labels.png")}
    kept = [
        image
        for image in images
        if not image.path.startswith("leftImg8bit/") or image.stem.removesuffix(LOST_AND_FOUND_ENDING) in frames
    ]
    return kept, {NOT_LABELLED: len(images) - len(kept)} if len(kept) < len(images) else {}
