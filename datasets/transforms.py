"""From decoded frames to what is trained on: a window at a random scale, mirrored or not, in other light.

Geometry comes first and is shared by image and labels; photometry is for the image alone. Everything random comes
from torch's global generator of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from .decode.tensors import MEAN
from .taxonomy import IGNORE

_FILL = torch.tensor([round(255 * level) for level in MEAN], dtype=torch.uint8)[:, None, None]

_BLUR_KERNEL = 11
_BLUR_SIGMA = (0.15, 1.3)  # pixels

_LARGEST_MAGNITUDE = 30
# Rows whose intermediate results, ten float32 for each pixel, stay in a core's cache.
_STRIP = 32


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of a frame, and where it goes; (top, bottom, left, right) in pixels, bottom and right exclusive."""

    source: tuple[int, int, int, int]
    """In the frame."""
    target: tuple[int, int, int, int]
    """In the crop."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How a crop was made of a frame, so that more maps of the same frame can be brought to it."""

    window: _Window
    crop: tuple[int, int]
    """(height, width)."""
    mirrored: bool

    @property
    def source(self) -> tuple[int, int, int, int]:
        """The part of the frame that is seen: top, bottom, left, right in pixels, bottom and right exclusive."""
        return self.window.source

    def ids(self, part: Tensor, fill: int) -> Tensor:
        """Bring a map of single values to the crop, as labels are.

        Args:
            part: (h, w) uint8, the `source` of a map of the frame.
            fill: value where the frame does not reach.

        Returns:
            (height, width) uint8.
        """
        return self._placed(_resize_labels(part, self._size)[None], fill)[0]

    def probabilities(self, part: Tensor) -> Tensor:
        """Bring maps of probabilities to the crop, as the image is: bilinear, with antialiasing.

        Args:
            part: (C, h, w) float32, the `source` of maps of the frame.

        Returns:
            (C, height, width) float32; what summed to 1 does so still, and is 0 where the frame does not reach.
        """
        resized = F.resize(part, list(self._size), InterpolationMode.BILINEAR, antialias=True)
        return self._placed(resized, 0)

    @property
    def _size(self) -> tuple[int, int]:
        top, bottom, left, right = self.window.target
        return bottom - top, right - left

    def _placed(self, maps: Tensor, fill: int) -> Tensor:
        top, bottom, left, right = self.window.target
        if self._size != self.crop:
            whole = torch.full((len(maps), *self.crop), fill, dtype=maps.dtype)
            whole[:, top:bottom, left:right] = maps
            maps = whole
        return (maps.flip(-1) if self.mirrored else maps).contiguous()


@dataclass(frozen=True)
class TrainTransform:
    """A crop of a randomly scaled frame, mirrored or not, in other light; ValueError if a field is out of range."""

    crop: tuple[int, int]
    """(height, width) of what comes out."""
    _: KW_ONLY
    scale: tuple[float, float] = (0.5, 2.0)
    """The frame is scaled by a factor drawn uniformly from this range."""
    long_edge: int | None = None
    """Before that, the frame is scaled so that its longer side has this many pixels; None for as it is."""
    flip: float = 0.5
    """Probability that the crop is mirrored, left to right."""
    color_jitter: float = 0.25
    """Strength of brightness, contrast, saturation and hue alike, 0 to 0.5; 0 for none."""
    gaussian_blur: bool = False
    """True if the image is blurred, by a random width."""
    rand_augment: tuple[int, int] | None = None
    """(operations, magnitude 0 to 30) of `rand_augment`; None for none."""

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"a crop of {self.crop[0]} x {self.crop[1]} pixels; each side must be at least 1")
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scales from {low} to {high}; they must be positive, the smaller one first")
        _check_long_edge(self.long_edge)
        if not 0 <= self.flip <= 1:
            raise ValueError(f"a flip probability of {self.flip}; it must be within 0..1")
        if not 0 <= self.color_jitter <= 0.5:
            raise ValueError(f"a colour jitter of {self.color_jitter}; it must be within 0..0.5")
        if self.rand_augment is not None:
            _check_rand_augment(*self.rand_augment)

    def __call__(
        self, image: Tensor, labels: Tensor, centroid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One crop.

        Args:
            image: (3, H, W) uint8, RGB.
            labels: (H, W) uint8 train ids.
            centroid: (x, y) in the frame, which the crop is to show; None for a crop from anywhere.

        Returns:
            The crop's image (3, h, w) and labels (h, w), uint8. Where the frame does not reach, labels are 255
            and the image is ImageNet's mean colour, which normalisation makes 0.

        Raises:
            ValueError: the shapes or dtypes do not fit, or the centroid is outside of the frame.
        """
        return self.placed(image, labels, centroid)[:2]

    def placed(
        self, image: Tensor, labels: Tensor, centroid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Placement]:
        """Make the crop that a call makes, and say how it was placed.

        Args:
            image, labels, centroid: of the call.
        """
        frame = _frame_size(image, labels)
        if centroid is not None and not (0 <= centroid[0] < frame[1] and 0 <= centroid[1] < frame[0]):
            raise ValueError(f"centroid {centroid} (x, y) is outside of a frame of {frame[0]} x {frame[1]} pixels")
        scale = _uniform(*self.scale)
        if self.long_edge:
            scale *= self.long_edge / max(frame)
        window = _draw_window(frame, self.crop, scale, centroid)
        top, bottom, left, right = window.source
        size = (window.target[1] - window.target[0], window.target[3] - window.target[2])
        image = _resize_image(image[:, top:bottom, left:right], size)
        labels = _resize_labels(labels[top:bottom, left:right], size)
        # Photometry sees the part that is picture: padding costs no time and moves no histogram.
        image = jitter_colours(image, self.color_jitter)
        if self.gaussian_blur:
            image = _blur(image, _uniform(*_BLUR_SIGMA))
        if self.rand_augment:
            image = rand_augment(image, *self.rand_augment)
        if window.target != (0, self.crop[0], 0, self.crop[1]):
            image, labels = self._paste(image, labels, window)
        mirrored = bool(torch.rand(()) < self.flip)
        if mirrored:
            image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
        return image.contiguous(), labels.contiguous(), Placement(window, self.crop, mirrored)

    def _paste(self, image: Tensor, labels: Tensor, window: _Window) -> tuple[Tensor, Tensor]:
        top, bottom, left, right = window.target
        crop = _FILL.repeat(1, *self.crop)
        crop[:, top:bottom, left:right] = image
        crop_labels = torch.full(self.crop, IGNORE, dtype=torch.uint8)
        crop_labels[top:bottom, left:right] = labels
        return crop, crop_labels


@dataclass(frozen=True)
class EvalTransform:
    """The whole frame, at its own size or at a given one; ValueError if that is below 1."""

    long_edge: int | None = None
    """The frame is scaled so that its longer side has this many pixels; None for as it is."""

    def __post_init__(self) -> None:
        _check_long_edge(self.long_edge)

    def __call__(
        self, image: Tensor, labels: Tensor, centroid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `TrainTransform`, without chance; the centroid is ignored."""
        height, width = _frame_size(image, labels)
        if self.long_edge is None or self.long_edge == max(height, width):
            return image, labels
        scale = self.long_edge / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return _resize_image(image, size), _resize_labels(labels, size)


def jitter_colours(image: Tensor, strength: float) -> Tensor:
    """Jitter an image (3, H, W) uint8 as ``v2.ColorJitter(strength, strength, strength, strength)`` does, to the bit.

    Hue takes most of the time, and two thirds of it if it goes over the image in strips. A strength of 0 leaves the
    image as it is, and draws nothing.
    """
    if not strength:
        return image
    drawn = v2.ColorJitter(strength, strength, strength, strength).make_params([image])
    for which in drawn["fn_idx"].tolist():
        match which:
            case 0:
                image = F.adjust_brightness(image, drawn["brightness_factor"])
            case 1:
                image = F.adjust_contrast(image, drawn["contrast_factor"])
            case 2:
                image = F.adjust_saturation(image, drawn["saturation_factor"])
            case _:
                strips = image.split(_STRIP, dim=1)
                image = torch.cat([F.adjust_hue(strip, drawn["hue_factor"]) for strip in strips], dim=1)
    return image


def rand_augment(image: Tensor, operations: int, magnitude: int) -> Tensor:
    """RandAugment (arXiv 1909.13719) with those of its operations that leave every pixel where it is.

    Args:
        image: (3, H, W) uint8.
        operations: how many are drawn, each uniformly from `_OPERATIONS`, and applied one after the other.
        magnitude: of all of them, 0 (hardly any change) to 30.

    Raises:
        ValueError: a negative number of operations, or another magnitude.
    """
    _check_rand_augment(operations, magnitude)
    share = magnitude / _LARGEST_MAGNITUDE
    for which in torch.randint(len(_OPERATIONS), (operations,)).tolist():
        # The sign is drawn whether it is needed or not, so that the same seed draws the same operations.
        signed = share if torch.rand(()) < 0.5 else -share
        image = _OPERATIONS[which](image, signed)
    return image


# Of an image and a signed magnitude in -1..1, with the ranges of torchvision's own RandAugment.
_OPERATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda image, _: image,
    lambda image, _: F.autocontrast(image),
    lambda image, _: F.equalize(image),
    lambda image, signed: F.adjust_brightness(image, 1 + 0.9 * signed),
    lambda image, signed: F.adjust_contrast(image, 1 + 0.9 * signed),
    lambda image, signed: F.adjust_saturation(image, 1 + 0.9 * signed),
    lambda image, signed: F.adjust_sharpness(image, 1 + 0.9 * signed),
    lambda image, signed: F.posterize(image, 8 - round(4 * abs(signed))),
    # At magnitude 0 no level is beyond the threshold, which then is none that is allowed.
    lambda image, signed: F.solarize(image, 256 * (1 - abs(signed))) if signed else image,
)


def _check_long_edge(long_edge: int | None) -> None:
    if long_edge is not None and long_edge < 1:
        raise ValueError(f"a long edge of {long_edge} pixels; it must be at least 1")


def _check_rand_augment(operations: int, magnitude: int) -> None:
    if operations < 0 or not 0 <= magnitude <= _LARGEST_MAGNITUDE:
        raise ValueError(
            f"RandAugment with {operations} operations of magnitude {magnitude}; "
            f"the number must not be negative, the magnitude within 0..{_LARGEST_MAGNITUDE}"
        )


def _frame_size(image: Tensor, labels: Tensor) -> tuple[int, int]:
    if image.dtype != torch.uint8 or labels.dtype != torch.uint8 or image.ndim != 3 or not image.numel():
        raise ValueError(
            f"expected image (3, H, W) and labels (H, W), uint8, got {tuple(image.shape)} {image.dtype} "
            f"and {tuple(labels.shape)} {labels.dtype}"
        )
    if image.shape != (3, *labels.shape):
        raise ValueError(f"image {tuple(image.shape)} and labels {tuple(labels.shape)} are of different sizes")
    return image.shape[1], image.shape[2]


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


def _draw_window(
    frame: tuple[int, int], crop: tuple[int, int], scale: float, centroid: tuple[int, int] | None
) -> _Window:
    """Where a crop of the frame scaled by ``scale`` comes from, in pixels of the frame as it is."""
    x, y = centroid or (None, None)
    rows, to_rows = _draw_side(frame[0], crop[0], scale, y)
    columns, to_columns = _draw_side(frame[1], crop[1], scale, x)
    return _Window((*rows, *columns), (*to_rows, *to_columns))


def _draw_side(frame: int, crop: int, scale: float, inside: int | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Along one axis: begin and end in the frame, and in the crop."""
    window = max(1, round(crop / scale))
    if frame < window:  # all of it, anywhere in the crop
        size = min(crop, max(1, round(frame * scale)))
        begin = int(torch.randint(crop - size + 1, ()))
        return (0, frame), (begin, begin + size)
    first, last = 0, frame - window
    if inside is not None:
        first, last = max(first, inside - window + 1), min(last, inside)
    begin = int(torch.randint(first, last + 1, ()))
    return (begin, begin + window), (0, crop)


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    if size[1] == 1:  # torch 2.14 makes a wrong column of uint8, or raises
        image = image.float()
    resized = F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
    return resized.round().to(torch.uint8) if resized.is_floating_point() else resized


def _resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    # Plain NEAREST takes each pixel's upper left corner for its middle, half a pixel off the image.
    return F.resize(labels[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


def _blur(image: Tensor, sigma: float) -> Tensor:
    # Reflection at the borders needs an image larger than half the kernel.
    kernel = [min(_BLUR_KERNEL, 2 * side - 1) for side in (image.shape[2], image.shape[1])]
    return F.gaussian_blur(image, kernel, [sigma, sigma])
