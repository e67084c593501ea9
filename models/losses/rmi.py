"""Region mutual information: classes are compared as 3x3 patches, not only pixel by pixel.

Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019 (arXiv 1910.12037).
Every class is a map of its own: sigmoid probabilities against a one-hot label map. A patch of either is a point
in 9 dimensions, and the loss is a Gaussian bound on how little the probabilities' patches tell of the labels'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .batch_labels import BatchTotals, in_float32, labelled

RADIUS = 3
"""Side of a patch, in pooled pixels."""
POOL = 4
"""Maps are averaged over cells of this side before patches are taken; cells begin half a side outside."""
RIDGE = 5e-4
"""Added to the diagonals of the covariances (sums over patches, not means): keeps them invertible."""
REGION_SHARE = 0.5
"""Share of the region term in the loss; the binary cross entropy has the rest."""
MIN_SIDE = POOL * (RADIUS - 1)
"""The smallest height and width of which a whole patch can be taken."""

_DIM = RADIUS**2
# Values held at once of what is made along the way. Small enough for an allocator to hand the same memory out again:
# fresh pages took most of the time, and the patches of a batch of photographs would take gigabytes.
_PART = 2**20


def rmi_loss(logits: Tensor, labels: Tensor, totals: BatchTotals | None = None, *, region: bool = True) -> Tensor:
    """Binary cross entropy of every class, and the lower bound on what regions share.

    The cross entropies of all classes are summed per pixel and averaged over the labelled pixels of the batch
    (plus one). The region term is summed over classes, averaged over images and the 9 dimensions; it falls below
    zero. Ignored pixels are zero in both maps and get no gradient.

    Memory beyond the scores and their gradient is a few maps of a single image: nothing of the size of the batch
    is kept for the backward pass.

    Args:
        logits, labels, totals: as for `cross_entropy`; with ``region`` H and W are 8 at least.
        region: False leaves the region term out and returns the whole cross entropy.

    Returns:
        A scalar as that of `cross_entropy`. Covariances and their determinants are float64: sums over all patches of
        a photograph stand against a `RIDGE` of 5e-4.

    Raises:
        ValueError: as `batch_labels.labelled`, or the maps are too small for a patch.
    """
    valid = labelled(logits, labels)
    if region and min(logits.shape[-2:]) < MIN_SIDE:
        raise ValueError(
            f"the region term needs {MIN_SIDE}x{MIN_SIDE} pixels at least, not {tuple(logits.shape[-2:])}"
        )
    classes = labels.where(valid, 0)
    with torch.autocast(logits.device.type, enabled=False):
        cross_entropies, probabilities = _Pixels.apply(in_float32(logits), classes, valid, region)
        loss = cross_entropies / ((valid.sum() if totals is None else totals.pixels) + 1)
        if region:
            bound = _region_bound(probabilities, _pooled_labels(classes, valid, probabilities))
            if totals is not None:
                bound = bound * (len(logits) / totals.images)
            loss = (1 - REGION_SHARE) * loss + REGION_SHARE * bound
        return loss.to(in_float32(logits).dtype)


class _Pixels(torch.autograd.Function):
    """All that is done at full resolution, a few maps at a time: it keeps its inputs and makes the rest again.

    Scores (N, C, H, W), classes (N, H, W) and where they count to the sum of binary cross entropies, a float64
    scalar, and pooled probabilities (N, C, h, w), None without ``region``.
    """

    @staticmethod
    def forward(logits: Tensor, classes: Tensor, valid: Tensor, region: bool) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        pooled = []
        for scores, target, known in zip(logits, classes, valid, strict=True):
            losses = -scores.gather(0, target[None])[0]
            for (maps,) in _in_parts(known.numel(), scores):
                losses += _softplus(maps).sum(0)
                if region:
                    pooled.append(_pool(maps.sigmoid().masked_fill_(~known, 0)))
            total += losses.masked_fill_(~known, 0).sum(dtype=torch.float64)
        return total, torch.cat(pooled).unflatten(0, logits.shape[:2]) if region else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_total: Tensor, grad_pooled: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits, classes, valid = ctx.saved_tensors
        grads = torch.empty_like(logits)
        for i, known in enumerate(valid):
            of_pooled = () if grad_pooled is None else (grad_pooled[i],)
            for maps, out, *outer in _in_parts(known.numel(), logits[i], grads[i], *of_pooled):
                grad = maps.sigmoid()
                if outer:
                    grad.mul_((1 - grad).mul_(_unpool(outer[0], maps.shape[-2:])).add_(grad_total))
                else:
                    grad.mul_(grad_total)
                out.copy_(grad.masked_fill_(~known, 0))
            grads[i].scatter_add_(0, classes[i, None], known[None] * -grad_total.to(grads.dtype))
        return grads, None, None, None


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to within a rounding of 1; `F.softplus` and log1p use no vector units on a CPU, log does."""
    return x.abs().neg_().exp_().add_(1).log_().add_(x.clamp(min=0))


def _pool(maps: Tensor) -> Tensor:
    """(C, H, W) to (C, H // 4 + 1, W // 4 + 1): means over cells, zeros outside the image among them."""
    return F.avg_pool2d(maps, POOL, padding=POOL // 2)


def _unpool(grad: Tensor, size: torch.Size) -> Tensor:
    """Gradient of `_pool` by its input, (C, h, w) to (C, H, W)."""
    # One more cell at the end: pixels that fill less than half of it were left out, they get its zero.
    cells = F.pad(grad / POOL**2, (0, 1, 0, 1))
    start = POOL // 2
    return F.interpolate(cells[None], scale_factor=POOL)[0, :, start : start + size[0], start : start + size[1]]


def _pooled_labels(classes: Tensor, valid: Tensor, like: Tensor) -> Tensor:
    """One-hot maps of the labels, pooled, in shape and dtype of the pooled probabilities ``like``.

    Counted cell by cell: the maps never exist at full size. Sums of sixteenths are exact in any order.
    """
    height, width = like.shape[-2:]
    # `_pool` leaves pixels out that fill less than half of a cell at the end.
    inside = (slice(None), slice(POOL * height - POOL // 2), slice(POOL * width - POOL // 2))
    classes, valid = classes[inside], valid[inside]
    row, column = ((torch.arange(side, device=like.device) + POOL // 2) // POOL for side in classes.shape[-2:])
    cells = classes * (height * width) + row[:, None] * width + column
    shares = valid.to(like.dtype) / POOL**2
    pooled = like.new_zeros(len(like), like[0].numel())
    return pooled.scatter_add_(1, cells.flatten(1), shares.flatten(1)).view_as(like)


def _region_bound(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Half the log determinant of what is left of the labels' covariance once the probabilities are known.

    Both are pooled, (N, C, h, w), of one floating dtype. With A, B and L the covariances of probabilities, of both
    and of labels, that is L - B' inv(A) B: the Schur complement of A in the joint covariance. The end of the joint
    matrix' Cholesky factor is the factor of just this, so one factorisation gives all, and nothing is inverted nor
    subtracted.

    Returns:
        A float64 scalar: mean over images and dimensions, sum over classes.
    """
    covariance = _PatchCovariance.apply(probabilities.flatten(0, 1), labels.flatten(0, 1))
    ridge = RIDGE * torch.eye(2 * _DIM, dtype=covariance.dtype, device=covariance.device)
    # cholesky_ex does not raise: scores that are no numbers give a loss that is none, for the caller to see.
    factor, _ = torch.linalg.cholesky_ex(covariance + ridge)
    return factor.diagonal(dim1=-2, dim2=-1)[:, _DIM:].log().sum() / (_DIM * len(probabilities))


class _PatchCovariance(torch.autograd.Function):
    """Maps of probabilities and labels, both (M, h, w), to (M, 18, 18) float64: their patches' joint covariance.

    Sums over all patches, not means. Patches are laid out for a few maps at a time, and again in backward.
    """

    @staticmethod
    def forward(probabilities: Tensor, labels: Tensor) -> Tensor:
        parts = _in_parts(2 * _DIM * probabilities[0].numel(), probabilities, labels)
        return torch.cat([patches @ patches.mT for patches in (_patches(*part) for part in parts)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        probabilities, labels = ctx.saved_tensors
        # Only the probabilities' half of the patches gets a gradient; centring needs no step of its own, since
        # the patches' means are zero.
        weights = (grad + grad.mT)[:, :_DIM]
        parts = _in_parts(2 * _DIM * probabilities[0].numel(), probabilities, labels, weights)
        grads = [
            F.fold(weight @ _patches(some, of_labels), probabilities.shape[-2:], RADIUS)
            for some, of_labels, weight in parts
        ]
        return torch.cat(grads).squeeze(1).to(probabilities.dtype), None


def _patches(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Two stacks of maps (M, h, w) to (M, 18, (h - 2) * (w - 2)) float64 patches, their mean taken out."""
    both = torch.stack([probabilities, labels], dim=1).double()
    patches = both.unfold(2, RADIUS, 1).unfold(3, RADIUS, 1).permute(0, 1, 4, 5, 2, 3)
    patches = patches.reshape(len(both), 2 * _DIM, -1)
    return patches.sub_(patches.mean(-1, keepdim=True))


def _in_parts(values: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Tensors of one length, cut alike into views of as many items as fit `_PART`, each for that many values."""
    count = max(1, _PART // values)
    return zip(*(tensor.split(count) for tensor in tensors), strict=True)
