from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hmsa_pipeline.models import hrnet
from hmsa_pipeline.models.hrnet import conv3x3_of_enlarged, join
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def _branches(*sizes: tuple[int, int], images: int = 1, width: int = 2) -> list[Tensor]:
    return [torch.randn(images, width * 2**i, *size) for i, size in enumerate(sizes)]


def _kernel(branches: list[Tensor], outputs: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(outputs, sum(branch.shape[1] for branch in branches), 3, 3), torch.randn(outputs)


def _expected(branches: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    joined = join([branch.double() for branch in branches])
    return F.conv2d(joined, weight.double(), bias.double(), padding=1).float()


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 24), (8, 12), (4, 6), (2, 3)],
        [(13, 7), (7, 4), (4, 2), (2, 1)],
        [(1, 1), (1, 1), (1, 1)],
        [(1, 9), (1, 5)],
        [(9, 2), (4, 2), (9, 1)],
        [(6, 5)],
    ],
)
@pytest.mark.parametrize(("bytes_at_once", "columns"), [(2**24, 32), (1, 1), (3000, 3)])
def test_it_is_the_convolution_of_the_enlarged_branches(
    sizes: list[tuple[int, int]], bytes_at_once: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the work is divided up, for sides that are no halves of one another too."""
    monkeypatch.setattr(hrnet, "_CHUNK_BYTES", bytes_at_once)
    monkeypatch.setattr(hrnet, "_COLUMNS", columns)
    torch.manual_seed(0)
    branches = _branches(*sizes, images=2)
    weight, bias = _kernel(branches)
    found = conv3x3_of_enlarged(branches, weight, bias)
    torch.testing.assert_close(found, _expected(branches, weight, bias))


@torch.no_grad()
def test_the_order_of_the_bytes_in_memory_does_not_matter() -> None:
    torch.manual_seed(0)
    branches = _branches((8, 12), (4, 6))
    weight, bias = _kernel(branches)
    last = [branch.to(memory_format=torch.channels_last) for branch in branches]
    found = conv3x3_of_enlarged(last, weight.to(memory_format=torch.channels_last), bias)
    torch.testing.assert_close(found, conv3x3_of_enlarged(branches, weight, bias))
    assert found.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_it_multiplies_a_fourth_as_often() -> None:
    """An eighth for the 1x1 convolutions; bands multiply with zeros too."""
    branches = _branches((64, 128), (32, 64), (16, 32), (8, 16), width=12)
    weight, bias = _kernel(branches, outputs=128)
    with FlopCounterMode(display=False) as plainly:
        F.conv2d(join(branches), weight, bias, padding=1)
    with FlopCounterMode(display=False) as cleverly:
        conv3x3_of_enlarged(branches, weight, bias)
    assert 0 < cleverly.get_total_flops() < plainly.get_total_flops() / 4
