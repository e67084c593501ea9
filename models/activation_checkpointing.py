"""Activation checkpointing: less memory in training, for a second forward pass of each block.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv 1604.06174).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .hrnet import ExchangeModule


def recompute_activations(model: nn.Module) -> int:
    """Let the trunk's blocks keep only their inputs and run again in the backward pass; returns how many blocks.

    Keys of the state dict stay what they are, and so does every result: the second run of a block sees the same
    random numbers and leaves the norms' running statistics alone.
    """
    blocks = [
        module
        for name, module in model.named_modules()
        # layer1 runs at the highest resolution, before the branches part.
        if isinstance(module, ExchangeModule) or name.rpartition(".")[2] == "layer1"
    ]
    for block in blocks:
        contexts = partial(_contexts, [norm for norm in block.modules() if isinstance(norm, _BatchNorm)])
        # Over the method and not around the module, which would put a name of its own before every key.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    return len(blocks)


def _contexts(
    norms: list[_BatchNorm],
) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    return contextlib.nullcontext(), _statistics_kept(norms)


@contextlib.contextmanager
def _statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """While the block runs, the norms add what they see to copies of their running statistics."""
    # To tell them not to track any would save other tensors than the first run did, which checkpoint() refuses.
    tracked = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, tracked, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, tracked, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
