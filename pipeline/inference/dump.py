"""The stage ``dump``: photographs through models into logit stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...errors import ManifestError
from ..config.manifest import Manifest
from ..runtime.progress import say
from ..storage.filesystem import free_bytes
from ..text import as_size
from ..workers.protocol import Workers
from .plan import InferencePlan, InferenceResult, StorePlan, run_inference
from .store_job import StoreJob

_COMPRESSED = 1.5  # times smaller than raw, see docs/decisions.md


@dataclass(frozen=True, kw_only=True)
class DumpPlan(InferencePlan):
    """The stores to fill."""

    jobs: tuple[StorePlan, ...] = ()

    @property
    def bytes(self) -> int:
        """Size in bytes of the logits that are missing, uncompressed: an upper bound of what will be written."""
        raw = 0.0
        for job in self.jobs:
            pixels = sum(photo.size[0] * photo.size[1] for photo in job.wanted if photo.size)
            raw += job.todo / max(1, len(job.wanted)) * 2 * len(job.identity.classes) * pixels
        return int(raw)

    def lines(self, workers: Sequence[str]) -> list[str]:
        """Describe the plan for people; ``workers`` are described in a line each."""
        output = self.manifest.output
        free = free_bytes(output)
        room = "" if free is None else f", {as_size(free)} free there"
        return [
            *super().lines(workers),
            f"{self.todo} images to do on {self.device} in {self.precisions}, at most {as_size(self.bytes)} "
            f"to write below {output}{room}",
        ]


def dump_table(results: Sequence[InferenceResult]) -> list[str]:
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
    """Say which stage took most of the workers' time, from the ``times`` of results; None if nothing was done."""
    total: Counter[str] = Counter()
    for one in times:
        total.update(one)
    whole = sum(total.values())
    if not whole:
        return None
    most = max(_STAGES, key=lambda stage: total[stage])
    shares = ", ".join(f"{name} {total[stage] / whole:.0%}" for stage, name in _STAGES.items())
    return f"limited by {_STAGES[most]} ({shares} of the workers' time)"


def run_dump(plan: DumpPlan, workers: Workers, on_result: Callable[[InferenceResult], None]) -> list[InferenceResult]:
    """Fill the plan's stores.

    Args:
        plan: see `plan_dump`.
        workers, on_result: see `run_inference`, which raises the same errors.
    """
    if plan.todo and (warning := _disk_warning(plan)):
        say(warning)
    return run_inference("dump", plan, StoreJob, workers, on_result)


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
    manifest: Manifest, device: torch.device, *, limit: int | None = None, overwrite: bool = False
) -> DumpPlan:
    """Check everything that a dump needs, and list its stores, member by member.

    Args:
        manifest, device, limit, overwrite: see `InferencePlan`.

    Raises:
        HmsaError: a device, checkpoint, dataset or store cannot be used.
    """
    members = [member for member in manifest.models if not member.external]
    external = [member.name for member in manifest.models if member.external]
    if not members:
        raise ManifestError("no model to dump: all are external; fill them with 'hmsa-pipeline import-logits'")
    plan = DumpPlan.check(manifest, members, device, limit=limit, overwrite=overwrite)
    notes = [f"model {name}: is external, filled by 'hmsa-pipeline import-logits'" for name in external]
    jobs = [plan.plan_store(*member, looked) for member in plan.members for looked in plan.surveys]
    return replace(plan, jobs=tuple(jobs), notes=(*notes, *plan.notes))
