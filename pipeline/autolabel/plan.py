"""Plans ``autolabel``: everything that can be wrong is found here, before a logit is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.auto_labels import confidence_name, label_name
from ...datasets.class_set import CITYSCAPES19, ClassSet
from ...datasets.class_set_labels import describe_labels
from ...datasets.dataset_specs import KNOWN_DATASETS
from ...datasets.labels.label_reader import LabelReader
from ...datasets.layout.find_images import list_images
from ...datasets.layout.image_mask_pairs import ImageMaskPair, labelled_pairs
from ...errors import ManifestError, StoreError, first_few
from ..config.manifest import DatasetEntry, Manifest
from ..fusion.dataset_stores import DatasetStores, open_dataset
from ..fusion.ensemble_block import FusionTask
from ..fusion.member_stores import open_store, require_max_logits
from ..fusion.prediction_folder import existing_predictions
from ..storage.filesystem import is_remote
from ..storage.output_folder import own_folders
from ..storage.run_record import failures
from ..storage.writer_lock import require_free
from ..store.image_table import ImageEntry
from .measure import FitPlan, Teacher, plan_fit
from .record import describe_work, read_labels_record, require_same_labels
from .settings import KEEP, AutolabelSettings


@dataclass
class DatasetPlan:
    """The work on one dataset.

    Attributes:
        entry: of the manifest.
        root: folder of its photographs.
        folder: of its labels, ``DIR/<dataset>``.
        teacher: members with their stores.
        work: see `record.describe_work`.
        before: the record of labels that are there, empty if there are none.
        images: all that are to have labels, by path.
        tasks: those that have none yet.
        absent: images that no member could read -> reason.
        reader: of the dataset's own labels; None if they do not matter.
        pairs: image -> its own mask.
        classes: of the manifest.
    """

    entry: DatasetEntry
    root: Path
    folder: Path
    teacher: Teacher
    work: dict[str, Any]
    before: dict[str, Any]
    images: dict[str, ImageEntry]
    tasks: list[FusionTask] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    reader: LabelReader | None = None
    classes: ClassSet = CITYSCAPES19
    pairs: Mapping[str, ImageMaskPair] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """Number of images that have labels already."""
        return len(self.images) - len(self.tasks)


@dataclass(frozen=True)
class AutolabelPlan:
    """The work of a run: datasets to label, and the one that precision is measured on, None if it is not."""

    write: Path
    manifest: Manifest
    settings: AutolabelSettings
    datasets: list[DatasetPlan]
    fit: FitPlan | None


def plan_autolabel(
    manifest: Manifest,
    every: Manifest,
    write: Path,
    settings: AutolabelSettings,
    *,
    fit: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> AutolabelPlan:
    """Check settings, photographs and stores, and list what is to be labelled.

    Args:
        manifest: its models, and the datasets to label.
        every: the same manifest with all its datasets.
        write: folder of the labels of all datasets.
        settings: those of the run.
        fit: name of the labelled dataset that precision is measured on.
        limit: images per dataset, from the first; None for all.
        overwrite: make existing labels again.

    Raises:
        ManifestError: options that cannot be followed with this manifest.
        DatasetError: photographs or masks are missing.
        StoreError: stores are missing, incomplete, of other photographs, or labels were made in another way.
    """
    if not any(member.weight for member in manifest.models):
        raise ManifestError("--models: all selected models have weight 0; select another one or weigh them")
    require_max_logits(manifest, "ensemble.confidence", [manifest.ensemble.confidence])
    for entry in manifest.datasets:
        _require_apart(write / entry.name, every.datasets, manifest.output)
        if entry.exif:
            raise ManifestError(
                f"dataset '{entry.name}': orientation exif turns photographs, and training reads them as they are "
                "stored; leave it out, dump again, and label those"
            )
    fitted = None if fit is None else plan_fit(every, fit, settings)
    plans = [_plan_dataset(manifest, entry, write, settings, fitted, limit, overwrite) for entry in manifest.datasets]
    for plan in plans:
        if fitted is not None and plan.teacher.classes != fitted.teacher.classes:
            raise StoreError(f"--fit {fit}: its stores have other classes than those of {plan.entry.name}")
    return AutolabelPlan(write, manifest, settings, plans, fitted)


def _require_apart(folder: Path, entries: Sequence[DatasetEntry], output: Path) -> None:
    """Raise ManifestError if labels would lie among the photographs of a dataset, or among logits."""
    place = folder.resolve()
    for entry in entries:
        root = entry.root_path().resolve()
        if place.is_relative_to(root) or root.is_relative_to(place):
            raise ManifestError(
                f"--write: labels in {folder} would lie in one tree with the photographs of '{entry.name}' ({root}); "
                "name another folder"
            )
    for own in own_folders(output):
        if place.is_relative_to(own.resolve()):
            raise ManifestError(f"--write: {folder} lies in {own}, where other results are kept; name another folder")


def _plan_dataset(
    manifest: Manifest,
    entry: DatasetEntry,
    write: Path,
    settings: AutolabelSettings,
    fit: FitPlan | None,
    limit: int | None,
    overwrite: bool,
) -> DatasetPlan:
    root, folder = entry.root_path(), write / entry.name
    listed = list_images(root, entry.type, entry.split, [*own_folders(manifest.output), folder])
    sizes = {image.path: image.bytes for image in listed[:limit]}
    stores = open_dataset(manifest, entry.name, wanted=sizes, hint="")
    _require_same_photographs(stores, entry, root, sizes)
    members = [(member, store) for member, store in stores.members if store is not None]
    settings.require_fitting(len(members), stores.classes)
    reader, pairs = _own_labels(entry, root, settings, sizes, manifest.class_set)

    absent, reasons = {}, failures(manifest.output, entry.name)
    for path in [stores.paths[i] for i in np.flatnonzero(~stores.has.any(axis=0))]:
        if path not in reasons:
            raise StoreError(
                f"{entry.name}: {path} is in no member's store yet; finish 'hmsa-pipeline dump', or take --limit"
            )
        absent[path] = reasons[path]
    everybody = tuple(range(len(stores.members)))
    tasks = {path: stores.task(i, everybody) for i, path in enumerate(stores.paths) if path not in absent}
    images = {path: task.entry for path, task in tasks.items()}
    if not images:
        raise StoreError(f"{entry.name}: no member has logits of an image; make them with 'hmsa-pipeline dump'")

    require_free(folder)
    before = {} if overwrite else read_labels_record(folder)
    of_fit = None
    if fit is not None:
        opened = [(member, open_store(path)) for member, path in fit.teacher.members]
        first = opened[0][1]
        measured = {pair.image: first.images[first.index[pair.image]].bytes for pair in fit.pairs}
        of_fit = fit.entry.name, measured, opened
    shared = {path: sizes[path] for path in images} if settings.rule == KEEP else {}
    work = describe_work(entry, settings, manifest.ensemble, members, of_fit, shared)
    require_same_labels(folder, before, work)
    teacher = Teacher(
        tuple((member, store.path) for member, store in members), manifest.ensemble, settings, stores.classes
    )
    plan = DatasetPlan(entry, root, folder, teacher, work, before, images, absent=absent, reader=reader, pairs=pairs)
    plan.classes = manifest.class_set
    existing = existing_predictions(folder) if before else {}
    last = stores.written.max(axis=0, initial=-1)
    for path, newest in zip(stores.paths, last.tolist(), strict=True):
        if path in absent:
            continue
        written = existing.get(label_name(path, settings.format))
        there = written is not None and confidence_name(path) in existing
        if not there or newest > (written or 0):
            plan.tasks.append(tasks[path])
    return plan


def _require_same_photographs(
    stores: DatasetStores, entry: DatasetEntry, root: Path, sizes: Mapping[str, int]
) -> None:
    """Raise StoreError unless the stores hold the dataset's photographs as they are now."""
    known = dict(zip(stores.paths, stores.facts[:, 0].tolist(), strict=True))
    missing = [path for path in sizes if path not in known]
    place = next(store.path for _, store in stores.members if store is not None).parent
    if len(missing) == len(sizes):
        raise StoreError(
            f"{place}: holds logits of other photographs, of none of the {len(sizes)} in {root}; "
            f"correct the root of '{entry.name}', or name the --output that holds its stores"
        )
    if missing:
        raise StoreError(
            f"{place}: lacks {len(missing)} of the {len(sizes)} photographs in {root} ({first_few(missing, 2)}); "
            "finish 'hmsa-pipeline dump', or take --limit"
        )
    changed = [path for path, now in sizes.items() if known[path] != now]
    if changed:
        raise StoreError(
            f"{place}: {len(changed)} photographs have another size in bytes than when their logits were stored "
            f"({first_few(changed, 2)}); put the old files back, or start over with 'hmsa-pipeline dump --overwrite'"
        )


def _own_labels(
    entry: DatasetEntry, root: Path, settings: AutolabelSettings, images: Mapping[str, int], classes: ClassSet
) -> tuple[LabelReader | None, dict[str, ImageMaskPair]]:
    """Find the dataset's own labels, if they matter.

    Args:
        entry: of the manifest.
        root: its folder.
        settings: those of the run.
        images: photographs that are to be labelled.
        classes: of the manifest, whose ids the labels are.
    """
    if settings.coarse is None:
        return None, {}
    if entry.type not in KNOWN_DATASETS:
        raise ManifestError(
            f"--respect-coarse: dataset '{entry.name}' of type '{entry.type}' has no labels of its own; leave it out"
        )
    facts = describe_labels(entry.type, entry.mapping, entry.masks_path(), classes)
    pairs, _ = labelled_pairs(root, entry.type, entry.split, facts=facts)
    return LabelReader(root, facts), {pair.image: pair for pair in pairs if pair.image in images}


def required_paths(plan: AutolabelPlan) -> list[Path]:
    """List the folders, besides that of the labels, that every worker must reach."""
    roots = [one.root for one in plan.datasets if one.reader is not None]
    return roots if is_remote(plan.manifest.output) else [plan.manifest.output, *roots]
