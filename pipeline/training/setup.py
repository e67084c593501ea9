"""Parts of a training run: indexed masks, network, loaders and output folder."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ... import __version__
from ...datasets.class_set_labels import FOLDER
from ...datasets.class_uniform import CentroidIndex, build_index, without_labels
from ...datasets.labels.label_reader import LabelReader
from ...datasets.labels.mask_reader import MaskReader
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...datasets.segmentation_dataset import MixedDataset, SegmentationDataset
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
from .sources import own_reader

RECIPE = "recipe.yaml"


def index_masks(
    plan: TrainingPlan, process: TrainingProcess
) -> tuple[list[MaskReader], LabelReader, list[CentroidIndex]]:
    """Readers of each source's labels, one of the masks that are scored, and where the classes are in each source.

    All labels are looked at once, so that what is wrong with one is found before the first step: DatasetError if it
    cannot be read or does not fit, or all labels of a source or of the scored split label nothing.
    """
    cache = plan.recipe.cache_path()
    data = plan.recipe.scored
    readers = [source.reader(cache) for source in plan.sources]
    scorer = own_reader(data, plan.root, cache, plan.recipe.class_set)
    looked_at = [
        (reader, f"of split '{source.data.train}'", "learn from", source.data, source.pairs)
        for reader, source in zip(readers, plan.sources, strict=True)
        if source.has_labels
    ]
    looked_at.append((scorer, f"of split '{data.validation}'", "score", data, plan.validation))
    total = sum(len(pairs) for *_, pairs in looked_at)
    indices = []
    with process.rank_zero_first(), Progress(2 * total if process.is_first else 0, "mask") as progress:
        progress.job("masks", total)
        for reader, *_, pairs in looked_at:
            reader.prepare(pairs, progress.advance)
        for reader, *_, pairs in looked_at:
            tile = plan.recipe.sampling.tile
            indices.append(build_index(reader, pairs, tile, cache=cache, advance=progress.advance))
    for (reader, where, what, of, pairs), index in zip(looked_at, indices, strict=True):
        _refuse_empty(reader, pairs, index, where, what, of.type, process)
    if process.is_first:
        learnt = {label for index in indices[:-1] for label in set(index.centroids[:, 1].tolist())}
        for what, there in (("learn", learnt), ("score", set(indices[-1].centroids[:, 1].tolist()))):
            absent = [name for label, name in enumerate(plan.recipe.class_set.names) if label not in there]
            if absent:
                say(f"classes: there is nothing to {what} of {', '.join(absent)}")
    found = iter(indices)
    none = CentroidIndex(np.empty((0, 4), np.int32))
    return readers, scorer, [next(found) if source.has_labels else none for source in plan.sources]


def _refuse_empty(
    reader: MaskReader,
    pairs: list[ImageMaskPair],
    index: CentroidIndex,
    where: str,
    what: str,
    dataset: str,
    process: TrainingProcess,
) -> None:
    """Raise DatasetError if no mask labels anything, and count those that do not."""
    empty = without_labels(reader, pairs, index)
    masks = first_few([pair.mask for pair in empty])
    if len(empty) == len(pairs):
        # The region term alone would go down for ever, with nothing learnt.
        check = "" if dataset == FOLDER else f" ('hmsa-pipeline datasets check {dataset}')"
        fix = (
            f"look at them{check} and unpack them again, or take others"
            if isinstance(reader, LabelReader)
            else "make others with 'hmsa-pipeline autolabel', or lower the threshold"
        )
        raise DatasetError(
            f"{reader.root}: no mask {where} labels anything ({masks}), so there is nothing to {what}; {fix}"
        )
    if empty and process.is_first:
        say(f"masks: {len(empty)} of the {len(pairs)} {where} label nothing ({masks})")


def build_network(plan: TrainingPlan, process: TrainingProcess) -> OCRNet:
    """The network on its device, with the weights that the plan names.

    CheckpointError if the initial weights do not fit.
    """
    recipe = plan.recipe
    torch.manual_seed(recipe.seed)
    network = build(recipe.arch, len(recipe.class_set))
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
    plan: TrainingPlan,
    process: TrainingProcess,
    readers: Sequence[MaskReader],
    scorer: MaskReader,
    sampler: StepSampler,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Build the loaders of training batches, as ``sampler`` lists them, and of this process' validation images.

    Args:
        plan: of the run.
        process: this process among the others.
        readers: of the labels of each source.
        scorer: of the masks that are scored.
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
    settings = plan.recipe.loss.distillation
    confidence = any(source.data.weight_by_confidence for source in plan.sources)
    learnt = MixedDataset(
        [
            SegmentationDataset(
                source.root,
                source.pairs,
                reader,
                transform,
                confidence=confidence,
                soft_targets=settings and (len(plan.recipe.class_set), teachers and teachers.targets(settings)),
            )
            for source, reader, teachers in zip(plan.sources, readers, plan.teachers, strict=True)
        ]
    )
    scored = SegmentationDataset(plan.root, plan.validation, scorer, EvalTransform(given.long_edge))
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
