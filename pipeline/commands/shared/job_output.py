"""Chooses the workers of commands, runs the jobs of dump and predict, and prints each and all of them together."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ...text import plural
from .options import refuse_without_workers
from .output import Output, end_command, print_error, print_failed
from .waiting import when_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from ...inference.plan import InferencePlan, InferenceResult
    from ...workers.protocol import Workers

    Plan = TypeVar("Plan", bound=InferencePlan)
    Result = TypeVar("Result", bound=InferenceResult)


@contextmanager
def cpu_workers(context: typer.Context) -> Iterator[Workers]:
    """Choose the workers that the options of ``context`` name, for work that needs no GPU; close them in the end."""
    from ...workers.choose import choose_workers

    names = ("workers", "scheduler", "image_timeout", "patience")
    chosen = choose_workers("cpu", **{name: context.params[name] for name in names}, needs_gpu=False)
    try:
        yield chosen
    finally:
        chosen.pool.close()


def run_jobs(
    say: Output, context: typer.Context, plan: Callable[[Any], Plan], run: Callable[..., list[Result]]
) -> tuple[Plan, list[Result]]:
    """Choose the workers that the options of ``context`` name, plan for their device, and run.

    Args:
        say: where it is printed.
        context: of the command.
        plan: makes the plan for a device.
        run: carries a plan out.

    Raises:
        typer.Exit: it was a dry run.
    """
    from ...workers.choose import choose_workers

    given = context.params
    refuse_without_workers(context)
    names = ("device", "workers", "scheduler", "image_timeout", "patience")
    chosen = choose_workers(**{name: given[name] for name in names})
    noted: set[str] = set()

    def attempt() -> tuple[Plan, list[Result]]:
        planned = plan(chosen.device)
        for note in planned.notes:
            if note not in noted:
                noted.add(note)
                print(note, file=sys.stderr)
        if given["dry_run"]:
            say.lines(planned.lines(chosen.pool.describe()))
            say.figures(planned.as_json())
            raise typer.Exit
        return planned, run(planned, chosen, lambda result: _print_job(say, result))

    try:
        return when_free(given["wait"], attempt)
    finally:
        chosen.pool.close()


def _print_job(say: Output, result: InferenceResult) -> None:
    """Print the result of one job when it ends."""
    from ...inference.predictor import IN_TILES, SCALE_BY_SCALE, WITHOUT_COMPILE

    name = result.name
    print_failed(name, result.failed)
    if result.problem:
        print_error(f"failed: {name}: {result.problem}")
    ways = list(result.fallbacks.values())
    if parts := sum(SCALE_BY_SCALE in way or IN_TILES in way for way in ways):
        made = f"{'was' if parts == 1 else 'were'} made in parts; run.json lists them"
        print(
            f"{name}: {plural(parts, 'image')} did not fit into the device's memory at once and {made}",
            file=sys.stderr,
        )
    if uncompiled := sum(WITHOUT_COMPILE in way for way in ways):
        what = plural(uncompiled, "image was", "images were")
        print(f"{name}: {what} made {WITHOUT_COMPILE}; run.json lists them", file=sys.stderr)
    if result.done or result.failed:
        other = ", ".join(f"{member} {100 * share:.2f} %" for member, share in result.other.items())
        say.line(
            f"{name}: {result.done} done, {result.skipped} complete before, {len(result.failed)} failed, "
            f"{result.seconds:.1f} s" + (f"; probability of other classes: {other}" if other else "")
        )


def conclude_jobs(
    say: Output,
    results: Sequence[InferenceResult],
    todo: int,
    *,
    nothing: str,
    done: str,
    before: str,
    where: str,
    jobs: str,
) -> None:
    """Print what became of all jobs together, and end with the exit code that says it too.

    Args:
        say: where it goes.
        results: of the jobs.
        todo: images that were to be done.
        nothing: follows their number if there was nothing to do.
        done, before: what is said of images that were done, and that were complete.
        where: where the results lie.
        jobs: how many jobs there were, and of what kind.
    """
    from ...inference.dump import limited_by

    say.figures([result.as_json() for result in results])
    made, failed = sum(r.done for r in results), sum(len(r.failed) for r in results)
    skipped = sum(r.skipped for r in results)
    problems = sum(r.problem is not None for r in results)
    if not made and not failed and not problems and not todo:
        say.line(f"nothing to do: all {skipped} {nothing}")
    else:
        say.line(f"{plural(made, 'image')} {done}, {skipped} {before}, {failed} failed; {where}")
        if line := limited_by(r.times for r in results):
            say.line(line)
    if problems:
        say.line(f"{problems} of {jobs} could not be done")
    if failed + problems:
        say.try_again()
    end_command(failed + problems, interrupted=any(r.interrupted for r in results))
