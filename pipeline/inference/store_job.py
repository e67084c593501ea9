"""The job of filling one store, which dump and predict plan and the scheduler runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ... import __version__
from ...errors import disk_error
from ..storage.filesystem import remove_partials
from ..storage.other_shares import record_other_shares
from ..storage.writer_lock import writer_lock
from ..store.image_table import HEIGHT, WIDTH
from ..store.logit_store import LogitStore
from ..workers.jobs import JobImage, JobSummary
from .image_block import ImageBlock
from .networks import BlockMember
from .plan import InferenceResult, StorePlan
from .predictor import InferenceSettings
from .store_writes import LogitsTarget


class StoreJob:
    """The scheduler's job of filling one store: the lock, the arrays, and blocks of the missing images.

    Attributes:
        gone: images that the opened store lists and the dataset no longer holds.
    """

    def __init__(self, plan: StorePlan, settings: InferenceSettings) -> None:
        self._plan, self._settings = plan, settings
        self._store: LogitStore | None = None
        self._held = contextlib.ExitStack()
        self._rows: dict[str, int] = {}
        self._todo: list[str] = []
        self.name, self.key = plan.name, plan.member.name
        self.gone: frozenset[str] = frozenset()

    def open(self) -> list[JobImage]:
        """Lock the store, bring its table up to date, and return the images that are not complete."""
        plan = self._plan
        self._token = self._held.enter_context(writer_lock(plan.store))
        try:
            versions = {"package_version": __version__, "torch_version": torch.__version__}
            store = LogitStore.for_writing(plan.store, plan.identity, versions)
            store.register(plan.photographs)
            complete = store.shards().complete
        except OSError as error:
            raise disk_error(plan.store, error) from error
        self._store, self._writer = store, store.writer()
        listed = np.zeros(len(store.images), bool)
        listed[store.images.locate([photo.path for photo in plan.photographs])] = True
        self.gone = frozenset(store.images[i].path for i in np.flatnonzero(~listed).tolist())
        paths = [photo.path for photo in plan.wanted]
        self._rows = dict(zip(paths, store.images.locate(paths).tolist(), strict=True))
        self._todo = [path for path, row in self._rows.items() if not complete[row]]
        numbers = store.images.numbers()
        pixels = np.maximum(1, numbers[:, HEIGHT] * numbers[:, WIDTH])
        return [JobImage(path, int(pixels[self._rows[path]])) for path in self._todo]

    def target(self, paths: Iterable[str]) -> LogitsTarget:
        """Describe the opened store to the workers that make these images."""
        assert self._store is not None
        entries = {path: self._store.images[self._rows[path]] for path in paths}
        return LogitsTarget(self._writer, self._token, entries)

    def block(self, paths: Sequence[str]) -> ImageBlock:
        plan, target = self._plan, self.target(paths)
        member = BlockMember(plan.member, plan.identity.sha256, target)
        return ImageBlock(plan.root, tuple(target.entries.values()), (member,), self._settings, plan.identity.exif)

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        paths = list(paths)
        return self.target(paths).incomplete(paths)

    def sweep(self) -> None:
        remove_partials(self._plan.store)

    def close(self) -> None:
        self._held.close()

    def keep_others(self, others: Mapping[str, Mapping[str, float]]) -> None:
        """Record the shares of other classes of this member, of images -> members -> shares."""
        name = self._plan.member.name
        record_other_shares(self._plan.store, {path: one[name] for path, one in others.items() if name in one})

    def result(self, summary: JobSummary) -> InferenceResult:
        """Make the store's result."""
        self.keep_others(summary.others)
        left = set(self.incomplete(self._todo)) if self._store is not None else set()
        return InferenceResult(
            name=self.name,
            dataset=self._plan.dataset,
            images=len(self._plan.wanted),
            skipped=len(self._rows) - len(self._todo),
            gone=self.gone,
            present={photo.path for photo in self._plan.photographs},
            looked_at=(self._rows.keys() - left) | self.gone | summary.failed.keys(),
            settings=replace(self._settings, options=self._plan.member.options(self._settings.options)),
            **vars(summary),
        )
