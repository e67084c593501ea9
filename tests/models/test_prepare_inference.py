"""A network made ready for inference says what it said before."""

from __future__ import annotations

import copy

import pytest
import torch
from hmsa_pipeline.models import hmsa
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.hrnet import resize
from hmsa_pipeline.models.prepare_inference import prepare_for_inference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

SCALES = (0.5, 1.0, 2.0)


@pytest.fixture
def lived(tiny: HMSA) -> HMSA:
    """A network to work on, whose normalisations have seen something."""
    return copy.deepcopy(tiny)


def image(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 96), (61, 95), (32, 33)])
def test_the_same_scores(lived: HMSA, size: tuple[int, int]) -> None:
    expected = lived.predict(image(*size), SCALES, flip=True)
    found = prepare_for_inference(lived).predict(image(*size), SCALES, flip=True)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert found.dtype == torch.float32


def test_no_normalisation_is_left(lived: HMSA) -> None:
    prepare_for_inference(lived)
    assert not [name for name, module in lived.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name, weight in lived.named_parameters():
        assert weight.dim() != 4 or weight.is_contiguous(memory_format=torch.channels_last), name


def test_half_precision_agrees_where_it_matters(lived: HMSA) -> None:
    expected = lived.predict(image(), SCALES)
    half = prepare_for_inference(lived, torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    found = half.predict(image().bfloat16(), SCALES)
    assert found.dtype == torch.float32
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95
    assert (found.softmax(1) - expected.softmax(1)).abs().mean() < 0.01


def test_a_network_in_training_mode_is_refused(tiny: HMSA) -> None:
    with pytest.raises(AssertionError, match="training mode"):
        prepare_for_inference(copy.deepcopy(tiny).train())


@given(height=st.integers(1, 12), width=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_four_times_and_then_half_is_twice(height: int, width: int) -> None:
    x = torch.randn(1, 3, height, width, dtype=torch.float64)
    long_way = resize(resize(x, (4 * height, 4 * width)), (2 * height, 2 * width))
    torch.testing.assert_close(resize(x, (2 * height, 2 * width)), long_way, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("size", "scales", "largest"),
    [
        ((64, 96), (0.5, 1.0, 2.0), 64),
        ((64, 96), (1.0, 2.0), 64),
        ((64, 96), (1.0, 1.5, 2.0), 128),  # three quarters are no half
        ((61, 96), (1.0, 2.0), 122),  # a quarter of an odd side is not whole
        ((64, 96), (0.5, 1.0), 64),
    ],
)
def test_class_maps_of_twice_the_size_are_never_made(
    lived: HMSA, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], scales: tuple[float, ...], largest: int
) -> None:
    expected, _ = lived.predict_scales(image(*size), scales)
    made: list[int] = []

    def noted(x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[1] == 19:
            made.append(size[0])
        return resize(x, size)

    monkeypatch.setattr(hmsa, "resize", noted)
    found = lived.predict(image(*size), scales)
    assert max(made) == largest
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
