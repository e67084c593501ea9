"""The job of filling one store, which dump and predict plan and the scheduler runs."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...datasets.decode.tensors import MEAN, STD
from ...datasets.taxonomy import CLASS_NAMES
from ...errors import StoreError, disk_error, reason
from ...files import PARTIAL
from ..config.manifest import DatasetEntry, Manifest, Member
from ..storage.filesystem import make_folder, remove, remove_partials, write_bytes
from ..storage.writer_lock import writer_lock
from ..store.identity import StoreIdentity
from ..store.image_table import Photograph
from ..store.logit_store import LogitStore
from ..workers.jobs import JobImage, JobResult, JobSummary
from .dump_block import DumpBlock
from .member_check import check_member, checkpoint_digest
from .predictor import InferenceSettings


@dataclass(frozen=True)
class StorePlan:
    """One model over one dataset.

    Attributes:
        member: the model.
        dataset: the dataset's name.
        root: folder that the photographs' paths are relative to.
        store: path of the store.
        identity: settings that the logits are made with.
        photographs: all of the dataset, sorted; they make the table of images.
        limit: number of images that are dumped, from the first; None for all.
    """

    member: Member
    dataset: str
    root: Path
    store: Path
    identity: StoreIdentity
    photographs: tuple[Photograph, ...]
    limit: int | None = None

    @property
    def name(self) -> str:
        """``<dataset>/<model>``."""
        return f"{self.dataset}/{self.member.name}"

    @property
    def wanted(self) -> tuple[Photograph, ...]:
        """The photographs that should be complete afterwards."""
        return self.photographs[: self.limit]


def raw_bytes(plan: StorePlan) -> int:
    """Return the size in bytes of all wanted logits, uncompressed."""
    classes = len(plan.identity.classes)
    return sum(2 * classes * photo.size[0] * photo.size[1] for photo in plan.wanted if photo.size)


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """Base of the plans that run networks.

    Attributes:
        manifest: the manifest that was planned.
        device: the device as the workers see it.
        precision: fp16, bf16 or fp32, as it is really used.
        notes: lines for the user.
        overwrite: existing results are removed first.
    """

    manifest: Manifest
    device: torch.device
    precision: str
    notes: tuple[str, ...]
    overwrite: bool


@dataclass(kw_only=True)
class InferenceResult(JobResult):
    """Result of a job that runs networks; ``settings`` are theirs."""

    settings: InferenceSettings

    def as_json(self) -> dict[str, Any]:
        """Return the counts for ``--json``."""
        names = ("done", "skipped", "failed", "fallbacks", "problem", "seconds", "times")
        return {name: getattr(self, name) for name in names}

    def record(self) -> dict[str, Any]:
        """Return the entries for ``run.json``."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "problem": self.problem,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "device": self.settings.device,
            "precision": self.settings.precision,
            "fallbacks": self.fallbacks,
            "workers": self.images_by_worker,
            "times": {stage: round(seconds, 3) for stage, seconds in self.times.items()},
        }


@dataclass(kw_only=True)
class DumpResult(InferenceResult):
    """Result of filling one store; ``images`` is the number of images that it should hold."""

    images: int

    def as_json(self) -> dict[str, Any]:
        """Return the counts for ``--json``."""
        return {"job": self.name, **super().as_json()}

    def record(self) -> dict[str, Any]:
        """Return the entries for ``run.json``."""
        return {"images": self.images, **super().record()}


def require_writable(output: Path) -> None:
    """Raise StoreError unless files can be created in ``output``, which is created if it is missing."""
    try:
        make_folder(output)
        probe = output / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            write_bytes(probe, b"x")
        finally:
            remove(probe)
    except OSError as error:
        raise StoreError(
            f"{output}: cannot be written ({reason(error)}); choose another --output, or free it"
        ) from error


def set_aside(store: Path) -> None:
    """Move a store out of the way, so that it is started over; StoreError if it is in use."""
    try:
        with writer_lock(store):
            LogitStore.set_aside(store)
    except OSError as error:
        raise disk_error(store, error) from error


class StoreJob:
    """The scheduler's job of filling one store: the lock, the arrays, and blocks of the missing images.

    Args:
        plan: the store.
        settings: settings of the network.

    Attributes:
        gone: images that the opened store lists and the dataset no longer holds.
    """

    def __init__(self, plan: StorePlan, settings: InferenceSettings) -> None:
        self._plan, self._settings = plan, settings
        self._store: LogitStore | None = None
        self._held = contextlib.ExitStack()
        self._todo: list[str] = []
        self._skipped: set[str] = set()
        self.name, self.key = plan.name, plan.member.name
        self.gone: frozenset[str] = frozenset()

    def open(self) -> list[JobImage]:
        """Lock the store, bring its table up to date, and return the images that are not complete.

        Raises:
            StoreError: the store is in use, or was made with other settings or from other photographs.
        """
        plan = self._plan
        self._token = self._held.enter_context(writer_lock(plan.store))
        try:
            versions = {"package_version": __version__, "torch_version": torch.__version__}
            store = LogitStore.for_writing(plan.store, plan.identity, versions)
            store.register(plan.photographs)
            complete = store.complete()
        except OSError as error:
            raise disk_error(plan.store, error) from error
        self._store, self._writer = store, store.writer()
        self.gone = frozenset(store.index.keys() - {photo.path for photo in plan.photographs})
        wanted = [store.index[photo.path] for photo in plan.wanted]
        self._skipped = {store.images[i].path for i in wanted if complete[i]}
        todo = [store.images[i] for i in wanted if not complete[i]]
        self._todo = [entry.path for entry in todo]
        return [JobImage(entry.path, max(1, entry.pixels)) for entry in todo]

    def block(self, paths: Sequence[str]) -> DumpBlock:
        assert self._store is not None
        return DumpBlock(
            member=self._plan.member,
            digest=self._plan.identity.sha256,
            root=self._plan.root,
            writer=self._writer,
            token=self._token,
            entries=tuple(self._store.images[self._store.index[path]] for path in paths),
            settings=self._settings,
            exif=self._plan.identity.exif,
        )

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        assert self._store is not None
        entries = [self._store.images[self._store.index[path]] for path in paths]
        return [entry.path for entry in self._writer.incomplete(entries)]

    def sweep(self) -> None:
        remove_partials(self._plan.store)

    def close(self) -> None:
        self._held.close()

    def result(self, summary: JobSummary) -> DumpResult:
        """Make the store's result."""
        left = set(self.incomplete(self._todo)) if self._store is not None else set()
        return DumpResult(
            name=self.name,
            dataset=self._plan.dataset,
            images=len(self._plan.wanted),
            skipped=len(self._skipped),
            gone=self.gone,
            present={photo.path for photo in self._plan.photographs},
            looked_at=self._skipped | (set(self._todo) - left) | self.gone | summary.failed.keys(),
            settings=self._settings,
            **vars(summary),
        )


PREPROCESSING = {"colour": "RGB", "range": [0, 1], "mean": list(MEAN), "std": list(STD)}


def identities_of(
    manifest: Manifest, members: Sequence[Member], precision: str, compile: str = "off"
) -> tuple[list[StoreIdentity], list[str]]:
    """Check each member's checkpoint and return its logits' identity.

    Args:
        manifest: settings of inference and store.
        members: members with a checkpoint.
        precision: fp16, bf16 or fp32, as it is really used.
        compile: mode of torch.compile as it is really used.

    Returns:
        the identities, and lines for the user about how weights were found in their files.

    Raises:
        CheckpointError: a checkpoint does not fit the manifest.
    """
    identities, notes = [], []
    for member in members:
        identities.append(_identity_of(manifest, member, precision, compile, notes))
    return identities, notes


def _identity_of(manifest: Manifest, member: Member, precision: str, compile: str, notes: list[str]) -> StoreIdentity:
    path = member.checkpoint_path()
    if note := check_member(member, precision):
        notes.append(f"model {member.name}: {path.name}: {note}")
    return StoreIdentity(
        model=member.name,
        architecture=member.arch,
        checkpoint=path.name,
        sha256=checkpoint_digest(member),
        scales=tuple(sorted(manifest.inference.scales)),
        flip=manifest.inference.flip,
        precision=precision,
        classes=CLASS_NAMES,
        preprocessing=PREPROCESSING,
        encoding=manifest.store.encoding,
        compile=compile,
    )


def identity_for_dataset(identity: StoreIdentity, dataset: DatasetEntry) -> StoreIdentity:
    """Return the identity of a member's logits over ``dataset``, which may turn photographs."""
    if not dataset.exif:
        return identity
    return replace(identity, preprocessing={**(identity.preprocessing or {}), "orientation": dataset.orientation})


def complete_in(plan: StorePlan) -> set[str]:
    """Return the wanted images that are complete; StoreError if the store is of other settings or photographs."""
    if not LogitStore.exists(plan.store):
        return set()
    store = LogitStore.open(plan.store)
    store.require(plan.identity)
    store.require_same(plan.photographs)
    known = dict(zip((e.path for e in store.images), store.complete(), strict=True))
    return {photo.path for photo in plan.wanted if known.get(photo.path)}
