"""The demonstration from beginning to end.

Each step runs as the command line that is printed before it, all in this process: importing torch takes seconds.
A step that was finished is not done again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...datasets.dataset_specs import NAMES
from ...datasets.parallel import start_server
from ...datasets.synthetic.write_bravo import write_bravo
from ...errors import ManifestError, StoreError, reason
from ...files import write_text
from ..submission.bravo_archives import write_samples
from .members import SHIPPED_MEMBERS, copy_shipped, read_records
from .plan import FIRST_LOOK, DemoPlan, line
from .steps import FinishedSteps, Run, run_step
from .summary import summary
from .train import train_members

_PACKAGE = __name__.removesuffix(".pipeline.demo.run")
_IN_PROCESSES = [
    f"{_PACKAGE}.{module}"
    for module in (
        *("datasets.synthetic.write_bravo", "pipeline.scoring.evaluate"),
        *("pipeline.search.count_images", "pipeline.report.build_report"),
    )
]
"""Modules that worker processes of several steps need: imported once, while the first images are drawn."""


def run_demo(folder: Path, seed: int, run: Run, *, quick: bool = False, train: bool = False) -> int:
    """Draw, take or train the members, and run the stages; return the exit code of the first that fails, else 0.

    Args:
        folder: where everything goes. Run again with the same arguments, nothing is made twice.
        seed: of the streets and, where members are trained, of their first weights.
        run: runs a command line.
        quick: do a small part of everything.
        train: train the members instead of taking those of the package.

    Raises:
        HmsaError: of a step.
        ManifestError: the folder holds another manifest.
        StoreError: the folder cannot be written.
    """
    start_server(_IN_PROCESSES)
    plan = DemoPlan(folder.resolve(), seed, quick, train)
    finished = FinishedSteps(plan.folder / "steps.json")
    with _naming(plan):
        _prepare(plan)
    if train and (code := run_step(finished, plan.draw(), run) or train_members(finished, plan)):
        return code
    if not all(line(step) in finished for step in plan.first_look()):
        with _naming(plan):
            _draw_target_set(plan, dozens=1)
    for step in plan.first_look():
        if code := run_step(finished, step, run):
            return code
    print(f"\nfirst picture: {_first_picture(plan)}", flush=True)
    with _naming(plan):
        _draw_target_set(plan, plan.size.test_dozens)
    for step in (*(() if train else (plan.draw(),)), *plan.main_steps()):
        if code := run_step(finished, step, run):
            return code
    print("\n".join(summary(plan)))
    return 0


@contextmanager
def _naming(plan: DemoPlan) -> Iterator[None]:
    """Turn what a disk does not take into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{plan.folder}: cannot be written ({reason(error)}); choose another --output") from error


def _prepare(plan: DemoPlan) -> None:
    """Write the manifests, the student's recipe, and the members' recipes or the members."""
    text = plan.manifest_text({} if plan.train else read_records(SHIPPED_MEMBERS))
    if plan.manifest.exists() and plan.manifest.read_bytes() != text.encode():
        raise ManifestError(
            f"{plan.manifest}: is not that of this demo and seed; choose another --output, or remove it"
        )
    if plan.train:
        for name in NAMES:
            write_text(plan.recipe_file(name), plan.recipe_text(name))
    else:
        copy_shipped(NAMES, plan.members)
    write_text(plan.student_recipe, plan.student_recipe_text())
    write_text(plan.student_manifest, plan.student_manifest_text())
    write_text(plan.manifest, text)


def _draw_target_set(plan: DemoPlan, dozens: int) -> None:
    """Draw the target set, or as many of its images, with labels; what is there already is left as it is."""
    print(f"\ndrawing {12 * dozens} images of the BRAVO challenge's kind in {plan.folder / 'data'}", flush=True)
    root, size = plan.folder / "data" / "bravo_1.0", plan.size.test_size
    whole = dozens == plan.size.test_dozens
    write_bravo(root, seed=plan.seed, size=size, each=dozens, truth=plan.truth if whole else None)
    if whole and not plan.samples.exists():
        write_samples(plan.truth, plan.samples)


def _first_picture(plan: DemoPlan) -> Path:
    return min((plan.folder / FIRST_LOOK).rglob("*.png"))
