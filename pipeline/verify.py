"""Status and health of the stores: what is complete, and whether it can be read back."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import HmsaError, StoreError
from .lock import writer_lock
from .manifest import Manifest
from .places import move, size
from .progress import Progress
from .store import DamagedShardError, LogitStore
from .survey import DAMAGED, store_path


@dataclass(frozen=True)
class StoreStatus:
    """One cell of models x datasets.

    Attributes:
        complete: images whose shard is there.
        total: images in the store's table, 0 where there is no store.
        bytes: of all shards on the disk.
        written: when the last shard was written, ISO 8601 in UTC; None where there is none.
        problem: why the store cannot be read; None where it can.
    """

    dataset: str
    model: str
    complete: int = 0
    total: int = 0
    bytes: int = 0
    written: str | None = None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def status(manifest: Manifest) -> list[StoreStatus]:
    """The state of every store of the manifest, from one directory scan each."""
    found = []
    for dataset in manifest.datasets:
        for member in manifest.models:
            path = store_path(manifest.output, dataset.name, member.name)
            try:
                found.append(_status(dataset.name, member.name, path))
            except StoreError as error:
                found.append(StoreStatus(dataset.name, member.name, problem=str(error)))
            except OSError as error:
                problem = f"{path}: cannot be read ({error.strerror or error})"
                found.append(StoreStatus(dataset.name, member.name, problem=problem))
    return found


def _status(dataset: str, model: str, path: Path) -> StoreStatus:
    if not LogitStore.exists(path):
        return StoreStatus(dataset, model)
    store = LogitStore.open(path)
    shards = [found for found in store.shards() if found is not None]
    times = [found.modified // 10**9 for found in shards]
    written = datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None
    return StoreStatus(
        dataset,
        model,
        complete=sum(bool(found.bytes) for found in shards),
        total=len(store.images),
        bytes=sum(found.bytes for found in shards),
        written=written,
    )


@dataclass
class Verified:
    """What reading one store found; ``damaged`` and ``unreadable`` map image paths to reasons.

    ``problem`` says why the store as a whole cannot be read; None where it can.

    Unreadable is what the disk would not give: it is no damage of the store, and nothing is moved.
    """

    dataset: str
    model: str
    sound: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    moved: int = 0
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def verify(manifest: Manifest, *, repair: bool = False) -> list[Verified]:
    """Read every shard of the manifest's stores: checksums hold, every value is finite.

    Args:
        manifest: whose stores.
        repair: whether damaged shards are moved to ``<output>/damaged/<dataset>/<model>/``, so that
            ``dump`` or ``import-logits`` makes them again.

    Raises:
        StoreError: there is no store at all, or with ``repair`` one is locked by somebody else.
    """
    stores: list[tuple[str, str, LogitStore]] = []
    counts: list[int] = []
    results: list[Verified] = []
    for dataset in manifest.datasets:
        for member in manifest.models:
            path = store_path(manifest.output, dataset.name, member.name)
            try:
                if LogitStore.exists(path):
                    store = LogitStore.open(path)
                    store.require_arrays()
                    counts.append(sum(size is not None for size in store.shard_sizes()))
                    stores.append((dataset.name, member.name, store))
            except StoreError as error:
                results.append(Verified(dataset.name, member.name, problem=str(error)))
    if not stores and not results:
        raise StoreError(f"{manifest.output}: holds no store; make them with 'hmsa-pipeline dump'")
    with (
        Progress(sum(counts)) as progress,
        ThreadPoolExecutor(max(1, os.cpu_count() or 1), "verify") as pool,
    ):
        for (dataset, model, seen), count in zip(stores, counts, strict=True):
            result = Verified(dataset, model)
            progress.job(f"{dataset}/{model}", count)
            with writer_lock(seen.path) if repair else contextlib.nullcontext():
                # What is moved must be what its table says now, not when nobody held the lock.
                store = LogitStore.open(seen.path) if repair else seen
                there = [i for i, size in enumerate(store.shard_sizes()) if size is not None]
                damaged = []
                for index, error in zip(there, pool.map(lambda i, s=store: _check(s, i), there), strict=True):
                    image = store.images[index].path
                    if error is None:
                        result.sound += 1
                    elif isinstance(error, DamagedShardError):
                        result.damaged[image] = str(error)
                        damaged.append(index)
                    else:
                        result.unreadable[image] = str(error)
                    progress.advance()
                if repair:
                    result.moved = sum(_move(manifest.output, result, store, index) for index in damaged)
            results.append(result)
    return results


def _check(store: LogitStore, index: int) -> HmsaError | None:
    shard = store.shard_path(index)
    try:
        if shard is not None and size(shard) == 0:
            return DamagedShardError(f"{shard}: is empty, the logits of {store.images[index].path} are lost")
        store.check(index)
    except StoreError as error:
        return error
    except OSError as error:
        return StoreError(f"{shard}: cannot be read ({error.strerror or error})")
    return None


def _move(output: Path, result: Verified, store: LogitStore, index: int) -> bool:
    shard = store.shard_path(index)
    if shard is None:
        return False
    folder = output / DAMAGED / result.dataset / result.model / shard.parent.name
    try:
        target, number = folder / shard.name, 1
        while size(target) is not None:
            target, number = folder / f"{shard.name}~{number}", number + 1
        move(shard, target)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"{shard}: cannot be moved to {folder} ({reason}); fix that first") from error
    return True
