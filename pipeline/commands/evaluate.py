"""``hmsa-pipeline evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import HmsaError
from .shared import options
from .shared.options import (
    UNLABELLED,
    manifest_command,
    path_option,
    refuse_without_effect,
    require_average,
    target_file,
)
from .shared.output import end_command, print_failed, write_rows

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from ..scoring.evaluate_bravo import BravoScores
    from .shared.output import Output


@dataclass(frozen=True)
class _Options:
    """The command's own options."""

    predictions: Path | None
    per_model: bool
    leave_one_out: bool
    limit: int | None
    processes: int | None
    average: str
    csv_file: str | None
    ground_truth: Path | None
    samples: Path | None
    submission: Path | None
    allow_unlabelled: bool

    @property
    def members(self) -> bool:
        """Stores of members are read."""
        return self.per_model or self.leave_one_out


def check_options(context: typer.Context, given: _Options) -> None:
    """Refuse options that do not go together, or change nothing.

    Raises:
        HmsaError: names the first of them.
    """
    if given.ground_truth is not None or given.submission is not None:
        _check_bravo_options(context, given)
        return
    if given.samples is not None:
        raise HmsaError("--samples: belongs to --ground-truth; name both, or leave it out")
    if not given.members:
        refuse_without_effect(context, "without --per-model or --leave-one-out", "models")
        if given.predictions is not None:
            refuse_without_effect(context, "beside --predictions", "output")


def _check_bravo_options(context: typer.Context, given: _Options) -> None:
    others = {
        "--limit": given.limit,
        "--csv": given.csv_file,
        "--processes": given.processes,
        UNLABELLED: given.allow_unlabelled,
    }
    if wrong := [name for name, value in others.items() if value]:
        raise HmsaError(f"{wrong[0]}: does not go with BRAVO's tar files; leave it out")
    if given.average != "dataset":
        raise HmsaError(f"--average {given.average}: BRAVO's figures have the challenge's own average; leave it out")
    if given.ground_truth is None or given.samples is None:
        raise HmsaError("--ground-truth and --samples: BRAVO's figures need both tar files; name them")
    if given.submission is not None and given.predictions is not None:
        raise HmsaError("--submission, --predictions: name one of them")
    if given.submission is not None and given.members:
        raise HmsaError("--submission: holds no members; leave --per-model and --leave-one-out out")
    if given.submission is not None:
        everything = ("output", "models", "datasets", "data_root", "assets")
        refuse_without_effect(context, "beside --submission", *everything)
    elif not given.members:
        refuse_without_effect(context, "without --per-model or --leave-one-out", "models")
        refuse_without_effect(context, "beside --ground-truth, which names the datasets", "datasets")
        if given.predictions is not None:
            refuse_without_effect(context, "beside --predictions", "output", "data_root", "assets")


@manifest_command(lazy=True)
def evaluate(
    manifest: Callable[[], Manifest],
    say: Output,
    context: typer.Context,
    predictions: Annotated[
        Path | None,
        path_option("--predictions", metavar="DIR", help="A tree of _pred.png and _conf.png; ours if left out."),
    ] = None,
    per_model: Annotated[bool, typer.Option("--per-model", help="Score each member from its store, too.")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Score the ensemble without each member, from the stores, too.")
    ] = False,
    limit: options.Limit = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=512, metavar="N", help="Processes that read and count.")
    ] = None,
    average: options.Average = "dataset",
    csv_file: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", callback=target_file, help="Write a row for each subject there."),
    ] = None,
    ground_truth: Annotated[
        Path | None,
        path_option("--ground-truth", metavar="TAR", help="BRAVO's ground truth: score BRAVO instead."),
    ] = None,
    samples: options.Samples = None,
    submission: Annotated[
        Path | None, path_option("--submission", metavar="TAR", help="Score this submission to BRAVO.")
    ] = None,
    allow_unlabelled: options.Unlabelled = False,
) -> None:
    """Score class maps and confidences against labels.

    For every dataset of the manifest that has labels: IoU by class, mIoU, accuracy, ECE (15 bins), and how well the
    confidence tells right from wrong pixels (AUROC, AUPR of both, FPR at 95 % TPR). docs/metrics.md has the formulas.

    For the validation images of SMIYC: how well low confidence finds what is out of distribution (AUROC, AUPRC, FPR).

    With BRAVO's tar files the challenge's own figures, up to the BRAVO index, of a submission, of predictions, or of
    every member.

    Example: hmsa-pipeline evaluate --manifest cityscapes --per-model --json scores.json

    Example: hmsa-pipeline evaluate --submission sub.tar --ground-truth gt.tar --samples bravo_SAMPLING.tar
    """
    given = _Options(
        predictions=predictions,
        per_model=per_model,
        leave_one_out=leave_one_out,
        limit=limit,
        processes=processes,
        average=average,
        csv_file=csv_file,
        ground_truth=ground_truth,
        samples=samples,
        submission=submission,
        allow_unlabelled=allow_unlabelled,
    )
    check_options(context, given)
    if ground_truth is not None and samples is not None:
        _evaluate_bravo(manifest, say, given, ground_truth, samples)
    else:
        _evaluate_datasets(manifest(), say, given)


def _evaluate_datasets(manifest: Manifest, say: Output, given: _Options) -> None:
    from ..scoring.evaluate import evaluate as score
    from ..scoring.evaluate import evaluation_rows, evaluation_table, plan_evaluation

    plans = plan_evaluation(
        manifest,
        predictions=given.predictions,
        per_model=given.per_model,
        leave_one_out=given.leave_one_out,
        limit=given.limit,
        average=require_average(given.average),
        allow_unlabelled=given.allow_unlabelled,
    )
    results = []
    for plan in plans:
        if note := plan.note:
            typer.echo(f"note: {note}", err=True)
        result = score(plan, given.processes)
        results.append(result)
        print_failed(result.dataset, result.failed)
        say.lines(evaluation_table(result))
    say.figures([result.as_json() for result in results])
    if given.csv_file:
        write_rows(given.csv_file, evaluation_rows(results), "--csv")
    end_command(sum(len(result.failed) for result in results))


def _evaluate_bravo(
    manifest: Callable[[], Manifest], say: Output, given: _Options, ground_truth: Path, samples: Path
) -> None:
    from ..fusion.member_stores import scored_combinations, voting_members
    from ..scoring.evaluate_bravo import score_members, score_predictions, score_submission
    from ..storage.output_folder import all_predictions_path

    if given.submission is not None:
        _print_bravo(say, score_submission(ground_truth, samples, given.submission))
    elif given.predictions is not None and not given.members:
        _print_bravo(say, score_predictions(ground_truth, samples, given.predictions))
    else:
        read = manifest()
        folder = given.predictions or all_predictions_path(read.output)
        if given.members:
            subjects = scored_combinations(
                voting_members(read), per_model=given.per_model, leave_one_out=given.leave_one_out
            )
            _print_members(say, score_members(ground_truth, samples, folder, read, subjects))
        else:
            _print_bravo(say, score_predictions(ground_truth, samples, folder))


def _print_bravo(say: Output, scores: BravoScores) -> None:
    from ..scoring.evaluate_bravo import bravo_table
    from ..text import without_nan

    print_failed("BRAVO", scores.failed)
    say.lines(bravo_table(scores))
    say.figures(without_nan(scores.figures))
    end_command(len(scores.failed))


def _print_members(say: Output, scores: dict[str, BravoScores]) -> None:
    from ..scoring.evaluate_bravo import comparison
    from ..text import without_nan

    failed = next(iter(scores.values())).failed
    print_failed("BRAVO", failed)
    say.lines(comparison(scores))
    say.figures({name: without_nan(found.figures) for name, found in scores.items()})
    end_command(len(failed))
