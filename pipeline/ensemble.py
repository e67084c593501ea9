"""From logit stores to fused class maps and confidences, image by image, a strip of rows at a time.

What went in stands in ``ensemble.json`` beside the predictions of a dataset; its fingerprint says
whether a prediction that lies there is the one that would be made now.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..datasets.layouts import output_stem
from ..errors import ManifestError, StoreError, disk_error, first_few
from ..files import atomic_path, is_partial, write_json
from .lock import writer_lock
from .manifest import Manifest, Member
from .progress import Progress
from .record import failures, record_run
from .scores import fuse, quantise
from .store import DamagedShardError, ImageEntry, LogitStore
from .survey import PREDICTIONS, store_path

RECORD = "ensemble.json"
# Each image in work holds about 170 MB at 1024x2048, whatever the number of members; four of them and
# torch itself stay below 1.5 GB.
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Task:
    """One image to fuse: its entry and the members that have it (positions in `Fusion.members`)."""

    entry: ImageEntry
    members: tuple[int, ...]


@dataclass
class Fusion:
    """The work on one dataset, checked and ready to run.

    Attributes:
        dataset: its name.
        members: the manifest's members of a weight above 0, with their stores (None where one has none yet).
        tasks: images still to fuse.
        skipped: how many lie there already, made from the same stores in the same way.
        absent: images that no member has -> why, as far as is known.
        partial: images fused with fewer than all members -> names of those that took part.
    """

    dataset: str
    folder: Path
    members: list[tuple[Member, LogitStore | None]]
    record: dict[str, Any]
    tasks: list[Task] = field(default_factory=list)
    skipped: int = 0
    absent: dict[str, str] = field(default_factory=dict)
    partial: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class FusionResult:
    """What became of one dataset's images; ``failed`` maps paths to reasons."""

    dataset: str
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    partial: int = 0
    seconds: float = 0.0
    interrupted: bool = False


def prediction_paths(folder: Path, image: str) -> tuple[Path, Path]:
    """The class map and the confidence of ``image`` (its path in the store) under ``folder``."""
    stem = output_stem(image)
    return folder / f"{stem}_pred.png", folder / f"{stem}_conf.png"


def plan_ensemble(
    manifest: Manifest, *, limit: int | None = None, overwrite: bool = False, allow_missing: bool = False
) -> list[Fusion]:
    """Check every dataset's stores against one another and list what is to be fused.

    Args:
        manifest: its models, datasets and ensemble functions.
        limit: images per dataset, from the first; None for all.
        overwrite: whether predictions that lie there are made again.
        allow_missing: whether an image that some members lack is fused from the others.

    Raises:
        StoreError: no store, stores that do not belong together, images that some members lack, or
            predictions made from other stores or in another way.
    """
    if not any(member.weight for member in manifest.models):
        raise ManifestError("--models: all selected models have weight 0; select another one or weigh them")
    return [_plan(manifest, d.name, limit, overwrite, allow_missing) for d in manifest.datasets]


def _plan(manifest: Manifest, dataset: str, limit: int | None, overwrite: bool, allow_missing: bool) -> Fusion:
    members: list[tuple[Member, LogitStore | None]] = []
    for member in manifest.models:
        if not member.weight:
            continue
        path = store_path(manifest.output, dataset, member.name)
        there = LogitStore.exists(path)
        if not there and not allow_missing:
            raise StoreError(f"{path}: there is no store; make it with '{_filler(member)}', or pass --allow-missing")
        members.append((member, LogitStore.open(path) if there else None))
    stores = [store for _, store in members if store is not None]
    if not stores:
        raise StoreError(f"{dataset}: no member has a store; make them with 'hmsa-pipeline dump'")
    entries = _common_table(dataset, stores)
    if limit is not None:
        entries = dict(list(entries.items())[:limit])

    complete = [
        {e.path for e, ok in zip(s.images, s.complete(), strict=True) if ok} if s else set[str]() for _, s in members
    ]
    has = {path: tuple(i for i, there in enumerate(complete) if path in there) for path in entries}
    lacking = {
        member.name: sum(1 for path, who in has.items() if who and i not in who)
        for i, (member, _) in enumerate(members)
    }
    if any(lacking.values()) and not allow_missing:
        counts = ", ".join(f"{name} lacks {count}" for name, count in lacking.items() if count)
        raise StoreError(
            f"{dataset}: of {len(entries)} images {counts}; finish 'hmsa-pipeline dump' (or import-logits), "
            "or pass --allow-missing"
        )

    folder = manifest.output / PREDICTIONS / dataset
    before = _previous(folder)
    record = _describe(manifest, members, {} if overwrite else _stores(before))
    if before and not overwrite and not _same_work(before, record):
        raise StoreError(
            f"{folder}: holds predictions made in another way ({_changes(before, record)}); "
            "choose another --output, or make them again with --overwrite"
        )
    fresh = overwrite or not before
    known_partial = {} if fresh else before.get("partial", {})
    plan = Fusion(dataset, folder, members, record)
    reasons = failures(manifest.output, dataset)
    existing = set() if fresh else _existing(folder)
    for path, who in has.items():
        if not who:
            plan.absent[path] = reasons.get(path, "is in no member's store yet; run 'hmsa-pipeline dump'")
            continue
        names = [members[i][0].name for i in who]
        label, confidence = prediction_paths(folder, path)
        there = label in existing and confidence in existing
        used = known_partial.get(path, [m.name for m, _ in members])
        if there and set(names) <= set(used) and not _older(label, [members[i][1] for i in who], path):
            plan.skipped += 1
            names = used
        else:
            plan.tasks.append(Task(entries[path], who))
        if len(names) < len(members):
            plan.partial[path] = names
    # Images beyond --limit keep what is known of them.
    for path, names in known_partial.items():
        if path not in has:
            plan.partial[path] = names
    return plan


def _filler(member: Member) -> str:
    return "hmsa-pipeline import-logits" if member.external else "hmsa-pipeline dump"


def _common_table(dataset: str, stores: list[LogitStore]) -> dict[str, ImageEntry]:
    """All members' images by path, sorted; StoreError if two members mean different photographs."""
    first = stores[0]
    entries: dict[str, ImageEntry] = {}
    for store in stores:
        if store.identity.classes != first.identity.classes:
            raise StoreError(f"{store.path}: has other classes than {first.path}; only equal ones can be fused")
        for entry in store.images:
            known = entries.setdefault(entry.path, entry)
            if None in (known.height, entry.height):
                entries[entry.path] = entry if known.height is None else known
            elif (known.bytes, known.height, known.width) != (entry.bytes, entry.height, entry.width):
                raise StoreError(
                    f"{dataset}: the members saw different photographs under one name (first: {entry.path}, "
                    f"{known.height}x{known.width} and {entry.height}x{entry.width}); "
                    "start the older store afresh with 'hmsa-pipeline dump --overwrite'"
                )
    stems: dict[str, str] = {}
    for path in sorted(entries):
        other = stems.setdefault(output_stem(path), path)
        if other != path:
            raise StoreError(f"{dataset}: {other} and {path} would write the same prediction; rename one of them")
    return {path: entries[path] for path in sorted(entries)}


def _describe(
    manifest: Manifest, members: list[tuple[Member, LogitStore | None]], known: dict[str, str]
) -> dict[str, Any]:
    """What goes in, with its fingerprint; ``known`` are fingerprints of stores that may be gone."""
    described = {
        "label": manifest.ensemble.label,
        "confidence": manifest.ensemble.confidence,
        "members": [
            {
                "name": member.name,
                "weight": member.weight,
                "temperature": member.temperature,
                "store": known.get(member.name) if store is None else _store_fingerprint(store),
            }
            for member, store in members
        ],
    }
    return {"fingerprint": _digest(described), "version": __version__, **described}


def _same_work(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two records describe the same work on the stores that both know.

    A member without a store took part in no image, which the list of partial images tells; so a store
    may come or go.
    """
    known = _stores(before).keys() & _stores(now).keys()
    same = [_work(record, known) for record in (before, now)]
    return same[0] == same[1]


def _work(record: dict[str, Any], known: Set[str]) -> dict[str, Any]:
    members = [m if m["name"] in known else {**m, "store": None} for m in record.get("members", [])]
    return {"label": record.get("label"), "confidence": record.get("confidence"), "members": members}


def _stores(record: dict[str, Any]) -> dict[str, str]:
    return {m["name"]: m["store"] for m in record.get("members", []) if m["store"]}


def _store_fingerprint(store: LogitStore) -> str:
    identity = asdict(store.identity)
    # The same content under another file name is the same checkpoint.
    identity.pop("checkpoint")
    return _digest(identity)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _previous(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); make the predictions again with --overwrite") from error
    return value if isinstance(value, dict) else {}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [
        f"{name} {before.get(name)} there, {now[name]} now"
        for name in ("label", "confidence")
        if before.get(name) != now[name]
    ]
    old, new = ({m["name"]: m for m in record.get("members", [])} for record in (before, now))
    if list(old) != list(new):
        changed.append(f"members {', '.join(old)} there, {', '.join(new)} now")
    for name in old.keys() & new.keys():
        for what in ("weight", "temperature", "store"):
            if old[name].get(what) != new[name][what]:
                detail = "" if what == "store" else f" {old[name].get(what)} there, {new[name][what]} now"
                changed.append(f"{what} of {name}{detail or ' made with other settings'}")
    return first_few(changed, 3) or "another version"


def _existing(folder: Path) -> set[Path]:
    return {Path(base, name) for base, _, names in os.walk(folder) for name in names if name.endswith(".png")}


def _older(label: Path, stores: list[LogitStore | None], image: str) -> bool:
    """Whether a member's logits were written again after the prediction was made from them."""
    made = label.stat().st_mtime_ns
    for store in stores:
        shard = store.shard_path(store.index[image]) if store is not None else None
        if shard is not None and shard.stat().st_mtime_ns > made:
            return True
    return False


def run_ensemble(manifest: Manifest, plans: list[Fusion], *, overwrite: bool = False) -> list[FusionResult]:
    """Fuse what the plans list, dataset by dataset.

    A member's damaged image is reported and the rest goes on. After an interrupt the last result says
    ``interrupted``.

    Raises:
        StoreError: the output cannot be written, or another run works on the same predictions.
    """
    results: list[FusionResult] = []
    with Progress(sum(len(plan.tasks) for plan in plans)) as progress:
        for plan in plans:
            begun = time.monotonic()
            result = FusionResult(
                plan.dataset, skipped=plan.skipped, failed=dict(plan.absent), partial=len(plan.partial)
            )
            progress.job(plan.dataset, len(plan.tasks))
            try:
                with writer_lock(plan.folder):
                    _run(plan, result, progress, overwrite)
            except OSError as error:
                raise disk_error(plan.folder, error) from error
            result.seconds = time.monotonic() - begun
            results.append(result)
            record_run(
                manifest.output,
                "ensemble",
                plan.dataset,
                manifest.resolved(),
                done=result.done,
                skipped=result.skipped,
                partial=result.partial,
                failed=[{"image": path, "reason": reason} for path, reason in result.failed.items()],
                interrupted=result.interrupted,
                seconds=round(result.seconds, 3),
            )
            if result.interrupted:
                break
    return results


def _run(plan: Fusion, result: FusionResult, progress: Progress, overwrite: bool) -> None:
    for base, _, names in os.walk(plan.folder):
        for name in names:
            if is_partial(name) or (overwrite and name.endswith(("_pred.png", "_conf.png"))):
                Path(base, name).unlink()
    # Before the record, which will no longer say that they lack a member or are older than their logits.
    for task in plan.tasks:
        prediction_paths(plan.folder, task.entry.path)[0].unlink(missing_ok=True)
    # Before the first prediction: one that lies there without its line in the record would later pass
    # for one of all members.
    record = {**plan.record, "partial": plan.partial}
    if _previous_or_none(plan.folder) != record:
        write_json(plan.folder / RECORD, record)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(THREADS, "fuse") as pool:
            waiting: dict[Future[None], str] = {}
            tasks: Iterator[Task] = iter(plan.tasks)
            try:
                for task in tasks:
                    waiting[pool.submit(_fuse_image, plan, task)] = task.entry.path
                    if len(waiting) >= 2 * THREADS:
                        _collect(wait(waiting, return_when=FIRST_COMPLETED).done, waiting, result, progress)
                while waiting:
                    _collect(wait(waiting, return_when=FIRST_COMPLETED).done, waiting, result, progress)
            except KeyboardInterrupt:
                result.interrupted = True
                for future in [f for f in waiting if f.cancel()]:
                    del waiting[future]
                while waiting:
                    _collect(wait(waiting, return_when=FIRST_COMPLETED).done, waiting, result, progress)
    finally:
        torch.set_num_threads(threads)


def _previous_or_none(folder: Path) -> dict[str, Any] | None:
    try:
        return _previous(folder)
    except StoreError:
        return None


def _collect(
    finished: set[Future[None]], waiting: dict[Future[None], str], result: FusionResult, progress: Progress
) -> None:
    for future in finished:
        path = waiting.pop(future)
        try:
            future.result()
        except StoreError as error:
            result.failed[path] = str(error)
        else:
            result.done += 1
        progress.advance()


def _fuse_image(plan: Fusion, task: Task) -> None:
    """Fuse one image and write its two files, the class map last: it says that both are there."""
    entry = task.entry
    members = [plan.members[i] for i in task.members]
    stores = [store for _, store in members if store is not None]
    rows = [(store, store.index[entry.path]) for store in stores]
    if entry.height is None or entry.width is None:
        raise StoreError(f"{entry.path}: has logits but no size in the table of images")
    label = np.empty((entry.height, entry.width), np.uint8)
    confidence = np.empty((entry.height, entry.width), np.uint16)
    for start, stop in stores[0].strips(rows[0][1]):
        fused = fuse(
            (torch.from_numpy(store.read(row, start, stop)) for store, row in rows),
            [member.weight for member, _ in members],
            [member.temperature for member, _ in members],
            label=plan.record["label"],
            confidence=plan.record["confidence"],
        )
        if not bool(fused.confidence.isfinite().all()):
            raise DamagedShardError(
                f"{entry.path}: a member's logits are not finite; find it with 'hmsa-pipeline verify'"
            )
        label[start:stop] = fused.label.numpy()
        confidence[start:stop] = quantise(fused.confidence).numpy()
    label_path, confidence_path = prediction_paths(plan.folder, entry.path)
    for path, pixels in ((confidence_path, confidence), (label_path, label)):
        with atomic_path(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
