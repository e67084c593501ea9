"""The command line: parse, call one function of the pipeline, print."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import HmsaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .pipeline.bravo_scores import BravoScores
    from .pipeline.dump import JobResult
    from .pipeline.ensemble import FusionResult
    from .pipeline.manifest import Manifest
    from .pipeline.packing import Packed
    from .pipeline.predict import Predicted

INTERRUPTED = 130

app = typer.Typer(
    name="hmsa-pipeline",
    help="Robust segmentation with an ensemble of HMSA models: dump logits, fuse them, look after them.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
manifest_app = typer.Typer(help="Show or check a manifest.", rich_markup_mode=None)
app.add_typer(manifest_app, name="manifest")
datasets_app = typer.Typer(help="List, check or draw datasets to train on.", rich_markup_mode=None)
app.add_typer(datasets_app, name="datasets")


def _folder(flag: str) -> Callable[[str | Path], Path]:
    """What reads the value of an option that names a folder or a file."""

    def parsed(text: str | Path) -> Path:
        # A variable of the shell that is not set would else mean the current folder.
        if not str(text).strip():
            raise HmsaError(f"{flag}: an empty name names nothing; give one, or leave the option out")
        return Path(text)

    return parsed


def _location(flag: str) -> Callable[[str | Path], str]:
    """The same of a folder or a URL, which as a path would lose a slash."""

    def parsed(text: str | Path) -> str:
        _folder(flag)(text)
        return str(text)

    return parsed


ManifestOption = Annotated[
    str,
    typer.Option("--manifest", "-m", metavar="FILE", help="A manifest, or the bare name of a shipped one."),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        parser=_location("--output"),
        help="Folder of all results, or a URL such as s3://bucket/run (not to train); wins over the manifest.",
    ),
]
ModelsOption = Annotated[
    str | None, typer.Option("--models", metavar="A,B", help="Only these models, by name, comma separated.")
]
DatasetsOption = Annotated[
    str | None,
    typer.Option("--datasets", metavar="A,B", help="Only these datasets, by name, comma separated."),
]
UNLABELLED = "--allow-unlabelled"
UnlabelledOption = Annotated[
    bool, typer.Option(UNLABELLED, help="Leave out images that have no mask, and name them.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N images of each dataset.")
]
AverageOption = Annotated[
    str,
    typer.Option(
        "--average",
        metavar="NAME",
        help="What mIoU is the mean of: dataset (the classes of its table), labelled-or-predicted, labelled.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAME", help="fp16, bf16 or fp32; wins over the manifest."),
]
LabelOption = Annotated[
    str | None,
    typer.Option("--label", metavar="NAME", help="mean-softmax, max-softmax, min-softmax or mean-logit."),
]
ConfidenceOption = Annotated[
    str | None,
    typer.Option(
        "--confidence", metavar="NAME", help="mean-softmax, mean-logit, min-softmax, entropy, energy or rba."
    ),
]
DevicesOption = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda (all GPUs), or some of them: cuda:0,2."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        max=512,
        metavar="N",
        help="Worker processes on a CPU; 0: in this process. GPUs have one each.",
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="WHERE", help="Use a running Dask cluster: tcp://host:port, or its scheduler file."
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option(
        "--image-timeout", min=1.0, metavar="SECONDS", help="An image in work for longer is given up and listed."
    ),
]
SamplesOption = Annotated[
    Path | None,
    typer.Option(
        "--samples", metavar="TAR", parser=_folder("--samples"), help="BRAVO's sampling file, bravo_SAMPLING.tar."
    ),
]
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="DIR", parser=_folder("--data-root"), help="Wins over the variable HMSA_DATA_ROOT."
    ),
]
AssetsOption = Annotated[
    Path | None,
    typer.Option("--assets", metavar="DIR", parser=_folder("--assets"), help="Wins over the variable HMSA_ASSETS."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Start over: all results that lie there are removed first.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, stop.")]


def _figures_file(parameter: typer.CallbackParam, target: str | None) -> str | None:
    if target is not None:
        from .pipeline.figures import require_target

        require_target(target, parameter.opts[0])
    return target


JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=_figures_file,
        help="Write the figures there; - is standard output.",
    ),
]


def _names(flag: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise HmsaError(f"{flag}: names nothing; leave it out for all")
    return names


def _figures(target: str | None, value: Any) -> None:
    if target:
        from .pipeline.figures import write_figures

        write_figures(target, value)


def _say(target: str | None, line: str) -> None:
    """Print for people; beside figures on standard output that is standard error."""
    print(line, file=sys.stderr if target == "-" else sys.stdout)


def _failed(result: str, failed: dict[str, str]) -> None:
    for image, reason in failed.items():
        print(_one_line(f"failed: {result}: {image}: {reason}"), file=sys.stderr)


def _refuse_without_effect(context: typer.Context, why: str, *names: str) -> None:
    """HmsaError if an option was given on the command line whose parameter is one of ``names``."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise HmsaError(f"{parameter.opts[0]}: changes nothing {why}; leave it out")


def _note(line: str) -> None:
    from .pipeline.progress import say

    say(_one_line(f"note: {line}"))


def _one_line(text: str) -> str:
    from .pipeline.documents import one_line

    return one_line(text)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Robust segmentation with an ensemble of HMSA models: dump logits, fuse them, look after them."""
    if version:
        print(f"hmsa-pipeline {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@manifest_app.command("show")
def manifest_show(
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Print it with every default and path filled in.

    Example: hmsa-pipeline manifest show --manifest bravo.yaml
    """
    found = _load(manifest, output, models, datasets, data_root, assets)
    if json_file != "-":
        print(found.to_yaml(), end="")
    _figures(json_file, found.resolved())


@manifest_app.command("check")
def manifest_check(
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Say which checkpoints and images are there and can be used.

    The exit code is 2 if one is missing or wrong.

    Example: hmsa-pipeline manifest check --data-root /data --assets /data/assets
    """
    from .pipeline.inspect import inspect

    found = inspect(_load(manifest, output, models, datasets, data_root, assets))
    for row in found:
        _say(
            json_file,
            f"{row.state:7} {row.kind:8} {row.name}: {row.said}",
        )
    _figures(json_file, [row.as_json() for row in found])
    missing = sum(row.state == "MISSING" for row in found)
    wrong = sum(row.state == "WRONG" for row in found)
    if missing or wrong:
        counts = [f"{number} of {len(found)} are {what}" for number, what in ((missing, "missing"), (wrong, "wrong"))]
        _say(json_file, ", ".join(text for text, number in zip(counts, (missing, wrong), strict=True) if number))
        raise typer.Exit(2)


@manifest_app.command("fields")
def manifest_fields() -> None:
    """Print what a manifest can say: every field, what it takes, and what it means, as Markdown.

    Example: hmsa-pipeline manifest fields
    """
    from .pipeline.manifest_fields import manifest_fields as fields

    print(fields(), end="")


def _load(
    manifest: str,
    output: str | None,
    models: str | None,
    datasets: str | None,
    data_root: Path | None = None,
    assets: Path | None = None,
    **overrides: Any,
) -> Manifest:
    from .pipeline.manifest import load_manifest
    from .pipeline.places import require_no_file

    found = load_manifest(
        manifest,
        output=output,
        data_root=data_root,
        assets=assets,
        models=_names("--models", models),
        datasets=_names("--datasets", datasets),
        overrides=overrides,
    )
    require_no_file(found.output)
    return found


@app.command()
def dump(
    context: typer.Context,
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    device: DevicesOption = "auto",
    precision: PrecisionOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    image_timeout: PatienceOption = 1800.0,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Store every model's logits over every dataset.

    Complete images are skipped, so the same command goes on after an interruption.

    Example: hmsa-pipeline dump --manifest bravo.yaml --data-root /data --assets /data/assets
    """
    found = _load(manifest, output, models, datasets, data_root, assets, inference={"precision": precision})
    from .pipeline.dump import run_dump, table
    from .pipeline.plan import plan_dump
    from .pipeline.schedule import hire

    if workers == 0:
        _refuse_without_effect(
            context, "with --workers 0: nobody is there to end a process that hangs", "image_timeout"
        )
    crew, target, threads = hire(device, workers=workers, scheduler=scheduler)
    try:
        plan = plan_dump(found, device=target, limit=limit, overwrite=overwrite)
        for note in plan.notes:
            print(note, file=sys.stderr)
        if dry_run:
            for line in plan.lines(crew.describe()):
                _say(json_file, line)
            _figures(json_file, plan.as_json())
            return
        results = run_dump(
            plan,
            crew,
            lambda result: _worked(result.job.name, result, json_file),
            patience=image_timeout,
            threads=threads,
        )
    finally:
        crew.close()
    if sum(bool(r.done or r.failed) for r in results) > 1:
        for line in table(results):
            _say(json_file, line)
    _conclude(
        results,
        plan.todo,
        json_file,
        nothing="images are complete",
        done="dumped",
        before="complete before",
        where=f"stores: {found.output}/logits",
        works=f"{len(plan.jobs)} jobs",
    )


def _conclude(
    results: Sequence[JobResult] | Sequence[Predicted],
    todo: int,
    json_file: str | None,
    *,
    nothing: str,
    done: str,
    before: str,
    where: str,
    works: str,
) -> None:
    """Say what became of all jobs together, and end with the exit code that says it too."""
    from .pipeline.dump import limited_by

    _figures(json_file, [r.as_json() for r in results])
    made, failed = sum(r.done for r in results), sum(len(r.failed) for r in results)
    skipped = sum(r.skipped for r in results)
    problems = sum(r.problem is not None for r in results)
    if not made and not failed and not problems and not todo:
        _say(json_file, f"nothing to do: all {skipped} {nothing}")
    else:
        _say(json_file, f"{made} images {done}, {skipped} {before}, {failed} failed; {where}")
        if line := limited_by(r.times for r in results):
            _say(json_file, line)
    if problems:
        _say(json_file, f"{problems} of {works} could not be done")
    if failed + problems:
        _say_again(json_file)
    _finish(any(r.interrupted for r in results), failed + problems)


def _worked(name: str, result: JobResult | Predicted, json_file: str | None) -> None:
    """What became of one job, when it ends."""
    _failed(name, result.failed)
    if result.problem:
        print(_one_line(f"failed: {name}: {result.problem}"), file=sys.stderr)
    from .pipeline.predictor import IN_TILES, SCALE_BY_SCALE, WITHOUT_COMPILE

    ways = list(result.fallbacks.values())
    if parts := sum(SCALE_BY_SCALE in way or IN_TILES in way for way in ways):
        print(
            f"{name}: {parts} images did not fit into the device's memory at once and were made "
            "in parts; run.json lists them",
            file=sys.stderr,
        )
    if uncompiled := sum(WITHOUT_COMPILE in way for way in ways):
        print(f"{name}: {uncompiled} images were made {WITHOUT_COMPILE}; run.json lists them", file=sys.stderr)
    if result.done or result.failed:
        _say(
            json_file,
            f"{name}: {result.done} done, {result.skipped} complete before, {len(result.failed)} failed, "
            f"{result.seconds:.1f} s",
        )


def _say_again(json_file: str | None) -> None:
    """The command that tries again what failed, and skips what is complete."""
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    _say(json_file, f"to try again what failed: {shlex.join(['hmsa-pipeline', *words])}")


def _finish(interrupted: bool, failed: int) -> None:
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        raise typer.Exit(1)


@app.command()
def predict(
    context: typer.Context,
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="A,B", help="Store the logits of these models, too.")
    ] = None,
    device: DevicesOption = "auto",
    precision: PrecisionOption = None,
    label: LabelOption = None,
    confidence: ConfidenceOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    image_timeout: PatienceOption = 1800.0,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Predict class maps and confidences at once, without logits on the disk.

    The result is that of dump and ensemble, and complete images are skipped too; but to fuse in another way, to
    calibrate or to score the members, the networks have to run again.

    Example: hmsa-pipeline predict --manifest bravo.yaml --keep cityscapes
    """
    found = _load(
        manifest,
        output,
        models,
        datasets,
        data_root,
        assets,
        inference={"precision": precision},
        ensemble={"label": label, "confidence": confidence},
    )
    from .pipeline.predict import plan_predict, run_predict
    from .pipeline.schedule import hire

    if workers == 0:
        _refuse_without_effect(
            context, "with --workers 0: nobody is there to end a process that hangs", "image_timeout"
        )
    crew, target, threads = hire(device, workers=workers, scheduler=scheduler)
    try:
        plan = plan_predict(found, device=target, limit=limit, overwrite=overwrite, keep=_names("--keep", keep) or ())
        for note in plan.notes:
            print(note, file=sys.stderr)
        if dry_run:
            for line in plan.lines(crew.describe()):
                _say(json_file, line)
            _figures(json_file, plan.as_json())
            return
        results = run_predict(
            plan,
            crew,
            lambda result: _worked(result.dataset, result, json_file),
            patience=image_timeout,
            threads=threads,
        )
    finally:
        crew.close()
    _conclude(
        results,
        plan.todo,
        json_file,
        nothing="predictions are there",
        done="predicted",
        before="done before",
        where=f"{found.output}/predictions",
        works=f"{len(plan.predictions)} datasets",
    )


@app.command()
def ensemble(
    context: typer.Context,
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    label: LabelOption = None,
    confidence: ConfidenceOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Fuse images that some members lack from the others.")
    ] = False,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    image_timeout: PatienceOption = 1800.0,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Fuse stored logits into class maps and confidences.

    Example: hmsa-pipeline ensemble --manifest bravo.yaml --confidence entropy --output runs/entropy
    """
    found = _load(
        manifest, output, models, datasets, data_root, assets, ensemble={"label": label, "confidence": confidence}
    )
    from .pipeline.ensemble import plan_ensemble, run_ensemble
    from .pipeline.schedule import hire

    if workers == 0:
        _refuse_without_effect(
            context, "with --workers 0: nobody is there to end a process that hangs", "image_timeout"
        )
    plans = plan_ensemble(found, limit=limit, overwrite=overwrite, allow_missing=allow_missing)
    if dry_run:
        for plan in plans:
            _say(
                json_file,
                f"{plan.dataset}: {len(plan.tasks)} to fuse, {plan.skipped} done before, "
                f"{len(plan.absent)} in no store",
            )
        _figures(json_file, [{"dataset": p.dataset, "todo": len(p.tasks), "skipped": p.skipped} for p in plans])
        return

    def ended(result: FusionResult) -> None:
        _failed(result.dataset, result.failed)
        if result.partial:
            print(
                f"{result.dataset}: {result.partial} images are fused from fewer than all members",
                file=sys.stderr,
            )
        if result.done or result.failed:
            _say(
                json_file,
                f"{result.dataset}: {result.done} fused, {result.skipped} done before, "
                f"{len(result.failed)} failed, {result.seconds:.1f} s",
            )

    crew, _, _ = hire("cpu", workers=workers, scheduler=scheduler, needs_gpu=False)
    try:
        results = run_ensemble(found, plans, crew, ended, overwrite=overwrite, patience=image_timeout)
    finally:
        crew.close()
    done, failed = sum(r.done for r in results), sum(len(r.failed) for r in results)
    skipped = sum(r.skipped for r in results)
    _figures(
        json_file,
        [
            {
                "dataset": r.dataset,
                "done": r.done,
                "skipped": r.skipped,
                "partial": r.partial,
                "failed": r.failed,
                "seconds": r.seconds,
            }
            for r in results
        ],
    )
    if not done and not failed and skipped:
        _say(json_file, f"nothing to do: all {skipped} predictions are there")
    else:
        _say(
            json_file,
            f"{done} images fused, {skipped} done before, {failed} failed; {found.output}/predictions",
        )
    _finish(any(r.interrupted for r in results), failed)


@app.command()
def evaluate(
    context: typer.Context,
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="DIR",
            parser=_folder("--predictions"),
            help="A tree of _pred.png and _conf.png; ours if left out.",
        ),
    ] = None,
    per_model: Annotated[bool, typer.Option("--per-model", help="Score each member from its store, too.")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Score the ensemble without each member, from the stores, too.")
    ] = False,
    limit: LimitOption = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=512, metavar="N", help="Processes that read and count.")
    ] = None,
    average: AverageOption = "dataset",
    json_file: JsonOption = None,
    csv_file: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", callback=_figures_file, help="Write a row for each subject there."),
    ] = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            "--ground-truth",
            metavar="TAR",
            parser=_folder("--ground-truth"),
            help="BRAVO's ground truth: score BRAVO instead.",
        ),
    ] = None,
    samples: SamplesOption = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            "--submission", metavar="TAR", parser=_folder("--submission"), help="Score this submission to BRAVO."
        ),
    ] = None,
    allow_unlabelled: UnlabelledOption = False,
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
    if ground_truth is not None or submission is not None:
        others = {"--limit": limit, "--csv": csv_file, "--processes": processes, UNLABELLED: allow_unlabelled}
        if wrong := [name for name, value in others.items() if value]:
            raise HmsaError(f"{wrong[0]}: does not go with BRAVO's tar files; leave it out")
        if average != "dataset":
            raise HmsaError(f"--average {average}: BRAVO's figures have the challenge's own average; leave it out")
        if ground_truth is None or samples is None:
            raise HmsaError("--ground-truth and --samples: BRAVO's figures need both tar files; name them")
        if submission is not None and predictions is not None:
            raise HmsaError("--submission, --predictions: name one of them")
        if submission is not None and (per_model or leave_one_out):
            raise HmsaError("--submission: holds no members; leave --per-model and --leave-one-out out")
        if submission is not None:
            everything = ("output", "models", "datasets", "data_root", "assets")
            _refuse_without_effect(context, "beside --submission", *everything)
        elif not (per_model or leave_one_out):
            _refuse_without_effect(context, "without --per-model or --leave-one-out", "models")
            _refuse_without_effect(context, "beside --ground-truth, which names the datasets", "datasets")
            if predictions is not None:
                _refuse_without_effect(context, "beside --predictions", "output", "data_root", "assets")
        from .pipeline.bravo_scores import score_members, score_predictions, score_submission
        from .pipeline.members import subjects_of, weighed

        if submission is not None:
            _say_bravo(score_submission(ground_truth, samples, submission), json_file)
            return
        if predictions is not None and not (per_model or leave_one_out):
            _say_bravo(score_predictions(ground_truth, samples, predictions), json_file)
            return
        read = _load(manifest, output, models, datasets, data_root, assets)
        folder = predictions or _predictions(read)
        if per_model or leave_one_out:
            subjects = subjects_of(weighed(read), per_model=per_model, leave_one_out=leave_one_out)
            _say_members(score_members(ground_truth, samples, folder, read, subjects), json_file)
        else:
            _say_bravo(score_predictions(ground_truth, samples, folder), json_file)
        return
    if samples is not None:
        raise HmsaError("--samples: belongs to --ground-truth; name both, or leave it out")
    if not (per_model or leave_one_out):
        _refuse_without_effect(context, "without --per-model or --leave-one-out", "models")
        if predictions is not None:
            _refuse_without_effect(context, "beside --predictions", "output")
    from .pipeline.evaluate import evaluate as score
    from .pipeline.evaluate import plan_evaluation, rows, table
    from .pipeline.figures import write_rows

    found = _load(manifest, output, models, datasets, data_root, assets)
    plans = plan_evaluation(
        found,
        predictions=predictions,
        per_model=per_model,
        leave_one_out=leave_one_out,
        limit=limit,
        average=_average(average),
        allow_unlabelled=allow_unlabelled,
    )
    results = []
    for plan in plans:
        if note := plan.note:
            typer.echo(f"note: {note}", err=True)
        result = score(plan, processes)
        results.append(result)
        _failed(result.dataset, result.failed)
        for line in table(result):
            _say(json_file, line)
    _figures(json_file, [result.as_json() for result in results])
    if csv_file:
        write_rows(csv_file, rows(results), "--csv")
    _finish(False, sum(len(result.failed) for result in results))


@app.command()
def calibrate(
    write: Annotated[
        Path, typer.Option("--write", metavar="FILE", parser=_folder("--write"), help="The manifest to write.")
    ],
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    weights: Annotated[bool, typer.Option("--weights", help="Fit the members' weights, too.")] = False,
    pixels: Annotated[
        int, typer.Option("--pixels", min=1, metavar="N", help="Labelled pixels to look at, over all images.")
    ] = 400_000,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the pixels and of the halves.")] = 0,
    limit: LimitOption = None,
    average: AverageOption = "dataset",
    json_file: JsonOption = None,
) -> None:
    """Fit a temperature to each member, from stored logits and labels.

    Half of the labelled images are fitted to, the others say what it is worth. Writes the manifest again, with
    the numbers in it.

    Example: hmsa-pipeline calibrate --manifest cityscapes --write calibrated.yaml
    """
    from .errors import disk_error
    from .files import write_text
    from .pipeline.calibrate import calibrate as fit
    from .pipeline.calibrate import calibrated_manifest, plan_calibration, table
    from .pipeline.figures import require_target

    require_target(str(write), "--write")
    if write.exists() and Path(manifest).exists() and write.samefile(manifest):
        raise HmsaError(f"--write {write}: is the manifest that is read, which would be lost; name another file")
    found = _load(manifest, output, models, datasets, data_root, assets)
    images = plan_calibration(found, limit=limit, average=_average(average))
    result = fit(found, images, pixels=pixels, seed=seed, weights=weights)
    try:
        write_text(write, calibrated_manifest(found, result).to_yaml())
    except OSError as error:
        raise disk_error(write, error) from error
    for line in table(result, write):
        _say(json_file, line)
    _figures(json_file, result.as_json())


@app.command()
def render(
    write: Annotated[
        Path, typer.Option("--write", metavar="DIR", parser=_folder("--write"), help="Where the pictures go.")
    ],
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="A,B", help="Of colour, overlay, confidence and sheet.")
    ] = "colour,overlay,confidence",
    opacity: Annotated[
        float, typer.Option("--opacity", min=0.0, max=1.0, metavar="X", help="Of the classes over the photograph.")
    ] = 0.5,
    width: Annotated[
        int | None, typer.Option("--width", min=1, metavar="PIXELS", help="Reduce pictures to this width.")
    ] = None,
    limit: LimitOption = None,
    json_file: JsonOption = None,
) -> None:
    """Draw predictions for people: classes in colour, over the photograph, and the confidence.

    A sheet has the photograph, what each member says, the ensemble and its confidence; it needs the logits.

    Example: hmsa-pipeline render --manifest bravo.yaml --datasets bravo_ACDC --limit 20 --write slides
    """
    from .errors import nearest
    from .pipeline.figures import require_folder
    from .pipeline.render import KINDS, plan_rendering
    from .pipeline.render import render as draw

    wanted = _names("--kinds", kinds) or []
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise HmsaError(f"--kinds {unknown[0]}: is no kind of picture; {nearest(unknown[0], KINDS)}")
    require_folder(write, "--write")
    found = _load(manifest, output, None, datasets, data_root, assets)
    plans = plan_rendering(found, write, wanted, opacity=opacity, width=width, limit=limit)
    results = [draw(plan) for plan in plans]
    for result in results:
        _failed(result.dataset, result.failed)
    _figures(json_file, [result.as_json() for result in results])
    failed = sum(len(result.failed) for result in results)
    _say(json_file, f"{sum(result.pictures for result in results)} pictures, {failed} images failed; {write}")
    _finish(False, failed)


@app.command()
def report(
    context: typer.Context,
    write: Annotated[
        Path, typer.Option("--write", metavar="DIR", parser=_folder("--write"), help="Where the report goes.")
    ],
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    no_members: Annotated[
        bool, typer.Option("--no-members", help="Look at the predictions only, not at every member's logits.")
    ] = False,
    width: Annotated[
        int, typer.Option("--width", min=64, metavar="PIXELS", help="Pictures are reduced to this width.")
    ] = 1024,
    limit: LimitOption = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=512, metavar="N", help="Processes that read and draw.")
    ] = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            "--ground-truth",
            metavar="TAR",
            parser=_folder("--ground-truth"),
            help="BRAVO's ground truth, for its datasets.",
        ),
    ] = None,
    average: AverageOption = "dataset",
    json_file: JsonOption = None,
) -> None:
    """Make a folder of pages that shows what the ensemble is worth; open its index.html.

    Figures of the ensemble and of every member, plots, how much members contradict one another, and a gallery: worst
    images first, with labels where there are some. Run it again and only what changed is made again.

    Example: hmsa-pipeline report --manifest cityscapes --write report
    """
    from .pipeline.figures import require_folder
    from .pipeline.report import PAGE, plan_report
    from .pipeline.report import report as make

    if no_members:
        _refuse_without_effect(context, "beside --no-members", "models")
    require_folder(write, "--write")
    found = _load(manifest, output, models, datasets, data_root, assets)
    chapters = plan_report(
        found,
        write,
        members=not no_members,
        width=width,
        limit=limit,
        ground_truth=ground_truth,
        average=_average(average),
    )
    results = make(chapters, found, processes)
    for result in results:
        _failed(result.dataset, result.failed)
    _figures(json_file, [result.as_json() for result in results])
    failed = sum(len(result.failed) for result in results)
    _say(json_file, f"{sum(len(result.cards) for result in results)} images, {failed} failed; {write / PAGE}")
    _finish(False, failed)


def _average(name: str) -> str:
    """One of `averages.AVERAGES`; HmsaError if it is none."""
    from .errors import nearest
    from .pipeline.averages import AVERAGES

    if name not in AVERAGES:
        raise HmsaError(f"--average {name}: is no average; {nearest(name, AVERAGES)}")
    return name


def _predictions(manifest: Manifest) -> Path:
    from .pipeline.survey import PREDICTIONS

    return manifest.output / PREDICTIONS


def _say_bravo(scores: BravoScores, json_file: str | None) -> None:
    from .pipeline.bravo_scores import table
    from .pipeline.metrics import defined

    _failed("BRAVO", scores.failed)
    for line in table(scores):
        _say(json_file, line)
    _figures(json_file, defined(scores.figures))
    _finish(False, len(scores.failed))


def _say_members(scores: dict[str, BravoScores], json_file: str | None) -> None:
    from .pipeline.bravo_scores import comparison
    from .pipeline.metrics import defined

    failed = next(iter(scores.values())).failed
    _failed("BRAVO", failed)
    for line in comparison(scores):
        _say(json_file, line)
    _figures(json_file, {name: defined(found.figures) for name, found in scores.items()})
    _finish(False, len(failed))


@app.command()
def submit(
    context: typer.Context,
    manifest: ManifestOption = "bravo.yaml",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PLACE",
            parser=_folder("--output"),
            help="What to write: the tar file of BRAVO; a .zip file or a folder for the others.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="NAME", help="bravo, cityscapes, acdc, wilddash or smiyc: who is to read it."
        ),
    ] = "bravo",
    datasets: Annotated[
        str | None,
        typer.Option("--datasets", metavar="NAME", help="Which dataset of the manifest; for all formats but bravo."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="NAME", help="For smiyc: the name of your method; hmsa-pipeline if not given."
        ),
    ] = None,
    samples: SamplesOption = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="DIR",
            parser=_folder("--predictions"),
            help="Predictions of the dataset (of bravo: holds bravo_ACDC/...); the manifest's if left out.",
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="PLACE",
            parser=_folder("--check"),
            help="Decode this submission instead, and say what is wrong.",
        ),
    ] = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write predictions as a benchmark takes them, or check what was written.

    bravo: the tar file of the BRAVO challenge, with every image of its sampling file. cityscapes: PNGs of label ids,
    which evalPixelLevelSemanticLabeling reads, too. acdc: PNGs of train ids. wilddash: PNGs of WildDash's label ids.
    smiyc: an HDF5 file of anomaly scores for each image.

    Every image must be predicted, or nothing is written. The same predictions give the same bytes.

    Example: hmsa-pipeline submit --samples bravo_SAMPLING.tar --output submission.tar

    Example: hmsa-pipeline submit --manifest cityscapes --format cityscapes --output results.zip

    Example: hmsa-pipeline submit --manifest cityscapes --format cityscapes --check results.zip
    """
    from dataclasses import asdict

    from .errors import nearest
    from .pipeline.submission import check_submission
    from .pipeline.submission import submit as write
    from .pipeline.upload_formats import BRAVO, FORMATS

    if form not in FORMATS:
        raise HmsaError(f"--format: there is no {form!r}; {nearest(form, FORMATS)}")
    if check is not None and (output is not None or predictions is not None):
        raise HmsaError("--check: nothing is written; leave --output and --predictions out")
    if method is not None and form != "smiyc":
        raise HmsaError("--method: belongs to --format smiyc; leave it out")
    if form != BRAVO:
        if samples is not None:
            raise HmsaError(f"--samples: belongs to BRAVO, not to --format {form}; leave it out")
        found = _load(manifest, None, None, datasets, data_root, assets)
        _submit_to(found, form, method, output, predictions, check, json_file)
        return
    if datasets is not None:
        raise HmsaError(
            "--datasets: the sampling file says what BRAVO takes; leave it out, or name another --format, of "
            f"{', '.join(name for name in FORMATS if name != BRAVO)}"
        )
    if check is not None or predictions is not None:
        why = "beside --check" if check is not None else "beside --predictions"
        _refuse_without_effect(context, why, "data_root", "assets")
    if check is not None:
        looked = check_submission(check, samples)
        _failed(check.name, looked.wrong)
        missing = looked.missing or []
        _failed(check.name, dict.fromkeys(missing, "is missing"))
        for warning in looked.warnings:
            print(f"warning: {check.name}: {warning}", file=sys.stderr)
        _figures(json_file, asdict(looked))
        held = "" if samples else "; name --samples to hold it against the images that are called for"
        _say(json_file, f"{looked.images} images are sound, {len(looked.wrong)} wrong, {len(missing)} missing{held}")
        _finish(False, len(looked.wrong) + len(missing))
        return
    if output is None or samples is None:
        raise HmsaError("--samples, --output: name the challenge's sampling file and the tar file to write")
    if ":/" in str(output):
        place = str(output).replace(":/", "://", 1)  # a path has no two slashes
        raise HmsaError(f"--output: {place} is a URL; name a tar file on a disk, and upload that")
    folder = predictions or _predictions(_load(manifest, None, None, None, data_root, assets))
    result = write(folder, samples, output)
    _say_packed("submission", result, output, json_file)


def _say_packed(what: str, result: Packed, output: Path, json_file: str | None) -> None:
    from dataclasses import asdict

    from .pipeline.figures import as_size

    _failed(what, result.failed)
    _figures(json_file, asdict(result))
    if result.failed:
        _say(json_file, f"{len(result.failed)} images cannot be used, and nothing was written")
    else:
        _say(json_file, f"{result.images} images, {as_size(result.bytes)}: {output}")
    _finish(False, len(result.failed))


def _submit_to(
    manifest: Manifest,
    form: str,
    method: str | None,
    output: Path | None,
    predictions: Path | None,
    check: Path | None,
    json_file: str | None,
) -> None:
    """Write for a benchmark other than BRAVO, or check what was written for it."""
    from dataclasses import asdict

    from .pipeline.upload import check_upload, plan_upload, write_upload
    from .pipeline.upload_formats import upload_format

    if check is None and output is None:
        raise HmsaError("--output: name the .zip file or the folder to write")
    plan = plan_upload(manifest, upload_format(form, method), predictions)
    if check is not None:
        looked = check_upload(plan, check)
        _failed(check.name, looked.wrong)
        _failed(check.name, dict.fromkeys(looked.missing, "is missing"))
        _figures(json_file, asdict(looked))
        _say(
            json_file,
            f"{looked.images} images are sound, {len(looked.wrong)} wrong, {len(looked.missing)} missing; "
            f"{plan.dataset} has {len(plan.files)}",
        )
        _finish(False, len(looked.wrong) + len(looked.missing))
    elif output is not None:
        result = write_upload(plan, output)
        _say_packed(plan.dataset, result, output, json_file)


@app.command()
def status(
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Print how far the stores are.

    Complete / total images, bytes on the disk, and when the last one was written.

    Example: hmsa-pipeline status --output runs/bravo
    """
    from .pipeline.figures import as_size
    from .pipeline.verify import status as states

    found = states(_load(manifest, output, models, datasets, data_root, assets))
    wide = max(len(f"{s.dataset}/{s.model}") for s in found)
    for s in found:
        what = s.problem or (
            f"{s.complete:6} / {s.total:<6} {as_size(s.bytes):>9}  {s.written or 'never'}"
            if s.total
            else "no store yet"
        )
        _say(json_file, f"{s.dataset + '/' + s.model:{wide}}  {what}")
    _figures(json_file, [s.as_json() for s in found])


@app.command()
def verify(
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    models: ModelsOption = None,
    datasets: DatasetsOption = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damaged shards aside, so that they are made again.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Read every stored image and list what is damaged.

    Checksums must hold and values be finite; a read error of the disk is no damage.

    Example: hmsa-pipeline verify --repair && hmsa-pipeline dump
    """
    from .pipeline.verify import verify as read_all

    found = read_all(_load(manifest, output, models, datasets, data_root, assets), repair=repair)
    for result in found:
        name = f"{result.dataset}/{result.model}"
        if result.problem:
            print(_one_line(f"unreadable: {name}: {result.problem}"), file=sys.stderr)
        for image, reason in result.damaged.items():
            print(_one_line(f"damaged: {name}: {image}: {reason}"), file=sys.stderr)
        for image, reason in result.unreadable.items():
            print(_one_line(f"unreadable: {name}: {image}: {reason}"), file=sys.stderr)
    damaged, unreadable = sum(len(r.damaged) for r in found), sum(len(r.unreadable) for r in found)
    problems = sum(r.problem is not None for r in found)
    moved = sum(r.moved for r in found)
    _figures(json_file, [r.as_json() for r in found])
    line = f"{sum(r.sound for r in found)} images are sound, {damaged} damaged, {unreadable} unreadable"
    if problems:
        line += f", {problems} stores cannot be read"
    _say(json_file, f"{line}; {moved} moved aside" if repair else line)
    _finish(False, damaged - moved + unreadable + problems)


@app.command("import-logits")
def import_logits(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=_folder("FOLDER"), help="Tree of <image path>_logits.npz files."),
    ],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The member (arch: external) to fill.")],
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="The dataset they were made of.")],
    manifest: ManifestOption = "bravo.yaml",
    output: OutputOption = None,
    limit: LimitOption = None,
    channels: Annotated[
        str | None,
        typer.Option("--channels", metavar="LIST", help="Which channels are the classes, such as 0-18."),
    ] = None,
    data_root: DataRootOption = None,
    assets: AssetsOption = None,
    overwrite: OverwriteOption = False,
    json_file: JsonOption = None,
) -> None:
    """Fill a member's store with logits made elsewhere.

    FOLDER holds <image path without suffix>_logits.npz, each with float16 logits (C, H, W).

    Example: hmsa-pipeline import-logits --manifest my.yaml --model segformer --dataset bravo_ACDC logits/
    """
    found = _load(manifest, output, None, None, data_root, assets)
    from .pipeline.import_logits import import_logits as fill
    from .pipeline.import_logits import parse_channels

    result = fill(
        found,
        model,
        dataset,
        folder,
        channels=None if channels is None else parse_channels(channels),
        limit=limit,
        overwrite=overwrite,
    )
    _failed(f"{dataset}/{model}", result.failed)
    if result.extra:
        print(f"{folder}: {result.extra} files belong to no photograph of {dataset}", file=sys.stderr)
    if not result.done and not result.failed:
        _say(json_file, f"nothing to do: all {result.skipped} images are complete")
    else:
        _say(
            json_file,
            f"{result.done} images imported, {result.skipped} complete before, {len(result.failed)} failed",
        )
    _figures(json_file, {"done": result.done, "skipped": result.skipped, "failed": result.failed})
    _finish(result.interrupted, len(result.failed))


@app.command()
def train(
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="Follow the shipped recipe of this dataset."),
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option("--manifest", "-m", metavar="FILE", help="A recipe, or the bare name of a shipped one."),
    ] = None,
    output: OutputOption = None,
    data_root: DataRootOption = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", metavar="DIR", parser=_folder("--root"), help="The dataset's own folder, over --data-root."
        ),
    ] = None,
    assets: AssetsOption = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", parser=_folder("--cache"), help="What is made of the masks once; can be shared."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N images of each split.")
    ] = None,
    device: DeviceOption = "auto",
    gpus: Annotated[
        int,
        typer.Option("--gpus", min=1, metavar="N", help="GPUs of this machine; with --device cpu, processes."),
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that lies in the output, if there is one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run that lies in the output, and start over.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="FILE", help="Checkpoint to start from; 'random' for none."),
    ] = None,
    arch: Annotated[str | None, typer.Option("--arch", metavar="NAME", help="Architecture.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", help="Epochs.")] = None,
    global_batch: Annotated[
        int | None, typer.Option("--global-batch", metavar="N", help="Images per step, over all GPUs.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Images on a GPU at once.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", metavar="X", help="Learning rate of the first epoch.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", metavar="NAME", help="sgd or adamw.")] = None,
    crop_size: Annotated[
        str | None, typer.Option("--crop-size", metavar="HxW", help="What the network sees, in pixels.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option("--loss", metavar="NAME", help="rmi, cross_entropy or image_weighted.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of all that is random.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", metavar="NAME", help="fp16, bf16 or fp32.")] = None,
    batch_norm: Annotated[
        str | None, typer.Option("--batch-norm", metavar="NAME", help="sync, local or frozen.")
    ] = None,
    activation_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--activation-checkpointing/--no-activation-checkpointing", help="Less memory for more time, or not."
        ),
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the network, or not.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that read images, per GPU.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other value of the recipe; may be given again."),
    ] = None,
    allow_unlabelled: UnlabelledOption = False,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Train a member.

    Follows a recipe; every value in it can be changed here. What it saves as best_weights.pth, dump loads.

    Example: hmsa-pipeline train --dataset gta5 --data-root /data --assets /data/assets --gpus 2
    """
    from .pipeline.recipe import load_recipe, parse_size, recipe_of

    if (dataset is None) == (manifest is None):
        raise HmsaError("train: give --dataset NAME, or --manifest FILE with a recipe of your own")
    recipe = load_recipe(
        recipe_of(dataset) if dataset is not None else str(manifest),
        output=output,
        data_root=data_root,
        assets=assets,
        root=root,
        cache=cache,
        init=init,
        settings=settings or [],
        overrides={
            "arch": arch,
            "epochs": epochs,
            "global_batch": global_batch,
            "batch_size": batch_size,
            "seed": seed,
            "precision": precision,
            "batch_norm": batch_norm,
            "activation_checkpointing": activation_checkpointing,
            "compile": compiled,
            "workers": workers,
            "data": {"limit": limit, "allow_unlabelled": allow_unlabelled or None},
            "augmentation": {"crop": None if crop_size is None else parse_size(crop_size)},
            "loss": {"criterion": loss},
            "optimizer": {"lr": lr, "name": optimizer},
        },
    )
    from .pipeline.ranks import Ranks, launch
    from .pipeline.train_plan import plan_training

    started = Ranks.of_environment()
    ranks = started or Ranks(world=gpus)
    if not ranks.first:
        _be_quiet()
    plan = plan_training(
        recipe, device=device, processes=ranks.world, ranks=started, resume=resume, overwrite=overwrite
    )
    if ranks.first and (gpus == 1 or started or dry_run):
        for note in plan.notes:
            print(note, file=sys.stderr)
        for line in () if plan.finished else plan.summary():
            _say(json_file, line)
    if dry_run or plan.finished:
        if plan.finished:
            _say(json_file, f"nothing to do: all {recipe.epochs} epochs are trained; {recipe.output}")
        _figures(json_file, plan.saved.position.history if plan.saved else [])
        return
    if gpus > 1 and not started:
        raise SystemExit(launch(sys.argv[1:], gpus))
    from .pipeline.journal import iou_table
    from .pipeline.train import run_training

    def ended(row: dict[str, Any]) -> None:
        line = f"epoch {row['epoch']}/{recipe.epochs}: loss {row['loss']['total']:.3f}, {row['seconds']:.1f} s"
        if row["images_per_second"]:
            line += f", {row['images_per_second']:.2f} images/s"
        if row["mean_iou"] is not None:
            line += f", mIoU {100 * row['mean_iou']:.1f} %{' (best so far)' if row['best'] else ''}"
            line += f"\n{iou_table([*row['iou'].values()], row['mean_iou'], row['mean_iou_classes'])}"
        _say(json_file, line)

    result = run_training(plan, ranks, ended)
    if not ranks.first:
        raise SystemExit(INTERRUPTED if result.interrupted else 0)
    _figures(json_file, result.position.history)
    if not result.interrupted:
        _say(json_file, f"trained: {result.output / 'best_weights.pth'}, the best of {recipe.epochs} epochs")
    _finish(result.interrupted, 0)


def _be_quiet() -> None:
    """Of several processes that do the same, one speaks; what goes wrong in the others is still heard."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  until the process ends


@datasets_app.command("list")
def datasets_list(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which ones; all if none is named.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Say where to get each dataset and how its folder must look.

    Example: hmsa-pipeline datasets list gta5
    """
    from .pipeline.dataset_guide import guide, guide_figures, known_sources

    found = known_sources(names or [])
    for facts in found:
        _say(json_file, "\n".join([*guide(facts), ""]))
    _figures(json_file, [guide_figures(facts) for facts in found])


@datasets_app.command("check")
def datasets_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which dataset; 'datasets list' knows them.")],
    data_root: DataRootOption = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", metavar="DIR", parser=_folder("--root"), help="The dataset's own folder, over --data-root."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Only this split; else all that have masks.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N images of each split.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", parser=_folder("--output"), help="Where figures and pictures go."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Processes that read; one per core if not given."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Read a dataset once and say what is wrong with it.

    Counts images, masks, sizes and classes. Writes check.json, classes.png and contact_sheet.png into the output
    (runs/datasets/NAME). The exit code is 1 if there are problems.

    Example: hmsa-pipeline datasets check gta5 --data-root /data
    """
    from .pipeline.dataset_check import plan_check, run_check

    plan = plan_check(name, data_root=data_root, root=root, split=split, limit=limit, output=output, workers=workers)
    report = run_check(plan)
    for line in report.summary():
        _say(json_file, line)
    for problem in report.problems:
        print(_one_line(f"problem: {problem}"), file=sys.stderr)
    _say(json_file, f"written: {plan.output}")
    _figures(json_file, report.figures())
    _finish(False, len(report.problems))


@datasets_app.command("draw")
def datasets_draw(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which ones; all seven if none is named.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=_folder("--output"),
            help="The data root to draw into; 'drawn' if not given.",
        ),
    ] = None,
    train: Annotated[int, typer.Option("--train", min=1, metavar="N", help="Frames to learn from, of each.")] = 8,
    val: Annotated[int, typer.Option("--val", min=1, metavar="N", help="Frames to score on, of each.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the streets.")] = 0,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Of the frames, in pixels; small ones if not given.")
    ] = None,
    style: Annotated[
        str | None, typer.Option("--style", metavar="NAME", help="One look for all, such as fog, night or tinted.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Draw small datasets in the layouts of the real ones.

    To see training run before anything is fetched.

    Example: hmsa-pipeline datasets draw gta5 --output drawn
    """
    from .pipeline.dataset_guide import draw_sources, frame_size

    drawn = []
    for one in draw_sources(names or [], output, train=train, val=val, seed=seed, size=frame_size(size), style=style):
        _say(json_file, f"drawn: {one.folder}")
        drawn.append(one)
    _say(json_file, "\n".join(["", "to train on them, some seconds each on a CPU:", *(one.command for one in drawn)]))
    _figures(json_file, [{"dataset": d.name, "folder": str(d.folder), "command": d.command} for d in drawn])


@app.command()
def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", parser=_folder("--output"), help="Where everything of the demo goes."
        ),
    ] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of streets and first weights.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small part of everything: to see that it works.")] = False,
) -> None:
    """Take the whole way on drawn streets, in minutes.

    Draws seven schools and an exam, trains a small member in each, then runs dump, ensemble, evaluate, calibrate,
    submit and report. Interrupted, it goes on where it was.

    Example: hmsa-pipeline demo --output demo
    """
    from .pipeline.demo import run_demo

    code = run_demo(output, seed, quick=quick)
    if code:
        raise typer.Exit(code)


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _going_on(words: Sequence[str]) -> str:
    """What becomes of a command that was interrupted."""
    if not {*words[:1]} & {"demo", "dump", "ensemble", "import-logits", "predict", "report", "train"}:
        return "run the same command again"
    again = "again without --overwrite" if "--overwrite" in words else "again"
    if words[0] == "train":
        again = again.replace("again", "with --resume", 1).replace("resume without", "resume and without")
    return f"what is complete is kept; run the same command {again} to go on"


def main() -> None:
    """The entry point: errors in one line, exit codes 0, 1, 2 and 130 as the README says."""
    from .files import tell_limits
    from .pipeline import streams

    streams.prepare()
    tell_limits(_note)
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    try:
        code = typer.main.get_command(app).main(prog_name="hmsa-pipeline", standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()  # what cannot be written is an error like any other, here where it can be said
        sys.exit(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one would put a traceback in place of the line
            signal.signal(number, signal.SIG_IGN)
        print(f"interrupted: {_going_on(sys.argv[1:])}", file=sys.stderr)
        streams.flush()
        # Threads that still hold the disk or the device would delay the end; every file is atomic.
        os._exit(INTERRUPTED)
    except HmsaError as error:
        if debug:
            raise
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {_one_line(place + (error.strerror or str(error)))}; fix that and run again", file=sys.stderr)
        sys.exit(2)
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        print(f"error: {message.rstrip('.')}; see --help", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
