"""Runs a training from its plan to its result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ...errors import TrainingError, reason
from ..runtime.device import is_out_of_memory
from ..storage.writer_lock import writer_lock
from .plan import CHECKPOINTS, TrainingPlan
from .processes import TrainingProcess
from .trainer import Trainer, TrainingResult


def run_training(
    plan: TrainingPlan, process: TrainingProcess, on_epoch: Callable[[dict[str, Any]], None]
) -> TrainingResult:
    """Train until the last epoch, or until somebody asks to stop; then everything is saved.

    Args:
        plan: see `plan_training`.
        process: this process among those that train together.
        on_epoch: called with what is known of an epoch when it is over, in the first process.

    Raises:
        TrainingError: the loss is no number, a batch does not fit into memory, or another process is gone.
        DatasetError: an image or a mask cannot be read.
        StoreError: the output cannot be written, or another run works in it.
    """
    output = plan.recipe.output
    lock = writer_lock(output / CHECKPOINTS) if process.is_first else contextlib.nullcontext()
    with lock, process.process_group(plan.device):
        try:
            with contextlib.closing(Trainer(plan, process, on_epoch)) as trainer:
                return trainer.run()
        except OSError as error:
            raise TrainingError(
                f"{output}: cannot be written ({reason(error)}); free some space or fix that, and go on "
                "with --resume from what was saved before"
            ) from error
        except (RuntimeError, MemoryError) as error:
            raise _explain_error(error, plan) from error


def _explain_error(error: RuntimeError | MemoryError, plan: TrainingPlan) -> BaseException:
    """Turn an error of torch's into one that says how to fix it, where that is known; else return it as it is."""
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
    if plan.world_size > 1 and (
        isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)
    ):
        return TrainingError("another process of this run is gone; see what it said, and go on with --resume")
    return error
