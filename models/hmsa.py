"""Segmentation networks: a trunk with an OCR head, at one scale or with attention between scales.

Tao, Sapra, Catanzaro, "Hierarchical Multi-Scale Attention for Semantic Segmentation", 2020
(arXiv 2005.10821). A network's attention says, pixel by pixel, how far its own scale is to be
trusted against all larger ones, so that any list of scales can be blended.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .hrnet import HRNet, resize
from .ocr import OCRHead


class ScaleOutput(NamedTuple):
    """Output of one scale, float32, at the size of the scaled image."""

    scale: float
    scores: Tensor
    """Class scores (N, C, h, w)."""
    attention: Tensor | None
    """Trust in this scale against larger ones, (N, 1, h, w) in 0..1; None if it was not asked for."""


class TrainingOutput(NamedTuple):
    """Input of a loss, float32, all of it (N, C, H, W) at the size of the images."""

    scores: Tensor
    """Class scores, all scales blended."""
    auxiliary: Tensor
    """Class scores of the trunk alone, which define OCR's regions, all scales blended."""
    scales: dict[float, Tensor]
    """Class scores of each scale by itself; empty for a network that looks at one."""


class OCRNet(nn.Module):
    """A trunk and an OCR head; scores of several scales are averaged.

    Args:
        trunk: images to features of several resolutions.
        num_classes, mid_channels, key_channels: as for `OCRHead`.
    """

    def __init__(self, trunk: HRNet, num_classes: int = 19, mid_channels: int = 512, key_channels: int = 256):
        super().__init__()
        self.backbone = trunk
        self.ocr = OCRHead(trunk.out_channels, num_classes, mid_channels, key_channels)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> TrainingOutput:
        """Scores to train on, (N, C, H, W), of images (N, 3, H, W), normalised, at their own size. See `predict`."""
        out = self.ocr(self.backbone(images))
        size = images.shape[-2:]
        return TrainingOutput(resize(out.scores.float(), size), resize(out.auxiliary.float(), size), {})

    @torch.no_grad()
    def predict(
        self, images: Tensor, scales: Sequence[float], flip: bool = False, gather: torch.device | None = None
    ) -> Tensor:
        """Class scores at the images' own size; the network must be in evaluation mode.

        Args:
            images: (N, 3, H, W), normalised; N images of one size, any size from 1x1 on.
            scales: the sizes to look at, as factors of the images' size, in any order; 1.0 among them.
            flip: average the raw scores with those of the mirrored images.
            gather: where each scale's scores are taken before they are enlarged and blended; None to leave
                them where the network is. On a GPU, the CPU needs the least of the GPU's memory, and gives
                the same up to rounding.

        Returns:
            (N, classes, H, W) float32 logits; under autocast too.

        Raises:
            ValueError: a scale is not a positive number or repeats, or 1.0 is missing.
        """
        assert not self.training, "predict() on a network in training mode: call eval() first"
        scales = check_scales(scales)
        logits = self._multi_scale(images, scales, gather)
        if flip:
            logits = (logits + self._multi_scale(images.flip(-1), scales, gather).flip(-1)) / 2
        return logits

    def _multi_scale(self, images: Tensor, scales: Sequence[float], gather: torch.device | None) -> Tensor:
        place = gather or images.device
        logits = torch.zeros((), device=place)
        for scale in scales:
            scores = self.ocr(self.backbone(scale_images(images, scale))).scores
            logits = logits + resize(scores.float().to(place), images.shape[-2:])
            # Else these would still take memory while the next scale runs.
            del scores
        return logits / len(scales)


class HMSA(OCRNet):
    """A trunk and an OCR head with hierarchical attention between scales.

    Args:
        trunk, num_classes, mid_channels, key_channels: as for `OCRNet`.
        attention_channels: channels inside the attention head.
    """

    def __init__(
        self,
        trunk: HRNet,
        num_classes: int = 19,
        mid_channels: int = 512,
        key_channels: int = 256,
        attention_channels: int = 256,
    ):
        super().__init__(trunk, num_classes, mid_channels, key_channels)
        self.scale_attn = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(mid_channels, attention_channels, 3, padding=1, bias=False),
                bn0=nn.BatchNorm2d(attention_channels),
                relu0=nn.ReLU(inplace=True),
                conv1=nn.Conv2d(attention_channels, attention_channels, 3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(attention_channels),
                relu1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(attention_channels, 1, 1, bias=False),
            )
        ).apply(_initialise)

    def forward(self, images: Tensor, low_scale: float = 0.5) -> TrainingOutput:
        """Scores to train on, (N, C, H, W): of two sizes of the images, blended by the smaller one's attention.

        Images are (N, 3, H, W), normalised; ``low_scale`` is the smaller version's size, as a factor of theirs. What
        the attention learns between two neighbouring scales serves for any list of them (section 3.2 of arXiv
        2005.10821).

        Raises:
            ValueError: ``low_scale`` does not shrink.
        """
        if not 0 < low_scale < 1:
            raise ValueError(f"low_scale must lie between 0 and 1, not {low_scale}")
        # The small version goes first: the norms' running statistics tell the order.
        low, low_auxiliary = self._training_scale(images, low_scale)
        high, high_auxiliary = self._training_scale(images, 1.0, attend=False)
        return TrainingOutput(
            scores=blend((high, low)),
            auxiliary=blend((high_auxiliary, low_auxiliary)),
            scales={scale: resize(scores, images.shape[-2:]) for scale, scores, _ in (high, low)},
        )

    @torch.no_grad()
    def predict_scales(
        self, images: Tensor, scales: Sequence[float], gather: torch.device | None = None
    ) -> tuple[Tensor, tuple[ScaleOutput, ...]]:
        """Run `predict` without flip; return each scale's output too, from the largest to the smallest.

        Every scale comes with its attention.

        Args:
            images, scales, gather: as of `predict`, which raises the same errors.
        """
        assert not self.training, "predict_scales() on a network in training mode: call eval() first"
        outputs = tuple(self.one_scale(images, scale, gather=gather) for scale in check_scales(scales))
        return blend(outputs), outputs

    def _multi_scale(self, images: Tensor, scales: Sequence[float], gather: torch.device | None) -> Tensor:
        def outputs() -> Iterator[ScaleOutput]:
            for i, scale in enumerate(scales):
                below = scales[1] if i == 0 and len(scales) > 1 else None
                yield self.one_scale(images, scale, attend=i > 0, gather=gather, below=below)

        return blend(outputs())

    def _training_scale(self, images: Tensor, scale: float, attend: bool = True) -> tuple[ScaleOutput, ScaleOutput]:
        """Class scores and auxiliary scores of one scale, each with that scale's attention."""
        scaled = scale_images(images, scale)
        size = scaled.shape[-2:]
        out = self.ocr(self.backbone(scaled))
        if attend:
            attention = resize(self.scale_attn(out.features).float().sigmoid(), size)
        else:
            # Inference asks for the attention of any scale, so the norms must have this one in their statistics.
            attention = None
            with torch.no_grad():
                self.scale_attn(out.features)
        scores, auxiliary = (resize(x.float(), size) for x in (out.scores, out.auxiliary))
        return ScaleOutput(scale, scores, attention), ScaleOutput(scale, auxiliary, attention)

    def one_scale(
        self,
        images: Tensor,
        scale: float,
        attend: bool = True,
        gather: torch.device | None = None,
        below: float | None = None,
    ) -> ScaleOutput:
        """Compute what one scale says.

        Args:
            images: (N, 3, H, W), normalised.
            scale: of them.
            attend: whether attention is asked for.
            gather: as for `predict`.
            below: the next smaller scale, if this is the largest one of several and `blend` comes next.
        """
        place = gather or images.device
        scaled = scale_images(images, scale)
        size = scaled.shape[-2:]
        out = self.ocr(self.backbone(scaled))
        # In float32 from here on: under autocast, what follows would lose bits for no gain in speed.
        attention = resize(self.scale_attn(out.features).float().sigmoid().to(place), size) if attend else None
        if below is not None:
            size = self._shortcut(out.scores.shape[-2:], size, images.shape[-2:], below)
        return ScaleOutput(scale, resize(out.scores.float().to(place), size), attention)

    @staticmethod
    def _shortcut(scores: Sequence[int], size: Sequence[int], image: Sequence[int], below: float) -> list[int]:
        """The size to enlarge the largest scale's scores to, which `blend` brings to that of the scale below.

        Four times as large and then half of that is twice as large, in the bilinear sense and with corners not
        aligned: the two samples that halving averages lie on one straight piece. So the largest maps need not exist.
        """
        smaller = [max(1, math.floor(side * below)) for side in image]
        exact = all(2 * a == b and 4 * c == b for a, b, c in zip(smaller, size, scores, strict=True))
        return smaller if exact and below >= 1 else list(size)


def blend(outputs: Iterable[ScaleOutput]) -> Tensor:
    """Blend scales, given from the largest to the smallest and 1.0 among them, at the size of scale 1.0.

    The largest scale begins. Each further one is mixed in by its attention ``a`` as
    ``a * scores + (1 - a) * blend``, at its own size as long as it enlarges the image, at the
    image's size where it shrinks it. (Section 3.2 of arXiv 2005.10821.)

    Returns:
        (N, C, H, W) float32.
    """
    blended: Tensor | None = None
    for scale, scores, attention in outputs:
        if blended is None:
            blended = scores
            continue
        assert attention is not None
        if scale >= 1:
            blended = attention * scores + (1 - attention) * resize(blended, scores.shape[-2:])
        else:
            size = blended.shape[-2:]
            blended = resize(attention * scores, size) + (1 - resize(attention, size)) * blended
    assert blended is not None
    return blended


def scale_images(images: Tensor, scale: float) -> Tensor:
    """Images (N, 3, H, W) resized to (floor(H * scale), floor(W * scale)), one pixel at least."""
    return resize(images, [_scaled_side(side, scale) for side in images.shape[-2:]])


def _scaled_side(side: int, scale: float) -> int:
    if isinstance(side, int):
        return max(1, math.floor(side * scale))
    # Of a graph for any size, which holds whole numbers only.
    fraction = scale_fraction(scale)
    return max(1, side * fraction.numerator // fraction.denominator)


@functools.cache
def scale_fraction(scale: float) -> Fraction:
    """Find the fraction that scales every side of up to 16,384 pixels as the number does, rounded down.

    Raises:
        ValueError: there is none with a denominator of 64 at most.
    """
    found = Fraction(scale).limit_denominator(64)
    sides = range(1, 2**14 + 1)
    if any(side * found.numerator // found.denominator != math.floor(side * scale) for side in sides):
        raise ValueError(f"no fraction scales images as {scale} does; take one such as 0.5, 0.75 or 1.25")
    return found


def check_scales(scales: Sequence[float]) -> list[float]:
    """The scales from the largest to the smallest; ValueError if they are not as `OCRNet.predict` wants."""
    wrong = [scale for scale in scales if not (math.isfinite(scale) and scale > 0)]
    if wrong:
        raise ValueError(f"scales must be positive numbers, not {wrong[0]}")
    if len(set(scales)) < len(scales):
        raise ValueError(f"scales must differ from one another: {list(scales)}")
    if 1.0 not in scales:
        raise ValueError(f"scales must contain 1.0: {list(scales)}")
    return sorted(scales, reverse=True)


def _initialise(module: nn.Module) -> None:
    """He initialisation (arXiv 1502.01852) with every filter's mean taken out.

    Inputs behind a ReLU are positive: without the second step their common level adds up from layer
    to layer until a fresh network says the same everywhere, whatever it sees.
    """
    # A network without memory is built for its shapes alone, and to fill it would load torch's compiler.
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight)
        with torch.no_grad():
            module.weight -= module.weight.mean(dim=(1, 2, 3), keepdim=True)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
