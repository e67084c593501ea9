"""Distillation against a loop over pixels, and what its gradient and its rounding are."""

from __future__ import annotations

import math

import pytest
import torch
from hmsa_pipeline.models.losses.distillation import distillation_loss, taught
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def draw(*shape: int, seed: int = 0, untaught: float = 0.3) -> tuple[Tensor, Tensor]:
    """Scores (N, C, H, W) float64 that ask for a gradient, and probabilities, 0 at a share of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(1)
    nothing = torch.rand(shape[0], 1, *shape[2:], generator=generator) < untaught
    return logits.requires_grad_(), targets.masked_fill(nothing, 0)


def slow_loss(logits: Tensor, targets: Tensor, temperature: float) -> float:
    number, classes, height, width = logits.shape
    total, count = 0.0, 0
    for n in range(number):
        for y in range(height):
            for x in range(width):
                teacher = targets[n, :, y, x].tolist()
                if sum(teacher) < 0.5:
                    continue
                count += 1
                powers = [math.exp(score / temperature) for score in logits[n, :, y, x].tolist()]
                for c in range(classes):
                    if teacher[c] > 0:
                        total += teacher[c] * math.log(teacher[c] / (powers[c] / sum(powers)))
    return temperature**2 * total / max(1, count)


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(2, 5), st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
    untaught=st.sampled_from([0.0, 0.5, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
@settings(max_examples=25, deadline=None)
def test_the_loss_is_that_of_a_loop(shape: tuple[int, ...], seed: int, untaught: float, temperature: float) -> None:
    logits, targets = draw(*shape, seed=seed, untaught=untaught)
    loss = distillation_loss(logits, targets, temperature)
    assert loss.item() == pytest.approx(slow_loss(logits, targets, temperature), rel=1e-9, abs=1e-9)


def test_a_student_that_says_what_its_teacher_says_has_no_loss_and_no_gradient() -> None:
    logits, _ = draw(2, 5, 6, 7)
    targets = (logits.detach() / 3).softmax(1)
    loss = distillation_loss(logits, targets, 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12
    # Rounded to half precision, as they travel, they still are the least.
    rounded = distillation_loss(logits.detach().float(), targets.half(), 3.0)
    assert 0 <= rounded.item() < 1e-5


def test_gradient_is_that_of_finite_differences_and_nothing_is_taught_outside() -> None:
    logits, targets = draw(2, 3, 4, 5)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, targets, 2.0), logits)
    distillation_loss(logits, targets, 2.0).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).any(1).tolist() == taught(targets).tolist()


def test_at_high_temperatures_the_gradient_does_not_fade() -> None:
    """Hinton 2015, section 2.1: with T squared it comes near the difference of the logits."""
    logits, _ = draw(1, 4, 3, 3)
    teacher = draw(1, 4, 3, 3, seed=1)[0].detach()
    temperature = 1e4
    distillation_loss(logits, (teacher / temperature).softmax(1), temperature).backward()
    student = logits.detach()
    expected = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected / 4 / 9, rtol=1e-3, atol=1e-4)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    logits, targets = draw(4, 3, 5, 6)
    pixels = int(taught(targets).sum())
    parts = [distillation_loss(logits[i : i + 1], targets[i : i + 1], 2.0, pixels) for i in range(4)]
    torch.testing.assert_close(torch.stack(parts).sum(), distillation_loss(logits, targets, 2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_under_autocast_stays_near_float32(dtype: torch.dtype) -> None:
    logits, targets = draw(1, 5, 16, 24)
    rough = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = distillation_loss(rough, targets.half(), 2.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss(rough.detach().double(), targets, 2.0), rel=1e-2)
    assert rough.grad is not None
    assert rough.grad.isfinite().all()


def test_other_shapes_and_temperatures_are_refused() -> None:
    logits, targets = draw(1, 3, 4, 4)
    with pytest.raises(ValueError, match="must be of one shape"):
        distillation_loss(logits, targets[:, :2], 1.0)
    with pytest.raises(ValueError, match="must be above 0"):
        distillation_loss(logits, targets, 0.0)
