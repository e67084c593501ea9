"""Networks of other packages: a forward pass is all they have to bring.

A package names such a class among its entry points, and manifests name it by that (see docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .hmsa import check_scales, scale_images
from .hrnet import resize


class PlainNetwork(nn.Module):
    """A network of any architecture as a member of an ensemble: scores of several scales are averaged.

    A class that inherits from it is made by ``Class(num_classes)``, and has ``forward``, from images (N, 3, H, W)
    float32, RGB, normalised as ImageNet's are, to class scores (N, C, h, w) of any height and width, which are
    enlarged bilinearly.
    """

    @torch.no_grad()
    def predict(
        self, images: Tensor, scales: Sequence[float], flip: bool = False, gather: torch.device | None = None
    ) -> Tensor:
        """Class scores (N, C, H, W) at the images' own size, the mean over scales and mirror images.

        Args:
            images: (N, 3, H, W), normalised; in half precision the network runs under autocast, with its weights as
                they are.
            scales, flip, gather: as for `OCRNet.predict`, which raises the same.
        """
        assert not self.training, "predict() on a network in training mode: call eval() first"
        half = images.dtype != torch.float32
        total = torch.zeros((), device=gather or images.device)
        sizes = check_scales(scales)
        for scale in sizes:
            scaled = scale_images(images.float(), scale)
            for mirrored in (False, True) if flip else (False,):
                with torch.autocast(images.device.type, images.dtype if half else None, enabled=half):
                    scores = self(scaled.flip(-1) if mirrored else scaled)
                scores = resize(scores.float().to(total.device), images.shape[-2:])
                total = total + (scores.flip(-1) if mirrored else scores)
        return total / (len(sizes) * (2 if flip else 1))
