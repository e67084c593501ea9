"""From a manifest to jobs, and the jobs to a device: everything is checked before anything starts."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..datasets.images import MEAN, STD
from ..datasets.taxonomy import CLASS_NAMES
from ..errors import CheckpointError, DiskError, ManifestError, StoreError, disk_error
from ..files import PARTIAL, sha256
from ..models.checkpoint import check_weights
from .device import resolve_device, resolve_precision
from .dump import Job, JobResult, Predictor, run_job
from .lock import require_free, writer_lock
from .manifest import Manifest, Member
from .progress import Progress
from .record import record_gone, record_run
from .store import Identity, LogitStore
from .survey import photographs, store_path

PREPROCESSING = {"colour": "RGB", "range": [0, 1], "mean": list(MEAN), "std": list(STD)}


@dataclass(frozen=True)
class Plan:
    """Jobs in the order in which they run, the number of images complete in each, and on what.

    With ``overwrite`` the stores that are there are removed before the first job runs.
    """

    manifest: Manifest
    jobs: tuple[Job, ...]
    complete: tuple[int, ...]
    device: torch.device
    precision: str
    notes: tuple[str, ...]
    overwrite: bool = False

    @property
    def todo(self) -> int:
        """Images still to be made, over all jobs."""
        return sum(len(job.wanted) for job in self.jobs) - sum(self.complete)

    @property
    def bytes(self) -> int:
        """Bytes of raw logits still to be made, an upper bound of what will be written."""
        share = (1 - done / max(1, len(job.wanted)) for job, done in zip(self.jobs, self.complete, strict=True))
        return int(sum(s * _raw_bytes(job) for s, job in zip(share, self.jobs, strict=True)))


def _raw_bytes(job: Job) -> int:
    return sum(2 * len(CLASS_NAMES) * p.size[0] * p.size[1] for p in job.wanted if p.size)


def plan_dump(manifest: Manifest, *, device: str = "auto", limit: int | None = None, overwrite: bool = False) -> Plan:
    """Check everything that a dump needs, and list its jobs, member by member.

    Args:
        manifest: what is to be dumped.
        device: see `resolve_device`.
        limit: images per dataset, from the first; None for all.
        overwrite: whether stores that are there are started afresh.

    Raises:
        HmsaError: a device, checkpoint, dataset or store is not as it must be.
    """
    target = resolve_device(device)
    precision, note = resolve_precision(manifest.inference.precision, target)
    notes = [note] if note else []
    members = [m for m in manifest.models if not m.external]
    notes += [
        f"model {m.name}: is external, filled by 'hmsa-pipeline import-logits'" for m in manifest.models if m.external
    ]
    if not members:
        raise ManifestError("no model to dump: all are external; fill them with 'hmsa-pipeline import-logits'")
    roots = [d.root_path() for d in manifest.datasets]
    for member in members:
        member.checkpoint_path()
    surveys = [tuple(photographs(manifest, dataset, afresh=overwrite)) for dataset in manifest.datasets]
    identities = [_identity(manifest, member, precision) for member in members]
    jobs = tuple(
        Job(
            member=member,
            dataset=dataset.name,
            root=root,
            store=store_path(manifest.output, dataset.name, member.name),
            identity=identity,
            photographs=survey,
            limit=limit,
        )
        for member, identity in zip(members, identities, strict=True)
        for dataset, root, survey in zip(manifest.datasets, roots, surveys, strict=True)
    )
    for job in jobs:
        require_free(job.store)
    complete = tuple(0 if overwrite else _complete(job) for job in jobs)
    return Plan(manifest, jobs, complete, target, precision, tuple(notes), overwrite)


def _identity(manifest: Manifest, member: Member, precision: str) -> Identity:
    path = member.checkpoint_path()
    check_weights(path, member.arch)
    digest = sha256(path)
    if member.sha256 and member.sha256 != digest:
        raise CheckpointError(
            f"{path}: its sha256 is {digest[:12]}..., the manifest says {member.sha256[:12]}... for model "
            f"'{member.name}'; fetch the file again, or correct the manifest"
        )
    return Identity(
        model=member.name,
        architecture=member.arch,
        checkpoint=path.name,
        sha256=digest,
        scales=tuple(sorted(manifest.inference.scales)),
        flip=manifest.inference.flip,
        precision=precision,
        classes=CLASS_NAMES,
        preprocessing=PREPROCESSING,
        encoding=manifest.store.encoding,
    )


def _complete(job: Job) -> int:
    """Wanted images that need no work; StoreError if the store is another work, or of other photographs."""
    if not LogitStore.exists(job.store):
        return 0
    store = LogitStore.open(job.store)
    store.require(job.identity)
    store.require_same(job.photographs)
    known = dict(zip((e.path for e in store.images), store.complete(), strict=True))
    return sum(known.get(photo.path, False) for photo in job.wanted)


def require_writable(output: Path) -> None:
    """Raise StoreError unless files can be made in ``output``, which is made where it is missing."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"{output}: cannot be written ({error.strerror}); choose another --output, or free it"
        ) from error


def run_dump(plan: Plan, ended: Callable[[JobResult], None]) -> list[JobResult]:
    """Run the plan's jobs one after another, and keep what became of each in ``run.json``.

    A job whose store cannot be used has a ``problem``, and the others go on. After an interrupt the
    remaining jobs are left out and the last result says ``interrupted``.

    Args:
        plan: the jobs.
        ended: called with each job's result when it ends.

    Raises:
        DiskError: the disk cannot be written; what is complete is kept.
    """
    manifest = plan.manifest
    require_writable(manifest.output)
    if plan.overwrite:
        # All of them now: else the same command without the flag could not go on after an interruption.
        for job in plan.jobs:
            _set_aside(job.store)
    predictor = Predictor(plan.device, plan.precision, manifest.inference.scales, manifest.inference.flip)
    results: list[JobResult] = []
    with Progress(plan.todo) as progress:
        for job in plan.jobs:
            try:
                result = run_job(job, predictor, progress)
            except DiskError:
                raise
            except StoreError as error:
                result = JobResult(job, problem=str(error))
            results.append(result)
            present = {photo.path for photo in job.photographs}
            record_gone(manifest.output, job.dataset, result.gone, present)
            record_run(
                manifest.output,
                "dump",
                job.name,
                manifest.resolved(),
                failed=result.failed,
                looked_at=result.settled | result.gone | result.failed.keys(),
                idle=not result.done and not result.failed and not result.problem,
                images=len(job.wanted),
                done=result.done,
                skipped=result.skipped,
                problem=result.problem,
                interrupted=result.interrupted,
                seconds=round(result.seconds, 3),
                device=str(plan.device),
                precision=plan.precision,
            )
            with progress.aside():
                ended(result)
            if result.interrupted:
                break
    return results


def _set_aside(store: Path) -> None:
    try:
        with writer_lock(store):
            LogitStore.set_aside(store)
    except OSError as error:
        raise disk_error(store, error) from error
