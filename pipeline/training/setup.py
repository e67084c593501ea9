"""Parts of a training run: indexed masks, network, loaders and output folder."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ... import __version__
from ...datasets.class_uniform import CentroidIndex, build_index, without_labels
from ...datasets.dataset_specs import dataset_spec
from ...datasets.labels.label_reader import LabelReader
from ...datasets.segmentation_dataset import SegmentationDataset
from ...datasets.taxonomy import CLASS_NAMES
from ...datasets.transforms import EvalTransform, TrainTransform
from ...errors import DatasetError, first_few
from ...files import write_text
from ...models.activation_checkpointing import recompute_activations
from ...models.hmsa import OCRNet
from ...models.partial_weights import load_initial
from ...models.registry import build
from ..runtime.progress import Progress, say
from .batches import StepSampler, batch_loader, validation_loader
from .log import CHART, HISTORY
from .plan import CHECKPOINTS, WEIGHTS, TrainingPlan
from .processes import TrainingProcess

RECIPE = "recipe.yaml"


def index_masks(plan: TrainingPlan, process: TrainingProcess) -> tuple[LabelReader, CentroidIndex]:
    """A reader of the masks, and where the classes are in those of the training split.

    Every mask of both splits is looked at once, so that what is wrong with one is found before the first step:
    DatasetError if it cannot be read or does not fit, or all masks of a split label nothing.
    """
    cache = plan.recipe.cache_path()
    reader = LabelReader(plan.root, dataset_spec(plan.recipe.data.type).mapped(plan.recipe.data.mapping), cache)
    pairs = [*plan.train, *plan.validation]
    with process.rank_zero_first(), Progress(2 * len(pairs) if process.is_first else 0, "mask") as progress:
        progress.job("masks", len(pairs))
        reader.prepare(pairs, progress.advance)
        learnt, scored = (
            build_index(reader, some, plan.recipe.sampling.tile, cache=cache, advance=progress.advance)
            for some in (plan.train, plan.validation)
        )
    data = plan.recipe.data
    for what, split, some, index in (
        ("learn from", data.train, plan.train, learnt),
        ("score", data.validation, plan.validation, scored),
    ):
        empty = without_labels(reader, some, index)
        masks = first_few([pair.mask for pair in empty])
        if len(empty) == len(some):
            # The region term alone would go down for ever, with nothing learnt.
            raise DatasetError(
                f"{plan.root}: no mask of split '{split}' labels anything ({masks}), so there is nothing to {what}; "
                f"look at them ('hmsa-pipeline datasets check {data.type}') and unpack them again, or take others"
            )
        if empty and process.is_first:
            say(f"masks: {len(empty)} of the {len(some)} of split '{split}' label nothing ({masks})")
    if process.is_first:
        for what, index in (("learn", learnt), ("score", scored)):
            there = set(index.centroids[:, 1].tolist())
            absent = [name for label, name in enumerate(CLASS_NAMES) if label not in there]
            if absent:
                say(f"classes: there is nothing to {what} of {', '.join(absent)}")
    return reader, learnt


def build_network(plan: TrainingPlan, process: TrainingProcess) -> OCRNet:
    """The network on its device, with the weights that the plan names.

    CheckpointError if the initial weights do not fit.
    """
    recipe = plan.recipe
    torch.manual_seed(recipe.seed)
    network = build(recipe.arch)
    if plan.init is not None:
        init = recipe.init
        load_initial(network, plan.init, recipe.arch, fresh=init.fresh, unused=init.unused, prefix=init.prefix)
    if plan.saved is not None:
        network.load_state_dict(plan.saved.weights)
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = recipe.dropout
    if process.world_size > 1 and recipe.batch_norm == "sync":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if recipe.activation_checkpointing:
        recompute_activations(network)
    network.to(plan.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.compile:
        network.compile()
    return network


def wrap_ddp(network: OCRNet, plan: TrainingPlan) -> DistributedDataParallel:
    """The network as several processes train it, whose gradients become the mean of theirs."""
    with warnings.catch_warnings():
        # The name that shall replace broadcast_buffers is not known to all releases that we run with.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            network,
            device_ids=[plan.device.index] if plan.device.type == "cuda" else None,
            # Only what each process counts for itself has to be made equal; the rest already is.
            broadcast_buffers=plan.recipe.batch_norm == "local",
        )


def build_loaders(
    plan: TrainingPlan, process: TrainingProcess, reader: LabelReader, sampler: StepSampler
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Build the loaders of training batches, as ``sampler`` lists them, and of this process' validation images.

    Args:
        plan: of the run.
        process: this process among the others.
        reader: of the masks.
        sampler: lists the batches of this process.
    """
    given, workers = plan.recipe.augmentation, plan.recipe.workers
    augment = given.rand_augment
    transform = TrainTransform(
        given.crop,
        scale=given.scale,
        long_edge=given.long_edge,
        flip=given.flip,
        color_jitter=given.color_jitter,
        gaussian_blur=given.gaussian_blur,
        rand_augment=(augment.operations, augment.magnitude) if augment else None,
    )
    learnt = SegmentationDataset(plan.root, plan.train, reader, transform)
    scored = SegmentationDataset(plan.root, plan.validation, reader, EvalTransform(given.long_edge))
    return (
        batch_loader(learnt, sampler, workers, plan.device),
        validation_loader(scored, process.rank, process.world_size, min(workers, 2), plan.device),
    )


def prepare_output(plan: TrainingPlan) -> None:
    """Remove an older run where that is wanted, and write down the recipe.

    OSError if the folder cannot be written.
    """
    output = plan.recipe.output
    if plan.overwrite:
        for name in (CHECKPOINTS, "tensorboard"):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in (WEIGHTS, HISTORY, CHART):
            (output / name).unlink(missing_ok=True)
    write_text(output / RECIPE, f"# hmsa-pipeline {__version__}\n{plan.recipe.to_yaml()}")
