"""One module from an image of bytes to logits, or to classes and confidence: what a graph is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..hmsa import HMSA, OCRNet, blend, check_scales, scale_fraction, scale_images
from ..hrnet import resize

LOGITS = ("logits",)
PREDICTION = ("classes", "confidence")


class ImageGraph(nn.Module):
    """An image (1, 3, H, W) uint8, RGB, to what a member says of it.

    Args:
        network: of this package, in evaluation mode, prepared in float32.
        scales: that it looks at, as for `OCRNet.predict`.
        flip: whether scores are averaged with those of the mirrored image.
        mean, std: by which pixels of 0 to 1 are normalised.
        temperature: which logits are divided by for a prediction; None for logits, which are not.

    Attributes:
        outputs: their names: `LOGITS`, (1, C, H, W) float32, or `PREDICTION`: the class of the highest probability,
            (1, H, W) uint8, and that probability, (1, H, W) float32.

    Raises:
        ValueError: scales are not as `OCRNet.predict` wants them, or a graph of any size cannot hold one.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: OCRNet,
        scales: Sequence[float],
        *,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.network, self.flip, self.temperature = network, flip, temperature
        self.scales = check_scales(scales)
        for scale in self.scales:
            scale_fraction(scale)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        # With gradients the network takes the path without loops over the rows of one size; weights need none.
        self.requires_grad_(False).eval()
        self.outputs = LOGITS if temperature is None else PREDICTION

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the outputs for an image (1, 3, H, W) uint8."""
        pixels = (image.to(torch.float32) / 255 - self.mean) / self.std
        logits = self._scores(pixels)
        if self.flip:
            logits = (logits + self._scores(pixels.flip(-1)).flip(-1)) / 2
        if self.temperature is None:
            return logits
        confidence, classes = (logits / self.temperature).softmax(1).max(1)
        return classes.to(torch.uint8), confidence

    def _scores(self, pixels: Tensor) -> Tensor:
        if isinstance(self.network, HMSA):
            return blend(self.network.one_scale(pixels, scale, attend=i > 0) for i, scale in enumerate(self.scales))
        size = pixels.shape[-2:]
        scores = [
            resize(self.network.ocr(self.network.backbone(scale_images(pixels, scale))).scores.float(), size)
            for scale in self.scales
        ]
        return sum(scores[1:], start=scores[0]) / len(scores)
