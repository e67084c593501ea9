"""``hmsa-pipeline evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....errors import HmsaError
from ..shared import options
from ..shared.options import (
    manifest_command,
    option,
    path_option,
    refuse_without_effect,
    require_average,
    require_there,
    target_file,
)
from ..shared.output import end_command, print_failed, require_folder, write_rows
from .detection import Detection, check_detection_options, evaluate_images
from .tars import refuse_beside_tars

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ...scoring.evaluate import EvaluationResult
    from ..shared.output import Output


REPLICATES = 1000
"""Resamplings of a comparison where ``--bootstrap`` does not say how many."""


def check_options(context: typer.Context) -> None:
    """Raise an HmsaError that names the first option that does not go with the others, or changes nothing."""
    given = context.params
    members = given["per_model"] or given["leave_one_out"] or given["compare"] or given["confidences"]
    check_detection_options(context)
    if given["ood_datasets"] is not None:
        return
    if given["compare"] and len({*given["compare"]}) == 1:
        raise HmsaError(f"--compare: '{given['compare'][0]}' with itself; name two")
    if not given["bootstrap"] and not given["compare"]:
        refuse_without_effect(context, "without --bootstrap or --compare", "seed")
    if given["ground_truth"] is not None or given["submission"] is not None:
        _check_bravo_options(context, members)
    elif given["samples"] is not None:
        raise HmsaError("--samples: belongs to --ground-truth; name both, or leave it out")
    elif not members:
        why = "without --per-model, --leave-one-out, --compare or --confidences"
        refuse_without_effect(context, why, "models")
        if given["predictions"] is not None:
            refuse_without_effect(context, "beside --predictions", "output")


def _check_bravo_options(context: typer.Context, members: bool) -> None:
    given = context.params
    predictions, submission = given["predictions"], given["submission"]
    refuse_without_effect(context, "beside --ground-truth, whose figures are the challenge's", "figures")
    others = {"--csv": "csv_file", "--processes": "processes", "--bootstrap": "bootstrap", "--compare": "compare"}
    others |= {"--confusion": "confusion", "--confidences": "confidences", "--components": "components"}
    refuse_beside_tars(context, others)
    if submission is not None and predictions is not None:
        raise HmsaError("--submission, --predictions: name one of them")
    if submission is not None and members:
        raise HmsaError("--submission: holds no members; leave --per-model and --leave-one-out out")
    if submission is not None:
        everything = ("output", "models", "datasets", "data_root", "assets")
        refuse_without_effect(context, "beside --submission", *everything)
    elif not members:
        refuse_without_effect(context, "without --per-model or --leave-one-out", "models")
        refuse_without_effect(context, "beside --ground-truth, which names the datasets", "datasets")
        if predictions is not None:
            refuse_without_effect(context, "beside --predictions", "output", "data_root", "assets")


@manifest_command(lazy=True)
def evaluate(
    manifest: Callable[[], Manifest],
    say: Output,
    context: typer.Context,
    predictions: Annotated[
        Path | None, path_option("--predictions", "DIR", "A tree of _pred.png and _conf.png; ours if left out.")
    ] = None,
    per_model: Annotated[bool, typer.Option("--per-model", help="Score each member from its store, too.")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Score the ensemble without each member, from the stores, too.")
    ] = False,
    limit: options.Limit = None,
    processes: Annotated[
        int | None, option("--processes", "N", "Processes that read and count.", min=1, max=512)
    ] = None,
    average: options.Average = "dataset",
    csv_file: Annotated[
        str | None, option("--csv", "FILE", "Write a row for each subject there.", callback=target_file)
    ] = None,
    ground_truth: Annotated[
        Path | None, path_option("--ground-truth", "TAR", "BRAVO's ground truth: score BRAVO instead.")
    ] = None,
    samples: options.Samples = None,
    submission: Annotated[Path | None, path_option("--submission", "TAR", "Score this submission to BRAVO.")] = None,
    allow_unlabelled: options.Unlabelled = False,
    figures: Annotated[
        str,
        option("--figures", "NAMES", "What is printed: basic, all, or names, comma separated. --json has all."),
    ] = "basic",
    confusion: Annotated[
        Path | None,
        path_option("--confusion", "DIR", "Draw each subject's confusion matrix there, as an SVG file."),
    ] = None,
    bootstrap: Annotated[
        int | None,
        option("--bootstrap", "N", "Give 95 % intervals from N resamplings of the images, such as 1000.", min=40),
    ] = None,
    seed: Annotated[int, option("--seed", "N", "Seed of the resamplings.", min=0)] = 0,
    compare: Annotated[
        tuple[str, str] | None,
        option(
            "--compare",
            "A B",
            "Compare two of ensemble, a member, 'without MEMBER' on the same images: difference, interval, p.",
        ),
    ] = None,
    confidences: Annotated[
        str | None,
        option("--confidences", "A,B", "Score these confidence functions of the ensemble from the stores, too."),
    ] = None,
    components: Annotated[
        str | None,
        option(
            "--components", "TRACK", "Count components out of distribution, too, as SMIYC: anomaly, obstacle, auto."
        ),
    ] = None,
    ood_datasets: Annotated[
        str | None,
        option("--ood-datasets", "A,B", "Tell images of these datasets from the others' instead; needs no labels."),
    ] = None,
    aggregate: Annotated[
        str,
        option(
            "--aggregate",
            "A,B",
            "With --ood-datasets, an image's figure: mean, q95 (quantile), patch10 (highest 10x10, cut to it).",
        ),
    ] = "mean,q95,patch10",
) -> None:
    """Score class maps and confidences against labels.

    For every dataset of the manifest that has labels: IoU by class, mIoU, accuracy, ECE (15 bins), and how well the
    confidence tells right from wrong pixels (AUROC, AUPR of both, FPR at 95 % TPR). --figures all adds precision,
    recall, IoU of categories, boundaries and instances, other calibration errors, and selective prediction (AURC and
    others). docs/metrics.md has the formulas.

    For the validation images of SMIYC: how well low confidence finds what is out of distribution (AUROC, AUPRC, FPR).

    With BRAVO's tar files the challenge's own figures, up to the BRAVO index, of a submission, of predictions, or of
    every member.

    Example: hmsa-pipeline evaluate --manifest cityscapes --per-model --json scores.json

    Example: hmsa-pipeline evaluate --manifest demo/calibrated.yaml --compare ensemble mapillary --bootstrap 2000

    Example: hmsa-pipeline evaluate --confidences entropy,mutual-information --ood-datasets bravo_synobjs

    Example: hmsa-pipeline evaluate --submission sub.tar --ground-truth gt.tar --samples bravo_SAMPLING.tar
    """
    from ...scoring.evaluate import evaluate as score
    from ...scoring.evaluate import plan_evaluation
    from ...scoring.evaluation_table import evaluation_rows, evaluation_table
    from ...scoring.figures.names import chosen_figures
    from ...scoring.resampling.bootstrap import Resampling

    check_options(context)
    require_there("--predictions", predictions)
    if ground_truth is not None and samples is not None:
        _evaluate_bravo(manifest, say, context.params)
        return
    chosen = chosen_figures(figures)
    if confusion is not None:
        require_folder(confusion, "--confusion")
    read = manifest()
    if ood_datasets is not None:
        evaluate_images(read, say, context.params)
        return
    plans = plan_evaluation(
        read,
        predictions=predictions,
        per_model=per_model,
        leave_one_out=leave_one_out,
        limit=limit,
        average=require_average(average),
        allow_unlabelled=allow_unlabelled,
        compare=compare or (),
    )
    resampling = Resampling(bootstrap or REPLICATES, seed) if bootstrap or compare else None
    detection = Detection(read, plans, context.params, resampling)
    written, rows, failed = [], [], 0
    for number, plan in enumerate(plans):
        if note := plan.note:
            typer.echo(f"note: {note}", err=True)
        result = score(plan, processes, resampling, compare)
        print_failed(result.dataset, result.failed)
        say.lines(evaluation_table(result, chosen))
        if confusion is not None:
            _draw_confusion(confusion, result)
        more = detection.score(number, result)
        print_failed(result.dataset, more.failed)
        say.lines(more.lines)
        written.append(result.as_json() | more.figures)
        rows += [*evaluation_rows([result]), *more.rows]
        failed += len(result.failed) + len(more.failed)
    say.figures(written)
    if csv_file:
        write_rows(csv_file, rows, "--csv")
    end_command(failed)


def _draw_confusion(folder: Path, result: EvaluationResult) -> None:
    """Write ``<folder>/<dataset>-<subject>.svg`` of every subject of a dataset with labels of classes."""
    from ...report.plots import confusion_matrix

    if result.truth.ood:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, counts in result.counts.items():
        file = f"{result.dataset}-{name}".replace("/", "-").replace(" ", "-")
        confusion_matrix(folder / f"{file}.svg", counts.confusion, result.truth.classes.names)


def _evaluate_bravo(manifest: Callable[[], Manifest], say: Output, given: Mapping[str, Any]) -> None:
    from ...config.class_set_field import require_default
    from ...fusion.member_stores import ENSEMBLE, scored_combinations, voting_members
    from ...scoring.evaluate_bravo import bravo_table, comparison, score_predictions, score_submission
    from ...storage.output_folder import all_predictions_path
    from ...text import without_nan

    tars, folder = (given["ground_truth"], given["samples"]), given["predictions"]
    chosen = {name: given[name] for name in ("per_model", "leave_one_out")}
    if given["submission"] is not None:
        scores = score_submission(*tars, given["submission"])
    elif folder is not None and not any(chosen.values()):
        scores = score_predictions(*tars, folder)
    else:
        read = manifest()
        require_default(read.class_set, "--ground-truth")
        subjects = scored_combinations(voting_members(read), **chosen)
        scores = score_predictions(*tars, folder or all_predictions_path(read.output), read, subjects)
    failed = scores[ENSEMBLE].failed
    print_failed("BRAVO", failed)
    figures = {name: without_nan(found.figures) for name, found in scores.items()}
    say.lines(comparison(scores) if any(chosen.values()) else bravo_table(scores[ENSEMBLE]))
    say.figures(figures if any(chosen.values()) else figures[ENSEMBLE])
    end_command(len(failed))
