from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.hrnet import ExchangeModule, HRNet, join, join_rows, resize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

sides = st.integers(1, 70)


@given(height=sides, width=sides)
@settings(max_examples=30, deadline=None)
def test_features_have_a_quarter_of_any_size(tiny: HMSA, height: int, width: int) -> None:
    with torch.no_grad():
        features = join(tiny.backbone(torch.zeros(2, 3, height, width)))
    assert features.shape == (2, tiny.backbone.out_channels, -(-height // 4), -(-width // 4))


@torch.no_grad()
def test_trunk_of_another_shape_counts_its_channels() -> None:
    trunk = HRNet(width=4, stem_channels=1, blocks=2, modules=(1, 2, 1)).eval()
    assert trunk.out_channels == 4 * 15
    branches = trunk(torch.zeros(1, 3, 32, 32))
    assert [tuple(x.shape) for x in branches] == [(1, 4, 8, 8), (1, 8, 4, 4), (1, 16, 2, 2), (1, 32, 1, 1)]
    assert join(branches).shape == (1, 60, 8, 8)
    # Four channels come out of a stem of one: the first branch needs no layer to begin with.
    assert isinstance(trunk.transition1[0], nn.Identity)


@torch.no_grad()
def test_every_branch_reaches_every_other() -> None:
    torch.manual_seed(0)
    module = ExchangeModule([4, 8, 16], blocks=1).eval()
    inputs = [torch.randn(1, width, 16 >> i, 16 >> i) for i, width in enumerate([4, 8, 16])]
    before = module(inputs)
    for source in range(3):
        changed = [x + 1.0 * (i == source) * torch.randn_like(x) for i, x in enumerate(inputs)]
        for target, (a, b) in enumerate(zip(before, module(changed), strict=True)):
            assert a.shape == inputs[target].shape
            assert not torch.allclose(a, b), f"branch {target} does not see branch {source}"


@torch.no_grad()
def test_fresh_depth_does_not_raise_the_signal() -> None:
    torch.manual_seed(0)
    module = ExchangeModule([8], blocks=16).eval()
    x = torch.rand(1, 8, 9, 9)
    torch.testing.assert_close(module([x])[0], x)


def test_resize_does_not_align_corners() -> None:
    ramp = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert resize(ramp, (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    # Equal sizes are passed through: the same, and nothing is copied.
    x = torch.rand(1, 2, 5, 7)
    assert resize(x, (5, 7)) is x
    torch.testing.assert_close(F.interpolate(x, (5, 7), mode="bilinear"), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(height=st.integers(1, 40), width=st.integers(1, 9), data=st.data())
def test_rows_of_what_is_joined(dtype: torch.dtype, height: int, width: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, height - 1))
    stop = data.draw(st.integers(start + 1, height))
    draw = torch.Generator().manual_seed(height)
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(4)]
    branches = [torch.randn(1, 2, *size, generator=draw).to(dtype) for size in sizes]
    expected = join(branches)[..., start:stop, :]
    found = join_rows(branches, start, stop)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=2e-2 if dtype is torch.bfloat16 else 1e-5, rtol=0)
