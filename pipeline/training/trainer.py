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
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ...datasets.decode.tensors import normalise
from ...datasets.labels.mask_reader import SURE
from ...datasets.segmentation_dataset import CONFIDENCE, PROBABILITIES
from ...datasets.taxonomy import IGNORE
from ...errors import TrainingError, first_few
from ...files import atomic_path
from ...models.checkpoint import save_checkpoint
from ...models.losses.batch_labels import BatchTotals
from ...models.losses.distillation import dirichlet_loss, distillation_loss, taught
from ...models.losses.training_loss import LossTerms, training_loss
from ..runtime.device import AUTOCAST
from ..runtime.progress import Progress
from ..runtime.stop_signal import StopSignal
from ..scoring.averages import DATASET, average_of
from ..scoring.metrics import class_iou, confusion, mean_iou
from .batches import Batch, StepSampler, batches, epoch_samples, start_workers_server
from .checkpoint import (
    TrainingCheckpoint,
    TrainingProgress,
    remembered_classes,
    rng_state,
    save_run,
    set_rng_state,
)
from .log import TrainingLog, side_by_side
from .optimizer import build_optimizer, build_schedule
from .plan import BEST, CHECKPOINTS, LAST, WEIGHTS, TrainingPlan
from .processes import TrainingProcess
from .setup import build_loaders, build_network, index_masks, prepare_output, wrap_ddp
from .sources import epoch_sources

_LOG_EVERY = 20  # steps; to read a loss makes the CPU wait for the GPU
_GALLERY = 4  # images


@dataclass
class TrainingResult:
    """The folder of a run, how far it has come, and whether it was asked to stop before its end."""

    output: Path
    position: TrainingProgress
    interrupted: bool


class Trainer:
    """One process of a run: the network, what improves it, and how far it is."""

    def __init__(
        self, plan: TrainingPlan, process: TrainingProcess, on_epoch: Callable[[dict[str, Any]], None]
    ) -> None:
        self.plan, self.process, self.on_epoch = plan, process, on_epoch
        self.recipe, self.device = plan.recipe, plan.device
        self.position = plan.saved.position if plan.saved else TrainingProgress()
        if self.recipe.workers:
            start_workers_server()
        readers, scorer, self.indices = index_masks(plan, process)
        self.scored_labels = scorer.source
        self.network = build_network(plan, process)
        self.model: nn.Module = wrap_ddp(self.network, plan) if process.world_size > 1 else self.network
        self.optimizer = build_optimizer(self.network.parameters(), self.recipe.optimizer)
        self.schedule = build_schedule(self.optimizer, self.recipe.schedule, self.recipe.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "fp16")
        # Each process drops other channels.
        torch.manual_seed(self.recipe.seed + process.rank)
        if plan.saved:
            self._resume(plan.saved)
        self.sampler = StepSampler(self.recipe.global_batch, self.recipe.batch_size, process.rank, process.world_size)
        self.train_batches, self.validation_batches = build_loaders(plan, process, readers, scorer, self.sampler)
        # Only now: whatever is wrong with masks or weights must not cost an older run.
        if process.is_first:
            prepare_output(plan)
        self.log = TrainingLog(self.recipe.output, self._steps_done()) if process.is_first else None
        # Since the last look at them: what the steps' losses add up to on the device, and how many steps.
        self._sums: dict[str, Tensor] = {}
        self._unlogged_steps = 0
        self._unchecked_loss: tuple[Tensor, list[str]] | None = None
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Let go of what is not memory."""
        if self.log:
            self.log.close()

    def run(self) -> TrainingResult:
        """All epochs that are left."""
        interrupted = False
        left = self.recipe.epochs - self.position.epoch
        learnt = self._steps_per_epoch() * self.recipe.global_batch
        scored = sum(map(self._is_scored, range(self.position.epoch, self.recipe.epochs)))
        total = left * learnt - self.position.step * self.recipe.global_batch + scored * len(self.plan.validation)
        # Until here there is nothing to save, and a signal ends the run at once.
        with Progress(total if self.process.is_first else 0) as self.progress, StopSignal() as self.stopping:
            while self.position.epoch < self.recipe.epochs and not interrupted:
                interrupted = not self._epoch()
        return TrainingResult(self.recipe.output, self.position, interrupted)

    def _resume(self, saved: TrainingCheckpoint) -> None:
        self.optimizer.load_state_dict(saved.optimizer)
        self.schedule.load_state_dict(saved.scheduler)
        self.scaler.load_state_dict(saved.scaler)
        # With another number of processes no state is anybody's; the same images are drawn all the same.
        if len(saved.rng) == self.process.world_size:
            set_rng_state(saved.rng[self.process.rank], self.device)

    def _steps_per_epoch(self) -> int:
        return max(1, self.plan.epoch_length // self.recipe.global_batch)

    def _is_scored(self, epoch: int) -> bool:
        """True if epoch ``epoch``, from 0, ends with a validation."""
        return epoch + 1 == self.recipe.epochs or (epoch + 1) % self.recipe.validation.every == 0

    def _steps_done(self) -> int:
        return self.position.epoch * self._steps_per_epoch() + self.position.step

    def _epoch(self) -> bool:
        """Train, score and save one epoch, or what is left of it; False if somebody asked to stop."""
        recipe, position = self.recipe, self.position
        begun = time.monotonic()
        sources = epoch_sources(self.plan.sources, self.indices, position.epoch)
        samples = epoch_samples(recipe, self.plan.epoch_length, sources, position.epoch)
        steps = len(samples) // recipe.global_batch
        todo = steps - position.step
        name = f"epoch {position.epoch + 1}/{recipe.epochs}"
        self.progress.job(name, todo * recipe.global_batch)
        if todo and not self._train(samples, steps):
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
            scores = self._validate()
            if scores is None:
                return False
            row |= scores
        self._close_epoch(row)
        return True

    def _train(self, samples: list[Any], steps: int) -> bool:
        """The steps of an epoch that are left; False if somebody asked to stop, in which case all is saved."""
        self._set_training(True)
        self.sampler.begin(samples, self.position.step)
        loaded = batches(self.train_batches)
        for step in range(self.position.step, steps):
            parts = list(islice(loaded, self.sampler.per_step))
            totals, stop = self._synchronise(parts)
            if stop:
                self._save(LAST)
                return False
            self._step(parts, totals)
            self.position.step = step + 1
            if self._unlogged_steps >= _LOG_EVERY or self.position.step == steps:
                self._log()
            self.progress.advance(self.recipe.global_batch)
        self._synchronise([])
        return True

    def _synchronise(self, parts: list[Batch]) -> tuple[BatchTotals, bool]:
        """Exchange what processes must know before a step: what the whole batch holds, and whether to stop.

        TrainingError if the last step's loss was no number, in any process.
        """
        labelled = sum(int((part.labels != IGNORE).sum()) for part in parts)
        with_targets = sum(
            int(taught(part.more[PROBABILITIES]).sum()) for part in parts if PROBABILITIES in part.more
        )
        # A step late: by now the GPU has it, and to ask does not hold it up.
        bad = self._unchecked_loss is not None and not bool(self._unchecked_loss[0].isfinite())
        due = time.monotonic() - self._saved_at > 60 * self.recipe.checkpoints.minutes
        mine = [labelled, with_targets, self.stopping.requested, bad, due and self.process.is_first]
        total, soft, stop, any_bad, save = self.process.sum(mine)
        if any_bad:
            found = self.process.gather(self._unchecked_loss[1] if bad and self._unchecked_loss else [])
            raise TrainingError(
                f"epoch {self.position.epoch + 1}, step {self.position.step}: the loss is no number any more; "
                f"the batch was {first_few([path for paths in found for path in paths])}; "
                "look at these images and masks and go on with --resume from what was saved before, or begin another "
                "run (--overwrite, or another --output) with a lower --lr or --precision bf16"
            )
        if save and not stop:
            self._save(LAST)
        return BatchTotals(self.recipe.global_batch, total, soft), bool(stop)

    def _step(self, parts: list[Batch], totals: BatchTotals) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            # Gradients travel between processes once a step.
            alone = isinstance(self.model, DistributedDataParallel) and number < len(parts)
            with self.model.no_sync() if alone else contextlib.nullcontext():  # type: ignore[union-attr]
                terms = self._loss(part, totals)
                # What travels is the processes' mean, and their losses are parts of one sum.
                self.scaler.scale(terms.total * self.process.world_size).backward()
            total += terms.total.detach()
            self._count(terms)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._unlogged_steps += 1
        self._unchecked_loss = total, [path for part in parts for path in part.paths]

    def _loss(self, part: Batch, totals: BatchTotals) -> LossTerms:
        images = self._pixels(part)
        labels = part.labels.to(self.device, non_blocking=True).long()
        with self._autocast():
            output = self.model(images)
        loss = self.recipe.loss
        weights = None
        if CONFIDENCE in part.more:
            weights = part.more[CONFIDENCE].to(self.device, non_blocking=True).float() / SURE
        terms = training_loss(
            output, labels, loss.criterion, loss.auxiliary, loss.scales, totals, loss.border_relaxation, weights
        )
        if loss.distillation is None:
            return terms
        targets = part.more[PROBABILITIES].to(self.device, non_blocking=True)
        distil = dirichlet_loss if loss.distillation.is_of_distribution else distillation_loss
        divergence = distil(output.scores, targets, loss.distillation.temperature, totals.taught)
        return terms._replace(total=terms.total + loss.distillation.weight * divergence, distillation=divergence)

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
        if terms.distillation is not None:
            named["distillation"] = terms.distillation
        for name, value in named.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()

    def _log(self) -> None:
        """Fetch what was added up, add that of all processes, and write down the mean of a step."""
        if not self._unlogged_steps:
            return
        gathered = self.process.gather(
            dict(zip(self._sums, torch.stack([*self._sums.values()]).tolist(), strict=True))
        )
        means = {}
        for name in gathered[0]:
            total = sum(found[name] for found in gathered)
            self.position.sums[name] = self.position.sums.get(name, 0.0) + total
            means[f"loss/{name}"] = total / self._unlogged_steps
        self._sums, self._unlogged_steps = {}, 0
        if self.log:
            self.log.scalars(self._steps_done(), means)

    def _set_training(self, training: bool) -> None:
        self.model.train(training)
        if training and self.recipe.batch_norm == "frozen":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _validate(self) -> dict[str, Any] | None:
        """The scores on the whole validation split; None if somebody asked to stop."""
        self._set_training(False)
        settings = self.recipe.validation
        classes = self.recipe.class_set
        matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=self.device)
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
            matrix += confusion(predicted, batch.labels.to(self.device), len(classes))
            if self.log and len(pictures) < _GALLERY:
                pictures.append(side_by_side(batch.images[0], batch.labels[0], predicted[0], classes))
            self.progress.advance(self.process.world_size)
        stop, *counts = self.process.sum([self.stopping.requested, *matrix.flatten().tolist()])
        if stop:
            return None
        if self.log:
            self.log.gallery(self._steps_done(), pictures)
        matrix = torch.tensor(counts).view_as(matrix)
        iou = [None if math.isnan(value) else value for value in class_iou(matrix).tolist()]
        average = average_of(DATASET, [self.scored_labels], classes.names)
        mean = mean_iou(matrix, average)
        return {
            "mean_iou": None if math.isnan(mean) else mean,
            "mean_iou_classes": int(average.counted(matrix).sum()),
            "iou": dict(zip(classes.names, iou, strict=True)),
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
        if row["best"] and self.process.is_first:
            weights = self.recipe.output / WEIGHTS
            remembered = remembered_classes(self.recipe.class_set)
            position_of = {"epoch": position.epoch, "mean_iu": score or 0.0}
            save_checkpoint(weights, self.network, arch=self.recipe.arch, **position_of, **remembered)
        if self.log:
            named = {"lr": row["lr"], "memory/peak_bytes": row["peak_memory"]}
            if row["images_per_second"]:
                named["speed/images_per_second"] = row["images_per_second"]
            if score is not None:
                named["iou/mean"] = score
                named |= {f"iou/{name}": value for name, value in row["iou"].items() if value is not None}
            self.log.scalars(steps, named)
            self.log.epoch(position.history)
        # Last of all: a run that is killed before this finds the epoch not over, and does the rest again.
        self._save(*names, LAST)
        if self.process.is_first:
            with self.progress.aside():
                self.on_epoch(row)

    def _save(self, *names: str) -> None:
        """Save the run under all of ``names``; every process must come here at the same time."""
        self._saved_at = time.monotonic()
        self._log()
        states = self.process.gather(rng_state(self.device))
        if not self.process.is_first:
            return
        # A loss can be a number and its gradient none; and what a norm has counted can be infinite.
        if not all(bool(value.isfinite().all()) for value in self.network.state_dict().values()):
            raise TrainingError(
                f"epoch {self.position.epoch + 1}, step {self.position.step}: the weights are no numbers any more "
                "and are not saved; go on with --resume from what was saved before, or begin another run "
                "(--overwrite, or another --output) with a lower --lr or --precision bf16"
            )
        folder = self.recipe.output / CHECKPOINTS
        run = TrainingCheckpoint(
            weights=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.schedule.state_dict(),
            scaler=self.scaler.state_dict(),
            position=self.position,
            rng=states,
            recipe=self.recipe.resolved(),
            images=self.plan.fingerprint,
        )
        save_run(folder / names[0], run, arch=self.recipe.arch, classes=self.recipe.class_set)
        for name in names[1:]:
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(folder / names[0], temporary)

    def _peak_memory(self) -> int:
        """Bytes: of the GPU if there is one, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
