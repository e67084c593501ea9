"""Image files to tensors, and tensors to what the networks expect."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .arrays import decode_rgb
from .image_header import MAX_PIXELS, read_size

__all__ = ["MAX_PIXELS", "MEAN", "STD", "decode_image", "normalise", "read_size"]

MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, 0 to 1; every member was trained so."""


def decode_image(path: Path, exif: bool = False) -> Tensor:
    """The picture in a PNG, JPEG or WebP file, told by its content and not by its name.

    Grey, palette and CMYK become RGB; transparency is ignored; of 16 bits the upper 8 are kept.

    Args:
        path: of the file.
        exif: whether the picture is turned as EXIF says; if not it is as stored, which is what labels fit.

    Returns:
        (3, H, W) uint8, RGB, contiguous.

    Raises:
        DatasetError: the file cannot be read, is none of these, is cut short or damaged, or has more than
            `MAX_PIXELS`. A JPEG or WebP whose bits are damaged in the middle can decode to a wrong picture:
            these formats have no checksum.
    """
    return torch.from_numpy(decode_rgb(path, exif)).permute(2, 0, 1).contiguous()


def normalise(images: Tensor) -> Tensor:
    """Pixels to what the networks expect: 0 to 1, minus `MEAN`, over `STD`.

    Args:
        images: (N, 3, H, W) uint8, RGB, on any device.

    Returns:
        (N, 3, H, W) float32 on the same device.

    Raises:
        ValueError: another shape or dtype.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    std = torch.tensor(STD, device=images.device)[:, None, None]
    # Divisions and not multiplications by reciprocals: the members were trained with these very bits.
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)
