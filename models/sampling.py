"""Dropout at inference, with random numbers that an image decides, so that one network gives several members.

Gal, Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016 (arXiv 1506.02142).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_Dropout = nn.modules.dropout._DropoutNd


def _dropouts(network: nn.Module) -> list[_Dropout]:
    return [part for part in network.modules() if isinstance(part, _Dropout) and part.p > 0]


def has_dropout(network: nn.Module) -> bool:
    """Say whether a network has layers of dropout that drop anything; stochastic depth is none."""
    return bool(_dropouts(network))


@contextlib.contextmanager
def dropout_pass(network: nn.Module, image: Tensor, number: int) -> Iterator[None]:
    """Turn the network's dropout on, and nothing else of its training; random numbers follow from the arguments.

    Args:
        network: in evaluation mode.
        image: of integers, on any device; its values and ``number`` decide what is dropped.
        number: of the pass.
    """
    digest = hashlib.blake2b(image.cpu().numpy().tobytes(), digest_size=7, salt=number.to_bytes(8, "little"))
    device = next(network.parameters()).device
    parts = _dropouts(network)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest.digest(), "little"))
        for part in parts:
            part.train()
        try:
            yield
        finally:
            for part in parts:
                part.eval()
