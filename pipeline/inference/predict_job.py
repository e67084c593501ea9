"""The job of predicting one dataset, which the scheduler runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import disk_error
from ..config.manifest import FusionFunctions
from ..config.member import Member
from ..fusion.ensemble_record import read_record
from ..fusion.prediction_folder import PredictionJob, begin_predictions, note_sizes, remove_predictions
from ..storage.writer_lock import writer_lock
from ..store.identity import StoreIdentity
from ..store.image_table import ImageEntry
from ..workers.jobs import JobImage, JobSummary
from .image_block import ImageBlock, PredictionTarget
from .networks import BlockMember
from .plan import InferenceResult, JobPlan, StorePlan
from .predictor import InferenceSettings
from .store_job import StoreJob


@dataclass(frozen=True, kw_only=True)
class DatasetPlan(JobPlan):
    """The work on one dataset.

    Attributes:
        folder: of the predictions.
        functions: functions of the label and of the confidence.
        members: the members whose networks run, with the identities of their logits.
        stores: the stores of the members whose logits are kept.
        record: the content of ``ensemble.json``.
        partial: images that were fused from fewer than all members and are not made again now.
    """

    folder: Path
    functions: FusionFunctions
    members: tuple[tuple[Member, StoreIdentity], ...]
    stores: tuple[StorePlan, ...]
    record: dict[str, Any]
    partial: dict[str, list[str]]

    def remove_results(self) -> None:
        """Remove the predictions, and move the stores out of the way; StoreError if they are in use."""
        remove_predictions(self.folder)
        for store in self.stores:
            store.remove_results()


class PredictJob(PredictionJob):
    """The scheduler's job of predicting one dataset, with the stores of the members whose logits are kept."""

    def __init__(self, plan: DatasetPlan, settings: InferenceSettings) -> None:
        super().__init__(plan.dataset, plan.folder, key="all models")
        self._plan, self._settings = plan, settings
        self._stores = {store.member.name: StoreJob(store, settings) for store in plan.stores}
        self._entries = {
            photo.path: ImageEntry(photo.path, photo.bytes, *(photo.size or (None, None)), None, None)
            for photo in plan.wanted
        }
        self._skipped = 0

    def open(self) -> list[JobImage]:
        """Lock the folder and the kept stores, and return the images that are not complete."""
        plan = self._plan
        self._skipped = plan.done
        try:
            self._token = self._held.enter_context(writer_lock(plan.folder))
            for store in self._stores.values():
                self._held.callback(store.close)
                store.open()
            partial = [path for path in read_record(plan.folder).get("partial", {}) if path in self._entries]
            begin_predictions(plan.folder, plan.record, plan.partial, partial)
            note_sizes(plan.folder, {entry.path: entry.bytes for entry in plan.wanted})
        except OSError as error:
            raise disk_error(plan.folder, error) from error
        todo = self.incomplete(self._entries)
        self._skipped = len(self._entries) - len(todo)
        return [JobImage(path, max(1, self._entries[path].pixels)) for path in todo]

    def block(self, paths: Sequence[str]) -> ImageBlock:
        plan = self._plan
        targets = {name: store.target(paths) for name, store in self._stores.items()}
        return ImageBlock(
            root=plan.root,
            entries=tuple(self._entries[path] for path in paths),
            members=tuple(BlockMember(m, identity.sha256, targets.get(m.name)) for m, identity in plan.members),
            settings=self._settings,
            exif=any(identity.exif for _, identity in plan.members),
            prediction_target=PredictionTarget(plan.folder, self._token, plan.functions),
        )

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        paths = list(paths)
        missing = set(super().incomplete(paths))
        for store in self._stores.values():
            missing |= set(store.incomplete(paths))
        return [path for path in paths if path in missing]

    def sweep(self) -> None:
        super().sweep()
        for store in self._stores.values():
            store.sweep()

    def result(self, summary: JobSummary) -> InferenceResult:
        """Make the dataset's result."""
        plan = self._plan
        for store in self._stores.values():
            store.keep_others(summary.others)
        return InferenceResult(
            name=plan.dataset,
            dataset=plan.dataset,
            skipped=self._skipped,
            gone=frozenset().union(*(store.gone for store in self._stores.values())),
            present={photo.path for store in plan.stores for photo in store.photographs},
            looked_at=self._entries.keys(),
            settings=self._settings,
            **vars(summary),
        )
