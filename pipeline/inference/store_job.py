"""The job of filling one store: planned by dump and predict, run by the scheduler."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...datasets.decode.tensors import MEAN, STD
from ...datasets.taxonomy import CLASS_NAMES
from ...errors import StoreError, disk_error
from ...files import PARTIAL
from ..config.manifest import DatasetEntry, Manifest, Member
from ..storage.filesystem import make_folder, remove, remove_partials, write_bytes
from ..storage.writer_lock import writer_lock
from ..store.identity import Identity
from ..store.image_table import Photograph
from ..store.logit_store import LogitStore
from ..workers.jobs import JobImage, JobSummary
from .dump_block import DumpBlock
from .member_check import check_member, digest
from .predictor import InferenceSettings


@dataclass(frozen=True)
class StorePlan:
    """One model over one dataset.

    Attributes:
        member: whose network runs.
        dataset: the dataset's name.
        root: the folder that the photographs' paths are relative to.
        store: where the logits go.
        identity: what they are made with.
        photographs: the whole dataset, sorted; they make the table of images.
        limit: how many of them are dumped, from the first; None for all.
    """

    member: Member
    dataset: str
    root: Path
    store: Path
    identity: Identity
    photographs: tuple[Photograph, ...]
    limit: int | None = None

    @property
    def name(self) -> str:
        """``<dataset>/<model>``."""
        return f"{self.dataset}/{self.member.name}"

    @property
    def wanted(self) -> tuple[Photograph, ...]:
        """The photographs that are to be complete afterwards."""
        return self.photographs[: self.limit]


def raw_bytes(job: StorePlan) -> int:
    classes = len(job.identity.classes)
    return sum(2 * classes * p.size[0] * p.size[1] for p in job.wanted if p.size)


@dataclass
class DumpResult:
    """What became of a job's photographs.

    Attributes:
        failed: path -> reason.
        fallbacks: path -> how an image was made that did not fit into the device's memory at first.
        settled: paths that are complete now.
        gone: paths that the store lists and the dataset no longer holds.
        problem: why the job could not be done at all; None if it was.
        hands: worker -> images that it settled.
        times: where the workers' time went: read, forward, write -> seconds.
    """

    job: StorePlan
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    gone: frozenset[str] = frozenset()
    problem: str | None = None
    seconds: float = 0.0
    interrupted: bool = False
    hands: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its figures by name."""
        return {
            "job": self.job.name,
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "fallbacks": self.fallbacks,
            "problem": self.problem,
            "seconds": self.seconds,
            "times": self.times,
        }


def require_writable(output: Path) -> None:
    """Raise StoreError unless files can be made in ``output``, which is made where it is missing."""
    try:
        make_folder(output)
        probe = output / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            write_bytes(probe, b"x")
        finally:
            remove(probe)
    except OSError as error:
        raise StoreError(
            f"{output}: cannot be written ({error.strerror or error}); choose another --output, or free it"
        ) from error


def set_aside(store: Path) -> None:
    """Put a store out of the way, to be started over; StoreError if somebody works there."""
    try:
        with writer_lock(store):
            LogitStore.set_aside(store)
    except OSError as error:
        raise disk_error(store, error) from error


class StoreJob:
    """One job as the foreman sees it: the lock, the template, and blocks of the rows that are missing."""

    def __init__(self, job: StorePlan, setting: InferenceSettings) -> None:
        self._job, self._setting = job, setting
        self._store: LogitStore | None = None
        self._held = contextlib.ExitStack()
        self._todo: list[str] = []
        self._skipped: set[str] = set()
        self._gone: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self._job.name

    @property
    def key(self) -> str:
        return self._job.member.name

    @property
    def gone(self) -> frozenset[str]:
        """Images that the opened store lists and the dataset no longer holds."""
        return self._gone

    def open(self) -> list[JobImage]:
        job = self._job
        self._token = self._held.enter_context(writer_lock(job.store))
        try:
            versions = {"package_version": __version__, "torch_version": torch.__version__}
            store = LogitStore.for_writing(job.store, job.identity, versions)
            store.register(job.photographs)
            complete = store.complete()
        except OSError as error:
            raise disk_error(job.store, error) from error
        self._store, self._writer = store, store.writer()
        self._gone = frozenset(store.index.keys() - {photo.path for photo in job.photographs})
        wanted = [store.index[photo.path] for photo in job.wanted]
        self._skipped = {store.images[i].path for i in wanted if complete[i]}
        todo = [store.images[i] for i in wanted if not complete[i]]
        self._todo = [entry.path for entry in todo]
        return [JobImage(entry.path, max(1, (entry.height or 0) * (entry.width or 0))) for entry in todo]

    def block(self, paths: Sequence[str]) -> DumpBlock:
        assert self._store is not None
        entries = tuple(self._store.images[self._store.index[path]] for path in paths)
        return DumpBlock(
            self._job.member,
            self._job.identity.sha256,
            self._job.root,
            self._writer,
            self._token,
            entries,
            self._setting,
            self._job.identity.exif,
        )

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        assert self._store is not None
        entries = [self._store.images[self._store.index[path]] for path in paths]
        return [entry.path for entry in self._writer.incomplete(entries)]

    def sweep(self) -> None:
        remove_partials(self._job.store)

    def close(self) -> None:
        self._held.close()

    def result(self, tally: JobSummary) -> DumpResult:
        left = set(self.incomplete(self._todo)) if self._store is not None else set()
        return DumpResult(
            self._job,
            done=tally.done,
            skipped=len(self._skipped),
            failed=tally.failed,
            fallbacks=tally.fallbacks,
            settled=self._skipped | (set(self._todo) - left),
            gone=self._gone,
            problem=tally.problem,
            seconds=tally.seconds,
            interrupted=tally.interrupted,
            hands=tally.hands,
            times=tally.times,
        )


PREPROCESSING = {"colour": "RGB", "range": [0, 1], "mean": list(MEAN), "std": list(STD)}


def identities_of(
    manifest: Manifest, members: Sequence[Member], precision: str, compile: str = "off"
) -> tuple[list[Identity], list[str]]:
    """What each member's logits are made with, and what to say of how its weights were found in their file.

    Raises:
        CheckpointError: a checkpoint does not fit the manifest.
    """
    identities, notes = [], []
    for member in members:
        identities.append(_identity_of(manifest, member, precision, compile, notes))
    return identities, notes


def _identity_of(manifest: Manifest, member: Member, precision: str, compile: str, notes: list[str]) -> Identity:
    path = member.checkpoint_path()
    if note := check_member(member, precision):
        notes.append(f"model {member.name}: {path.name}: {note}")
    return Identity(
        model=member.name,
        architecture=member.arch,
        checkpoint=path.name,
        sha256=digest(member),
        scales=tuple(sorted(manifest.inference.scales)),
        flip=manifest.inference.flip,
        precision=precision,
        classes=CLASS_NAMES,
        preprocessing=PREPROCESSING,
        encoding=manifest.store.encoding,
        compile=compile,
    )


def identity_for_dataset(identity: Identity, dataset: DatasetEntry) -> Identity:
    """What a member's logits over ``dataset`` are made with."""
    if not dataset.exif:
        return identity
    return replace(identity, preprocessing={**(identity.preprocessing or {}), "orientation": dataset.orientation})


def complete_in(job: StorePlan) -> set[str]:
    """Wanted images that need no work; StoreError if the store is another work, or of other photographs."""
    if not LogitStore.exists(job.store):
        return set()
    store = LogitStore.open(job.store)
    store.require(job.identity)
    store.require_same(job.photographs)
    known = dict(zip((e.path for e in store.images), store.complete(), strict=True))
    return {photo.path for photo in job.wanted if known.get(photo.path)}
