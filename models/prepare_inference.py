"""A trained network made ready for inference: the same scores, up to rounding, for less work."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .hmsa import OCRNet
from .hrnet import Bottleneck, ExchangeModule
from .ocr import ObjectAttention
from .plain import PlainNetwork

Network = TypeVar("Network", OCRNet, PlainNetwork, OCRNet | PlainNetwork)


def prepare_for_inference(model: Network, dtype: torch.dtype | None = None) -> Network:
    """Change a network in evaluation mode for inference, for good: it cannot be trained or saved any more.

    Every normalisation that follows a convolution becomes part of its weights. Weights are kept with channels last,
    as processors with vector units and GPUs with matrix units want them. Weights and features become ``dtype``, or
    stay float32 for None; scores and attention are float32 either way. Of no meaning to a `PlainNetwork`.
    """
    assert not model.training, "prepare() on a network in training mode: call eval() first"
    with torch.no_grad():
        if isinstance(model, PlainNetwork):
            # Nobody knows what follows what in there, nor what half precision does to its weights.
            return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _fold(model)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dtype is not None:
            model.to(dtype)
    return model


def _fold(module: nn.Module) -> None:
    """Fold what is below ``module``; norms directly follow their convolutions, or begin the block that does."""
    before: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        holder, place, norm = module, name, child
        if isinstance(child, nn.Sequential) and len(child) and isinstance(child[0], nn.BatchNorm2d):
            holder, place, norm = child, "0", child[0]
        if isinstance(norm, nn.BatchNorm2d) and before is not None:
            setattr(module, before[0], fuse_conv_bn_eval(before[1], norm))
            setattr(holder, place, nn.Identity())
        elif not isinstance(norm, nn.BatchNorm2d):
            _fold(child)
        before = (name, child) if isinstance(child, nn.Conv2d) else None


def compile_regions(model: OCRNet | PlainNetwork, mode: str, backend: str = "inductor") -> None:
    """Have ``torch.compile`` make kernels of a prepared network's parts, when each first sees an image of a size.

    Parts that occur many times with the same shapes are compiled once: of HRNet-W48 about fifteen for each scale,
    where the network as one piece has a thousand layers. A `PlainNetwork`, whose parts nobody knows, is one piece.
    Each size is compiled by itself: kernels for any size would be chosen by which sizes came first, and an image's
    logits must not depend on the images before it.

    Args:
        model: changed in place; see `without_compile`.
        mode, backend: of ``torch.compile``, such as ``default`` or ``max-autotune-no-cudagraphs``.
    """
    import torch._dynamo.config as dynamo  # not above: it takes seconds

    # Beyond the limit parts would be left as they are without a word.
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_SHAPES)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, _MOST_SHAPES)
    options = {"mode": mode} if backend == "inductor" else {}
    if isinstance(model, PlainNetwork):
        model.compile(dynamic=False, backend=backend, **options)
        return
    for part in _regions(model):
        part.compile(fullgraph=True, dynamic=False, backend=backend, **options)


def without_compile(model: nn.Module) -> None:
    """Take back what `compile_regions` did: the network runs as it was."""
    for part in model.modules():
        part._compiled_call_impl = None  # what nn.Module.compile sets; there is no other way back


_MOST_SHAPES = 4096


def _regions(model: OCRNet) -> list[nn.Module]:
    """Parts of many small operations behind one another, none inside another."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, Bottleneck | ExchangeModule | ObjectAttention) or child is attention:
                found.append(child)
            else:
                look(child)

    attention = getattr(model, "scale_attn", None)
    look(model)
    return found
