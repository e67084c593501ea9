"""A member that runs another library's network: sizes, views and classes are kept right here.

A network that is fed what its patches do not divide leaves the last pixels unseen, and its library stretches the
rest over the image. Here images are padded, and the padding is cut off before anything is enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ManifestError
from ..hmsa import check_scales, scale_images
from ..hrnet import resize
from ..member_output import FLOOR, normalised
from ..plain import PlainNetwork
from ..windows import window_starts, window_weights
from .body import Body
from .class_table import ClassTable
from .settings import View

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""By which the images that `MemberNetwork.predict` gets were normalised, red, green and blue, 0..1."""


class MemberNetwork(PlainNetwork):
    """Another library's network as a member: its belief over our classes, as logits.

    Args:
        body: the network.
        classes: which of its channels become our classes.
        view: what it sees of an image at a time; None for its own.

    Attributes:
        other: the mean share of the probability that the network gave to classes that it alone knows in the last
            images of `predict`, a scalar; None if it has no such classes.

    Raises:
        ManifestError: the network cannot see images so.
    """

    def __init__(self, body: Body, classes: ClassTable, view: View | None) -> None:
        super().__init__()
        self.body, self.classes = body, classes
        self.view = _checked_view(body, view)
        self.other: Tensor | None = None
        self._others: list[tuple[Tensor, int]] = []

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the body's output (N, K, h, w) of images (N, 3, H, W) float32, RGB, 0..1."""
        return self.body(pixels)

    @torch.no_grad()
    def predict(
        self, images: Tensor, scales: Sequence[float], flip: bool = False, gather: torch.device | None = None
    ) -> Tensor:
        """Logits (N, C, H, W) at the images' own size, whose softmax is the mean over scales and mirror images.

        Logits are averaged as such; probabilities and scores as probabilities, of which the logarithm is taken.

        Args:
            images: (N, 3, H, W), normalised by `MEAN` and `STD`, of pixels of 8 bits. In half precision the body runs
                under autocast.
            scales, flip, gather: as for `OCRNet.predict`, which raises the same.
        """
        assert not self.training, "predict() on a network in training mode: call eval() first"
        pixels = as_pixels(images)
        half = images.dtype if images.dtype != torch.float32 else None
        total = torch.zeros((), device=gather or images.device)
        sizes = check_scales(scales)
        base = self._at_length(pixels)
        self._others.clear()
        for scale in sizes:
            scaled = scale_images(base, scale)
            for mirrored in (False, True) if flip else (False,):
                found = self._see(scaled.flip(-1) if mirrored else scaled, half).to(total.device)
                found = resize(found, images.shape[-2:])
                if self.body.kind != "logits":
                    found = normalised(found)[0]
                total = total + (found.flip(-1) if mirrored else found)
        self.other = weighted_mean(self._others)
        mean = total / (len(sizes) * (2 if flip else 1))
        return mean if self.body.kind == "logits" else mean.clamp(min=FLOOR).log()

    def _at_length(self, pixels: Tensor) -> Tensor:
        if self.view.longest is None:
            return pixels
        factor = self.view.longest / max(pixels.shape[-2:])
        size = [max(1, round(side * factor)) for side in pixels.shape[-2:]]
        if size == list(pixels.shape[-2:]):
            return pixels
        return functional.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)

    def _see(self, pixels: Tensor, half: torch.dtype | None) -> Tensor:
        """Return logits, or scores that are not divided by their sum, (N, C, H, W), through the view."""
        window = self.view.window
        if window is None:
            return self._piece(pixels, half)
        sides, overlap = pixels.shape[-2:], self.view.overlap
        rows, columns = (window_starts(*one) for one in zip(sides, window, overlap, strict=True))
        if len(rows) == len(columns) == 1:
            return self._piece(pixels, half)
        total: Tensor | None = None
        weights = torch.zeros(sides, device=pixels.device)
        for y in rows:
            for x in columns:
                piece = pixels[..., y : y + window[0], x : x + window[1]]
                found = self._piece(piece, half)
                belief = found.softmax(1) if self.body.kind == "logits" else normalised(found)[0]
                weight = window_weights((piece.shape[-2], piece.shape[-1]), overlap).to(pixels.device)
                if total is None:
                    total = belief.new_zeros(*belief.shape[:2], *sides)
                here = (slice(y, y + window[0]), slice(x, x + window[1]))
                total[:, :, here[0], here[1]] += weight * belief
                weights[here] += weight
        assert total is not None
        blended = total / weights
        return blended.clamp(min=FLOOR).log() if self.body.kind == "logits" else blended

    def _piece(self, pixels: Tensor, half: torch.dtype | None) -> Tensor:
        """Run the body on pixels (N, 3, H, W) at once, padded as it needs; logits or scores (N, C, H, W)."""
        height, width = pixels.shape[-2:]
        square = self.view.window if self.body.sizes.square else None
        down, right = (
            square or self.body.sizes.fixed or [_padded(side, self.body.sizes.multiple) for side in (height, width)]
        )
        padded = pixels
        if (down, right) != (height, width):
            padded = functional.pad(pixels, (0, right - width, 0, down - height), mode="replicate")
        with torch.autocast(pixels.device.type, half, enabled=half is not None):
            output = self(padded)
        kind = "logits" if self.body.kind == "logits" else "scores"
        if (share := self.classes.other_share(output, kind)) is not None:
            seen = resize(share, (down, right))[..., :height, :width]
            self._others.append((seen.mean(), height * width))
        taken = self.classes.take(output).float()
        return self.classes.combine(resize(taken, (down, right))[..., :height, :width], kind)

    def describe(self, ours: Sequence[str]) -> dict[str, Any]:
        """Return what a store says about the way from pixels to logits; ``ours`` are the names of our classes."""
        return {
            "range": [0, 1],
            **self.body.scaling.as_json(),
            "kind": self.body.kind,
            "view": self.view.as_json(),
            "multiple": self.body.sizes.multiple,
            **self.body.details(),
            **self.classes.as_json(ours),
        }


def as_pixels(images: Tensor) -> Tensor:
    """Take back the normalisation of pixels of 8 bits, exactly: (N, 3, H, W) of any dtype to float32, 0..1."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    # Rounded to the 256 values that a pixel can have, which even bfloat16 still tells from one another.
    return (images.float() * std + mean).mul(255).round().clamp(0, 255) / 255


def weighted_mean(parts: Sequence[tuple[Tensor, int]]) -> Tensor | None:
    """Return the mean of scalars, each with the number of pixels that it stands for; None if there are none."""
    if not parts:
        return None
    counts = sum(count for _, count in parts)
    return torch.stack([value * (count / counts) for value, count in parts]).sum()


def _padded(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _checked_view(body: Body, view: View | None) -> View:
    sizes, own = body.sizes, body.sizes.fixed
    if view is None:
        return View(window=own or sizes.usual)
    if view.window is not None:
        if problem := sizes.problem(view.window):
            raise ManifestError(f"view: {problem}; leave 'window' to this network, or correct it")
        return view
    if own is not None:
        asked = "whole" if view.longest is None else "longest"
        raise ManifestError(
            f"view: {asked}: the network takes {own[0]}x{own[1]} only; leave 'view' out, or use "
            f"{{window: [{own[0]}, {own[1]}]}}"
        )
    return view
