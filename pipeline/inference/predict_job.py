"""The job of predicting one dataset, as the scheduler sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import disk_error
from ..config.manifest import Manifest, Member
from ..fusion.ensemble_record import read_record
from ..fusion.prediction_folder import begin_predictions, note_sizes, without_prediction
from ..storage.filesystem import remove_partials
from ..storage.writer_lock import writer_lock
from ..store.identity import Identity
from ..store.image_table import ImageEntry
from ..workers.jobs import JobImage, JobSummary
from .predict_block import BlockMember, LogitsTarget, PredictBlock
from .predictor import InferenceSettings
from .store_job import StoreJob, StorePlan


@dataclass(frozen=True)
class DatasetPlan:
    """The work on one dataset.

    Attributes:
        dataset: its name.
        root: the folder that the photographs' paths are relative to.
        folder: where the predictions go.
        members: whose networks run, with what their logits are made with.
        keeps: a dump's job for every member whose logits are stored, too.
        record: what goes into ``ensemble.json``.
        partial: images that were fused from fewer than all members and are not made again now.
        wanted: the images that are to be complete afterwards.
        skipped: how many of them are.
    """

    dataset: str
    root: Path
    folder: Path
    members: tuple[tuple[Member, Identity], ...]
    keeps: tuple[StorePlan, ...]
    record: dict[str, Any]
    partial: dict[str, list[str]]
    wanted: tuple[ImageEntry, ...]
    skipped: int

    @property
    def todo(self) -> int:
        """Images still to be made."""
        return len(self.wanted) - self.skipped


@dataclass
class PredictResult:
    """What became of one dataset's images; ``failed`` and ``fallbacks`` map paths to reasons and to ways."""

    dataset: str
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    seconds: float = 0.0
    interrupted: bool = False
    hands: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its figures by name."""
        names = ("dataset", "done", "skipped", "failed", "fallbacks", "problem", "seconds", "times")
        return {name: getattr(self, name) for name in names}


class PredictJob:
    """The predictions of one dataset as the foreman sees them, with the stores of the members that are kept."""

    def __init__(self, plan: DatasetPlan, manifest: Manifest, setting: InferenceSettings) -> None:
        self._plan, self._setting = plan, setting
        self._functions = manifest.ensemble.label, manifest.ensemble.confidence
        self._keeps = {job.member.name: StoreJob(job, setting) for job in plan.keeps}
        self._held = contextlib.ExitStack()
        self._entries = {entry.path: entry for entry in plan.wanted}
        self._skipped = plan.skipped
        self.gone: frozenset[str] = frozenset()
        self.looked_at = self._entries.keys()
        self.present = {photo.path for job in plan.keeps for photo in job.photographs}

    @property
    def name(self) -> str:
        return self._plan.dataset

    @property
    def key(self) -> str:
        return "all models"

    def open(self) -> list[JobImage]:
        plan = self._plan
        try:
            self._token = self._held.enter_context(writer_lock(plan.folder))
            for work in self._keeps.values():
                self._held.callback(work.close)
                work.open()
            self.gone = frozenset().union(*(work.gone for work in self._keeps.values()))
            fewer = [path for path in read_record(plan.folder).get("partial", {}) if path in self._entries]
            begin_predictions(plan.folder, plan.record, plan.partial, fewer)
            note_sizes(plan.folder, {entry.path: entry.bytes for entry in plan.wanted})
        except OSError as error:
            raise disk_error(plan.folder, error) from error
        todo = self.incomplete(self._entries)
        self._skipped = len(self._entries) - len(todo)
        sizes = {path: (entry.height or 0) * (entry.width or 0) for path, entry in self._entries.items()}
        return [JobImage(path, max(1, sizes[path])) for path in todo]

    def block(self, paths: Sequence[str]) -> PredictBlock:
        plan = self._plan
        seats = tuple(
            BlockMember(member, identity.sha256, self._kept(member.name, paths)) for member, identity in plan.members
        )
        entries = tuple(self._entries[path] for path in paths)
        exif = any(identity.exif for _, identity in plan.members)
        return PredictBlock(plan.folder, self._token, plan.root, seats, self._functions, entries, self._setting, exif)

    def _kept(self, name: str, paths: Sequence[str]) -> LogitsTarget | None:
        if name not in self._keeps:
            return None
        block = self._keeps[name].block(paths)
        return LogitsTarget(block.writer, block.token, {entry.path: entry for entry in block.entries})

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        paths = list(paths)
        lacking = set(without_prediction(self._plan.folder, paths))
        for work in self._keeps.values():
            lacking |= set(work.incomplete(paths))
        return [path for path in paths if path in lacking]

    def sweep(self) -> None:
        remove_partials(self._plan.folder)
        for work in self._keeps.values():
            work.sweep()

    def close(self) -> None:
        self._held.close()

    def result(self, tally: JobSummary) -> PredictResult:
        return PredictResult(
            self._plan.dataset,
            done=tally.done,
            skipped=self._skipped,
            failed=tally.failed,
            fallbacks=tally.fallbacks,
            problem=tally.problem,
            seconds=tally.seconds,
            interrupted=tally.interrupted,
            hands=tally.hands,
            times=tally.times,
        )
