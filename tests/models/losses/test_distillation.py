"""Distillation against a loop over pixels, and what its gradient and its rounding are."""

from __future__ import annotations

import math

import pytest
import torch
from hmsa_pipeline.models.losses.distillation import (
    MOST_SURE,
    SMOOTHING,
    dirichlet_loss,
    distillation_loss,
    taught,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Dirichlet


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
    for loss in (distillation_loss, dirichlet_loss):
        with pytest.raises(ValueError, match="must be of one shape"):
            loss(logits, targets[:, :2], 1.0)
        with pytest.raises(ValueError, match="must be above 0"):
            loss(logits, targets, 0.0)


def draw_teachers(members: int, *shape: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Smoothed probabilities of M teachers (M, N, C, H, W) float64, and the mean of their logarithms."""
    generator = torch.Generator().manual_seed(7)
    common = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    own = spread * torch.randn(members, *shape, generator=generator, dtype=torch.float64)
    probabilities = (1 - SMOOTHING) * (common + own).softmax(2) + SMOOTHING / shape[1]
    return probabilities, probabilities.log().mean(0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_dirichlet_loss_is_that_of_torch_distributions(temperature: float) -> None:
    logits, _ = draw(2, 5, 6, 7)
    teachers, targets = draw_teachers(3, 2, 5, 6, 7)
    nothing = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(3)) < 0.3
    # Torch allows no bound; at these scores the concentrations differ from theirs by a share of 1e-4 a unit.
    sure = 1 / ((-logits.detach() / temperature).exp() + 1 / MOST_SURE)
    densities = Dirichlet(sure.movedim(1, -1)).log_prob(teachers.movedim(2, -1)).mean(0)
    loss = dirichlet_loss(logits, targets.masked_fill(nothing, 0), temperature)
    assert loss.item() == pytest.approx(-densities[~nothing[:, 0]].mean().item(), rel=1e-9)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).any(1).tolist() == (~nothing[:, 0]).tolist()
    parts = [
        dirichlet_loss(
            logits[i : i + 1], targets.masked_fill(nothing, 0)[i : i + 1], temperature, int((~nothing).sum())
        )
        for i in range(2)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), loss)
    assert dirichlet_loss(logits, torch.zeros_like(targets), temperature).item() == 0


def test_scores_that_maximise_the_likelihood_say_how_far_teachers_differ() -> None:
    """Teachers that differ less ask for higher concentrations, whose mean is near theirs."""
    precisions = []
    for spread in (1.0, 0.3):
        teachers, targets = draw_teachers(7, 1, 4, 3, 3, spread=spread)
        scores = torch.zeros(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")

        def closure(
            scores: Tensor = scores, targets: Tensor = targets, optimizer: torch.optim.LBFGS = optimizer
        ) -> Tensor:
            optimizer.zero_grad()
            loss = dirichlet_loss(scores, targets, 1.0)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert (scores.detach().softmax(1) - teachers.mean(0)).abs().max() < 0.1
        precisions.append(scores.detach().logsumexp(1))
    assert (precisions[1] > precisions[0]).all()


@pytest.mark.parametrize("extreme", [-1e4, 1e4, 65504.0])
def test_dirichlet_loss_of_extreme_scores_and_complete_agreement_is_finite(extreme: float) -> None:
    teachers = (1 - SMOOTHING) * torch.eye(3)[0].view(1, 3, 1, 1) + SMOOTHING / 3
    for dtype in (torch.float32, torch.float16):
        logits = torch.tensor([extreme, 0.0, -extreme], dtype=dtype).view(1, 3, 1, 1).requires_grad_()
        loss = dirichlet_loss(logits, teachers.log().to(dtype), 1.0)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
