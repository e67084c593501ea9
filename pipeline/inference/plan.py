"""The part that dump and predict share: the checks before anything starts, the run, and the results."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ...errors import StoreError, disk_error, reason
from ...files import PARTIAL
from ..config.manifest import Manifest
from ..config.member import Member
from ..config.member_inference import InferenceOptions
from ..storage.filesystem import is_remote, make_folder, remove, write_bytes
from ..storage.other_shares import forget_other_shares
from ..storage.output_folder import store_path
from ..storage.writer_lock import require_free, writer_lock
from ..store.identity import StoreIdentity
from ..store.image_table import Photograph
from ..store.logit_store import LogitStore
from ..workers.jobs import Job, JobResult
from ..workers.protocol import Workers
from ..workers.recorded_jobs import run_recorded_jobs
from .inputs import Survey, survey
from .member_check import identities_of, identity_for_dataset
from .predictor import InferenceSettings, usable_members, usable_options


@dataclass(frozen=True, kw_only=True)
class JobPlan(ABC):
    """Base of the plans of one job.

    Attributes:
        root: folder that the photographs' paths are relative to.
        wanted: the photographs that should be complete afterwards.
        complete: (len(wanted),) bool: which of them are.
    """

    name: str
    dataset: str
    root: Path
    wanted: tuple[Photograph, ...]
    complete: np.ndarray

    @property
    def done(self) -> int:
        """Number of images that are complete."""
        return int(self.complete.sum())

    @property
    def todo(self) -> int:
        """Number of images that are not complete."""
        return len(self.wanted) - self.done

    @abstractmethod
    def remove_results(self) -> None:
        """Remove existing results, so that the job is started over; StoreError if they are in use."""


@dataclass(frozen=True, kw_only=True)
class StorePlan(JobPlan):
    """The store of one model's logits over one dataset, whose ``photographs`` make its table of images."""

    member: Member
    store: Path
    identity: StoreIdentity
    photographs: tuple[Photograph, ...]

    def remove_results(self) -> None:
        """Move the store out of the way; StoreError if it is in use."""
        try:
            with writer_lock(self.store):
                LogitStore.set_aside(self.store)
                forget_other_shares(self.store)
        except OSError as error:
            raise disk_error(self.store, error) from error


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """Base of the plans that run networks.

    Attributes:
        manifest: its models, datasets and settings.
        device: the device as the workers see it, which is known to be there.
        options: the manifest's ``inference`` as it is really used.
        limit: images per dataset, from the first; None for all.
        overwrite: existing results are removed first.
        members: the members whose networks run, with what they do otherwise as it is really done, and the identities
            of their logits.
        surveys: the files of the datasets.
        notes: lines for the user.
        jobs: the work, in the order in which it is begun.
    """

    subject: ClassVar[str] = "job"

    manifest: Manifest
    device: torch.device
    options: InferenceOptions
    limit: int | None
    overwrite: bool
    members: tuple[tuple[Member, StoreIdentity], ...]
    surveys: tuple[Survey, ...]
    notes: tuple[str, ...]
    jobs: tuple[JobPlan, ...] = ()

    @classmethod
    def check(
        cls,
        manifest: Manifest,
        members: Sequence[Member],
        device: torch.device,
        *,
        limit: int | None,
        overwrite: bool,
    ) -> Self:
        """Check the device, the members' checkpoints and the datasets; the plan has no jobs yet.

        Args:
            manifest, device, limit, overwrite: see `InferencePlan`.
            members: those whose networks run.

        Raises:
            HmsaError: a device, checkpoint or dataset cannot be used.
        """
        options, _ = usable_options(manifest.inference, device)
        members, notes = usable_members(members, manifest.inference, device)
        for dataset in manifest.datasets:
            dataset.root_path()
        for member in members:
            member.checkpoint_path()
        surveys = tuple(survey(manifest, dataset, afresh=overwrite) for dataset in manifest.datasets)
        identities, said = identities_of(members, options, manifest.store.encoding, manifest.class_set)
        remarks = [f"{looked.dataset.name}: {remark}" for looked in surveys for remark in looked.remarks]
        return cls(
            manifest=manifest,
            device=device,
            options=options,
            limit=limit,
            overwrite=overwrite,
            members=tuple(zip(members, identities, strict=True)),
            surveys=surveys,
            notes=(*notes, *said, *remarks),
        )

    @property
    def todo(self) -> int:
        """Number of images of all jobs that are not complete."""
        return sum(job.todo for job in self.jobs)

    @property
    def precisions(self) -> str:
        """The precisions of the forward passes, for people: ``fp16``, or of each member where they differ."""
        used = {member.name: member.options(self.options).precision for member, _ in self.members}
        return next(iter(used.values())) if len(set(used.values())) == 1 else ", ".join(map(": ".join, used.items()))

    def lines(self, workers: Sequence[str]) -> list[str]:
        """Describe the plan for people; ``workers`` are described in a line each."""
        return [
            *(f"{job.name}: {job.todo} to do, {job.done} complete" for job in self.jobs),
            *(f"worker {worker}" for worker in workers),
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the plan for ``--json``, job by job."""
        return [{self.subject: o.name, "images": len(o.wanted), "complete": o.done} for o in self.jobs]

    def plan_store(self, member: Member, identity: StoreIdentity, looked: Survey) -> StorePlan:
        """Plan the store of a member's logits over a dataset.

        Args:
            member, identity: one of `members`.
            looked: the dataset.

        Raises:
            StoreError: the store is in use, or of other settings or photographs.
        """
        name, photographs = looked.dataset.name, looked.photographs
        path = store_path(self.manifest.output, name, member.name)
        identity = identity_for_dataset(identity, looked.dataset)
        wanted = photographs[: self.limit]
        require_free(path)
        complete = np.zeros(len(wanted), bool)
        if not self.overwrite and LogitStore.exists(path):
            store = LogitStore.open(path)
            store.require(identity)
            complete = store.completed(photographs)[: len(wanted)]
        return StorePlan(
            name=f"{name}/{member.name}",
            dataset=name,
            root=looked.dataset.root_path(),
            wanted=wanted,
            complete=complete,
            member=member,
            store=path,
            identity=identity,
            photographs=photographs,
        )


@dataclass(kw_only=True)
class InferenceResult(JobResult):
    """Result of a job that runs networks.

    Attributes:
        settings: of the networks.
        images: number of images that a store should hold; None for predictions.
    """

    settings: InferenceSettings
    images: int | None = None

    @property
    def other(self) -> dict[str, float]:
        """Mean share over the images of the probability that each member gave to classes that are not among ours."""
        shares: dict[str, list[float]] = {}
        for of_members in self.others.values():
            for name, share in of_members.items():
                shares.setdefault(name, []).append(share)
        return {name: sum(found) / len(found) for name, found in shares.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the counts for ``--json``."""
        names = ("done", "skipped", "failed", "fallbacks", "other", "problem", "seconds", "times")
        subject = "dataset" if self.images is None else "job"
        return {subject: self.name, **{name: getattr(self, name) for name in names}}

    def record(self) -> dict[str, Any]:
        """Return the entries for ``run.json``."""
        return {
            **({} if self.images is None else {"images": self.images}),
            "done": self.done,
            "skipped": self.skipped,
            "problem": self.problem,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "device": self.settings.device,
            "precision": self.settings.options.precision,
            "fallbacks": self.fallbacks,
            "workers": self.images_by_worker,
            "times": {stage: round(seconds, 3) for stage, seconds in self.times.items()},
        }


def run_inference(
    command: str,
    plan: InferencePlan,
    make_job: Callable[[Any, InferenceSettings], Job[InferenceResult]],
    workers: Workers,
    on_result: Callable[[InferenceResult], None],
) -> list[InferenceResult]:
    """Run a plan's jobs; one whose store or folder cannot be used has a ``problem``, and the others are done.

    Raises StoreError if the output cannot be written, and what `run_jobs` does.

    Args:
        command: name of the command in ``run.json``.
        plan: what to do.
        make_job: makes the scheduler's job of one of the plan's.
        workers: who does it.
        on_result: called with each job's result when it ends.
    """
    output = plan.manifest.output
    _require_writable(output)
    if plan.overwrite:
        # All of them now: otherwise the same command without the flag could not resume after an interruption.
        for job in plan.jobs:
            job.remove_results()
    settings = InferenceSettings(str(plan.device), plan.options, workers.threads, plan.manifest.class_set)
    return run_recorded_jobs(
        command,
        [make_job(job, settings) for job in plan.jobs],
        workers,
        on_result,
        todo=plan.todo,
        output=output,
        manifest=plan.manifest.resolved(),
        required_paths=[
            *(looked.dataset.root_path() for looked in plan.surveys),
            *(member.checkpoint_path() for member, _ in plan.members),
        ],
    )


def _require_writable(output: Path) -> None:
    """Raise StoreError unless files can be created in ``output``, which is created if it is missing."""
    try:
        make_folder(output)
        probe = output / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            write_bytes(probe, b"x")
        finally:
            remove(probe)
    except OSError as error:
        fix = "make the bucket, or give your keys the right to write" if is_remote(output) else "free it"
        raise StoreError(
            f"{output}: cannot be written ({reason(error)}); choose another --output, or {fix}"
        ) from error
