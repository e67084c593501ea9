"""Progress of a run in another process or on another machine, by the files that it writes.

How fast a run is follows from the times of its files, and how long it has written nothing from the time of its lock.
All of these are of one clock, that of the disk or the object store, so the clock of this machine does not matter, and
one look is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import StoreError, cannot_read
from ..storage.filesystem import FileInfo, listing
from ..storage.run_record import now, read_runs
from ..storage.writer_lock import HEARTBEAT_SECONDS, STALE_SECONDS, LockHolder, lock_holder
from .logit_store import LogitStore
from .verify import StoreOf

RECENT_SECONDS = 300.0
"""Speed is that of the images of so many seconds before the last one."""
SILENT_SECONDS = 90.0
"""From so many seconds without an image on, a run whose lock is renewed counts as waiting for something."""

PREDICTIONS = "predictions"
CountImages = Callable[[str], int | None]
"""Counts the photographs of a dataset; None if they cannot be listed here."""


@dataclass(frozen=True)
class _Part:
    """One store, or the predictions of one dataset; ``total`` is None if it is not known."""

    name: str
    dataset: str
    times: tuple[float, ...] = ()
    total: int | None = None
    failed: int = 0
    exists: bool = False
    holder: LockHolder | None = None
    problem: str | None = None

    @property
    def done(self) -> int:
        return len(self.times)

    @property
    def live(self) -> bool:
        return self.holder is not None and self.holder.alive

    @property
    def over(self) -> bool:
        return self.exists and self.total is not None and self.done + self.failed >= self.total


@dataclass(frozen=True)
class Progressed:
    """How far one model is over all datasets, or the predictions are, or the run is.

    Attributes:
        name: of the model, `PREDICTIONS`, or ``total``.
        done: images that are complete.
        total: images that there are; None if that is not known.
        failed: images that the last run could not do.
        rate: images per second; None if nobody works on it or it is not known yet.
        seconds_left: at this rate; None without one.
        state: in words.
    """

    name: str
    done: int
    total: int | None
    failed: int
    rate: float | None
    seconds_left: float | None
    state: str


@dataclass(frozen=True)
class Look:
    """A run as it was at one time.

    Attributes:
        time: ISO 8601 in UTC.
        models: each model, and the predictions if they are being made.
        total: all together.
        waits: what the run waits for, one sentence each.
        complete: whether everything is done or failed, and no run holds an output.
    """

    time: str
    models: tuple[Progressed, ...]
    total: Progressed
    waits: tuple[str, ...]
    complete: bool

    def as_json(self) -> dict[str, Any]:
        """By name; the figures of all models together stand under ``total``."""
        return vars(self) | {"models": [vars(one) for one in self.models], "total": vars(self.total)}


class Watcher:
    """Looks at the stores and predictions of a run.

    Args:
        output: the output folder.
        stores: names and folders of the stores.
        predictions: dataset -> folder of its predictions.
        endings: of the files that a prediction consists of.
        count_images: of a dataset of which no store is there.
    """

    def __init__(
        self,
        output: Path,
        stores: Sequence[StoreOf],
        predictions: Mapping[str, Path],
        endings: tuple[str, ...],
        count_images: CountImages,
    ) -> None:
        self._output, self._stores, self._predictions = output, stores, predictions
        self._endings, self._count_images = endings, count_images
        self._opened: dict[Path, LogitStore] = {}
        self._counts: dict[str, int | None] = {}

    def look(self) -> Look:
        """Look at everything once; StoreError if the output cannot be read."""
        try:
            runs = read_runs(self._output)
            stores = [self._store(one, runs) for one in self._stores]
            exist = any(part.exists for part in stores)
            totals = {part.dataset: part.total for part in stores if part.total is not None}
            stores = [part if part.exists else self._expected(part, totals) for part in stores]
            predictions = [self._prediction(name, path, totals, runs) for name, path in self._predictions.items()]
        except OSError as error:
            raise StoreError(cannot_read(self._output, error)) from error
        shown = [part for part in predictions if part.holder or (part.exists and not exist)]
        judged = stores if exist or not shown else shown
        return _look(stores if exist or not shown else [], shown, judged)

    def _store(self, one: StoreOf, runs: Mapping[str, Any]) -> _Part:
        dataset, model, path = one
        holder = lock_holder(path)
        try:
            if not LogitStore.exists(path):
                return _Part(model, dataset, holder=holder)
            store = self._opened.get(path)
            if store is None or not store.is_current():
                store = self._opened[path] = LogitStore.open(path)
            shards = store.shards()
        except StoreError as error:
            return _Part(model, dataset, exists=True, holder=holder, problem=str(error))
        failed = _failures(runs, ("dump", "import-logits"), f"{dataset}/{model}")
        times = tuple((shards.modified[shards.complete] / 1e9).tolist())
        return _Part(model, dataset, times, len(store.images), failed, True, holder)

    def _expected(self, part: _Part, totals: Mapping[str, int | None]) -> _Part:
        """A store that is not there yet, which will have as many images as that of another model."""
        return _Part(part.name, part.dataset, total=self._total(part.dataset, totals), holder=part.holder)

    def _total(self, dataset: str, totals: Mapping[str, int | None]) -> int | None:
        if dataset in totals:
            return totals[dataset]
        if dataset not in self._counts:
            self._counts[dataset] = self._count_images(dataset)
        return self._counts[dataset]

    def _prediction(
        self, dataset: str, path: Path, totals: Mapping[str, int | None], runs: Mapping[str, Any]
    ) -> _Part:
        holder = lock_holder(path)
        found: dict[str, list[FileInfo]] = {}
        for file in listing(path):
            for ending in self._endings:
                if file.name.endswith(ending):
                    found.setdefault(file.name.removesuffix(ending), []).append(file)
        last = [
            max(files, key=lambda file: file.modified) for files in found.values() if len(files) == len(self._endings)
        ]
        failed = _failures(runs, ("ensemble", "predict"), dataset)
        exists = bool(found) or holder is not None
        total = self._total(dataset, totals) if exists else None
        return _Part(PREDICTIONS, dataset, _times(last), total, failed, exists, holder)


def _times(files: Sequence[FileInfo]) -> tuple[float, ...]:
    return tuple(file.modified / 1e9 for file in files)


def _failures(runs: Mapping[str, Any], commands: Sequence[str], subject: str) -> int:
    """The images that the last run could not do."""
    entries = [runs.get(command, {}).get(subject) for command in commands]
    found = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("failed"), list)]
    return len(max(found, key=lambda entry: str(entry.get("finished")))["failed"]) if found else 0


def _look(stores: Sequence[_Part], predictions: Sequence[_Part], judged: Sequence[_Part]) -> Look:
    parts = [*stores, *predictions]
    names = dict.fromkeys(part.name for part in parts)
    live = any(part.live for part in parts)
    complete = bool(judged) and not live and all(part.over for part in judged)
    models = tuple(_summary(name, [part for part in parts if part.name == name]) for name in names)
    # What is complete takes no part in the speed of a fusion, and the other way round.
    worked_on = stores if any(part.live for part in stores) or not predictions else predictions
    total = _summary("total", worked_on)
    waits = () if complete else tuple(dict.fromkeys(_waits(parts, live=live)))
    return Look(now(), models, total, waits, complete)


def _summary(name: str, parts: Sequence[_Part]) -> Progressed:
    done, failed = sum(part.done for part in parts), sum(part.failed for part in parts)
    total = None if any(part.total is None for part in parts) else sum(part.total or 0 for part in parts)
    live = [part for part in parts if part.live]
    rate = _rate([time for part in parts for time in part.times]) if live else None
    left = None if total is None or not rate else max(0, total - done - failed) / rate
    if live:
        where = f"{live[0].dataset}, {_who(live[0])}" + (f", and {len(live) - 1} more" if len(live) > 1 else "")
    else:
        where = "complete" if all(part.over for part in parts) and not failed else "not complete"
    return Progressed(name, done, total, failed, rate, left, f"{where}; {failed} failed" if failed else where)


def _rate(times: Sequence[float]) -> float | None:
    """Images per second lately; None for fewer than two of different times."""
    last = max(times, default=0.0)
    recent = [time for time in times if time >= last - RECENT_SECONDS]
    span = last - min(recent, default=last)
    return (len(recent) - 1) / span if span > 0 else None


def _who(part: _Part) -> str:
    return part.holder.who if part.holder else "nobody"


def _waits(parts: Sequence[_Part], *, live: bool) -> list[str]:
    found = []
    for part in parts:
        name = f"{part.dataset}/{part.name}"
        if part.problem:
            found.append(f"{name}: {part.problem}")
        if (holder := part.holder) is None:
            continue
        if not holder.alive:
            found.append(f"{name}: its run ({holder.who}) has died; run the same command again")
            continue
        if holder.silent > 2 * HEARTBEAT_SECONDS:
            free = f"; its lock is free after {STALE_SECONDS:.0f} s" if not holder.here else ""
            found.append(f"{name}: no sign of life of {holder.who} for {holder.silent:.0f} s{free}")
            continue
        began = datetime.fromisoformat(holder.since).timestamp()
        quiet = holder.modified - max([began, *part.times])
        if quiet > SILENT_SECONDS and not part.over:
            found.append(
                f"{name}: {holder.who} is alive and has written no image for {quiet:.0f} s: "
                "its workers are starting, gone or stuck, or one image takes long"
            )
    if not live and not found:
        found.append("no run works on it; start one, or wait for a job that is queued")
    return found
