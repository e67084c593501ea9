"""The stage ``dump``: photographs through models into stores, block by block (see `dump_block`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ManifestError
from ..config.manifest import Manifest
from ..runtime.device import resolve_device, resolve_precision, resolve_speed
from ..runtime.progress import Progress, say
from ..storage.filesystem import free_bytes
from ..storage.output_folder import store_path
from ..storage.run_record import record_gone, record_run
from ..storage.writer_lock import require_free
from ..text import as_size
from ..workers.jobs import JobSummary
from ..workers.protocol import WorkerPool
from ..workers.scheduler import run_jobs
from .inputs import remarks, survey
from .predictor import InferenceSettings
from .store_job import (
    DumpResult,
    StoreJob,
    StorePlan,
    complete_in,
    identities_of,
    identity_for_dataset,
    raw_bytes,
    require_writable,
    set_aside,
)

_COMPRESSED = 1.5  # times smaller than raw, see docs/decisions.md


@dataclass(frozen=True)
class DumpPlan:
    """Jobs in the order in which they are begun, the number of images complete in each, and on what.

    With ``overwrite`` the stores that are there are removed before the first job runs.
    """

    manifest: Manifest
    jobs: tuple[StorePlan, ...]
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
        return int(sum(s * raw_bytes(job) for s, job in zip(share, self.jobs, strict=True)))

    def lines(self, workers: Sequence[str]) -> list[str]:
        """The plan for people.

        Args:
            workers: who would do it.
        """
        output = self.manifest.output
        free = free_bytes(output)
        room = "" if free is None else f", {as_size(free)} free there"
        return [
            *(
                f"{job.name}: {len(job.wanted) - done} to do, {done} complete"
                for job, done in zip(self.jobs, self.complete, strict=True)
            ),
            *(f"worker {worker}" for worker in workers),
            f"{self.todo} images to do on {self.device} in {self.precision}, at most {as_size(self.bytes)} to write "
            f"below {output}{room}",
        ]

    def as_json(self) -> list[dict[str, Any]]:
        """Job by job."""
        rows = zip(self.jobs, self.complete, strict=True)
        return [{"job": job.name, "images": len(job.wanted), "complete": done} for job, done in rows]


def dump_table(results: Sequence[DumpResult]) -> list[str]:
    """What became of the jobs, a line each."""
    wide = max(len(result.job.name) for result in results)
    lines = [f"{'job':{wide}}  {'done':>7} {'before':>7} {'failed':>7} {'seconds':>9} {'images/s':>9}"]
    for r in results:
        rate = f"{r.done / r.seconds:9.2f}" if r.done and r.seconds else f"{'-':>9}"
        lines.append(
            f"{r.job.name:{wide}}  {r.done:7} {r.skipped:7} {len(r.failed):7} {r.seconds:9.1f} {rate}"
            + (f"  {r.problem}" if r.problem else "")
        )
    hands: Counter[str] = Counter()
    for r in results:
        hands.update(r.hands)
    if len(hands) > 1:
        lines.append("images by worker: " + ", ".join(f"{name} {count}" for name, count in sorted(hands.items())))
    return lines


_PARTS = {"read": "reading", "forward": "the forward pass", "write": "writing"}


def limited_by(times: Iterable[Mapping[str, float]]) -> str | None:
    """What kept the workers from being faster, in a line; None where nothing was done.

    Args:
        times: of any number of results.
    """
    total: Counter[str] = Counter()
    for one in times:
        total.update(one)
    whole = sum(total.values())
    if not whole:
        return None
    most = max(_PARTS, key=lambda part: total[part])
    shares = ", ".join(f"{name} {total[part] / whole:.0%}" for part, name in _PARTS.items())
    return f"limited by {_PARTS[most]} ({shares} of the workers' time)"


def run_dump(
    plan: DumpPlan,
    crew: WorkerPool,
    ended: Callable[[DumpResult], None],
    *,
    patience: float,
    threads: int | None = None,
) -> list[DumpResult]:
    """Run the plan's jobs with the crew, and keep what became of each in ``run.json``.

    A job whose store cannot be used has a ``problem``, and the others go on. After an interrupt the
    jobs that were not begun are left out and a result says ``interrupted``.

    Args:
        plan: the jobs.
        crew: who does them.
        ended: called with each job's result when it ends.
        patience: seconds after which an image that is still in work is given up.
        threads: of the CPU that each worker computes with; None for as many as it is set up for.

    Raises:
        DiskError: the disk cannot be written, or is nearly full; what is complete is kept.
        HmsaError: the workers are gone for good.
    """
    manifest = plan.manifest
    require_writable(manifest.output)
    if plan.overwrite:
        # All of them now: else the same command without the flag could not go on after an interruption.
        for job in plan.jobs:
            set_aside(job.store)
    setting = InferenceSettings.of(manifest.inference, plan.device, plan.precision, threads)
    works = [StoreJob(job, setting) for job in plan.jobs]
    results: list[DumpResult] = []

    def ended_work(position: int, tally: JobSummary) -> None:
        result = works[position].result(tally)
        results.append(result)
        _record_result(plan, result)
        with progress.aside():
            ended(result)

    places = (manifest.output, *dict.fromkeys(job.root for job in plan.jobs), *_checkpoints(plan))
    if plan.todo and (short := _warn_of_full_disk(plan)):
        say(short)
    with Progress(plan.todo) as progress:
        interrupted = run_jobs(works, crew, progress, ended_work, places=places, patience=patience)
    if interrupted and not any(result.interrupted for result in results):
        results.append(DumpResult(plan.jobs[-1], interrupted=True))
    return results


def _warn_of_full_disk(plan: DumpPlan) -> str | None:
    """A word of warning where not all will fit on the disk, even compressed as logits usually are."""
    free = free_bytes(plan.manifest.output)
    if free is None or plan.bytes / _COMPRESSED <= free:
        return None
    return (
        f"{plan.manifest.output}: {as_size(free)} are free, about {as_size(plan.bytes / _COMPRESSED)} are needed; "
        "the run will stop before the disk is full, and go on by the same command once there is room"
    )


def _checkpoints(plan: DumpPlan) -> list[Path]:
    return list(dict.fromkeys(job.member.checkpoint_path() for job in plan.jobs))


def _record_result(plan: DumpPlan, result: DumpResult) -> None:
    job, output = result.job, plan.manifest.output
    record_gone(output, job.dataset, result.gone, {photo.path for photo in job.photographs})
    record_run(
        output,
        "dump",
        job.name,
        plan.manifest.resolved(),
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
        fallbacks=result.fallbacks,
        workers=result.hands,
        times={part: round(seconds, 3) for part, seconds in result.times.items()},
    )


def plan_dump(
    manifest: Manifest, *, device: str | torch.device = "auto", limit: int | None = None, overwrite: bool = False
) -> DumpPlan:
    """Check everything that a dump needs, and list its jobs, member by member.

    Args:
        manifest: what is to be dumped.
        device: see `resolve_device`; or one that is known to be there, such as a worker's.
        limit: images per dataset, from the first; None for all.
        overwrite: whether stores that are there are started over.

    Raises:
        HmsaError: a device, checkpoint, dataset or store is not as it must be.
    """
    target = resolve_device(device) if isinstance(device, str) else device
    precision, note = resolve_precision(manifest.inference.precision, target)
    _, compile, speed_notes = resolve_speed(manifest.inference.cuda_graphs, manifest.inference.compile, target)
    notes = [*([note] if note else []), *speed_notes]
    members = [m for m in manifest.models if not m.external]
    notes += [
        f"model {m.name}: is external, filled by 'hmsa-pipeline import-logits'" for m in manifest.models if m.external
    ]
    if not members:
        raise ManifestError("no model to dump: all are external; fill them with 'hmsa-pipeline import-logits'")
    roots = [d.root_path() for d in manifest.datasets]
    for member in members:
        member.checkpoint_path()
    surveys = [survey(manifest, dataset, afresh=overwrite) for dataset in manifest.datasets]
    identities, said = identities_of(manifest, members, precision, compile)
    notes += [*said, *remarks(surveys)]
    jobs = tuple(
        StorePlan(
            member=member,
            dataset=looked.dataset.name,
            root=root,
            store=store_path(manifest.output, looked.dataset.name, member.name),
            identity=identity_for_dataset(identity, looked.dataset),
            photographs=looked.photographs,
            limit=limit,
        )
        for member, identity in zip(members, identities, strict=True)
        for looked, root in zip(surveys, roots, strict=True)
    )
    for job in jobs:
        require_free(job.store)
    complete = tuple(0 if overwrite else len(complete_in(job)) for job in jobs)
    return DumpPlan(manifest, jobs, complete, target, precision, tuple(notes), overwrite)
