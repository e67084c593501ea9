"""The training loop: images to a network that `dump` can run, through every interruption."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..datasets.images import normalise
from ..datasets.sources import source
from ..datasets.taxonomy import CLASS_NAMES, IGNORE, NUM_CLASSES
from ..errors import TrainingError, first_few
from ..files import atomic_path
from ..models.checkpoint import save_checkpoint
from ..models.losses.composite import LossTerms, training_loss
from ..models.losses.labels import Whole
from .averages import DATASET, average_of
from .device import AUTOCAST, is_out_of_memory
from .journal import Journal, gallery_picture
from .lock import writer_lock
from .metrics import class_iou, confusion, mean_iou
from .optim import build_optimizer, build_schedule
from .progress import Progress
from .ranks import Ranks
from .stopping import Stopping
from .train_data import Batch, Shares, batches, epoch_draws, start_workers_server
from .train_plan import BEST, CHECKPOINTS, LAST, WEIGHTS, TrainingPlan
from .train_setup import build_loaders, build_network, prepare_output, read_masks, shared
from .train_state import Position, SavedRun, fingerprint, rng_state, save_run, set_rng_state

RECIPE = "recipe.yaml"
_LOG_EVERY = 20  # steps; to read a loss makes the CPU wait for the GPU
_GALLERY = 4  # images


@dataclass
class TrainingResult:
    """What became of a run.

    Attributes:
        output: its folder.
        position: how far it has come.
        interrupted: whether it was asked to stop before its end.
    """

    output: Path
    position: Position
    interrupted: bool = False


def run_training(plan: TrainingPlan, ranks: Ranks, ended: Callable[[dict[str, Any]], None]) -> TrainingResult:
    """Train until the last epoch, or until somebody asks to stop; then everything is saved.

    Args:
        plan: see `train_plan.plan_training`.
        ranks: this process among those that train together.
        ended: called with what is known of an epoch when it is over, in the first process.

    Raises:
        TrainingError: the loss is no number, a batch does not fit into memory, or another process is gone.
        DatasetError: an image or a mask cannot be read.
        StoreError: the output cannot be written, or another run works in it.
    """
    output = plan.recipe.output
    lock = writer_lock(output / CHECKPOINTS) if ranks.first else contextlib.nullcontext()
    with lock, ranks.joined(plan.device):
        try:
            with contextlib.closing(_Trainer(plan, ranks, ended)) as trainer:
                return trainer.run()
        except OSError as error:
            raise TrainingError(
                f"{output}: cannot be written ({error.strerror or error}); free some space or fix that, and go on "
                "with --resume from what was saved before"
            ) from error
        except (RuntimeError, MemoryError) as error:
            raise _explained(error, plan) from error


def _explained(error: RuntimeError | MemoryError, plan: TrainingPlan) -> BaseException:
    """What the user can do about an error of torch's, where we know it; else the error itself."""
    recipe = plan.recipe
    if is_out_of_memory(error):
        crop = "x".join(map(str, recipe.augmentation.crop))
        return TrainingError(
            f"{recipe.batch_size} crops of {crop} do not fit into the memory of {plan.device}; lower --batch-size "
            "(the global batch is made up by accumulation) or --crop-size, or give --activation-checkpointing; if it "
            "was while scoring, lower --set validation.scales=[1.0] or --set augmentation.long_edge=N; "
            "--resume goes on with what is saved"
        )
    if "DataLoader worker" in str(error):
        return TrainingError(
            "a process that reads images was killed, most likely for want of memory; lower --workers and go on "
            "with --resume"
        )
    if plan.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)):
        return TrainingError("another process of this run is gone; see what it said, and go on with --resume")
    return error


class _Trainer:
    """One process of a run: the network, what improves it, and how far it is."""

    def __init__(self, plan: TrainingPlan, ranks: Ranks, ended: Callable[[dict[str, Any]], None]) -> None:
        self.plan, self.ranks, self.ended = plan, ranks, ended
        self.recipe, self.device = plan.recipe, plan.device
        self.position = plan.saved.position if plan.saved else Position()
        if self.recipe.workers:
            start_workers_server()
        self.reader, self.index = read_masks(plan, ranks)
        self.network = build_network(plan, ranks)
        self.model: nn.Module = shared(self.network, plan) if ranks.world > 1 else self.network
        self.optimizer = build_optimizer(self.network.parameters(), self.recipe.optimizer)
        self.schedule = build_schedule(self.optimizer, self.recipe.schedule, self.recipe.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "fp16")
        # Each process drops other channels.
        torch.manual_seed(self.recipe.seed + ranks.rank)
        if plan.saved:
            self._take_up(plan.saved)
        self.shares = Shares(self.recipe.global_batch, self.recipe.batch_size, ranks.rank, ranks.world)
        self.train_batches, self.validation_batches = build_loaders(plan, ranks, self.reader, self.shares)
        # Only now: whatever is wrong with masks or weights must not cost an older run.
        if ranks.first:
            prepare_output(plan)
        self.journal = Journal(self.recipe.output, self._steps_done()) if ranks.first else None
        # Since the last look at them: what the steps' losses add up to on the device, and how many steps.
        self._sums: dict[str, Tensor] = {}
        self._unread = 0
        self._doubtful: tuple[Tensor, list[str]] | None = None
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Let go of what is not memory."""
        if self.journal:
            self.journal.close()

    def run(self) -> TrainingResult:
        """All epochs that are left."""
        result = TrainingResult(self.recipe.output, self.position)
        left = self.recipe.epochs - self.position.epoch
        learnt = self._steps_per_epoch() * self.recipe.global_batch
        scored = sum(map(self._is_scored, range(self.position.epoch, self.recipe.epochs)))
        total = left * learnt - self.position.step * self.recipe.global_batch + scored * len(self.plan.validation)
        # Until here there is nothing to save, and a signal ends the run at once.
        with Progress(total if self.ranks.first else 0) as self.progress, Stopping() as self.stopping:
            while self.position.epoch < self.recipe.epochs:
                if not self._epoch():
                    result.interrupted = True
                    break
        return result

    def _take_up(self, saved: SavedRun) -> None:
        self.optimizer.load_state_dict(saved.optimizer)
        self.schedule.load_state_dict(saved.scheduler)
        self.scaler.load_state_dict(saved.scaler)
        # With another number of processes no state is anybody's; the same images are drawn all the same.
        if len(saved.rng) == self.ranks.world:
            set_rng_state(saved.rng[self.ranks.rank], self.device)

    def _steps_per_epoch(self) -> int:
        return max(1, len(self.plan.train) // self.recipe.global_batch)

    def _is_scored(self, epoch: int) -> bool:
        """Whether epoch ``epoch``, from 0, ends with a validation."""
        return epoch + 1 == self.recipe.epochs or (epoch + 1) % self.recipe.validation.every == 0

    def _steps_done(self) -> int:
        return self.position.epoch * self._steps_per_epoch() + self.position.step

    def _epoch(self) -> bool:
        """Train, score and save one epoch, or what is left of it; False if somebody asked to stop."""
        recipe, position = self.recipe, self.position
        begun = time.monotonic()
        draws = epoch_draws(recipe, len(self.plan.train), self.index, position.epoch)
        steps = len(draws) // recipe.global_batch
        todo = steps - position.step
        name = f"epoch {position.epoch + 1}/{recipe.epochs}"
        self.progress.job(name, todo * recipe.global_batch)
        if todo and not self._train(draws, steps):
            return False
        seconds = time.monotonic() - begun
        row: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "lr": self.schedule.get_last_lr()[0],
            "loss": {key: value / steps for key, value in position.sums.items()},
            "images_per_second": todo * recipe.global_batch / seconds if todo else None,
            "seconds": seconds,
            "peak_memory": self._peak_memory(),
            "mean_iou": None,
        }
        if self._is_scored(position.epoch):
            if todo:
                self._save(LAST)
            self.progress.job(f"{name}, scoring", len(self.plan.validation))
            matrix = self._validate()
            if matrix is None:
                return False
            row |= self._scores(matrix)
        self._close_epoch(row)
        return True

    def _train(self, draws: list[Any], steps: int) -> bool:
        """The steps of an epoch that are left; False if somebody asked to stop, in which case all is saved."""
        self._set_training(True)
        self.shares.begin(draws, self.position.step)
        loaded = batches(self.train_batches)
        for step in range(self.position.step, steps):
            parts = list(islice(loaded, self.shares.per_step))
            labelled, stop = self._agree(parts)
            if stop:
                self._save(LAST)
                return False
            self._step(parts, Whole(self.recipe.global_batch, labelled))
            self.position.step = step + 1
            if self._unread >= _LOG_EVERY or self.position.step == steps:
                self._log()
            self.progress.advance(self.recipe.global_batch)
        self._agree([])
        return True

    def _agree(self, parts: list[Batch]) -> tuple[int, bool]:
        """What all processes must know before a step: labelled pixels of the whole, and whether to stop.

        Raises:
            TrainingError: the last step's loss was no number, in any process.
        """
        labelled = sum(int((part.labels != IGNORE).sum()) for part in parts)
        # A step late: by now the GPU has it, and to ask does not hold it up.
        bad = self._doubtful is not None and not bool(self._doubtful[0].isfinite())
        due = time.monotonic() - self._saved_at > 60 * self.recipe.checkpoints.minutes
        mine = [labelled, self.stopping.requested, bad, due and self.ranks.first]
        total, stop, any_bad, save = self.ranks.sum(mine)
        if any_bad:
            found = self.ranks.gather(self._doubtful[1] if bad and self._doubtful else [])
            raise TrainingError(
                f"epoch {self.position.epoch + 1}, step {self.position.step}: the loss is no number any more; "
                f"the batch was {first_few([path for paths in found for path in paths])}; "
                "look at these images and masks and go on with --resume from what was saved before, or begin another "
                "run (--overwrite, or another --output) with a lower --lr or --precision bf16"
            )
        if save and not stop:
            self._save(LAST)
        return total, bool(stop)

    def _step(self, parts: list[Batch], whole: Whole) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            # Gradients travel between processes once a step.
            alone = isinstance(self.model, DistributedDataParallel) and number < len(parts)
            with self.model.no_sync() if alone else contextlib.nullcontext():  # type: ignore[union-attr]
                terms = self._loss(part, whole)
                # What travels is the processes' mean, and their losses are parts of one sum.
                self.scaler.scale(terms.total * self.ranks.world).backward()
            total += terms.total.detach()
            self._count(terms)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._unread += 1
        self._doubtful = total, [path for part in parts for path in part.paths]

    def _loss(self, part: Batch, whole: Whole) -> LossTerms:
        images = self._pixels(part)
        labels = part.labels.to(self.device, non_blocking=True).long()
        with self._autocast():
            output = self.model(images)
        loss = self.recipe.loss
        return training_loss(output, labels, loss.criterion, loss.auxiliary, loss.scales, whole)

    def _pixels(self, batch: Batch) -> Tensor:
        images = normalise(batch.images.to(self.device, non_blocking=True))
        return images.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.plan.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _count(self, terms: LossTerms) -> None:
        """Add the terms up where they are, without asking the device for them."""
        named = {"total": terms.total, "main": terms.main, "auxiliary": terms.auxiliary}
        named |= {f"scale {scale:g}": loss for scale, loss in terms.scales.items()}
        for name, value in named.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()

    def _log(self) -> None:
        """Fetch what was added up, add that of all processes, and write down the mean of a step."""
        if not self._unread:
            return
        gathered = self.ranks.gather(dict(zip(self._sums, torch.stack([*self._sums.values()]).tolist(), strict=True)))
        means = {}
        for name in gathered[0]:
            total = sum(found[name] for found in gathered)
            self.position.sums[name] = self.position.sums.get(name, 0.0) + total
            means[f"loss/{name}"] = total / self._unread
        self._sums, self._unread = {}, 0
        if self.journal:
            self.journal.scalars(self._steps_done(), means)

    def _set_training(self, training: bool) -> None:
        self.model.train(training)
        if training and self.recipe.batch_norm == "frozen":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _validate(self) -> Tensor | None:
        """The confusion matrix (C, C) int64 of the whole validation split; None if somebody asked to stop."""
        self._set_training(False)
        settings = self.recipe.validation
        matrix = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64, device=self.device)
        pictures: list[Tensor] = []
        for batch in batches(self.validation_batches):
            if self.stopping.requested:
                break
            with self._autocast():
                logits = self.network.predict(self._pixels(batch), settings.scales, flip=settings.flip)
            if not bool(logits.isfinite().all()):
                raise TrainingError(
                    f"epoch {self.position.epoch + 1}: the scores of {batch.paths[0]} are no numbers; begin another "
                    "run (--overwrite, or another --output) with a lower --lr or --precision bf16"
                )
            predicted = logits.argmax(1)
            matrix += confusion(predicted, batch.labels.to(self.device), NUM_CLASSES)
            if self.journal and len(pictures) < _GALLERY:
                pictures.append(gallery_picture(batch.images[0], batch.labels[0], predicted[0]))
            self.progress.advance(self.ranks.world)
        stop, *counts = self.ranks.sum([self.stopping.requested, *matrix.flatten().tolist()])
        if stop:
            return None
        if self.journal:
            self.journal.gallery(self._steps_done(), pictures)
        return torch.tensor(counts).view_as(matrix)

    def _scores(self, matrix: Tensor) -> dict[str, Any]:
        iou = [None if math.isnan(value) else value for value in class_iou(matrix).tolist()]
        average = average_of(DATASET, [source(self.recipe.data.type).mapped(self.recipe.data.mapping)])
        mean = mean_iou(matrix, average)
        return {
            "mean_iou": None if math.isnan(mean) else mean,
            "mean_iou_classes": int(average.counted(matrix).sum()),
            "iou": dict(zip(CLASS_NAMES, iou, strict=True)),
        }

    def _close_epoch(self, row: dict[str, Any]) -> None:
        position = self.position
        steps = self._steps_done()
        score = row["mean_iou"]
        row["best"] = score is not None and (position.best is None or score > position.best)
        if row["best"]:
            position.best = score
        position.history.append(row)
        position.epoch, position.step, position.sums = position.epoch + 1, 0, {}
        with warnings.catch_warnings():
            # A run that goes on with a validation has made its steps before it was interrupted, as torch cannot know.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.schedule.step()
        every = self.recipe.checkpoints.every
        names = [BEST] if row["best"] else []
        if every and position.epoch % every == 0:
            names.append(f"epoch_{position.epoch:04d}.pth")
        if row["best"] and self.ranks.first:
            weights = self.recipe.output / WEIGHTS
            save_checkpoint(weights, self.network, arch=self.recipe.arch, epoch=position.epoch, mean_iu=score or 0.0)
        if self.journal:
            self._tell(self.journal, row, steps)
        # Last of all: whoever is killed before it finds the epoch not over, and makes the rest again.
        self._save(*names, LAST)
        if self.ranks.first:
            with self.progress.aside():
                self.ended(row)

    def _tell(self, journal: Journal, row: dict[str, Any], steps: int) -> None:
        score = row["mean_iou"]
        named = {"lr": row["lr"], "memory/peak_bytes": row["peak_memory"]}
        if row["images_per_second"]:
            named["speed/images_per_second"] = row["images_per_second"]
        if score is not None:
            named["iou/mean"] = score
            named |= {f"iou/{name}": value for name, value in row["iou"].items() if value is not None}
        journal.scalars(steps, named)
        journal.epoch(self.position.history)

    def _save(self, *names: str) -> None:
        """Save the run under all of ``names``; every process must come here at the same time."""
        self._saved_at = time.monotonic()
        self._log()
        states = self.ranks.gather(rng_state(self.device))
        if not self.ranks.first:
            return
        # A loss can be a number and its gradient none; and what a norm has counted can be infinite.
        if not all(bool(value.isfinite().all()) for value in self.network.state_dict().values()):
            raise TrainingError(
                f"epoch {self.position.epoch + 1}, step {self.position.step}: the weights are no numbers any more "
                "and are not saved; go on with --resume from what was saved before, or begin another run "
                "(--overwrite, or another --output) with a lower --lr or --precision bf16"
            )
        folder = self.recipe.output / CHECKPOINTS
        run = SavedRun(
            self.network.state_dict(),
            self.optimizer.state_dict(),
            self.schedule.state_dict(),
            self.scaler.state_dict(),
            self.position,
            states,
            self.recipe.resolved(),
            fingerprint(self.plan.train),
        )
        save_run(folder / names[0], run, arch=self.recipe.arch)
        for name in names[1:]:
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(folder / names[0], temporary)

    def _peak_memory(self) -> int:
        """Bytes: of the GPU if there is one, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
