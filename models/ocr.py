"""Object-contextual representations: pixels look at the regions of the classes they may belong to.

Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020
(arXiv 1909.11065). Attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .hrnet import conv3x3_of_enlarged, join, join_rows, resize

# Pixels whose features are held in float32 at once while regions are gathered: 512 MiB at 512 channels.
_GATHER_PIXELS = 2**18
_AUXILIARY_CHANNELS = 192
DROPOUT = 0.05
"""Share of output channels dropped in training, unless a recipe says otherwise."""
# Pixels that are looked at together where no pixel, or only its neighbours, matter to another.
_ROWS_PIXELS = 2**15


class OCROutput(NamedTuple):
    """Output of the head at the resolution of the trunk's features, (N, C, h, w)."""

    scores: Tensor
    """Class scores (logits), C = classes."""
    auxiliary: Tensor
    """Class scores of the trunk alone, C = classes: they define the regions and, in training, a loss."""
    features: Tensor
    """Features with object context, C = mid channels."""


class OCRHead(nn.Module):
    """Features of a trunk, (N, C, h, w) and smaller ones, to an `OCROutput` at (h, w).

    Args:
        in_channels: channels of all of the trunk's features.
        num_classes: classes, and so regions.
        mid_channels: channels of pixel and region features.
        key_channels: channels in which pixels and regions are compared.
    """

    def __init__(self, in_channels: int, num_classes: int, mid_channels: int = 512, key_channels: int = 256):
        super().__init__()
        self.conv3x3_ocr = nn.Sequential(nn.Conv2d(in_channels, mid_channels, 3, padding=1), _bn_relu(mid_channels))
        self.ocr_distri_head = ObjectContext(mid_channels, key_channels)
        self.cls_head = nn.Conv2d(mid_channels, num_classes, 1)
        self.aux_head = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1),
            _bn_relu(in_channels),
            nn.Conv2d(in_channels, num_classes, 1),
        )

    def forward(self, branches: Sequence[Tensor]) -> OCROutput:
        """Map the trunk's branches (N, C, h, w) to scores and features (N, C, h, w) at the size of the first one."""
        if _inferring(self):
            auxiliary, pixels = self._small_first(branches), self._pixels(branches)
        else:
            x = join(branches)
            auxiliary, pixels = self.aux_head(x), self.conv3x3_ocr(x)
        features = self.ocr_distri_head(pixels, gather_regions(pixels, auxiliary).to(pixels.dtype))
        return OCROutput(self.cls_head(features), auxiliary, features)

    def _pixels(self, branches: Sequence[Tensor]) -> Tensor:
        """The pixels' features. Half precision would round what is added up on the way to fewer multiplications."""
        if branches[0].device.type != "cpu" or branches[0].dtype != torch.float32:
            return self._by_rows(branches)
        convolution, after = self.conv3x3_ocr
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        return after(conv3x3_of_enlarged(branches, convolution.weight, convolution.bias))

    def _by_rows(self, branches: Sequence[Tensor]) -> Tensor:
        """The pixels' features, some rows at a time: all branches joined take more memory than anything else."""
        height, width = branches[0].shape[-2:]
        rows = max(1, _ROWS_PIXELS // width)
        found: Tensor | None = None
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            # A row more on either side, at which a 3x3 convolution looks; what it makes of that row is left out.
            above, below = max(start - 1, 0), min(stop + 1, height)
            part = self.conv3x3_ocr(join_rows(branches, above, below))
            if found is None:
                last = part.is_contiguous(memory_format=torch.channels_last)
                found = torch.empty(
                    (*part.shape[:2], height, width),
                    dtype=part.dtype,
                    device=part.device,
                    memory_format=torch.channels_last if last else torch.contiguous_format,
                )
            found[:, :, start:stop] = part[:, :, start - above : stop - above]
        assert found is not None
        return found

    def _small_first(self, branches: Sequence[Tensor]) -> Tensor:
        """The auxiliary head's scores, with less work and a few channels at a time.

        Its first layer looks at one place at a time and is linear, as is bilinear enlargement: it may go first, on
        the small branches, which is an eighth of the work of going last.
        """
        first, between, last = self.aux_head
        assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d) and first.bias is not None
        widths = [branch.shape[1] for branch in branches]
        norm = between[0]  # type: ignore[index]
        if isinstance(norm, nn.BatchNorm2d):
            first = fuse_conv_bn_eval(first, norm)
            assert first.bias is not None
        scores: Tensor | None = None
        for start in range(0, first.out_channels, _AUXILIARY_CHANNELS):
            own = slice(start, start + _AUXILIARY_CHANNELS)
            parts = first.weight[own].split(widths, dim=1)
            hidden = F.conv2d(branches[0], parts[0], first.bias[own])
            for branch, part in zip(branches[1:], parts[1:], strict=True):
                hidden += resize(F.conv2d(branch, part), hidden.shape[-2:])
            part = F.conv2d(hidden.relu_(), last.weight[:, own], last.bias if start == 0 else None)
            scores = part if scores is None else scores + part
        assert scores is not None
        return scores


def gather_regions(features: Tensor, scores: Tensor) -> Tensor:
    """The mean feature of each class, pixels weighted by the softmax of its score over the image.

    Features are (N, C, h, w), scores (N, K, h, w), one map per class.

    Returns:
        (N, C, K, 1) float32, whatever autocast says: a weight is about 1 / (h * w), which at the size
        of a photograph is among the last few steps of float16.
    """
    with torch.autocast(features.device.type, enabled=False):
        weights = scores.flatten(2).float().softmax(dim=-1)
        if torch.compiler.is_exporting():  # parts of any size are sequences in ONNX, which OpenVINO does not read
            return torch.bmm(features.flatten(2).float(), weights.transpose(1, 2)).unsqueeze(-1)
        parts = zip(
            features.flatten(2).split(_GATHER_PIXELS, dim=-1),
            weights.split(_GATHER_PIXELS, dim=-1),
            strict=True,
        )
        first, *others = (torch.bmm(part.float(), weight.transpose(1, 2)) for part, weight in parts)
        return sum(others, start=first).unsqueeze(-1)


class ObjectContext(nn.Module):
    """Pixels (N, C, h, w) and regions (N, C, K, 1) to pixels with their context, (N, C, h, w).

    In inference they take the pixels' place in memory.
    """

    def __init__(self, channels: int, key_channels: int):
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels)
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), _bn_relu(channels), nn.Dropout2d(DROPOUT)
        )

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        """Map pixels (N, C, h, w) and regions (N, C, K, 1) to pixels in context (N, C, h, w)."""
        if not _inferring(self):
            return self._with_context(pixels, regions)
        # No pixel looks at another one here: some rows at a time give the same for a fraction of the memory.
        for part in pixels.split(max(1, _ROWS_PIXELS // pixels.shape[-1]), dim=2):
            part.copy_(self._with_context(part, regions))
        return pixels

    def _with_context(self, pixels: Tensor, regions: Tensor) -> Tensor:
        context = self.object_context_block(pixels, regions)
        return self.conv_bn_dropout(torch.cat([context, pixels], dim=1))


class ObjectAttention(nn.Module):
    """Attention whose queries are pixels (N, C, h, w), keys and values regions (N, C, K, 1)."""

    def __init__(self, channels: int, key_channels: int):
        super().__init__()
        self.key_channels = key_channels
        self.f_pixel = _projection(channels, key_channels, key_channels)
        self.f_object = _projection(channels, key_channels, key_channels)
        self.f_down = _projection(channels, key_channels)
        self.f_up = _projection(key_channels, channels)

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        """Map pixels (N, C, h, w) and regions (N, C, K, 1) to the context of each pixel (N, C, h, w)."""
        query = self.f_pixel(pixels).flatten(2)
        key = self.f_object(regions).flatten(2)
        value = self.f_down(regions).flatten(2)
        # Scaled before the product, not after: a sum over many channels can pass what float16 holds.
        similarity = torch.bmm((key * self.key_channels**-0.5).transpose(1, 2), query)
        context = torch.bmm(value, similarity.softmax(dim=1).to(value.dtype))
        return self.f_up(context.unflatten(2, pixels.shape[-2:]))


def _inferring(module: nn.Module) -> bool:
    return not module.training and not torch.is_grad_enabled()


def _bn_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _projection(*channels: int) -> nn.Sequential:
    """1x1 convolutions, each with normalisation and ReLU, through the given numbers of channels."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 1, bias=False), _bn_relu(after)]
    return nn.Sequential(*layers)
