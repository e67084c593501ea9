"""Combinations of members, each a weight for every member, and the order in which their sums are cheapest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = tuple[float, ...]
"""(M,) weights of the members, 0 for one that takes no part."""


def subsets(weights: Sequence[float], most: int | None = None) -> list[Weights]:
    """List every subset of the members but the empty one, the smallest first, each with the weights it was given.

    Args:
        weights: of all members, above 0.
        most: members of a subset; None for all.
    """
    numbers = range(len(weights))
    return [
        tuple(weight if i in chosen else 0.0 for i, weight in enumerate(weights))
        for size in range(1, min(most or len(weights), len(weights)) + 1)
        for chosen in itertools.combinations(numbers, size)
    ]


def members_of(weights: Weights) -> tuple[int, ...]:
    """Positions of the members of a weight above 0."""
    return tuple(i for i, weight in enumerate(weights) if weight)


def shares_of(weights: Weights) -> tuple[tuple[int, float], ...]:
    """Position and share of each member that takes part, as `fuse` computes the shares."""
    numbers = members_of(weights)
    total = float(sum(weights[i] for i in numbers))
    return tuple((i, weights[i] / total) for i in numbers)


@dataclass(frozen=True)
class _Step:
    combination: int
    shares: tuple[tuple[int, float], ...]
    kept: int  # leading members whose sum is that of the combination before


class RunningSums:
    """Weighted sums of the members' planes, one combination after the other, each to the bits of `fuse`.

    Combinations are ordered so that those that begin with the same members and shares follow one another: their
    common sum stays, and only what differs is added. Nothing is ever subtracted, so a sum has the rounding of the
    members added one by one, in the order of the manifest, as `fuse` does. The 127 subsets of seven members take 247
    additions.

    Args:
        combinations: N combinations of M members.
    """

    def __init__(self, combinations: Sequence[Weights]) -> None:
        ordered = sorted((shares_of(weights), number) for number, weights in enumerate(combinations))
        self._steps: list[_Step] = []
        before: tuple[tuple[int, float], ...] = ()
        for shares, number in ordered:
            kept = 0
            while kept < min(len(before), len(shares)) and before[kept] == shares[kept]:
                kept += 1
            self._steps.append(_Step(number, shares, kept))
            before = shares
        self._deepest = max(len(step.shares) for step in self._steps)

    @property
    def additions(self) -> int:
        """Number of planes that are added for all combinations."""
        return sum(len(step.shares) - step.kept for step in self._steps)

    def visit(self, planes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each combination's number and its sum (...) float32, which the next one overwrites.

        Args:
            planes: (M, ...) float32 of the members; the last axis is a multiple of 64, for the reason in `fuse`.
        """
        rooms = torch.empty(self._deepest, *planes.shape[1:])
        for step in self._steps:
            for depth, (member, share) in enumerate(step.shares[step.kept :], step.kept):
                if depth:
                    torch.add(rooms[depth - 1], planes[member], alpha=share, out=rooms[depth])
                else:
                    torch.mul(planes[member], share, out=rooms[0])
            yield step.combination, rooms[len(step.shares) - 1]
