"""Soft targets from logit stores: means over the members, of just the part that a crop shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...datasets.labels.mask_reader import file_bytes
from ...datasets.layout.folder_layout import located
from ...errors import ManifestError, StoreError, first_few
from ...models.losses.distillation import SMOOTHING
from ..config.recipe import Distillation, Recipe
from ..storage.output_folder import logits_path
from ..store.image_table import BYTES
from ..store.logit_store import LogitStore
from ..text import plural
from .sources import Source


class StoreTargets:
    """Soft targets of the photographs of one dataset; sent to loader processes, which open the stores themselves.

    Args:
        paths: the members' stores.
        temperature: logits are divided by it before the softmax.
        logarithms: whether targets are means of the softmax' logarithms (see `dirichlet_loss`), not of the softmax.
    """

    def __init__(self, paths: Sequence[Path], temperature: float, *, logarithms: bool = False) -> None:
        self.paths = tuple(paths)
        self.temperature = temperature
        self.logarithms = logarithms
        self._stores: list[LogitStore] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stores": []}

    def read(self, image: str, window: tuple[int, int, int, int]) -> Tensor:
        """Read the mean of the members' softmax, or of its logarithms, in a part of a photograph, (C, h, w) float32.

        Logits are read strip by strip; no more than those of one strip and member are held at once.

        Args:
            image: the photograph's path below the dataset's root.
            window: top, bottom, left, right in pixels, bottom and right exclusive.

        Raises:
            StoreError: logits are missing or damaged.
        """
        if not self._stores:
            self._stores = [LogitStore.open(path) for path in self.paths]
        top, bottom, left, right = window
        mean = torch.zeros(self._stores[0].classes, bottom - top, right - left)
        for store in self._stores:
            index = store.index[image]
            room = store.room_for_strip(index)
            for start, stop in store.strips(index):
                first, last = max(start, top), min(stop, bottom)
                if first < last:
                    strip = torch.from_numpy(store.read(index, start, stop, room))
                    logits = strip[:, first - start : last - start, left:right].float()
                    softmax = (logits / self.temperature).softmax(0)
                    if self.logarithms:
                        softmax = softmax.mul_(1 - SMOOTHING).add_(SMOOTHING / len(softmax)).log_()
                    mean[:, first - top : last - top] += softmax
        return mean / len(self._stores)


@dataclass(frozen=True)
class Teachers:
    """Whose logits a source is taught by.

    Attributes:
        dataset: name of the dataset in the run that made them.
        members: their names.
        paths: their stores.
    """

    dataset: str
    members: tuple[str, ...]
    paths: tuple[Path, ...]

    def targets(self, settings: Distillation) -> StoreTargets:
        """Make the reader of the soft targets."""
        return StoreTargets(self.paths, settings.temperature, logarithms=settings.is_of_distribution)


def find_teachers(recipe: Recipe, sources: Sequence[Source], classes: Sequence[str]) -> list[Teachers | None]:
    """Find the stores that teach each source; None for a source that no store knows. All None without distillation.

    A source belongs to the dataset of the run whose stores list its photographs.

    Args:
        recipe: the recipe.
        sources: its sources.
        classes: names of the classes that are trained, in train-id order.

    Raises:
        ManifestError: there are no stores, or several datasets list the photographs.
        StoreError: the stores list none of the photographs, not all, others of the same names, or other classes; or
            logits are missing.
    """
    settings = recipe.loss.distillation
    if settings is None:
        return [None] * len(sources)
    folder = logits_path(settings.stores_path())
    stores = _stores(folder, settings)
    distribution = settings.is_of_distribution
    found = [_teachers_of(source, stores, folder, classes, distribution=distribution) for source in sources]
    for source, one in zip(sources, found, strict=True):
        if one is None and not source.has_labels:
            raise StoreError(
                f"{folder}: has no logits of the photographs of {source.root} (split '{source.data.train}'), which "
                "have no labels either; dump them, or remove the source"
            )
    if not any(found):
        roots = first_few([f"{source.root} (split '{source.data.train}')" for source in sources])
        raise StoreError(
            f"{folder}: has logits of {first_few(sorted(stores))}, and none of the photographs of {roots}; name the "
            "--output of the run that dumped them"
        )
    return found


def identities(found: Sequence[Teachers | None]) -> list[str]:
    """List what each source's soft targets are made of, a line each member, for a fingerprint."""
    return [
        f"teacher {number} {json.dumps(LogitStore.open(path).identity.as_json(), sort_keys=True)}"
        for number, one in enumerate(found)
        if one is not None
        for path in one.paths
    ]


def describe_teachers(recipe: Recipe, found: Sequence[Teachers | None]) -> list[str]:
    """Describe who teaches which source, a line each; nothing without distillation.

    Args:
        recipe: the recipe.
        found: what `find_teachers` found.
    """
    settings = recipe.loss.distillation
    if settings is None:
        return []
    lines = []
    for number, one in enumerate(found):
        which = f"data[{number}] " if len(found) > 1 else ""
        said = "no stores" if one is None else f"{plural(len(one.members), 'member')} of '{one.dataset}'"
        lines.append(f"{which}from {said}{f' ({first_few(one.members, 7)})' if one else ''}")
    of = "their distribution" if settings.is_of_distribution else "their mean"
    lines[0] += f"; {of}, temperature {settings.temperature:g}, weight {settings.weight:g}"
    return lines


def _stores(folder: Path, settings: Distillation) -> dict[str, dict[str, LogitStore]]:
    """Open the stores: dataset -> member -> store."""
    datasets = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if settings.dataset is not None:
        if settings.dataset not in datasets:
            raise ManifestError(
                f"loss.distillation.dataset {settings.dataset}: {folder} has {first_few(datasets) or 'nothing'}"
            )
        datasets = [settings.dataset]
    found: dict[str, dict[str, LogitStore]] = {}
    for dataset in datasets:
        paths = {path.stem: path for path in sorted((folder / dataset).glob("[!.]*.zarr"))}
        if settings.models and (missing := [name for name in settings.models if name not in paths]):
            raise ManifestError(
                f"loss.distillation.models: {folder / dataset} has no store of {first_few(missing)}; there are "
                f"{first_few(sorted(paths), 7) or 'none'}"
            )
        names = settings.models or tuple(paths)
        if names:
            found[dataset] = {name: LogitStore.open(paths[name]) for name in names}
    if not found:
        raise ManifestError(
            f"loss.distillation.stores: {folder} holds no logits; name the --output of a run of 'hmsa-pipeline dump'"
        )
    return found


def _teachers_of(
    source: Source,
    stores: dict[str, dict[str, LogitStore]],
    folder: Path,
    classes: Sequence[str],
    *,
    distribution: bool,
) -> Teachers | None:
    sizes = {pair.image: file_bytes(located(source.root, pair.image)) for pair in source.pairs}
    photographs = [*sizes]
    listing = [
        name for name, members in stores.items() if any(_lists(store, photographs) for store in members.values())
    ]
    if len(listing) > 1:
        # Datasets may have files of the same names; those of other sizes are not these.
        same = [name for name in listing if not any(_changed(sizes, store) for store in stores[name].values())]
        listing = same or listing
    if not listing:
        return None
    if len(listing) > 1:
        raise ManifestError(
            f"loss.distillation: {first_few(listing)} in {folder} list the photographs of {source.root}; name one by "
            "loss.distillation.dataset"
        )
    (dataset,) = listing
    for store in stores[dataset].values():
        if store.identity.classes != tuple(classes):
            raise StoreError(
                f"{store.path}: has logits of {store.classes} classes ({first_few(store.identity.classes, 3)}), not "
                f"of the {len(classes)} that are trained ({first_few(classes, 3)}); name other stores"
            )
        if store.identity.exif:
            raise StoreError(
                f"{store.path}: has logits of photographs that were turned as EXIF says, and training does not turn "
                "them; dump them with orientation: stored"
            )
        if changed := _changed(sizes, store):
            raise StoreError(
                f"{store.path}: {plural(len(changed), 'photograph has', 'photographs have')} another size in bytes "
                f"than when the logits were stored ({first_few(changed, 2)}); put the old files back, or "
                "dump them again"
            )
        store.require_complete(photographs)
    members = stores[dataset]
    if distribution and len(members) == 1:
        (name,) = members
        raise ManifestError(
            f"loss.distillation.target distribution: {folder / dataset} gives {name} alone, and one network has no "
            "distribution; dump others too, or take target: mean"
        )
    return Teachers(dataset, tuple(members), tuple(store.path for store in members.values()))


def _lists(store: LogitStore, photographs: Sequence[str]) -> bool:
    return bool((store.images.locate(photographs) >= 0).any())


def _changed(sizes: Mapping[str, int], store: LogitStore) -> list[str]:
    """List the photographs whose size in bytes is not the one in the store's table."""
    paths = [*sizes]
    rows = store.images.locate(paths)
    known = store.images.numbers()[:, BYTES]
    return [path for path, row in zip(paths, rows.tolist(), strict=True) if row >= 0 and known[row] != sizes[path]]
