"""The members' stores of one dataset, checked against one another: which images they hold, and who lacks which."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ...datasets.layout.folder_layout import output_stem
from ...errors import StoreError
from ..config.manifest import Manifest
from ..config.member import Member
from ..storage.output_folder import store_path
from ..storage.run_record import gone
from ..store.image_table import ImageEntry
from ..store.logit_store import LogitStore
from .member_stores import require_store_classes


@dataclass(frozen=True)
class DatasetStores:
    """The stores of the manifest's members of a weight above 0.

    Attributes:
        members: each as it is calibrated on the dataset, with its store, None where it has none.
        entries: all images by path, sorted.
        complete: for each member, image whose logits are complete -> when they were written, in ns.
    """

    members: list[tuple[Member, LogitStore | None]]
    entries: dict[str, ImageEntry]
    complete: list[dict[str, int]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in train-id order."""
        return next(store.identity.classes for _, store in self.members if store is not None)

    @cached_property
    def has(self) -> dict[str, tuple[int, ...]]:
        """Image -> positions of the members that have its logits."""
        return {path: tuple(i for i, there in enumerate(self.complete) if path in there) for path in self.entries}


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
    entries = _join_tables(dataset, stores, gone(manifest.output, dataset))
    if wanted is not None:
        entries = {path: entry for path, entry in entries.items() if path in wanted}
    if limit is not None:
        entries = dict(list(entries.items())[:limit])
    complete = [
        {e.path: f.modified for e, f in zip(s.images, s.shards(), strict=True) if f and f.bytes} if s else {}
        for _, s in members
    ]
    found = DatasetStores(members, entries, complete)
    lacking = {
        member.name: sum(1 for who in found.has.values() if who and i not in who)
        for i, (member, _) in enumerate(members)
    }
    if any(lacking.values()) and not allow_missing:
        counts = ", ".join(f"{name} lacks {count}" for name, count in lacking.items() if count)
        raise StoreError(
            f"{dataset}: of {len(entries)} images {counts}; finish 'hmsa-pipeline dump' (or import-logits){hint}"
        )
    return found


def _join_tables(dataset: str, stores: list[LogitStore], left_out: set[str]) -> dict[str, ImageEntry]:
    """Return all members' images by path, sorted, without ``left_out``, which the dataset no longer holds.

    Raises:
        StoreError: two members saw different photographs under one name, or two images share a prediction's name.
    """
    entries: dict[str, ImageEntry] = {}
    for store in stores:
        for entry in store.images:
            if entry.path in left_out:
                continue
            known = entries.setdefault(entry.path, entry)
            if None in (known.height, entry.height):
                entries[entry.path] = entry if known.height is None else known
            elif (known.bytes, known.height, known.width) != (entry.bytes, entry.height, entry.width):
                raise StoreError(
                    f"{dataset}: the members saw different photographs under one name (first: {entry.path}, "
                    f"{known.height}x{known.width} and {entry.height}x{entry.width}); "
                    "start the older store over with 'hmsa-pipeline dump --overwrite'"
                )
    stems: dict[str, str] = {}
    for path in sorted(entries):
        other = stems.setdefault(output_stem(path), path)
        if other != path:
            raise StoreError(f"{dataset}: {other} and {path} would write the same prediction; rename one of them")
    return {path: entries[path] for path in sorted(entries)}
