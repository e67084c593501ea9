from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hmsa_pipeline.models.losses.cross_entropy import cross_entropy, image_class_weights, image_weighted_cross_entropy
from hmsa_pipeline.models.losses.rmi import rmi_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

by_hypothesis = settings(max_examples=25, deadline=None)
Loss = Callable[[Tensor, Tensor], Tensor]
both = pytest.mark.parametrize("loss_of", [cross_entropy, image_weighted_cross_entropy])


def draw(*shape: int, seed: int = 0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Scores (N, C, H, W) float64 that ask for a gradient, and labels with a share of ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    # Squared, so that low classes are common and high ones rare.
    labels = (torch.rand(shape[0], *shape[2:], generator=generator) ** 2 * shape[1]).long()
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), labels


shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))


@given(shape=shapes, seed=st.integers(0, 99), ignored=st.sampled_from([0.0, 0.5, 0.95]))
@by_hypothesis
def test_cross_entropy_is_the_mean_over_labelled_pixels(shape: tuple[int, ...], seed: int, ignored: float) -> None:
    logits, labels = draw(*shape, seed=seed, ignored=ignored)
    total, count = 0.0, 0
    for n, y, x in torch.nonzero(labels != 255).tolist():
        scores = logits[n, :, y, x].tolist()
        total += math.log(sum(map(math.exp, scores))) - scores[int(labels[n, y, x])]
        count += 1
    expected = total / count if count else 0.0
    assert cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(shape=shapes, seed=st.integers(0, 99), ignored=st.sampled_from([0.0, 0.5, 0.95]))
@by_hypothesis
def test_image_weighted_cross_entropy_is_that_of_a_loop(shape: tuple[int, ...], seed: int, ignored: float) -> None:
    logits, labels = draw(*shape, seed=seed, ignored=ignored)
    losses = []
    for scores, target in zip(logits, labels, strict=True):
        known = [int(label) for label in target.flatten() if label != 255]
        weight = {label: 1 + (1 - known.count(label) / len(known)) for label in known}
        of_pixels = F.cross_entropy(scores[None], target[None], reduction="none", ignore_index=255).flatten()
        weights = [weight.get(int(label), 0.0) for label in target.flatten()]
        total = sum(w * loss.item() for w, loss in zip(weights, of_pixels, strict=True))
        losses.append(total / sum(weights) if known else 0.0)
    expected = sum(losses) / len(losses)
    loss = image_weighted_cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_weights_are_per_image_and_finite_for_absent_classes() -> None:
    classes = torch.tensor([[[0, 0, 0, 1]], [[2, 2, 2, 2]], [[1, 1, 1, 1]]])
    valid = torch.tensor([[[True, True, True, True]], [[True, True, False, False]], [[False] * 4]])
    expected = torch.tensor([[1.25, 1.75, 2.0], [2.0, 2.0, 1.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(image_class_weights(classes, valid, 3), expected)


def test_an_image_weighs_the_same_whatever_batch_it_is_in() -> None:
    logits, labels = draw(4, 5, 6, 7)
    labels[1] = 255
    apart = [image_weighted_cross_entropy(x[None], y[None]) for x, y in zip(logits, labels, strict=True)]
    torch.testing.assert_close(image_weighted_cross_entropy(logits, labels), torch.stack(apart).mean())


def test_rare_classes_pull_harder() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, 0, 0] = 1
    ratios = []
    for loss_of in (cross_entropy, image_weighted_cross_entropy):
        logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
        loss_of(logits, labels).backward()
        assert logits.grad is not None
        ratios.append((logits.grad[0, 1, 0, 0] / logits.grad[0, 0, 4, 4]).item())
    assert ratios == pytest.approx([1.0, (2 - 1 / 64) / (2 - 63 / 64)])


@both
def test_gradient_is_that_of_finite_differences(loss_of: Loss) -> None:
    logits, labels = draw(2, 3, 4, 5)
    assert torch.autograd.gradcheck(lambda x: loss_of(x, labels), logits)


@both
@pytest.mark.parametrize("empty", [[0], [0, 1]])
def test_images_without_labels_have_no_gradient_and_no_nan(loss_of: Loss, empty: list[int]) -> None:
    logits, labels = draw(2, 3, 4, 5)
    labels[empty] = 255
    loss = loss_of(logits, labels)
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert [bool(grad.any()) for grad in logits.grad] == [i not in empty for i in range(2)]


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_under_autocast_stays_near_float32(loss_of: Loss, dtype: torch.dtype) -> None:
    logits, labels = draw(2, 5, 16, 24)
    rough = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(rough, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(rough.detach().float(), labels).item(), rel=1e-6)
    assert loss.item() == pytest.approx(loss_of(logits, labels).item(), rel=1e-2)
    assert rough.grad is not None
    assert rough.grad.isfinite().all()


@pytest.mark.parametrize("loss_of", [cross_entropy, image_weighted_cross_entropy, rmi_loss])
class TestWrongInput:
    """What every loss says about scores and labels that do not go together."""

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (torch.zeros(3, 8, 8), torch.zeros(8, 8).long(), r"logits must be floats of shape \(N, C, H, W\)"),
            (torch.zeros(1, 3, 8, 8).long(), torch.zeros(1, 8, 8).long(), "logits must be floats"),
            (torch.zeros(2, 3, 8, 8), torch.zeros(1, 8, 8).long(), r"labels must be int64 of shape \(2, 8, 8\)"),
            (torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 9).long(), r"not torch.int64 \(1, 8, 9\)"),
            (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8).long(), "labels must be int64 of shape"),
            (torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), "not torch.float32"),
            (torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), "not torch.uint8"),
            (torch.zeros(0, 3, 8, 8), torch.zeros(0, 8, 8).long(), "hold no pixel"),
            (torch.zeros(1, 3, 8, 0), torch.zeros(1, 8, 0).long(), "hold no pixel"),
            (torch.zeros(1, 0, 8, 8), torch.full((1, 8, 8), 255), "hold no pixel"),
            (torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), 3), "label 3 is neither one of 3 classes nor 255"),
            (torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), -1), "label -1 is neither"),
        ],
    )
    def test_is_an_error(self, loss_of: Loss, logits: Tensor, labels: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            loss_of(logits, labels)


@both
def test_weights_are_factors_of_the_pixels_losses(loss_of: Callable[..., Tensor]) -> None:
    logits, labels = draw(2, 4, 5, 6)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = loss_of(logits, labels, weights=torch.ones_like(weights))
    torch.testing.assert_close(plain, loss_of(logits, labels))
    torch.testing.assert_close(loss_of(logits, labels, weights=0.25 * torch.ones_like(weights)), plain / 4)
    # Linear in every weight: by one pixel at a time the parts make up the whole.
    parts = [loss_of(logits, labels, weights=weights * one.view_as(weights)) for one in torch.eye(weights.numel())]
    torch.testing.assert_close(loss_of(logits, labels, weights=weights), torch.stack(parts).sum())
    relaxed = loss_of(logits, labels, weights=weights, border_relaxation=1)
    assert 0 < relaxed < loss_of(logits, labels, weights=weights)
    assert torch.autograd.gradcheck(lambda x: loss_of(x, labels, weights=weights, border_relaxation=1), logits)
