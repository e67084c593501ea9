"""Optimisers and the fall of the learning rate, as a recipe names them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LambdaLR

from ..config.recipe import Optimizer, Schedule


def build_optimizer(parameters: Iterable[nn.Parameter], settings: Optimizer) -> TorchOptimizer:
    """All parameters in one group: weight decay on norms and biases too, as the published members had it.

    All weights are changed at once, and a gradient that fp16 could not hold is skipped without asking the GPU for it.
    """
    decay = settings.weight_decay
    if settings.name == "sgd":
        return SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=decay, fused=True)
    return AdamW(parameters, settings.lr, betas=(settings.momentum, 0.999), weight_decay=decay, fused=True)


def build_schedule(optimizer: TorchOptimizer, settings: Schedule, epochs: int) -> LambdaLR:
    """Schedule the learning rate by epoch; step it at the end of each.

    Args:
        optimizer: whose rates are scaled.
        settings: of the recipe.
        epochs: of the whole run.
    """
    return LambdaLR(optimizer, lambda epoch: settings.factor(min(epoch, epochs), epochs))
