"""HRNet: a trunk that keeps a high-resolution branch from its first stage to its last.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition",
TPAMI 2020 (arXiv 1908.07919). Attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK_BYTES = 2**24
"""Products of so many bytes are made at once: what stays in a cache is not fetched from memory again."""
_COLUMNS = 32
"""Columns that are enlarged by one matrix product; more of them multiply with more zeros."""


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``x`` (N, C, H, W) bilinearly to ``size`` (height, width), corners not aligned."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def join(branches: Sequence[Tensor]) -> Tensor:
    """All branches' channels, finest branch first, at its size."""
    return torch.cat([resize(x, branches[0].shape[-2:]) for x in branches], dim=1)


def join_rows(branches: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Compute rows ``start`` to ``stop`` of `join`, up to rounding, without making the rest.

    Args:
        branches: (N, C, H, W) each, of falling size.
        start, stop: first row, and behind the last one, at the size of the first branch.
    """
    height, width = branches[0].shape[-2:]
    parts = [branches[0][..., start:stop, :]]
    for branch in branches[1:]:
        last = branch.shape[-2] - 1
        where = (torch.arange(start, stop, device=branch.device) + 0.5) * (branch.shape[-2] / height) - 0.5
        where = where.clamp_(min=0)
        above = where.long()
        share = (where - above)[:, None]
        # In float32: two roundings of a half precision would be one more than `join` has.
        rows = torch.lerp(branch[..., above, :].float(), branch[..., (above + 1).clamp_(max=last), :].float(), share)
        parts.append(resize(rows, (stop - start, width)).to(branch.dtype))
    return torch.cat(parts, dim=1)


def conv3x3_of_enlarged(branches: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``F.conv2d(join(branches), weight, bias, padding=1)`` with less work, up to rounding.

    A 3x3 convolution is a sum of nine 1x1 ones, each moved by a pixel at most. A 1x1 convolution and bilinear
    enlargement are linear in different dimensions, so the order of the two does not matter: it goes first, on the
    small map. Enlarging and moving is then a product with a band matrix, for rows and columns apart. Four branches of
    which each has twice the channels and half the sides of the one before take an eighth of the multiplications.

    Args:
        branches: (N, C, h, w) each, of falling size, float32.
        weight: (O, sum of all C, 3, 3).
        bias: (O,).

    Returns:
        (N, O, h, w) of the first branch's size, channels last.
    """
    first, *smaller = branches
    own, *others = weight.split([branch.shape[1] for branch in branches], dim=1)
    found = F.conv2d(first, own, bias, padding=1).contiguous(memory_format=torch.channels_last)
    for branch, part in zip(smaller, others, strict=True):
        products = part.permute(2, 1, 3, 0).reshape(3, part.shape[1], -1)  # of each row of the kernel: (C, 3 * O)
        for image, sums in zip(branch, found.permute(0, 2, 3, 1), strict=True):
            _add_enlarged(image.permute(1, 2, 0), products, sums)
    return found


def _add_enlarged(image: Tensor, products: Tensor, sums: Tensor) -> None:
    """Add what a small map (h, w, C) gives to ``sums`` (H, W, O), for ``products`` (3, C, 3 * O)."""
    height, width, channels = image.shape
    large_height, large_width, outputs = sums.shape
    step = max(1, _CHUNK_BYTES // (4 * 3 * outputs * (width + large_width)))
    columns = list(_bands_of_targets(_taps(width, large_width), _COLUMNS))
    for sources, targets, matrix in _bands_of_sources(_taps(height, large_height), step):
        rows = image[sources]
        count = len(rows)
        wide = sums.new_empty(3, count, large_width, outputs)
        for kernel_row, product in enumerate(products):
            narrow = torch.mm(rows.reshape(-1, channels), product).view(count, width * 3, outputs)
            for seen, made, enlarge in columns:
                torch.bmm(
                    enlarge.expand(count, -1, -1),
                    narrow[:, 3 * seen.start : 3 * seen.stop],
                    out=wide[kernel_row, :, made],
                )
        sums[targets].flatten(1).addmm_(matrix, wide.view(3 * count, -1))


def _taps(small: int, large: int) -> Tensor:
    """How much of each source (small) the kernel's three places see around each target: (large, 3, small).

    Beyond the edge they see nothing, as a convolution's padding has it.
    """
    where = ((torch.arange(large) + 0.5) * (small / large) - 0.5).clamp_(min=0)
    source = where.long()
    share = where - source
    enlarge = torch.zeros(large + 2, small)
    target = torch.arange(1, large + 1)
    enlarge[target, source] += 1 - share
    enlarge[target, (source + 1).clamp_(max=small - 1)] += share
    return torch.stack([enlarge[place : place + large] for place in range(3)], dim=1)


def _bands_of_sources(taps: Tensor, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Split by sources; yield some, the targets that see them, and the matrix (targets, 3 * sources)."""
    for start in range(0, taps.shape[2], step):
        part = taps[:, :, start : start + step]
        targets = _extent(part.sum((1, 2)))
        yield slice(start, start + step), targets, part[targets].flatten(1)


def _bands_of_targets(taps: Tensor, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Split by targets; yield the sources that some see, these, and the matrix (targets, sources * 3)."""
    for start in range(0, taps.shape[0], step):
        targets = slice(start, start + step)
        sources = _extent(taps[targets].sum((0, 1)))
        yield sources, targets, taps[targets, :, sources].transpose(1, 2).flatten(1)


def _extent(values: Tensor) -> slice:
    """From the first to behind the last of the values that are not zero."""
    where = values.nonzero()
    return slice(int(where[0]), int(where[-1]) + 1)


def conv_bn(
    in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, and a ReLU if wanted; stride 1 keeps the size.

    Args:
        in_channels, out_channels: of (N, in, H, W) and what becomes of it.
        kernel: its side, odd.
        stride, relu: of the convolution; end with a ReLU.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def _closing_norm(channels: int) -> nn.BatchNorm2d:
    """The normalisation that ends a residual; it starts at zero, so that depth does not raise the signal.

    Goyal et al., "Accurate, Large Minibatch SGD", 2017 (arXiv 1706.02677), section 5.1.
    """
    norm = nn.BatchNorm2d(channels)
    nn.init.zeros_(norm.weight)
    return norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; (N, C, H, W) to the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _closing_norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, channels, H / stride, W / stride)."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu(residual + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; (N, in, H, W) to (N, 4 * channels, H, W)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = _closing_norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Identity() if in_channels == out_channels else conv_bn(in_channels, out_channels, kernel=1, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, 4 * channels, H, W)."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu(residual + self.downsample(x))


class ExchangeModule(nn.Module):
    """Residual blocks on every branch, then each branch becomes the sum of all, brought to its size.

    Branch ``i`` has ``widths[i]`` channels and half the resolution of branch ``i - 1``.
    """

    def __init__(self, widths: Sequence[int], blocks: int):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Map branches (N, C, H, W) of falling size to as many of the same shapes."""
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        for own, paths in zip(xs, self.fuse_layers, strict=True):
            assert isinstance(paths, nn.ModuleList)
            first, *others = (resize(path(x), own.shape[-2:]) for path, x in zip(paths, xs, strict=True))
            fused.append(self.relu(sum(others, start=first)))
        return fused


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From one branch to another: nothing, halvings on the way down, or a 1x1 before resizing up."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_bn(widths[source], widths[target], kernel=1, relu=False)
    halvings = [conv_bn(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*halvings, conv_bn(widths[source], widths[target], stride=2, relu=False))


def _transition(old: Sequence[int], new: Sequence[int]) -> nn.ModuleList:
    """Layers that take branches of ``old`` widths to one branch more, of ``new`` widths."""
    kept = [nn.Identity() if a == b else conv_bn(a, b) for a, b in zip(old, new, strict=False)]
    # The extra nesting is that of the published state dicts.
    return nn.ModuleList([*kept, nn.Sequential(conv_bn(old[-1], new[-1], stride=2))])


class HRNet(nn.Module):
    """Images (N, 3, H, W) to features of four resolutions, the finest first: (N, width * 2**i, h / 2**i, w / 2**i).

    h and w are ceil(H / 4) and ceil(W / 4); `join` makes them one map of ``out_channels``. Any size from 1x1 on will
    do: branches of odd sizes are resized to fit one another.

    Args:
        width: channels of the first branch; each further branch has twice as many (48 is HRNet-W48).
        stem_channels: channels of the stem and of the bottlenecks that follow it.
        blocks: residual blocks per branch and module, and bottlenecks after the stem.
        modules: how many exchange modules the stages of two, three and four branches have.
    """

    def __init__(
        self,
        width: int = 48,
        stem_channels: int = 64,
        blocks: int = 4,
        modules: tuple[int, int, int] = (1, 4, 3),
    ):
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.out_channels = sum(widths)

        self.conv1 = nn.Conv2d(3, stem_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.conv2 = nn.Conv2d(stem_channels, stem_channels, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)

        expanded = stem_channels * Bottleneck.expansion
        inputs = [stem_channels] + [expanded] * (blocks - 1)
        self.layer1 = nn.Sequential(*(Bottleneck(channels, stem_channels) for channels in inputs))

        def stage(branches: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(ExchangeModule(widths[:branches], blocks) for _ in range(count)))

        self.transition1 = _transition([expanded], widths[:2])
        self.stage2 = stage(2, modules[0])
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = stage(3, modules[1])
        self.transition3 = _transition(widths[:3], widths)
        self.stage4 = stage(4, modules[2])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to four branches (N, C, H / 4, W / 4), each next one of half the size."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        xs = [self.layer1(x)]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # A new branch starts from the coarsest one there is.
            xs = stage([layer(x) for layer, x in zip(transition, [*xs, xs[-1]], strict=True)])
        return xs
