"""A network that is known by its graph alone: what it does to sizes, and what it puts out, is found by trying."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....errors import CheckpointError, ManifestError, first_few, reason
from ..body import Body, PixelScaling, Sizes
from ..settings import AdapterSettings

_MULTIPLES = (32, 14, 64, 48, 128)
"""Tried in this order: almost every network takes multiples of 32, vision transformers with a patch of 14 do not."""
_ANY = (95, 129)
"""Height and width that are tried where any are taken."""
_SUM_TOLERANCE = 0.02
LOGITS = ("logits", "out")
"""Names of the output that is taken if there are several."""


@dataclass(frozen=True)
class Sides:
    """The heights or widths that a graph takes, as it says itself, in pixels; ``most`` is None for no limit."""

    least: int = 1
    most: int | None = None

    def multiple_of(self, step: int, times: int) -> int | None:
        """Find the least multiple of ``step`` from ``times`` of them on; None if it is too large."""
        side = step * max(times, -(-self.least // step))
        return None if self.most is not None and side > self.most else side


class GraphBody(Body):
    """A network that is known by its graph alone.

    Args:
        settings: of the member.
        fixed: height and width, if the graph takes no others.
        rows, columns: heights and widths that it takes otherwise.
        takes_bytes: whether its pixels are uint8, 0 to 255.
        any_size: whether it says that it sees all of images of any size.

    Raises:
        ManifestError: mean and deviation are missing, or they are given for bytes.
    """

    labels = None

    def __init__(
        self,
        settings: AdapterSettings,
        fixed: tuple[int, int] | None,
        rows: Sides | None = None,
        columns: Sides | None = None,
        *,
        takes_bytes: bool = False,
        any_size: bool = False,
    ) -> None:
        super().__init__()
        if settings.mean is None or settings.std is None:
            raise ManifestError(
                f"{settings.path}: does not say how its pixels are scaled; give 'mean' and 'std', [0, 0, 0] and "
                "[1, 1, 1] if the graph does it itself"
            )
        if takes_bytes and (any(settings.mean) or any(one != 1 for one in settings.std)):
            raise ManifestError(
                f"{settings.path}: takes bytes, which it scales itself; give 'mean: [0, 0, 0]' and 'std: [1, 1, 1]'"
            )
        self.scaling = PixelScaling(settings.mean, settings.std)
        self._path, self._fixed = settings.path, fixed
        self._sides = (rows or Sides(), columns or Sides())
        self._takes_bytes, self._any_size = takes_bytes, any_size

    @abstractmethod
    def run(self, scaled: Tensor) -> Tensor:
        """Compute the output (1, K, h, w) of any type, on any device, of one image (1, 3, H, W), float32 or uint8."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute output (N, K, h, w) float32, image by image, as `Body.forward` says."""
        with torch.autocast(pixels.device.type, enabled=False):
            scaled = self.scaling(pixels.float())
            if self._takes_bytes:
                scaled = (255 * scaled).round().clamp(0, 255).to(torch.uint8)
            return torch.cat([self.run(one[None]).float().to(pixels.device) for one in scaled])

    @torch.no_grad()
    def find_out(self, settings: AdapterSettings) -> None:
        """Run the network on noise to learn its sizes, channels and kind.

        Args:
            settings: of the member: its view, if it has windows, and its kind, if that is given.

        Raises:
            CheckpointError: it takes no sizes, does not see all of an image, gives two results for the same image, or
                what it gives is no map of classes.
            ManifestError: its output is not what ``kind`` says, or nobody says what it is.
        """
        window = settings.view.window if settings.view else None
        problems = []
        for sizes, sides in self._candidates(window):
            try:
                output = self._map_of(sides)
                if sizes.fixed is None:
                    self._map_of((sides[1], sides[0]))
            except _UnfitError as error:
                problems.append(str(error))
                continue
            self.sizes, self.channels = sizes, output.shape[1]
            self.kind = _kind(self._path, output, settings.kind)
            return
        if not problems:
            problems.append("the graph's limits leave no multiple of 14 or 32")
        asked = self._fixed or window
        fix = "export it with a size that its patch or stride divides" if asked else "export it with one size"
        raise CheckpointError(f"{self._path}: no size of images was found that it takes right ({problems[0]}); {fix}")

    def _candidates(self, window: tuple[int, int] | None) -> Iterator[tuple[Sizes, tuple[int, int]]]:
        """Yield sizes to try, with a height and width for each."""
        if one := self._fixed or window:
            yield Sizes(fixed=one), one
            return
        rows, columns = self._sides
        if self._any_size:
            yield Sizes(), _ANY
            return
        for step in _MULTIPLES:
            height, width = rows.multiple_of(step, 2), columns.multiple_of(step, 3)
            if height is not None and width is not None:
                yield Sizes(step), (height, width)

    def _map_of(self, sides: tuple[int, int]) -> Tensor:
        """Return the output for noise of this size; `_UnfitError` if the network cannot take it, or not all of it."""
        shown = f"{sides[0]}x{sides[1]}"
        image = torch.rand((1, 3, *sides), generator=torch.Generator().manual_seed(0))
        try:
            output = self(image)
        except CheckpointError:
            raise
        except Exception as error:  # of others' graphs
            raise _UnfitError(f"{shown}: {type(error).__name__}: {reason(error)[-300:]}") from error
        self._demand_map(output)
        if not torch.allclose(output, self(image), rtol=1e-3, atol=1e-4):
            raise CheckpointError(
                f"{self._path}: gives two results for one image: it was saved in training mode; call eval() before "
                "saving it"
            )
        height, width = output.shape[-2:]
        if abs(height * sides[1] / sides[0] - width) > 1 + width / min(sides):
            raise _UnfitError(f"the output for {shown} is {height}x{width}, of another shape")
        for name, place in (("row", (..., -1, slice(None))), ("column", (..., -1))):
            changed = image.clone()
            changed[place] = 1 - changed[place]
            if torch.equal(self(changed), output):
                raise _UnfitError(f"the last {name} of {shown} changes nothing")
        return output

    def _demand_map(self, output: Tensor) -> None:
        if output.ndim != 4 or len(output) != 1 or output.shape[1] < 2:
            raise CheckpointError(
                f"{self._path}: gives {list(output.shape)} for one image, where (1, classes, height, width) is "
                "needed; export the network's logits"
            )
        if not torch.isfinite(output).all():
            raise CheckpointError(f"{self._path}: gives NaN or inf for noise; its weights or its graph are damaged")


class _UnfitError(Exception):
    """Images of this size are of no use to a network."""


def _kind(path: Path, output: Tensor, kind: str | None) -> str:
    least = output.min().item()
    if kind is None:
        if least < 0:
            return "logits"
        raise ManifestError(
            f"{path}: no value of its output is below zero; say what they are with 'kind: probabilities', 'kind: "
            "scores' or 'kind: logits'"
        )
    if kind != "logits" and least < -1e-6:
        raise ManifestError(f"{path}: kind: {kind}, but its output goes down to {least:.4g}; is it 'kind: logits'?")
    total = output.sum(1)
    low, high = total.min().item(), total.max().item()
    if kind == "probabilities" and (low < 1 - _SUM_TOLERANCE or high > 1 + _SUM_TOLERANCE):
        raise ManifestError(
            f"{path}: kind: probabilities, but they add up to {low:.3f} to {high:.3f}; are they 'kind: scores'?"
        )
    return kind


def demand_file(path: Path) -> None:
    """Raise CheckpointError unless ``path`` is a file."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file; names on a hub are not fetched: save the network, and give its path"
        )
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name the file in it")


def only_map(path: Path, output: Any) -> Tensor:
    """Take from what a network returns its only map of floats (N, K, h, w), or the one called ``logits`` or ``out``.

    Raises:
        CheckpointError: it is none, or several.
    """
    parts = output if isinstance(output, Mapping) else None
    if parts is None:
        parts = dict(enumerate(output)) if isinstance(output, tuple | list) else {0: output}
    maps = {
        name: one
        for name, one in parts.items()
        if isinstance(one, Tensor) and one.is_floating_point() and one.ndim == 4
    }
    if len(maps) == 1:
        return next(iter(maps.values()))
    for name in LOGITS:
        if name in maps:
            return maps[name]
    if not maps:
        raise CheckpointError(
            f"{path}: gives no map of floats (1, classes, height, width); save one that gives logits"
        )
    raise CheckpointError(
        f"{path}: gives several maps ({first_few(maps)}); save a network that gives its logits alone"
    )


def image_sides(path: Path, shape: Sequence[int | None]) -> tuple[int, int] | None:
    """Read from the shape of an input the height and width that it takes; None if it takes several.

    Args:
        path: for errors.
        shape: of the input; None for a side that is not fixed.

    Raises:
        CheckpointError: it takes no batches of one photograph (N, 3, H, W).
    """
    shown = ", ".join("?" if side is None else str(side) for side in shape)
    if len(shape) != 4 or shape[1] not in (3, None):
        raise CheckpointError(
            f"{path}: takes ({shown}), where (batch, 3, height, width) is needed; export it with channels first"
        )
    if shape[0] not in (1, None):
        raise CheckpointError(f"{path}: takes {shape[0]} images at a time; export it with a batch of 1")
    height, width = shape[2:]
    if (height is None) != (width is None):
        raise CheckpointError(f"{path}: takes ({shown}), one side fixed; export it with both fixed, or none")
    return None if height is None or width is None else (height, width)
