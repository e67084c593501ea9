"""All that a training run needs, looked at before anything expensive starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..datasets.pairs import Pair, list_pairs
from ..datasets.taxonomy import CLASS_NAMES
from ..errors import DatasetError, ManifestError
from ..models.initial import check_initial
from .device import resolve_device, resolve_precision
from .journal import require_extra
from .lock import require_free
from .ranks import Ranks
from .recipe import Recipe
from .train_state import SavedRun, demand_same, read_run

CHECKPOINTS = "checkpoints"
LAST, BEST = "last.pth", "best.pth"
WEIGHTS = "best_weights.pth"
"""The best network alone, in the published layout."""


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe that can be followed, and what it comes to here.

    Attributes:
        device: of this process.
        precision: the one that is really used.
        world: processes that train together.
        train, validation: images and masks.
        init: the checkpoint to start from; None for random weights or a run that goes on.
        saved: the run that goes on; None for a new one.
        notes: what the user should know, a line each.
        overwrite: whether what lies in the output is removed first.
    """

    recipe: Recipe
    device: torch.device
    precision: str
    world: int
    train: list[Pair]
    validation: list[Pair]
    init: Path | None
    saved: SavedRun | None
    notes: tuple[str, ...]
    overwrite: bool = False

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return self.recipe.data.root_path()

    @property
    def finished(self) -> bool:
        """Whether the run that would go on is at its end."""
        return self.saved is not None and self.saved.position.epoch >= self.recipe.epochs

    @property
    def accumulation(self) -> int:
        """Batches of each process in a step."""
        return self.recipe.global_batch // (self.world * self.recipe.batch_size)

    def summary(self) -> list[str]:
        """What will be done, a line each."""
        r = self.recipe
        crop = "x".join(map(str, r.augmentation.crop))
        if self.saved is not None:
            at = self.saved.position
            start = f"epoch {at.epoch + 1}, step {at.step}, of the run that lies there"
        else:
            start = str(self.init or f"random weights (seed {r.seed})")
        images = f"{len(self.train)} images to learn from, {len(self.validation)} to score on"
        lines = [f"data:    {r.data.type}, {images}; {self.root}", f"network: {r.arch}, from {start}"]
        if self.init is not None and r.init.fresh:
            lines.append(f"fresh:   {', '.join(r.init.fresh)} (from random weights)")
        lines += [
            f"steps:   {r.epochs} epochs, {r.global_batch} images a step = {self.world} x {r.batch_size} x "
            f"{self.accumulation} (processes x batch x accumulation), crop {crop}",
            f"machine: {self.device.type}, {self.precision}",
            f"output:  {r.output}",
        ]
        return lines


def plan_training(
    recipe: Recipe,
    *,
    device: str = "auto",
    processes: int = 1,
    ranks: Ranks | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingPlan:
    """Check everything that a training run needs.

    Args:
        recipe: what is to be done.
        device: see `resolve_device`.
        processes: how many will train together.
        ranks: this process among those that train together; None if they are still to be started.
        resume: go on with the run that lies in the output, if there is one.
        overwrite: remove the run that lies there.

    Raises:
        HmsaError: a package, device, dataset, checkpoint or the output is not as it must be.
    """
    require_extra()
    if resume and overwrite:
        raise ManifestError("--resume goes on with the run that --overwrite removes; give one of them")
    target, notes = _device(recipe, device, processes, ranks or Ranks(world=processes))
    precision, note = resolve_precision(recipe.precision, target)
    notes = [*recipe.notes, *notes, *([note] if note else [])]
    _check_batches(recipe, target, processes)
    train, validation = (_pairs(recipe, split) for split in (recipe.data.train, recipe.data.validation))
    both = {pair.image for pair in train} & {pair.image for pair in validation}
    if both:
        notes.append(f"data: {len(both)} images are both learnt from and scored on")
    saved = _saved(recipe, resume, overwrite)
    init = None
    if saved is None:
        init = recipe.init.path()
        if init is not None:
            settings = recipe.init
            check_initial(init, recipe.arch, fresh=settings.fresh, unused=settings.unused, prefix=settings.prefix)
        if resume:
            notes.append("resume: no run lies in the output yet, a new one begins")
    if ranks is None or ranks.first:
        require_free(recipe.output / CHECKPOINTS)
    return TrainingPlan(recipe, target, precision, processes, train, validation, init, saved, tuple(notes), overwrite)


def _device(recipe: Recipe, name: str, processes: int, ranks: Ranks) -> tuple[torch.device, list[str]]:
    target = resolve_device(name)
    if target.type == "cpu":
        if processes > 1 and recipe.batch_norm == "sync":
            raise ManifestError(
                "batch_norm sync: works between GPUs only; for several processes on a CPU give --batch-norm local "
                "or --batch-norm frozen"
            )
        return target, []
    if processes == 1:
        return target, []
    if target.index is not None:
        raise ManifestError(f"--device {name}: is one GPU, for {processes} processes; use --device cuda")
    there = torch.cuda.device_count()
    if ranks.local >= there or (ranks.rank == ranks.local == 0 and ranks.world == processes > there):
        raise ManifestError(f"--gpus {processes}: {there} CUDA devices are there; lower --gpus")
    return torch.device("cuda", ranks.local), []


def _check_batches(recipe: Recipe, device: torch.device, processes: int) -> None:
    together = processes * recipe.batch_size
    if recipe.global_batch % together:
        raise ManifestError(
            f"global_batch {recipe.global_batch}: cannot be had from {processes} processes with {recipe.batch_size} "
            "images each; let the number of processes times --batch-size divide it"
        )


def _pairs(recipe: Recipe, split: str) -> list[Pair]:
    pairs = list_pairs(recipe.data.root_path(), recipe.data.type, split)[: recipe.data.limit]
    if not pairs:
        raise DatasetError(
            f"{recipe.data.root_path()}: split '{split}' is empty; check the folder or the split lists"
        )
    return pairs


def _saved(recipe: Recipe, resume: bool, overwrite: bool) -> SavedRun | None:
    path = recipe.output / CHECKPOINTS / LAST
    if overwrite or not path.exists():
        return None
    if not resume:
        raise ManifestError(
            f"{recipe.output}: holds a training run; --resume goes on with it, --overwrite removes it, or choose "
            "another --output"
        )
    saved = read_run(path)
    demand_same(path, saved.recipe, recipe)
    return saved


def absent_classes(counts: list[int]) -> str:
    """The names of classes that occur nowhere, comma separated; empty if all occur."""
    return ", ".join(name for name, count in zip(CLASS_NAMES, counts, strict=True) if not count)
