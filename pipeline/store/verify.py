"""The commands ``status`` and ``verify``: how complete stores are, and whether their logits can be read back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ...errors import HmsaError, StoreError, cannot_read, reason
from ..runtime.progress import Progress
from ..storage.filesystem import move, size
from ..storage.output_folder import damaged_path
from ..storage.writer_lock import writer_lock
from .logit_store import LogitStore
from .status import StoreStatus
from .zarr_backend import DamagedShardError

_AT_ONCE = 1000

StoreOf = tuple[str, str, Path]
"""Name of a dataset, name of a model, and folder of the store that holds the model's logits for the dataset."""


def store_status(stores: Sequence[StoreOf]) -> list[StoreStatus]:
    """Look up the state of each store, with one directory scan each; `status.stores_status` is quicker."""
    found = []
    for dataset, model, path in stores:
        try:
            found.append(_status(dataset, model, path))
        except StoreError as error:
            found.append(StoreStatus(dataset, model, problem=str(error)))
        except OSError as error:
            found.append(StoreStatus(dataset, model, problem=cannot_read(path, error)))
    return found


def _status(dataset: str, model: str, path: Path) -> StoreStatus:
    if not LogitStore.exists(path):
        return StoreStatus(dataset, model)
    store = LogitStore.open(path)
    shards = store.shards()
    there = shards.bytes >= 0
    last = int(shards.modified.max(initial=0)) // 10**9
    written = datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds") if there.any() else None
    return StoreStatus(
        dataset,
        model,
        complete=int(shards.complete.sum()),
        total=len(store.images),
        bytes=int(shards.bytes[there].sum()),
        written=written,
    )


@dataclass
class VerifyResult:
    """The result of reading one store.

    Attributes:
        sound: number of images whose logits can be read and are finite.
        damaged: image path -> reason, for shards that do not decode to finite logits.
        unreadable: image path -> reason, for shards that the disk did not give. They count as undamaged and are
            never moved.
        moved: number of damaged shards that were moved away.
        problem: why the store cannot be read at all; None where it can.
    """

    dataset: str
    model: str
    sound: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    moved: int = 0
    problem: str | None = None


def verify(output: Path, stores_of: Sequence[StoreOf], *, repair: bool = False) -> list[VerifyResult]:
    """Read every shard of the stores: checksums hold, every value is finite.

    Args:
        output: the folder of all results.
        stores_of: names and folders of the stores; those that do not exist are left out.
        repair: move damaged shards to ``<output>/damaged/<dataset>/<model>/``, so that ``dump`` or
            ``import-logits`` makes them again.

    Raises:
        StoreError: none of the stores exists, or with ``repair`` one is locked by another process.
    """
    stores: list[tuple[str, str, LogitStore]] = []
    counts: list[int] = []
    results: list[VerifyResult] = []
    for dataset, model, path in stores_of:
        try:
            if LogitStore.exists(path):
                store = LogitStore.open(path)
                store.images.check()
                store.require_arrays()
                counts.append(int((store.shards().bytes >= 0).sum()))
                stores.append((dataset, model, store))
        except StoreError as error:
            results.append(VerifyResult(dataset, model, problem=str(error)))
    if not stores and not results:
        raise StoreError(f"{output}: holds no store; make them with 'hmsa-pipeline dump'")
    with (
        Progress(sum(counts)) as progress,
        ThreadPoolExecutor(max(1, os.cpu_count() or 1), "verify") as pool,
    ):
        for (dataset, model, seen), count in zip(stores, counts, strict=True):
            result = VerifyResult(dataset, model)
            progress.job(f"{dataset}/{model}", count)
            with writer_lock(seen.path) if repair else contextlib.nullcontext():
                # Shards are moved by the table as it is now; before the lock was held it could change.
                store = LogitStore.open(seen.path) if repair else seen
                there = np.flatnonzero(store.shards().bytes >= 0).tolist()
                damaged = []
                for index, error in _check_all(store, there, pool):
                    if error is None:
                        result.sound += 1
                    elif isinstance(error, DamagedShardError):
                        result.damaged[store.images[index].path] = str(error)
                        damaged.append(index)
                    else:
                        result.unreadable[store.images[index].path] = str(error)
                    progress.advance()
                if repair:
                    result.moved = sum(_move(output, result, store, index) for index in damaged)
            results.append(result)
    return results


def _check_all(
    store: LogitStore, indices: Sequence[int], pool: ThreadPoolExecutor
) -> Iterator[tuple[int, HmsaError | None]]:
    """Check images side by side; what waits for its turn stays small."""
    for start in range(0, len(indices), _AT_ONCE):
        some = indices[start : start + _AT_ONCE]
        yield from zip(some, pool.map(lambda i: _check(store, i), some), strict=True)


def _check(store: LogitStore, index: int) -> HmsaError | None:
    shard = store.shard_path(index)
    try:
        if shard is not None and size(shard) == 0:
            return DamagedShardError(f"{shard}: is empty, the logits of {store.images[index].path} are lost")
        store.check(index)
    except StoreError as error:
        return error
    except OSError as error:
        return StoreError(cannot_read(shard, error))
    return None


def _move(output: Path, result: VerifyResult, store: LogitStore, index: int) -> bool:
    shard = store.shard_path(index)
    if shard is None:
        return False
    folder = damaged_path(output, result.dataset, result.model) / shard.parent.name
    try:
        target, number = folder / shard.name, 1
        while size(target) is not None:
            target, number = folder / f"{shard.name}~{number}", number + 1
        move(shard, target)
    except OSError as error:
        raise StoreError(f"{shard}: cannot be moved to {folder} ({reason(error)}); fix that first") from error
    return True
