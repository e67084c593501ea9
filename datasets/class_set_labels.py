"""Where a dataset's labels are, as the ids of a class set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import DatasetError
from .class_set import ClassSet
from .dataset_specs import KNOWN_DATASETS, DatasetSpec, MaskRule, dataset_spec
from .layout.folder_layout import FolderLayout
from .taxonomy import IGNORE

FOLDER = "folder"
"""The type of dataset whose masks lie in a folder that the user names."""


def describe_labels(name: str, mapping: str | None, masks: Path | None, classes: ClassSet) -> DatasetSpec:
    """Describe the labels of a dataset as the ids of ``classes``: a specification whose train ids are these.

    Args:
        name: one of `KNOWN_DATASETS`, or `FOLDER`.
        mapping: which of its mappings to the 19 classes of Cityscapes; None for the first.
        masks: folder of PNG of the ids, for `FOLDER`; each has the name and subfolder of its image.
        classes: whose ids.

    Raises:
        DatasetError: the dataset has no labels of these classes, or no such mapping.
    """
    if name == FOLDER:
        if masks is None:
            raise DatasetError("type 'folder' has no labels of its own; name their folder with 'masks'")
        return _masked_folder(masks, classes)
    spec = dataset_spec(name)
    if classes.is_default:
        return spec.mapped(mapping)
    facts = spec.class_sets.get(classes.name or "")
    if facts is None:
        having = [other for other in KNOWN_DATASETS if classes.name in dataset_spec(other).class_sets]
        types = f"types that have: {', '.join(having)}; or" if having else "for these classes"
        raise DatasetError(
            f"type '{name}' has no labels of the classes {classes}; {types} give a folder of masks "
            "(type: folder, masks: DIR)"
        )
    if mapping is not None:
        raise DatasetError(f"mapping '{mapping}': leads to the 19 classes, not to {classes}; leave it out")
    names = {raw: text for raw, (_, text) in (spec.labels or {}).items()}
    if facts.ids == "labels_v2":
        names = {raw: text for raw, (_, text) in (spec.labels_v2 or {}).items()}
    if isinstance(facts.ids, str):
        ids = {raw: IGNORE if raw in facts.ignored else raw for raw in names}
    else:
        ids = {raw: facts.ids.get(raw, IGNORE) for raw in names}
    return replace(
        spec,
        title=facts.title or spec.title,
        labels={raw: (ids[raw], text) for raw, text in names.items()},
        labels_v2=spec.labels_v2 if facts.ids == "labels" else None,
        masks=facts.masks,
        mapping="",
        mappings={},
        class_count=len(classes),
    )


def _masked_folder(masks: Path, classes: ClassSet) -> DatasetSpec:
    """Describe a tree of images whose masks are a tree of PNG of the same names."""
    place = masks.as_posix().replace("{", "{{").replace("}", "}}")
    return DatasetSpec(
        name=FOLDER,
        title=str(masks),
        folder="",
        homepage="",
        paper="",
        download="",
        image_archive="",
        mask_archive="",
        tree="",
        layout=FolderLayout({None: (".",)}),
        split_folders={"": ""},
        unlabelled=(),
        masks=(MaskRule("train_ids", f"{place}/{{below}}{{stem}}.png"),),
        labels=None,
        labels_v2=None,
        mapping="",
        mappings={},
        remarks=(),
        resize_masks=False,
        class_count=len(classes),
        masks_folder=masks,
    )
