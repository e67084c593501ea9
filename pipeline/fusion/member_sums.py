"""Sums over the members of an ensemble, from which labels and confidences are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Set

import torch
from torch import Tensor

from ..config.calibration_field import MaxLogits
from .kernel.library import KINDS, Highest, add_members, is_readable
from .kernel.softmax import softmax

# Pixels beyond the last full vector would be computed by other instructions, and differ in the last digit. With
# padding, a pixel's result does not depend on which other pixels are fused with it.
_VECTOR = 64

LogitMap = Callable[[Tensor], None]
"""Changes logits (C, P) float32 in place."""


class MemberSums(ABC):
    """Sums over the members, added one by one, by name; P is a multiple of 64, the last pixels are padding.

    =================  ==========================================================================
    softmax, logits    (C, P) float32: sum w p, and sum w z
    minimum, maximum   (C, P) float32: the members' minimum and maximum of p
    entropies          (P,) float64: sum w H(p)
    exact              (C, P) float64: sum w p again, as mutual information is a difference of two
                       entropies, of which little is left where members agree
    votes              (C, P) float64: sum w of the members that say a class
    standardised       (C, P) float32: sum w (u - mean) / deviation, with u the logits as they are given, before
                       anything changes or divides them
    =================  ==========================================================================

    Args:
        like: the first member's logits (C, ...), whose shape and device all have.
        shares: (M,) the members' weights w, which sum to one.
        labelled: name of the sum whose highest class is the label.
    """

    def __init__(self, like: Tensor, shares: Sequence[float], labelled: str) -> None:
        self.shape, self.device, self.shares, self.labelled = like.shape, like.device, shares, labelled
        self.pixels = like[0].numel()
        self.rooms: list[Tensor] = []  # (C, P) float64 each, which formulas may overwrite
        self._sums: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name]

    @property
    def is_alone(self) -> bool:
        """True if there is one member of a weight above 0."""
        return sum(share > 0 for share in self.shares) < 2

    @abstractmethod
    def add(
        self,
        given: Tensor,
        share: float,
        temperature: float,
        change: LogitMap | None,
        standard: MaxLogits | None = None,
    ) -> None:
        """Add a member.

        Args:
            given: (C, ...) its logits.
            share: its w.
            temperature: divides them.
            change: changes them before they are divided.
            standard: mean and deviation of ``standardised``; only that needs them.
        """

    @abstractmethod
    def highest(self) -> tuple[Tensor, Tensor]:
        """Return the label, the first class of the highest score, (P,) uint8, and that score, (P,) float32."""

    def _room(self) -> Tensor:
        """Room for all pixels and the padding, which is 0, (C, P) float32."""
        return torch.zeros(self.shape[0], -(-self.pixels // _VECTOR) * _VECTOR, device=self.device)


class _StepwiseSums(MemberSums):
    """All sums, each by an operation of PyTorch on all pixels.

    Args:
        like, shares, labelled: see `MemberSums`.
        needs: names of the sums that are wanted.
    """

    def __init__(self, like: Tensor, shares: Sequence[float], labelled: str, needs: Set[str]) -> None:
        super().__init__(like, shares, labelled)
        self._needs = needs
        # Reused by every member: to allocate memory takes longer than to fill it.
        self._z = self._room()
        self._p = torch.empty_like(self._z)
        self._highest: tuple[Tensor, Tensor] | None = None

    def add(
        self,
        given: Tensor,
        share: float,
        temperature: float,
        change: LogitMap | None,
        standard: MaxLogits | None = None,
    ) -> None:
        needs, z, p = self._needs, self._z, self._p
        z[:, : self.pixels].view(self.shape).copy_(given)
        if "standardised" in needs and standard is not None:
            mean, deviation = (
                torch.tensor(numbers, device=z.device)[:, None] for numbers in (standard.mean, standard.deviation)
            )
            self._add("standardised", torch.sub(z, mean, out=p).div_(deviation), share)
        if change is not None:
            change(z)
        if not needs <= {"logits", "votes", "standardised"}:
            self._add_probabilities(softmax(z, temperature, out=p), share)
        if temperature != 1.0:
            z.div_(temperature)
        if "logits" in needs:
            self._add("logits", z, share)
        if "votes" in needs:
            self._vote(z, share)

    def highest(self) -> tuple[Tensor, Tensor]:
        if self._highest is None:
            self._highest = first_maximum(self._sums[self.labelled])
        return self._highest

    def _add_probabilities(self, p: Tensor, share: float) -> None:
        needs = self._needs
        for name, combine in (("minimum", torch.minimum), ("maximum", torch.maximum)):
            if name in self._sums:
                combine(self._sums[name], p, out=self._sums[name])
            elif name in needs:
                self._sums[name] = p.clone()
        if "softmax" in needs:
            self._add("softmax", p, share)
        if "entropies" in needs:
            if not self.rooms:
                self.rooms = [torch.empty_like(p, dtype=torch.float64) for _ in range(2)]
            exact = self.rooms[0].copy_(p)
            if "exact" in needs:
                self._add("exact", exact, share)
            self._add("entropies", entropy(exact, self.rooms[1]), share)

    def _add(self, name: str, value: Tensor, share: float) -> None:
        if name in self._sums:
            self._sums[name].add_(value, alpha=share)
        else:
            self._sums[name] = value * share

    def _vote(self, z: Tensor, share: float) -> None:
        label, highest = first_maximum(z)
        label.clamp_(max=len(z) - 1)  # NaN equals no class
        # 0 times a logit that is not finite makes the vote NaN.
        vote = (highest.double() * 0.0).add_(share)
        if "votes" not in self._sums:
            self._sums["votes"] = torch.zeros_like(z, dtype=torch.float64)
        self._sums["votes"].scatter_add_(0, label.long()[None], vote[None])


class _OnePassSums(MemberSums):
    """Sums that the compiled library has, to the bits of `_StepwiseSums`, a few pixels of all members at a time.

    Args:
        like, shares, labelled: see `MemberSums`.
        needs: names of the sums that are wanted.
        kept: names of those that are looked at besides the label.
        together: whether members may wait for the last one, so that their sums never go back to memory.
    """

    def __init__(
        self, like: Tensor, shares: Sequence[float], labelled: str, needs: Set[str], kept: Set[str], *, together: bool
    ) -> None:
        super().__init__(like, shares, labelled)
        self._needs, self._together = sorted(needs), together
        self._sums = {name: self._room() for name in (kept if together else needs)}
        self._found = Highest(labelled, torch.empty(self.pixels, dtype=torch.uint8), torch.empty(self.pixels))
        self._waiting: list[tuple[Tensor, float, float]] = []
        self._added = 0

    def add(
        self,
        given: Tensor,
        share: float,
        temperature: float,
        change: LogitMap | None,
        standard: MaxLogits | None = None,
    ) -> None:
        z = given if is_readable(given) else given.float()
        z = z.reshape(len(z), -1)
        if change is not None:
            padded = self._room()
            padded[:, : self.pixels] = z
            change(padded)
            z = padded[:, : self.pixels]
        self._waiting.append((z if z.stride(-1) == 1 else z.contiguous(), temperature, share))
        is_last = self._added + len(self._waiting) == len(self.shares)
        if is_last or not self._together:
            logits, temperatures, shares = zip(*self._waiting, strict=True)
            found = self._found if is_last else None
            add_members(logits, temperatures, shares, self._needs, self._sums, found, continues=self._added > 0)
            self._added += len(self._waiting)
            self._waiting = []

    def highest(self) -> tuple[Tensor, Tensor]:
        return self._found.label, self._found.score


def make_sums(
    like: Tensor, shares: Sequence[float], labelled: str, looked_at: Set[str], *, together: bool
) -> MemberSums:
    """Make sums of members for a label and what else is looked at, by the compiled library where that has them.

    Args:
        like, shares, labelled: see `MemberSums`.
        looked_at: names of sums.
        together: whether all members are in memory at once, unchanged.
    """
    needs = {labelled, *looked_at}
    if needs <= set(KINDS) and is_readable(like):
        return _OnePassSums(like, shares, labelled, needs, looked_at, together=together)
    return _StepwiseSums(like, shares, labelled, needs)


def entropy(p: Tensor, room: Tensor) -> Tensor:
    """Entropy in nats, (P,), of p (C, P), which is kept, by way of ``room``; faster than `torch.special.entr`."""
    return torch.clamp(p, min=torch.finfo(p.dtype).tiny, out=room).log_().mul_(p).sum(0).neg_()


def first_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first class with the highest score, (...) uint8, and that score, of scores (C, ...).

    Ten times as fast as `argmax`: vector units compare and multiply whole maps.
    """
    maximum = scores.amax(0)
    classes = len(scores)
    rank = torch.arange(classes, 0, -1, dtype=torch.uint8, device=scores.device)
    is_highest = (scores == maximum).view(torch.uint8)
    ranked = is_highest.mul_(rank.view(-1, *[1] * maximum.ndim))
    return classes - ranked.amax(0), maximum
