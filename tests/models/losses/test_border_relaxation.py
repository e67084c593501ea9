"""Border relaxation against a slow version that looks at one pixel and one window at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hmsa_pipeline.models.hmsa import TrainingOutput
from hmsa_pipeline.models.losses.batch_labels import BatchTotals
from hmsa_pipeline.models.losses.border_relaxation import nearby_classes, relaxed_pixel_losses
from hmsa_pipeline.models.losses.cross_entropy import cross_entropy, image_weighted_cross_entropy
from hmsa_pipeline.models.losses.training_loss import training_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .test_cross_entropy import draw, shapes

RADII = (0, 1, 4)


def slow_losses(logits: Tensor, labels: Tensor, radius: int) -> Tensor:
    """Per pixel: minus log of the summed softmax of the classes that some pixel of the window has."""
    losses = torch.zeros(labels.shape, dtype=torch.float64)
    number, height, width = labels.shape
    for n in range(number):
        for y in range(height):
            for x in range(width):
                if labels[n, y, x] == 255:
                    continue
                rows = range(max(0, y - radius), min(height, y + radius + 1))
                columns = range(max(0, x - radius), min(width, x + radius + 1))
                right = {int(labels[n, i, j]) for i in rows for j in columns} - {255}
                scores = [math.exp(score) for score in logits[n, :, y, x].tolist()]
                losses[n, y, x] = -math.log(sum(scores[label] for label in right) / sum(scores))
    return losses


@given(
    shape=shapes, seed=st.integers(0, 99), ignored=st.sampled_from([0.0, 0.5, 0.95]), radius=st.sampled_from(RADII)
)
@settings(max_examples=25, deadline=None)
def test_losses_are_those_of_a_loop(shape: tuple[int, ...], seed: int, ignored: float, radius: int) -> None:
    logits, labels = draw(*shape, seed=seed, ignored=ignored)
    expected = slow_losses(logits, labels, radius)
    torch.testing.assert_close(relaxed_pixel_losses(logits, labels, radius), expected, rtol=1e-9, atol=1e-9)
    mean = expected.sum() / (labels != 255).sum().clamp(min=1)
    torch.testing.assert_close(cross_entropy(logits, labels, border_relaxation=radius), mean, rtol=1e-9, atol=1e-9)


def test_inside_an_area_and_without_a_radius_it_is_the_cross_entropy() -> None:
    logits, labels = draw(2, 4, 9, 9, ignored=0)
    torch.testing.assert_close(cross_entropy(logits, labels, border_relaxation=0), cross_entropy(logits, labels))
    torch.testing.assert_close(
        relaxed_pixel_losses(logits, labels, 0).mean(), torch.nn.functional.cross_entropy(logits, labels)
    )
    flat = torch.full_like(labels, 2)
    torch.testing.assert_close(cross_entropy(logits, flat, border_relaxation=3), cross_entropy(logits, flat))
    assert cross_entropy(logits, labels, border_relaxation=1) < cross_entropy(logits, labels)


def test_a_pixel_on_a_border_may_be_either_class() -> None:
    labels = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    found = nearby_classes(labels, 3, 1)[0, :, 0].int().tolist()
    assert found == [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0] * 6]
    torn = torch.zeros(1, 3, 1, 6)
    torn[0, 1] = 50.0  # class 1 everywhere: right from the border on
    losses = relaxed_pixel_losses(torn, labels, 1)[0, 0]
    assert losses.tolist() == pytest.approx([50, 50, 0, 0, 0, 0])


def test_ignored_pixels_lend_their_neighbours_no_class_and_get_no_gradient() -> None:
    logits, labels = draw(1, 3, 5, 5, ignored=0)
    labels[:] = 0
    labels[0, 2, 2] = 255
    assert nearby_classes(labels, 3, 2).int().sum(1).max() == 1
    labels[0, 1:4, 1:4] = 255
    # The middle has no class within a pixel.
    assert nearby_classes(labels, 3, 1)[0, :, 2, 2].any().item() is False
    relaxed_pixel_losses(logits, labels, 1).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).any(1).tolist() == (labels != 255).tolist()


@pytest.mark.parametrize("loss_of", [cross_entropy, image_weighted_cross_entropy])
@pytest.mark.parametrize("radius", [1, 2])
def test_gradient_is_that_of_finite_differences(loss_of: object, radius: int) -> None:
    assert callable(loss_of)
    logits, labels = draw(2, 3, 4, 5)
    assert torch.autograd.gradcheck(lambda x: loss_of(x, labels, border_relaxation=radius), logits)


def test_class_weights_are_those_of_the_pixels_own_class() -> None:
    logits, labels = draw(2, 4, 6, 7)
    expected = []
    for losses, target in zip(slow_losses(logits, labels, 1), labels, strict=True):
        known = target[target != 255].tolist()
        weight = {label: 2 - known.count(label) / len(known) for label in known}
        weights = torch.tensor([weight.get(int(label), 0.0) for label in target.flatten()], dtype=torch.float64)
        expected.append((weights * losses.flatten()).sum() / weights.sum())
    found = image_weighted_cross_entropy(logits, labels, border_relaxation=1)
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_under_autocast_stays_near_float32(dtype: torch.dtype) -> None:
    logits, labels = draw(2, 5, 16, 24)
    rough = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = cross_entropy(rough, labels, border_relaxation=1)
    loss.backward()
    assert loss.dtype == torch.float32
    exact = slow_losses(rough.detach().double(), labels, 1).sum() / (labels != 255).sum()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert rough.grad is not None
    assert rough.grad.isfinite().all()


def test_large_scores_overflow_nowhere() -> None:
    logits = torch.tensor([4e4, -4e4, 0.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2).half().requires_grad_()
    loss = cross_entropy(logits, torch.tensor([[[1, 2]]]), border_relaxation=1)
    loss.backward()
    assert loss.item() == pytest.approx(4e4, rel=1e-3)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("criterion", ["cross_entropy", "image_weighted"])
def test_every_term_of_the_training_loss_is_relaxed(criterion: str) -> None:
    parts = [draw(2, 4, 8, 8, seed=seed)[0] for seed in range(4)]
    labels = draw(2, 4, 8, 8)[1]
    output = TrainingOutput(parts[0], parts[1], {1.0: parts[2], 0.5: parts[3]})
    loss_of = {"cross_entropy": cross_entropy, "image_weighted": image_weighted_cross_entropy}[criterion]
    totals = BatchTotals(4, 100)
    terms = training_loss(output, labels, criterion, 2.0, 3.0, totals, 1)
    main, auxiliary, *scales = (loss_of(part, labels, totals, border_relaxation=1) for part in parts)
    torch.testing.assert_close(terms.total, main + 2 * auxiliary + 3 * (scales[0] + scales[1]))


def test_a_loss_without_a_softmax_is_refused() -> None:
    scores = draw(1, 3, 8, 8)[0]
    with pytest.raises(ValueError, match="not 'rmi'"):
        training_loss(TrainingOutput(scores, scores, {}), draw(1, 3, 8, 8)[1], "rmi", border_relaxation=1)
