"""The part of a member's network that a library brings, with what has to be known about it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class PixelScaling(nn.Module):
    """Pixels as the network's training saw them.

    Args:
        mean, std: of each channel in the network's order; None for none.
        factor: what values of 0 to 255 were multiplied with before.
        bgr: channels are blue, green, red.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float] | None, std: Sequence[float] | None, factor: float = 1 / 255, bgr: bool = False
    ) -> None:
        super().__init__()
        self.factor, self.bgr = factor, bgr
        self.normalises = mean is not None or std is not None
        self._given = {"mean": list(mean or (0.0,) * 3), "std": list(std or (1.0,) * 3)} if self.normalises else {}
        for name, values in (("mean", mean or (0.0,) * 3), ("std", std or (1.0,) * 3)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale (N, 3, H, W) float32, RGB, 0..1."""
        scaled = pixels * (255 * self.factor)
        if self.bgr:
            scaled = scaled.flip(1)
        return (scaled - self.mean) / self.std if self.normalises else scaled

    def as_json(self) -> dict[str, Any]:
        """Describe it for a store."""
        return {"colour": "BGR" if self.bgr else "RGB", "factor": self.factor, **self._given}


@dataclass(frozen=True)
class Sizes:
    """The sizes of images that a network takes.

    Attributes:
        multiple: height and width have to be multiples of it, or pixels at the end are not seen.
        fixed: height and width, if it takes no others.
        square: it takes squares only.
        usual: height and width of the windows that it sees where nothing else is asked for; others do, too.
    """

    multiple: int = 1
    fixed: tuple[int, int] | None = None
    square: bool = False
    usual: tuple[int, int] | None = None

    def problem(self, window: tuple[int, int]) -> str | None:
        """Say why windows of this size do not fit; None if they do (they are padded to the multiple)."""
        if self.square and window[0] != window[1]:
            return f"windows have to be squares, not {window[0]}x{window[1]}"
        if self.square and window[0] % self.multiple:
            return f"windows have to be multiples of {self.multiple}, not {window[0]}"
        if self.fixed and not self.square and window != self.fixed:
            return f"windows have to be {self.fixed[0]}x{self.fixed[1]}, not {window[0]}x{window[1]}"
        return None


class Body(nn.Module):
    """A network of another library.

    Attributes:
        kind: ``logits``, ``probabilities`` or ``scores``, see `member_output`.
        channels: K.
        sizes: of images that it takes.
        labels: channel -> name; None if its files name none.
        scaling: of its pixels.
        notes: lines for the user about what is not done as its library does it.
    """

    kind: str
    channels: int
    sizes: Sizes
    labels: Mapping[int, str] | None
    scaling: PixelScaling
    notes: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute output (N, K, h, w), which covers all of the images, of (N, 3, H, W) float32, RGB, 0..1."""

    def details(self) -> dict[str, Any]:
        """Describe for a store what its scaling and kind leave out."""
        return {}
