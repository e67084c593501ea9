"""The members' stores of one dataset, checked against one another: which images they hold, and who lacks which."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ...datasets.layout.folder_layout import output_stem
from ...errors import StoreError
from ..config.manifest import Manifest
from ..config.member import Member
from ..storage.output_folder import store_path
from ..storage.run_record import gone
from ..store.image_table import CHUNK_ROWS, ImageEntry
from ..store.logit_store import LogitStore
from .ensemble_block import FusionTask
from .member_stores import require_store_classes


@dataclass(frozen=True)
class DatasetStores:
    """The stores of the manifest's members of a weight above 0, and the images of all of them: M members, N images.

    Attributes:
        members: each as it is calibrated on the dataset, with its store, None where it has none.
        paths: of the images, sorted.
        facts: (N, 3) int64: size in bytes, height and width of each image; the last two -1 if no member could read
            its header.
        rows: (M, N) int64: where the image stands in the member's table, -1 where it does not.
        written: (M, N) int64: when the member's logits of the image were written, in ns; -1 where they are not
            complete.
    """

    members: list[tuple[Member, LogitStore | None]]
    paths: list[str]
    facts: np.ndarray
    rows: np.ndarray
    written: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in train-id order."""
        return next(store.identity.classes for _, store in self.members if store is not None)

    @property
    def has(self) -> np.ndarray:
        """(M, N) bool: whether the member has the logits of the image."""
        return self.written >= 0

    def task(self, position: int, who: tuple[int, ...]) -> FusionTask:
        """Describe to a worker the image at ``position``, to be fused from the members ``who``."""
        size, *sides = self.facts[position].tolist()
        height, width = sides if sides[0] > 0 else (None, None)
        entry = ImageEntry(self.paths[position], size, height, width, None, None)
        return FusionTask(entry, who, tuple(self.rows[[*who], position].tolist()))


def open_dataset(
    manifest: Manifest,
    dataset: str,
    *,
    limit: int | None = None,
    wanted: Collection[str] | None = None,
    allow_missing: bool = False,
    hint: str = ", or pass --allow-missing",
) -> DatasetStores:
    """Open a dataset's stores, and check that they belong together.

    Args:
        manifest: its models and output folder.
        dataset: its name.
        limit: images, from the first; None for all.
        wanted: images to look at, by path; None for all.
        allow_missing: a member may lack its store or images that others have.
        hint: how an error ends that says how to make what is missing.

    Raises:
        StoreError: no store, stores that do not belong together, or images that some members lack.
    """
    members: list[tuple[Member, LogitStore | None]] = []
    for member in manifest.models:
        if not member.weight:
            continue
        member = member.on(dataset)
        path = store_path(manifest.output, dataset, member.name)
        there = LogitStore.exists(path)
        if not there and not allow_missing:
            command = "hmsa-pipeline import-logits" if member.external else "hmsa-pipeline dump"
            raise StoreError(f"{path}: there is no store; make it with '{command}'{hint}")
        members.append((member, LogitStore.open(path) if there else None))
    stores = [store for _, store in members if store is not None]
    for store in stores:
        require_store_classes(store, manifest.class_set)
        store.require_arrays()
    if not stores:
        raise StoreError(f"{dataset}: no member has a store; make them with 'hmsa-pipeline dump'")
    paths, facts, of_stores = _join_tables(dataset, stores, gone(manifest.output, dataset))
    kept = np.array([i for i, path in enumerate(paths) if wanted is None or path in wanted][:limit], np.int64)
    rows = np.full((len(members), len(kept)), -1, np.int64)
    rows[[store is not None for _, store in members]] = of_stores[:, kept]
    paths = [paths[i] for i in kept.tolist()]
    found = DatasetStores(members, paths, facts[kept], rows, np.full(rows.shape, -1, np.int64))
    for (_, store), mine, written in zip(members, rows, found.written, strict=True):
        if store is not None and len(store.images):
            shards = store.shards()
            there = (mine >= 0) & shards.complete[mine]
            written[there] = shards.modified[mine[there]]
    has = found.has
    lacking = (has.any(axis=0) & ~has).sum(axis=1)
    if lacking.any() and not allow_missing:
        counts = ", ".join(
            f"{member.name} lacks {count}" for (member, _), count in zip(members, lacking, strict=True) if count
        )
        raise StoreError(
            f"{dataset}: of {len(found.paths)} images {counts}; finish 'hmsa-pipeline dump' (or import-logits){hint}"
        )
    return found


def _join_tables(
    dataset: str, stores: list[LogitStore], left_out: set[str]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Join the members' tables.

    Args:
        dataset: its name.
        stores: S of them.
        left_out: images that the dataset no longer holds.

    Returns:
        the paths of all N images, sorted, their ``facts`` (N, 3), and their ``rows`` (S, N), see `DatasetStores`.

    Raises:
        StoreError: two members saw different photographs under one name, or two images share a prediction's name.
    """
    paths: list[str] = []
    for store in stores:
        known = np.zeros(len(store.images), bool)
        at = store.images.locate(paths)
        known[at[at >= 0]] = True
        for chunk in store.images.chunks() if not known.all() else ():
            new = ~known[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
            paths += [path for path, is_new in zip(store.images.chunk_paths(chunk), new, strict=True) if is_new]
    paths = sorted(path for path in paths if path not in left_out)
    facts = np.full((len(paths), 3), -1, np.int64)
    rows = np.empty((len(stores), len(paths)), np.int64)
    for mine, store in zip(rows, stores, strict=True):
        mine[:] = store.images.locate(paths)
        there = np.flatnonzero(mine >= 0)
        numbers = store.images.numbers()[mine[there]][:, :3]
        differs = (facts[there, 1] > 0) & (numbers[:, 1] > 0) & (facts[there] != numbers).any(axis=1)
        if differs.any():
            first = int(np.flatnonzero(differs)[0])
            (_, height, width), (_, now_height, now_width) = facts[there[first]].tolist(), numbers[first].tolist()
            raise StoreError(
                f"{dataset}: the members saw different photographs under one name (first: {paths[there[first]]}, "
                f"{height}x{width} and {now_height}x{now_width}); "
                "start the older store over with 'hmsa-pipeline dump --overwrite'"
            )
        unknown = facts[there, 1] < 0
        facts[there[unknown]] = numbers[unknown]
    if len({output_stem(path) for path in paths}) < len(paths):
        stems: dict[str, str] = {}
        for path in paths:
            other = stems.setdefault(output_stem(path), path)
            if other != path:
                raise StoreError(f"{dataset}: {other} and {path} would write the same prediction; rename one of them")
    return paths, facts, rows
