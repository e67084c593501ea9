"""Runs jobs and keeps the result of each in ``run.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..runtime.progress import Progress
from ..storage.run_record import record_gone, record_run
from .jobs import Job, JobResult, JobSummary
from .protocol import Workers
from .scheduler import run_jobs

R = TypeVar("R", bound=JobResult)


def run_recorded_jobs(
    command: str,
    jobs: Sequence[Job[R]],
    workers: Workers,
    on_result: Callable[[R], None],
    *,
    todo: int,
    output: Path,
    manifest: dict[str, Any],
    required_paths: Iterable[Path] = (),
) -> list[R]:
    """Run jobs and record each result in ``run.json`` when the job ends; raises what `run_jobs` does.

    After an interrupt, jobs that were not begun are left out, and the last result says ``interrupted``.

    Args:
        command: name of the command in ``run.json``.
        jobs: in the order in which they are begun.
        workers: started if there is an image to do.
        on_result: called with each result as soon as its job ends.
        todo: number of images of all jobs that are not complete.
        output: the output folder.
        manifest: the resolved manifest, as ``run.json`` keeps it.
        required_paths: files and folders, besides the output, that every worker must reach.
    """
    results: dict[int, R] = {}

    def end_job(position: int, summary: JobSummary) -> None:
        result = results[position] = jobs[position].result(summary)
        record_gone(output, result.dataset, result.gone, result.present)
        record_run(
            output,
            command,
            result.name,
            manifest,
            failed=result.failed,
            looked_at=result.looked_at,
            idle=result.is_idle,
            **result.record(),
        )
        with progress.aside():
            on_result(result)

    paths = (output, *dict.fromkeys(required_paths))
    with Progress(todo) as progress:
        interrupted = run_jobs(jobs, workers, progress, end_job, paths)
    if interrupted and not any(result.interrupted for result in results.values()):
        last = max(position for position in range(len(jobs)) if position not in results)
        results[last] = jobs[last].result(JobSummary(interrupted=True))
    return list(results.values())
