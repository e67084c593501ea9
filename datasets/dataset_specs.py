"""The seven datasets that members are trained on, and others with labels of the same classes.

Where to get them, how they lie on disk, what their ids mean.

The facts stand in ``sources/<name>.yaml``, each with where it comes from; nothing is read before it is asked for.
Installed packages may bring more: an entry point of the group `GROUP` names the path of such a file of theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import DatasetError, nearest
from .layout.folder_layout import FolderLayout, replaced
from .taxonomy import IGNORE, NUM_CLASSES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAMES: tuple[str, ...] = ("cityscapes", "bdd100k", "idd", "mapillary", "wilddash", "gta5", "shift")
"""How manifests and recipes name those that members are trained on."""

EVALUATED: tuple[str, ...] = ("acdc", "muses")
"""How manifests name those that no member is trained on."""

GROUP = "hmsa_pipeline.datasets"
"""Group of the entry points, each of which names the path of a YAML file like those in specs/."""

LABELLED_OR_PREDICTED, LABELLED = "labelled-or-predicted", "labelled"
RULES: tuple[str, ...] = (LABELLED_OR_PREDICTED, LABELLED)
"""Which classes evaluators take the mean IoU over: those with a labelled or a predicted pixel, or a labelled one."""

UNKNOWN = 254
"""Value in lookup tables for ids that are not in the dataset's table."""

SEE = "see: hmsa-pipeline datasets list"
"""How an error ends that is about a folder which does not look as it must."""

FACTS = ("download", "archives", "layout", "labels", "counts")
"""Facts whose source the file of a dataset names."""

TOTAL = "total"
"""The key of `DatasetSpec.counts` for the images of all splits."""

DRAWN_MARK = ".drawn.json"
"""A hidden file in the folder of a dataset that was drawn: it holds as many images as were asked for."""

ENCODINGS: tuple[str, ...] = ("train_ids", "ids", "ids_v2", "red", "panoptic", "polygons")
"""How a mask says what a pixel shows: a grey value or palette index that is a train id, a raw id, or a raw id of the
dataset's later table; a raw id in the red channel; COCO's panoptic colours with a JSON file beside; polygons with
names in a JSON file."""

_OTHER_TYPES = frozenset(
    {"bravo", "folder", "fishyscapes", "lostandfound", "roadanomaly", "smiyc", "validation_dataset"}
)
_FILES = Path(__file__).with_name("specs")


@dataclass(frozen=True, slots=True)
class MaskRule:
    """Where the mask of an image may lie."""

    encoding: str
    """One of `ENCODINGS`."""
    path: str
    """Relative to the root, with the fields ``{part}`` (what stands before the usual folder of the images, with a
    slash; mostly nothing), ``{split}`` (what the dataset calls the split that the image lies in),
    ``{below}`` (folders between the split's and the image, each with a slash) and ``{stem}`` (the image's name
    without its suffix and without the layout's ending)."""
    told_by: tuple[str, ...] = ()
    """Files below the root that list the labels; where there are any, they tell ``ids`` from ``ids_v2``."""
    splits: tuple[str, ...] = ()
    """Splits whose masks lie there; if there are none, all but those of `DatasetSpec.apart`."""


@dataclass(frozen=True, slots=True)
class ClassSetFacts:
    """Labels of a dataset in another class set than that of `taxonomy`."""

    ids: str | Mapping[int, int]
    """Raw id -> id in the set, all others are ignored; or the table whose raw ids are the set's, ``labels`` or
    ``labels_v2``."""
    masks: tuple[MaskRule, ...]
    """Where such masks may lie, in the order of preference; raw ids of ``labels_v2`` are called ``ids`` if it is the
    table."""
    ignored: frozenset[int] = frozenset()
    """Raw ids of the table that are no class, or that the dataset's own benchmark does not score."""
    title: str = ""
    """Name of the dataset with such labels, if it is another one."""


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One dataset as its authors distribute it."""

    name: str
    """How manifests name it."""
    title: str
    """Its own name."""
    folder: str
    """Name of its folder below the data root."""
    homepage: str
    paper: str
    download: str
    """Where to get it and what to unpack, in a sentence or two."""
    image_archive: str
    """Archive that holds the images."""
    mask_archive: str
    """Archive that holds the masks."""
    tree: str
    """How the folder must look, in a few lines."""
    layout: FolderLayout
    """Where its images lie."""
    split_folders: Mapping[str, str]
    """Split -> the dataset's own name of it, for the paths of masks; all splits that have folders."""
    unlabelled: tuple[str, ...]
    """Splits whose masks the authors keep to themselves."""
    masks: tuple[MaskRule, ...]
    """Where masks may lie, in the order of preference."""
    labels: Mapping[int, tuple[int, str]] | None
    """Raw id -> train id and name; None where there are no raw ids."""
    labels_v2: Mapping[int, tuple[int, str]] | None
    """Raw id of a later table -> the raw id of `labels` that it counts as, and its own name; None where there is no
    later table."""
    mapping: str
    """Which of `mappings` the train ids of `labels` are; empty where there is one alone."""
    mappings: Mapping[str, Mapping[int, int]]
    """Name of a mapping to train ids -> raw ids whose train id it has otherwise than the first one."""
    remarks: tuple[str, ...]
    """Remarks for users, a sentence or two each."""
    resize_masks: bool
    """True if some masks have another size than their images, and are to be resized."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Split -> how many images its authors distribute; under `TOTAL` those of all splits together, where the split
    is not the authors'. Images that are left out on purpose do not count. A split that is not named is not known."""
    unsure: frozenset[str] = frozenset()
    """Names in `counts` and `parts` of numbers that the authors do not state: others counted them."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Kind of fact -> where it comes from: addresses and citations. Kinds: `FACTS`, and ``parts`` where there are."""
    average: str = LABELLED_OR_PREDICTED
    """One of `RULES`: which classes the authors' own evaluator takes the mean IoU over."""
    parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Part that some have alone -> `counts` of it."""
    apart: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Split that comes in archives of its own -> that of its images and that of its masks."""
    class_sets: Mapping[str, ClassSetFacts] = field(default_factory=dict)
    """Name of another class set -> its labels there, see `class_set_labels`."""
    class_count: int = NUM_CLASSES
    """How many classes there are: train ids are below it."""
    masks_folder: Path | None = None
    """Folder of the masks, which are no images, if it may lie among them."""

    @property
    def classes(self) -> tuple[int, ...]:
        """The train ids that its labels can hold at all, ascending; also of masks of train ids, made of the same."""
        if self.labels is None:
            return tuple(range(self.class_count))
        return tuple(sorted({train for train, _ in self.labels.values()} - {IGNORE}))

    @property
    def labelled(self) -> tuple[str, ...]:
        """The splits that can have masks."""
        return tuple(split for split in self.layout.split_names if split not in self.unlabelled)

    def archives(self, split: str | None) -> tuple[str, str]:
        """The archives that hold the images and the masks of a split."""
        return self.apart.get(split or "", (self.image_archive, self.mask_archive))

    def mapped(self, mapping: str | None) -> DatasetSpec:
        """Copy with one of `mappings` to train ids, or the first for None; DatasetError if it has none such."""
        if mapping is None or mapping == self.mapping:
            return self
        if mapping not in self.mappings:
            if not self.mappings:
                raise DatasetError(f"{self.title} has no other mappings, but '{mapping}' was given; leave it out")
            raise DatasetError(f"{self.title} has no mapping '{mapping}'; {nearest(mapping, self.mappings)}")
        assert self.labels is not None
        others = self.mappings[mapping]
        labels = {raw: (others.get(raw, train), meaning) for raw, (train, meaning) in self.labels.items()}
        # Masks of train ids were made by the first mapping, and cannot be brought to another one.
        masks = tuple(rule for rule in self.masks if rule.encoding != "train_ids")
        return replace(self, labels=labels, mapping=mapping, masks=masks)

    def lookup(self, encoding: str) -> NDArray[np.uint8]:
        """Lookup table of the ids in masks of one of `ENCODINGS`.

        Returns:
            (256,) uint8: the train id of each raw id, `taxonomy.IGNORE` among them; `UNKNOWN` for ids outside the
            table. For ``train_ids`` that is what they are.

        Raises:
            ValueError: raw ids are asked for where there are none.
        """
        import numpy as np  # not above: listing images or checking a manifest need not wait for it

        table = np.full(256, UNKNOWN, np.uint8)
        if encoding == "train_ids":
            ids = [*range(self.class_count), IGNORE]
            table[ids] = ids
            return table
        if self.labels is None or (encoding == "ids_v2" and self.labels_v2 is None):
            raise ValueError(f"{self.name} has no raw ids")
        if encoding == "ids_v2":
            for raw, (counts_as, _) in (self.labels_v2 or {}).items():
                table[raw] = self.labels[counts_as][0]
            return table
        for raw, (train, _) in self.labels.items():
            table[raw % 256] = train  # -1 is 255 in a mask of 8 bits
        return table

    def label_ids(self) -> NDArray[np.uint8]:
        """The raw id (19,) uint8 that stands for each train id in files that the dataset's own tools read.

        Where several raw ids are one train id, it is the first of the table: the plain class (road), which its
        authors number before the finer ones (road marking, bike lane).

        Raises:
            ValueError: the dataset has no raw ids, or none for one of the classes.
        """
        import numpy as np

        first: dict[int, int] = {}
        for raw, (train, _) in sorted((self.labels or {}).items()):
            if raw >= 0:
                first.setdefault(train, raw)
        if missing := [train for train in range(NUM_CLASSES) if train not in first]:
            raise ValueError(f"{self.name} has no raw id for the train ids {missing}")
        return np.array([first[train] for train in range(NUM_CLASSES)], np.uint8)


@functools.cache
def _outside() -> dict[str, EntryPoint]:
    """Entry points of other packages, by name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in (*NAMES, *EVALUATED) or point.name in found or point.name in _OTHER_TYPES:
            raise DatasetError(f"{_origin(point)}: there is a dataset of this name already; rename it there")
        found[point.name] = point
    return found


def _origin(point: EntryPoint) -> str:
    package = f" of package {point.dist.name}" if point.dist else ""
    return f"dataset '{point.name}' ({point.value}{package})"


class _Known(Collection[str]):
    """All names; installed packages are asked when somebody looks."""

    def __contains__(self, name: object) -> bool:
        return name in NAMES or name in EVALUATED or name in _outside()

    def __iter__(self) -> Iterator[str]:
        return iter((*NAMES, *EVALUATED, *_outside()))

    def __len__(self) -> int:
        return len(NAMES) + len(EVALUATED) + len(_outside())


KNOWN_DATASETS: Collection[str] = _Known()
"""Names of the package's datasets, and of those that installed packages bring."""


@functools.cache
def dataset_spec(name: str) -> DatasetSpec:
    """The facts about one of `KNOWN_DATASETS`.

    Raises:
        DatasetError: there is none of this name, or what a package says of it cannot be understood.
    """
    if name in NAMES or name in EVALUATED:
        return _described(name, yaml.safe_load((_FILES / f"{name}.yaml").read_text(encoding="utf-8")))
    point = _outside().get(name)
    if point is None:
        raise DatasetError(f"unknown dataset '{name}'; {nearest(name, KNOWN_DATASETS)}")
    try:
        return _described(name, yaml.safe_load(Path(point.load()).read_text(encoding="utf-8")))
    except Exception as error:  # of somebody else's code and file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DatasetError(
            f"{_origin(point)}: its description cannot be understood ({reason}); fix it there, or remove it"
        ) from error


def _described(name: str, facts: dict[str, Any]) -> DatasetSpec:
    """Build the specification of the dataset ``name`` from its file; only ``splits`` has to be there."""
    archives = facts.get("archives", {"images": "its images", "masks": "its masks"})
    labels = facts.get("labels")
    average = facts.get("average", LABELLED_OR_PREDICTED)
    if average not in RULES:
        raise DatasetError(f"average '{average}' is none of {', '.join(RULES)}")
    known = {"title": name, "folder": name, "homepage": "", "paper": "", "download": "", "tree": ""}
    texts = {key: facts.get(key, default) for key, default in known.items()}
    splits: dict[str | None, tuple[str, ...]] = {split: tuple(folders) for split, folders in facts["splits"].items()}
    called = {split: split for split in facts["splits"]} | facts.get("split_folders", {})
    unlabelled = list(facts.get("unlabelled", ()))
    variants: dict[str, dict[str, tuple[str, ...]]] = {}
    for variant, changes in facts.get("variants", {}).items():
        for split in facts["splits"]:
            name_of = f"{split}_{variant}"
            variants[name_of] = {old: tuple(new) for old, new in changes.items()}
            splits[name_of] = tuple(path for folder in splits[split] for path in replaced(folder, variants[name_of]))
            called[name_of] = called[split]
            unlabelled += [name_of] if split in unlabelled else []
    mappings = facts.get("mappings", {})
    return DatasetSpec(
        name=name,
        **texts,
        image_archive=archives["images"],
        mask_archive=archives["masks"],
        layout=FolderLayout(
            splits=splits,
            default=facts.get("default"),
            stem_ending=facts.get("stem_ending", ""),
            joined={split: tuple(parts) for split, parts in facts.get("joined", {}).items()},
            any_part=facts.get("any_part", False),
            members=facts.get("members", "all"),
            left_out_stems=frozenset(facts.get("left_out", ())),
            more={split: tuple(folders) for split, folders in facts.get("more", {}).items()},
            variants=variants,
            fix=f"unpack {archives['images']}; {SEE}",
            apart={split: f"unpack {own['images']}; {SEE}" for split, own in facts.get("apart", {}).items()},
        ),
        split_folders=called,
        unlabelled=tuple(unlabelled),
        masks=_mask_rules(facts.get("masks", ())),
        labels=labels and {raw: (train, meaning) for raw, (train, meaning) in labels.items()},
        labels_v2=facts.get("labels_v2") and {raw: (old, text) for raw, (old, text) in facts["labels_v2"].items()},
        mapping=next(iter(mappings), ""),
        mappings=mappings,
        remarks=tuple(" ".join(remark.split()) for remark in facts.get("remarks", ())),
        resize_masks=facts.get("resize_masks", False),
        counts=facts.get("counts", {}),
        unsure=frozenset(facts.get("unsure", ())),
        sources={kind: " ".join(text.split()) for kind, text in facts.get("sources", {}).items()},
        average=average,
        parts=facts.get("parts", {}),
        apart={split: (own["images"], own["masks"]) for split, own in facts.get("apart", {}).items()},
        class_sets={
            classes: ClassSetFacts(
                one["ids"], _mask_rules(one["masks"]), frozenset(one.get("ignored", ())), one.get("title", "")
            )
            for classes, one in facts.get("class_sets", {}).items()
        },
    )


def _mask_rules(rules: Iterable[Mapping[str, Any]]) -> tuple[MaskRule, ...]:
    lists = ("told_by", "splits")
    return tuple(MaskRule(**{**rule, **{key: tuple(rule.get(key, ())) for key in lists}}) for rule in rules)
