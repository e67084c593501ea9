"""Dropout at inference: what it changes of a network, and what decides what is dropped."""

from __future__ import annotations

import pytest
import torch
from hmsa_pipeline.models.sampling import dropout_pass, has_dropout
from torch import Tensor, nn


def network() -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(64), nn.Dropout2d(0.5), nn.Dropout(0.0)).eval()


def image(value: int) -> Tensor:
    return torch.full((3, 4, 5), value, dtype=torch.uint8)


def dropped(model: nn.Sequential, picture: Tensor, number: int) -> Tensor:
    with dropout_pass(model, picture, number):
        return model(torch.ones(1, 64, 4, 4))


def test_the_image_and_the_number_decide_what_is_dropped() -> None:
    model = network()
    first = dropped(model, image(1), 1)
    torch.manual_seed(5)
    assert torch.equal(dropped(network(), image(1), 1), first)
    assert not torch.equal(dropped(model, image(1), 2), first)
    assert not torch.equal(dropped(model, image(2), 1), first)
    kept = (first != 0).float().mean().item()
    assert 0.1 < kept < 0.4  # a half of a half


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_matter(threads: int) -> None:
    before = torch.get_num_threads()
    values = torch.ones(1, 64, 128, 128)
    try:
        torch.set_num_threads(3)
        with dropout_pass(model := network(), image(1), 1):
            wanted = model(values)
        torch.set_num_threads(threads)
        with dropout_pass(model, image(1), 1):
            assert torch.equal(model(values), wanted)
    finally:
        torch.set_num_threads(before)


def test_nothing_else_of_training_happens_and_all_is_as_it_was_afterwards() -> None:
    model, norm = network(), nn.BatchNorm2d(64)
    norm.load_state_dict(model[1].state_dict())
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    with pytest.raises(ZeroDivisionError), dropout_pass(model, image(1), 1):
        assert [part.training for part in model] == [True, False, True, False]
        model(torch.randn(1, 64, 4, 4))
        _ = 1 / 0
    assert torch.equal(torch.rand(3), wanted)
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(one, other) for one, other in zip(model[1].buffers(), norm.buffers(), strict=True))
    assert torch.equal(model(torch.ones(1, 64, 4, 4)), model[1](torch.ones(1, 64, 4, 4)))


def test_stochastic_depth_and_a_dropout_of_nothing_are_no_dropout() -> None:
    assert has_dropout(network())
    assert not has_dropout(nn.Sequential(nn.Dropout(0.0), nn.Identity(), nn.BatchNorm2d(3)))
