"""Image files to tensors, and tensors to what the networks expect."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .arrays import decode_rgb

MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, 0 to 1; every member was trained so."""


def decode_image(path: Path, exif: bool = False) -> Tensor:
    """The picture that `arrays.decode_rgb` reads, as a contiguous tensor (3, H, W) uint8, RGB."""
    return torch.from_numpy(decode_rgb(path, exif)).permute(2, 0, 1).contiguous()


def normalise(images: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) uint8, RGB, to the float32 that networks expect: 0 to 1, minus `MEAN`, over `STD`.

    Raises:
        ValueError: another shape or dtype.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    std = torch.tensor(STD, device=images.device)[:, None, None]
    # Divisions and not multiplications by reciprocals: the members were trained with these very bits.
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)
