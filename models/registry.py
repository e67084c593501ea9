"""Architectures by name. Importing this file does not import torch: the command line does it at start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ManifestError, nearest

if TYPE_CHECKING:
    from .hmsa import HMSA, OCRNet


def _hrnet_ocr_mscale(num_classes: int) -> HMSA:
    """HRNet-W48, OCR and scale attention: 72 million parameters."""
    from .hmsa import HMSA
    from .hrnet import HRNet

    return HMSA(HRNet(), num_classes)


def _hrnet_ocr(num_classes: int) -> OCRNet:
    """HRNet-W48 and OCR, without scale attention."""
    from .hmsa import OCRNet
    from .hrnet import HRNet

    return OCRNet(HRNet(), num_classes)


def _hrnet_tiny_ocr_mscale(num_classes: int) -> HMSA:
    """The same network at a width and depth for tests and the demo: milliseconds on a CPU."""
    from .hmsa import HMSA
    from .hrnet import HRNet

    trunk = HRNet(width=8, stem_channels=16, blocks=1, modules=(1, 1, 1))
    return HMSA(trunk, num_classes, mid_channels=64, key_channels=32, attention_channels=32)


_BUILDERS = {
    "hrnet_ocr_mscale": _hrnet_ocr_mscale,
    "hrnet_ocr": _hrnet_ocr,
    "hrnet_tiny_ocr_mscale": _hrnet_tiny_ocr_mscale,
}

ARCHITECTURES: tuple[str, ...] = tuple(_BUILDERS)


def build(arch: str, num_classes: int = 19) -> OCRNet:
    """A fresh network with random weights, in evaluation mode.

    Under ``torch.device("meta")`` it takes no memory, which is enough to ask for keys and shapes.

    Raises:
        ManifestError: ``arch`` is not one of `ARCHITECTURES`.
    """
    if arch not in _BUILDERS:
        raise ManifestError(f"there is no architecture '{arch}': {nearest(arch, ARCHITECTURES)}")
    return _BUILDERS[arch](num_classes).eval()
