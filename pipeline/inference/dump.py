"""The stage ``dump``: photographs through models into logit stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ManifestError
from ..config.manifest import Manifest
from ..runtime.device import resolve_device, resolve_precision, resolve_speed
from ..runtime.progress import say
from ..storage.filesystem import free_bytes
from ..storage.output_folder import store_path
from ..storage.writer_lock import require_free
from ..text import as_size
from ..workers.protocol import WorkerPool
from ..workers.recorded_jobs import run_recorded_jobs
from .inputs import remarks, survey
from .predictor import InferenceSettings
from .store_job import (
    DumpResult,
    InferencePlan,
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


@dataclass(frozen=True, kw_only=True)
class DumpPlan(InferencePlan):
    """The stores to fill, in the order in which they are begun, and the number of complete images in each."""

    jobs: tuple[StorePlan, ...]
    complete: tuple[int, ...]

    @property
    def todo(self) -> int:
        """Number of images of all stores that are not complete."""
        return sum(len(job.wanted) for job in self.jobs) - sum(self.complete)

    @property
    def bytes(self) -> int:
        """Size in bytes of the logits that are missing, uncompressed: an upper bound of what will be written."""
        share = (1 - done / max(1, len(job.wanted)) for job, done in zip(self.jobs, self.complete, strict=True))
        return int(sum(s * raw_bytes(job) for s, job in zip(share, self.jobs, strict=True)))

    def lines(self, workers: Sequence[str]) -> list[str]:
        """Describe the plan for people; ``workers`` are described in a line each."""
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
        """Return the plan for ``--json``, store by store."""
        rows = zip(self.jobs, self.complete, strict=True)
        return [{"job": job.name, "images": len(job.wanted), "complete": done} for job, done in rows]


def dump_table(results: Sequence[DumpResult]) -> list[str]:
    """Return a table of the results for people, a line each."""
    wide = max(len(result.name) for result in results)
    lines = [f"{'job':{wide}}  {'done':>7} {'before':>7} {'failed':>7} {'seconds':>9} {'images/s':>9}"]
    for r in results:
        rate = f"{r.done / r.seconds:9.2f}" if r.done and r.seconds else f"{'-':>9}"
        lines.append(
            f"{r.name:{wide}}  {r.done:7} {r.skipped:7} {len(r.failed):7} {r.seconds:9.1f} {rate}"
            + (f"  {r.problem}" if r.problem else "")
        )
    by_worker: Counter[str] = Counter()
    for r in results:
        by_worker.update(r.images_by_worker)
    if len(by_worker) > 1:
        lines.append("images by worker: " + ", ".join(f"{name} {count}" for name, count in sorted(by_worker.items())))
    return lines


_STAGES = {"read": "reading", "forward": "the forward pass", "write": "writing"}


def limited_by(times: Iterable[Mapping[str, float]]) -> str | None:
    """Say in a line which stage took most of the workers' time; None if nothing was done.

    Args:
        times: ``times`` of any number of results.
    """
    total: Counter[str] = Counter()
    for one in times:
        total.update(one)
    whole = sum(total.values())
    if not whole:
        return None
    most = max(_STAGES, key=lambda stage: total[stage])
    shares = ", ".join(f"{name} {total[stage] / whole:.0%}" for stage, name in _STAGES.items())
    return f"limited by {_STAGES[most]} ({shares} of the workers' time)"


def run_dump(
    plan: DumpPlan,
    pool: WorkerPool,
    on_result: Callable[[DumpResult], None],
    *,
    image_timeout: float,
    threads: int | None = None,
) -> list[DumpResult]:
    """Fill the plan's stores; a store that cannot be used has a ``problem``, and the others are filled.

    Args:
        plan: see `plan_dump`.
        pool: the workers.
        on_result: called with each store's result when it ends.
        image_timeout: seconds after which an image that is still in work is given up.
        threads: CPU threads of each worker; None to leave them as they are.

    Raises:
        DiskError: the disk cannot be written, or is nearly full; complete images are kept.
        HmsaError: the workers are gone for good.
    """
    manifest = plan.manifest
    require_writable(manifest.output)
    if plan.overwrite:
        # All of them now: otherwise the same command without the flag could not resume after an interruption.
        for job in plan.jobs:
            set_aside(job.store)
    settings = InferenceSettings.of(manifest.inference, plan.device, plan.precision, threads)
    if plan.todo and (warning := _disk_warning(plan)):
        say(warning)
    return run_recorded_jobs(
        "dump",
        [StoreJob(job, settings) for job in plan.jobs],
        pool,
        on_result,
        todo=plan.todo,
        output=manifest.output,
        manifest=manifest.resolved(),
        required_paths=[*(job.root for job in plan.jobs), *(job.member.checkpoint_path() for job in plan.jobs)],
        image_timeout=image_timeout,
    )


def _disk_warning(plan: DumpPlan) -> str | None:
    """Warn if not all will fit on the disk, even compressed as logits usually are."""
    free = free_bytes(plan.manifest.output)
    if free is None or plan.bytes / _COMPRESSED <= free:
        return None
    return (
        f"{plan.manifest.output}: {as_size(free)} are free, about {as_size(plan.bytes / _COMPRESSED)} are needed; "
        "the run will stop before the disk is full, and go on by the same command once there is room"
    )


def plan_dump(
    manifest: Manifest, *, device: str | torch.device = "auto", limit: int | None = None, overwrite: bool = False
) -> DumpPlan:
    """Check everything that a dump needs, and list its stores, member by member.

    Args:
        manifest: its models and datasets.
        device: see `resolve_device`; or a device that is known to be there, such as a worker's.
        limit: images per dataset, from the first; None for all.
        overwrite: start existing stores over.

    Raises:
        HmsaError: a device, checkpoint, dataset or store cannot be used.
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
    return DumpPlan(
        manifest=manifest,
        jobs=jobs,
        complete=complete,
        device=target,
        precision=precision,
        notes=tuple(notes),
        overwrite=overwrite,
    )
