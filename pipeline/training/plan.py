"""All that a training run needs, looked at before anything expensive starts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...datasets.layout.folder_layout import located
from ...datasets.layout.image_mask_pairs import ImageMaskPair, refuse_absent, without_masks
from ...errors import CheckpointError, ManifestError, first_few
from ...models.checkpoint import demand_match, demand_numbers, expected_shapes
from ...models.partial_weights import check_initial
from ..config.recipe import Recipe
from ..config.recipe_data import OWN, Data
from ..runtime.device import resolve_device, resolve_precision
from ..storage.writer_lock import require_free
from ..text import plural
from .checkpoint import TrainingCheckpoint, classes_of_saved, read_run, require_same_recipe
from .log import require_extra
from .processes import TrainingProcess
from .soft_targets import Teachers, describe_teachers, find_teachers, identities
from .sources import Source, epoch_plan, find_source, find_split, fingerprint

CHECKPOINTS = "checkpoints"
LAST, BEST = "last.pth", "best.pth"
WEIGHTS = "best_weights.pth"
"""The best network alone, in the published layout."""

_MAY_BE_NEGATIVE = "; its region term is a bound that has no least value: the loss may fall below 0"
_STRIDE = 32  # of the trunk's coarsest branch


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe that can be followed, and what it comes to here.

    Attributes:
        device: of this process.
        precision: the one that is really used.
        world_size: processes that train together.
        sources: what is learnt from, in the recipe's order.
        validation: photographs and masks that are scored.
        teachers: whose logits each source is taught by, None for no one's.
        init: the checkpoint to start from; None for random weights or a run that goes on.
        saved: the run that goes on; None for a new one.
        notes: what the user should know, a line each.
    """

    recipe: Recipe
    device: torch.device
    precision: str
    world_size: int
    sources: tuple[Source, ...]
    validation: list[ImageMaskPair]
    init: Path | None
    saved: TrainingCheckpoint | None
    notes: tuple[str, ...]
    teachers: tuple[Teachers | None, ...]
    overwrite: bool = False

    @property
    def root(self) -> Path:
        """The folder of the dataset that is scored."""
        return self.sources[0].root

    @property
    def epoch_length(self) -> int:
        """Images of an epoch, before they are made up to whole steps."""
        return len(self.sources[0].pairs)

    @property
    def fingerprint(self) -> str:
        """A digest of what is learnt from."""
        return fingerprint(self.sources, identities(self.teachers))

    @property
    def is_finished(self) -> bool:
        """True if the run that would go on is at its end."""
        return self.saved is not None and self.saved.position.epoch >= self.recipe.epochs

    @property
    def accumulation(self) -> int:
        """Batches of each process in a step."""
        return self.recipe.global_batch // (self.world_size * self.recipe.batch_size)

    def summary(self) -> list[str]:
        """Describe the run, a line each."""
        r = self.recipe
        if self.saved is not None:
            at = self.saved.position
            start = f"epoch {at.epoch + 1}, step {at.step}, of the run that lies there"
        else:
            start = str(self.init or f"random weights (seed {r.seed})")
        lines = [*self._data(), f"network: {r.arch}, from {start}"]
        if not r.class_set.is_default:
            lines.append(f"classes: {r.class_set}")
        if self.init is not None and r.init.fresh:
            lines.append(f"fresh:   {', '.join(r.init.fresh)} (from random weights)")
        lines += [
            f"steps:   {r.epochs} epochs, {r.global_batch} images a step = {self.world_size} x {r.batch_size} x "
            f"{self.accumulation} (processes x batch x accumulation), crop {_crop(r)}",
            f"loss:    {r.loss.criterion}{_MAY_BE_NEGATIVE if r.loss.criterion == 'rmi' else ''}",
            *(f"{'' if i else 'teacher:':<8} {line}" for i, line in enumerate(describe_teachers(r, self.teachers))),
            f"machine: {self.device.type}, {self.precision}",
            f"output:  {r.output}",
        ]
        return lines

    def _data(self) -> list[str]:
        """Describe what is learnt from and scored on."""
        scored = f"{len(self.validation)} to score on"
        first = self.sources[0]
        if len(self.sources) == 1:
            images = f"{plural(len(first.pairs), 'image')} to learn from, {scored}"
            labels = "" if first.data.labels == OWN else f"; {first.describe()}"
            return [f"data:    {first.data.type}, {images}; {self.root}{labels}"]
        lines = []
        for number, source in enumerate(self.sources):
            images = f"{plural(len(source.pairs), 'image')} to learn from{f', {scored}' if not number else ''}"
            lines.append(f"data[{number}]: {source.data.type}, {images}; {source.root}; {source.describe()}")
        return [*lines, *(f"{'plan:' if not i else '':<8} {line}" for i, line in enumerate(self._epochs()))]

    def _epochs(self) -> list[str]:
        return epoch_plan(self.recipe, self.sources)


def plan_training(
    recipe: Recipe,
    *,
    device: str = "auto",
    processes: int = 1,
    process: TrainingProcess | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingPlan:
    """Check everything that a training run needs.

    Args:
        recipe: what is to be done.
        device: see `resolve_device`.
        processes: how many will train together.
        process: this process among those that train together; None if they are still to be started.
        resume: go on with the run that lies in the output, if there is one.
        overwrite: remove the run that lies there.

    Raises:
        HmsaError: a package, device, dataset, checkpoint or the output is not as it must be.
    """
    require_extra()
    if resume and overwrite:
        raise ManifestError("--resume goes on with the run that --overwrite removes; give one of them")
    target = _device(recipe, device, processes, process)
    precision, note = resolve_precision(recipe.precision, target)
    _check_batches(recipe, processes)
    _check_memory(recipe, target)
    if process is None or process.is_first:
        _check_writable(recipe.output)
        require_free(recipe.output / CHECKPOINTS)
    _check_twice(recipe.sources)
    sources = tuple(find_source(source, recipe.class_set) for source in recipe.sources)
    data = recipe.scored
    validation, none_either = find_split(data, data.validation, recipe.class_set)
    notes = [note] if note else []
    for number, source in enumerate(sources):
        left_out = sorted({*source.left_out, *(none_either if not number else ())})
        own = source.data
        splits = f"{own.train}' or '{own.validation}" if not number else own.train
        refuse_absent(source.root, splits, set(own.without_masks).difference(left_out))
        if left_out:
            notes.append(without_masks(own.type, left_out))
    scored = {located(sources[0].root, pair.image) for pair in validation}
    if both := scored & {located(source.root, pair.image) for source in sources for pair in source.pairs}:
        notes.append(f"data: {plural(len(both), 'image is', 'images are')} both learnt from and scored on")
    teachers = tuple(find_teachers(recipe, sources, recipe.class_set.names))
    saved = _saved(recipe, sources, teachers, resume, overwrite)
    init = None
    if saved is None:
        notes = [*recipe.notes, *notes]
        init = recipe.init.path()
        if init is not None:
            given = recipe.init
            said = check_initial(
                init,
                recipe.arch,
                fresh=given.fresh,
                unused=given.unused,
                prefix=given.prefix,
                num_classes=len(recipe.class_set),
            )
            if said:
                notes.append(f"init: {init.name}: {said}")
        if resume:
            notes.append("resume: no run lies in the output yet, a new one begins")
    return TrainingPlan(
        recipe=recipe,
        device=target,
        precision=precision,
        world_size=processes,
        sources=sources,
        validation=validation,
        init=init,
        saved=saved,
        notes=tuple(notes),
        teachers=teachers,
        overwrite=overwrite,
    )


def _device(recipe: Recipe, name: str, processes: int, process: TrainingProcess | None) -> torch.device:
    target = resolve_device(name)
    if processes == 1:
        return target
    if target.type == "cpu":
        if name == "auto":
            raise ManifestError(
                f"--gpus {processes}: no CUDA device is there; with --device cpu they are processes on the CPU"
            )
        if recipe.batch_norm == "sync":
            raise ManifestError(
                "batch_norm sync: works between GPUs only; for several processes on a CPU give --batch-norm local "
                "or --batch-norm frozen"
            )
        return target
    if target.index is not None:
        raise ManifestError(f"--device {name}: is one GPU, for {processes} processes; use --device cuda")
    there = torch.cuda.device_count()
    if process is None and processes > there:
        raise ManifestError(f"--gpus {processes}: {there} CUDA devices are there; lower --gpus")
    local_rank = 0 if process is None else process.local_rank
    if local_rank >= there:
        raise ManifestError(
            f"process {local_rank} of this machine (counted from 0): {there} CUDA devices are there; "
            "start as many processes as devices"
        )
    return torch.device("cuda", local_rank)


def _check_twice(sources: Sequence[Data]) -> None:
    known: dict[tuple[str, Path, str], int] = {}
    for number, source in enumerate(sources):
        first = known.setdefault((source.type, source.root_path().resolve(), source.train), number)
        if first != number:
            raise ManifestError(
                f"data[{number}]: split '{source.train}' of {source.root} stands in data[{first}], too; remove one"
            )


def _check_batches(recipe: Recipe, processes: int) -> None:
    together = processes * recipe.batch_size
    if recipe.global_batch % together:
        raise ManifestError(
            f"global_batch {recipe.global_batch}: cannot be had from {processes} processes with {recipe.batch_size} "
            "images each; let the number of processes times --batch-size divide it"
        )
    # What a norm counts over: in the smaller version of the image, where there is one.
    halved = 2 if recipe.arch.endswith("_mscale") else 1
    counted = recipe.batch_size * math.prod(-(-(side // halved) // _STRIDE) or 1 for side in recipe.augmentation.crop)
    if recipe.batch_norm != "frozen" and counted * (processes if recipe.batch_norm == "sync" else 1) == 1:
        least = halved * (_STRIDE + 1)
        raise ManifestError(
            f"augmentation.crop {_crop(recipe)}: one image of it is one pixel to the coarsest layers, of which "
            f"BatchNorm can tell no variance; give --crop-size {least}x{least} or --batch-size 2 at least, or "
            "--batch-norm frozen"
        )


def _check_memory(recipe: Recipe, device: torch.device) -> None:
    """Refuse what certainly does not fit: where memory is promised to all who ask, one is killed for using it."""
    pixels = recipe.batch_size * math.prod(recipe.augmentation.crop)
    # Bytes of images, labels and soft targets as loaded; on a CPU also of float32 images and of one map of scores.
    classes = len(recipe.class_set)
    soft = 2 * classes if recipe.loss.distillation else 0
    needed = pixels * (4 + soft + (4 * (3 + classes) if device.type == "cpu" else 0))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ManifestError(
            f"augmentation.crop {_crop(recipe)}: {recipe.batch_size} images of it take more than {needed >> 30} GiB, "
            f"and this machine has {there >> 30}; lower --crop-size or --batch-size"
        )


def _crop(recipe: Recipe) -> str:
    return "x".join(map(str, recipe.augmentation.crop))


def _check_writable(output: Path) -> None:
    """Refuse an output that cannot be written; nothing is written to find out."""
    for folder in (output, output / CHECKPOINTS):
        place = next(p for p in (folder, *folder.parents) if p.is_symlink() or p.exists())
        if not place.is_dir():
            raise ManifestError(f"{place}: cannot be written (it is no folder); free it or choose another --output")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ManifestError(f"{place}: cannot be written (no right to); free it or choose another --output")


def _saved(
    recipe: Recipe,
    sources: tuple[Source, ...],
    teachers: tuple[Teachers | None, ...],
    resume: bool,
    overwrite: bool,
) -> TrainingCheckpoint | None:
    path = recipe.output / CHECKPOINTS / LAST
    if overwrite or not path.exists():
        return None
    if not resume:
        raise ManifestError(
            f"{recipe.output}: holds a training run; --resume goes on with it, --overwrite removes it, or choose "
            "another --output"
        )
    try:
        saved = read_run(path)
        expected = expected_shapes(saved.recipe["arch"], classes_of_saved(saved))
        demand_match(path, saved.weights, expected, saved.recipe["arch"])
        demand_numbers(path, saved.weights)
    except CheckpointError as error:
        others = sorted(p.name for p in path.parent.glob("*.pth") if p != path)
        fix = f"put a copy of {first_few(others)} in its place to go on from there, or " if others else ""
        raise CheckpointError(f"{error}; {fix}start over with --overwrite or in another --output") from error
    require_same_recipe(path, saved.recipe, recipe)
    if saved.images != fingerprint(sources, identities(teachers)):
        images = " and ".join(f"the {len(source.pairs)} of {source.root}" for source in sources)
        labels = ", or their auto-labels changed" if any(source.auto_labels for source in sources) else ""
        labels += ", or their teachers did" if any(teachers) else ""
        raise ManifestError(
            f"{path}: learnt from other images than {images}{labels}; put back what was there when the run began, or "
            "begin another run in another --output"
        )
    return saved
