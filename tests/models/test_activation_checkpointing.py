from __future__ import annotations

import copy

import pytest
import torch
from hmsa_pipeline.models.activation_checkpointing import recompute_activations
from hmsa_pipeline.models.losses.training_loss import training_loss
from hmsa_pipeline.models.registry import build
from torch import nn


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """Two equal networks in training mode; the second recomputes."""
    torch.manual_seed(0)
    plain = build("hrnet_tiny_ocr_mscale", num_classes=5).train()
    thrifty = copy.deepcopy(plain)
    assert recompute_activations(thrifty) == 4
    return plain, thrifty


def step(model: nn.Module) -> tuple[float, int]:
    """One forward and backward pass: its loss, and the bytes of activations that were kept for the backward."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    labels = torch.randint(5, (2, 64, 96), generator=generator)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = training_loss(model(images), labels, "cross_entropy").total
    held = sum(kept.values())
    loss.backward()
    return loss.item(), held


def test_results_are_the_same_to_the_bit(pair: tuple[nn.Module, nn.Module]) -> None:
    plain, thrifty = pair
    assert step(plain)[0] == step(thrifty)[0]
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True))


def test_running_statistics_see_every_image_once(pair: tuple[nn.Module, nn.Module]) -> None:
    plain, thrifty = pair
    step(plain)
    step(thrifty)
    expected, found = plain.state_dict(), thrifty.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_frozen_statistics_stay_frozen(pair: tuple[nn.Module, nn.Module]) -> None:
    for model in pair:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    before = copy.deepcopy(pair[1].state_dict())
    assert step(pair[0])[0] == step(pair[1])[0]
    assert all(torch.equal(pair[1].state_dict()[key], value) for key, value in before.items())


def test_less_is_kept_for_the_backward_pass(pair: tuple[nn.Module, nn.Module]) -> None:
    plain, thrifty = pair
    assert step(thrifty)[1] < 0.8 * step(plain)[1]


def test_it_runs_without_gradients_too(pair: tuple[nn.Module, nn.Module]) -> None:
    images = torch.randn(1, 3, 40, 56)
    expected, found = (model.eval().predict(images, [0.5, 1.0]) for model in pair)
    assert torch.equal(found, expected)
