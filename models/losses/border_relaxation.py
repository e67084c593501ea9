"""Border relaxation: near a border of classes every class that is there counts as right.

Masks are least certain where two classes meet: annotators differ by pixels, and a label that was propagated or
predicted by more. Zhu, Sapra et al., "Improving Semantic Segmentation via Video Propagation and Label Relaxation",
CVPR 2019 (arXiv 1812.01593, section 3.3) maximise the logarithm of the summed probability of all classes in a window
around the pixel. Away from borders that is the cross entropy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch_labels import IGNORE, in_float32


def nearby_classes(labels: Tensor, num_classes: int, radius: int) -> Tensor:
    """Find the classes in a square window around every pixel.

    Args:
        labels: (N, H, W) int64 train ids, 255 is no class.
        num_classes: C.
        radius: the window has 2 * ``radius`` + 1 pixels on a side; what lies outside the image has no class.

    Returns:
        (N, C, H, W) bool.
    """
    height, width = labels.shape[-2:]
    # One more plane, which is dropped, takes the pixels without a class.
    classes = labels.where(labels != IGNORE, num_classes)
    padded = F.pad(classes, (radius, radius, radius, radius), value=num_classes)
    found = torch.zeros(len(labels), num_classes + 1, height, width, dtype=torch.bool, device=labels.device)
    for y in range(2 * radius + 1):
        for x in range(2 * radius + 1):
            found.scatter_(1, padded[:, None, y : y + height, x : x + width], True)
    return found[:, :num_classes]


def relaxed_pixel_losses(logits: Tensor, labels: Tensor, radius: int) -> Tensor:
    """Minus the logarithm of the summed probability of the classes near each pixel.

    Args:
        logits: (N, C, H, W) class scores, any floating dtype.
        labels: (N, H, W) int64 train ids, 255 is ignored.
        radius: as for `nearby_classes`; 0 gives the cross entropy.

    Returns:
        (N, H, W) float32 (float64 for float64 scores), 0 where a pixel has no label; such pixels get no gradient.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scores = in_float32(logits)
        ignored = labels == IGNORE
        # An ignored pixel may have no class nearby, and the logarithm of nothing has no gradient.
        right = nearby_classes(labels, scores.shape[1], radius) | ignored[:, None]
        losses = scores.logsumexp(1) - scores.masked_fill(~right, -torch.inf).logsumexp(1)
        return losses.masked_fill(ignored, 0)
