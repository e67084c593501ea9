"""A device with a network on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..datasets.images import normalise
from ..models.checkpoint import load_weights
from ..models.registry import build
from .device import AUTOCAST
from .manifest import Member, Tile


class Predictor:
    """A device with at most one network on it, kept from job to job."""

    def __init__(
        self, device: torch.device, precision: str, scales: tuple[float, ...], flip: bool, tile: Tile | None = None
    ) -> None:
        self._device, self._precision = device, precision
        self._scales, self._flip = scales, flip
        self._member: Member | None = None
        self._model: nn.Module | None = None
        # On a GPU "fp32" would else be computed in TF32, with the mantissa of fp16; and of several equal
        # algorithms always the same one gives the same bytes.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True

    def load(self, member: Member) -> None:
        """Put the network of ``member`` on the device.

        Raises:
            CheckpointError: its checkpoint does not fit.
        """
        if self._member == member:
            return
        self._model = self._member = None
        model = build(member.arch)
        load_weights(model, member.checkpoint_path(), member.arch)
        self._model, self._member = model.to(self._device), member

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> tuple[Tensor, str | None]:
        """Logits (19, H, W) float16, on the device, of an image (3, H, W) uint8."""
        dtype = AUTOCAST.get(self._precision)
        pixels = normalise(image[None].to(self._device))
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            logits = self._model.predict(pixels, self._scales, flip=self._flip)  # type: ignore[union-attr, operator]
        return logits[0].to(torch.float16), None
