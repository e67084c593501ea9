"""Tiny networks to save as graphs."""

from __future__ import annotations

from typing import Any

import torch
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.adapters.load import load_member
from hmsa_pipeline.models.adapters.network import MemberNetwork
from hmsa_pipeline.models.adapters.settings import AdapterSettings
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class Small(nn.Module):
    """Patches of ``step``, a batch norm, dropout, and a mean over the image, so that all of it matters everywhere.

    Args:
        step: what does not fill a patch is not seen.
        ending: ``logits``, ``probabilities``, ``scores``, ``classes`` or ``pair`` (with a map of 3 channels).
        size: of the output, if it is always the same.
    """

    def __init__(self, step: int = 4, ending: str = "logits", size: tuple[int, int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(step)
        self.patches, self.norm = nn.Conv2d(3, 8, step, step), nn.BatchNorm2d(8)
        self.dropout, self.head = nn.Dropout(0.5), nn.Conv2d(8, 19, 1)
        self.ending, self.size = ending, size
        with torch.no_grad():
            self.patches.weight.mul_(4)
            self.head.weight.mul_(2)

    def forward(self, x: Tensor) -> Any:
        x = self.dropout(self.norm(self.patches(x)).relu())
        x = self.head(x + x.mean((2, 3), keepdim=True))
        if self.size is not None:
            x = functional.interpolate(x, self.size, mode="bilinear")
        if self.ending == "probabilities":
            return x.softmax(1)
        if self.ending == "scores":
            return 3 * x.sigmoid()
        if self.ending == "classes":
            return x.argmax(1, keepdim=True)
        return (x, x[:, :3] * 1) if self.ending == "pair" else x


def picture(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def seen(pixels: Tensor) -> Tensor:
    return (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def member(arch: str, path: Any, **settings: Any) -> MemberNetwork:
    given = {"classes": CLASS_NAMES, "mean": MEAN, "std": STD, "trusted": True} | settings
    return load_member(AdapterSettings(arch, path, CLASS_NAMES, **given))


def assert_golden(member: MemberNetwork, network: nn.Module, step: int, tolerance: float = 1e-4) -> None:
    """The belief is the network's own, at a size that fits and at an odd one, and sees the last row and column."""
    for size in ((step * 3, step * 4), (61, 83)):
        pixels = picture(*size)
        down, right = (-side % step for side in size)
        padded = functional.pad(pixels.float(), (0, right, 0, down), mode="replicate")
        with torch.no_grad():
            output = network(seen(padded))
        wanted = functional.interpolate(output, padded.shape[-2:], mode="bilinear")[..., : size[0], : size[1]]
        found = member.predict(normalise(pixels), [1.0])
        kind = member.body.kind
        belief = wanted.softmax(1) if kind == "logits" else wanted / wanted.sum(1, keepdim=True)
        torch.testing.assert_close(found.softmax(1), belief, atol=tolerance, rtol=0)
        if kind == "logits":
            torch.testing.assert_close(found, wanted, atol=10 * tolerance, rtol=0)
        assert torch.equal(found.argmax(1), wanted.argmax(1))
    for row, column in ((-1, slice(None)), (slice(None), -1)):
        changed = pixels.clone()
        changed[..., row, column] = 255 - changed[..., row, column]
        difference = (member.predict(normalise(changed), [1.0]).softmax(1) - found.softmax(1)).abs()
        assert difference[..., row, column].mean() > 1e-4
