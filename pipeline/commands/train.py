"""``hmsa-pipeline train``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import HmsaError
from .shared import options
from .shared.options import option, path_option
from .shared.output import INTERRUPTED, Output, end_command


def train(
    dataset: Annotated[str | None, option("--dataset", "NAME", "Follow the shipped recipe of this dataset.")] = None,
    manifest: Annotated[
        str | None, option("--manifest", "FILE", "A recipe, or the bare name of a shipped one.", "-m")
    ] = None,
    output: options.OutputFolder = None,
    data_root: options.DataRoot = None,
    root: options.Root = None,
    assets: options.Assets = None,
    cache: Annotated[
        Path | None, path_option("--cache", "DIR", "What is made of the masks once; can be shared.")
    ] = None,
    limit: options.SplitLimit = None,
    device: Annotated[str, option("--device", "NAME", "auto, cpu, cuda or cuda:N.")] = "auto",
    gpus: Annotated[int, option("--gpus", "N", "GPUs of this machine; with --device cpu, processes.", min=1)] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that lies in the output, if there is one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run that lies in the output, and start over.")
    ] = False,
    init: Annotated[str | None, option("--init", "FILE", "Checkpoint to start from; 'random' for none.")] = None,
    arch: Annotated[str | None, option("--arch", "NAME", "Architecture.")] = None,
    epochs: Annotated[int | None, option("--epochs", "N", "Epochs.")] = None,
    global_batch: Annotated[int | None, option("--global-batch", "N", "Images per step, over all GPUs.")] = None,
    batch_size: Annotated[int | None, option("--batch-size", "N", "Images on a GPU at once.")] = None,
    lr: Annotated[float | None, option("--lr", "X", "Learning rate of the first epoch.")] = None,
    optimizer: Annotated[str | None, option("--optimizer", "NAME", "sgd or adamw.")] = None,
    crop_size: Annotated[str | None, option("--crop-size", "HxW", "What the network sees, in pixels.")] = None,
    loss: Annotated[str | None, option("--loss", "NAME", "rmi, cross_entropy or image_weighted.")] = None,
    seed: Annotated[int | None, option("--seed", "N", "Seed of all random numbers.")] = None,
    precision: Annotated[str | None, option("--precision", "NAME", "fp16, bf16 or fp32.")] = None,
    batch_norm: Annotated[str | None, option("--batch-norm", "NAME", "sync, local or frozen.")] = None,
    activation_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--activation-checkpointing/--no-activation-checkpointing", help="Less memory for more time, or not."
        ),
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the network, or not.")
    ] = None,
    workers: Annotated[int | None, option("--workers", "N", "Processes that read images, per GPU.")] = None,
    settings: Annotated[
        list[str] | None, option("--set", "KEY=VALUE", "Any other value of the recipe; may be given again.")
    ] = None,
    allow_unlabelled: options.Unlabelled = False,
    dry_run: options.DryRun = False,
    json_file: options.Json = None,
) -> None:
    """Train a member.

    Follows a recipe; every value in it can be changed here. What it saves as best_weights.pth, dump loads.

    Example: hmsa-pipeline train --dataset gta5 --data-root /data --assets /data/assets --gpus 2
    """
    from ..config.load_recipe import load_recipe, parse_size, recipe_of

    say = Output(json_file)
    if (dataset is None) == (manifest is None):
        raise HmsaError("train: give --dataset NAME, or --manifest FILE with a recipe of your own")
    crop = None if crop_size is None else parse_size(crop_size, "--crop-size", "1052x1914")
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
            "augmentation": {"crop": crop},
            "loss": {"criterion": loss},
            "optimizer": {"lr": lr, "name": optimizer},
        },
    )
    from ..training.plan import plan_training
    from ..training.processes import TrainingProcess, launch

    started = TrainingProcess.from_environment()
    process = started or TrainingProcess(world_size=gpus)
    if not process.is_first:
        _be_quiet()
    plan = plan_training(
        recipe, device=device, processes=process.world_size, process=started, resume=resume, overwrite=overwrite
    )
    if process.is_first and (gpus == 1 or started or dry_run):
        for note in plan.notes:
            print(note, file=sys.stderr)
        for line in () if plan.is_finished else plan.summary():
            say.line(line)
    if dry_run or plan.is_finished:
        if plan.is_finished:
            say.line(f"nothing to do: all {recipe.epochs} epochs are trained; {recipe.output}")
        say.figures(plan.saved.position.history if plan.saved else [])
        return
    if gpus > 1 and not started:
        raise SystemExit(launch(sys.argv[1:], gpus))
    from ..training.log import iou_table
    from ..training.run import run_training

    def on_epoch(row: dict[str, Any]) -> None:
        line = f"epoch {row['epoch']}/{recipe.epochs}: loss {row['loss']['total']:.3f}, {row['seconds']:.1f} s"
        if row["images_per_second"]:
            line += f", {row['images_per_second']:.2f} images/s"
        if row["mean_iou"] is not None:
            line += f", mIoU {100 * row['mean_iou']:.1f} %{' (best so far)' if row['best'] else ''}"
            line += f"\n{iou_table(row['iou'], row['mean_iou'], row['mean_iou_classes'])}"
        say.line(line)

    result = run_training(plan, process, on_epoch)
    if not process.is_first:
        raise SystemExit(INTERRUPTED if result.interrupted else 0)
    say.figures(result.position.history)
    if not result.interrupted:
        say.line(f"trained: {result.output / 'best_weights.pth'}, the best of {recipe.epochs} epochs")
    end_command(0, interrupted=result.interrupted)


def _be_quiet() -> None:
    """Silence a process that does the same as another one; what goes wrong in it is still heard."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  until the process ends
