from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hmsa_pipeline.models.losses import rmi
from hmsa_pipeline.models.losses.rmi import rmi_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ... import golden

by_hypothesis = settings(max_examples=25, deadline=None)
ABSENT = 0.5 * math.log(5e-4)
"""The region term of a class whose labels are all zero: the ridge is all that is left."""


def draw(*shape: int, seed: int = 0, spread: float = 3.0, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Scores (N, C, H, W) float64 that ask for a gradient, and labels with a share of ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    images, classes, height, width = shape
    # Blocks of 3 pixels: labels of single pixels would pool to nothing but their shares.
    blocks = torch.randint(classes, (images, height // 3 + 1, width // 3 + 1), generator=generator)
    labels = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width].clone()
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), labels


def value_and_gradient(logits: Tensor, labels: Tensor, region: bool = True) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = rmi_loss(logits, labels, region=region)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def plain_rmi(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cross entropy and region term, cell by cell, patch by patch, with the inverse of the paper's formula."""
    images, classes, height, width = logits.shape
    entropy = 0.0
    region = 0.0
    for n, c in np.ndindex(images, classes):
        known = labels[n] != 255
        truth = (labels[n] == c).astype(float)
        probability = 1 / (1 + np.exp(-logits[n, c]))
        entropy += np.logaddexp(0, np.where(truth, -logits[n, c], logits[n, c]))[known].sum()

        def patches(pixels: np.ndarray) -> np.ndarray:
            padded = np.pad(pixels, 2)
            rows, columns = height // 4 + 1, width // 4 + 1
            cells = np.array(
                [[padded[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() for x in range(columns)] for y in range(rows)]
            )
            points = [cells[y : y + 3, x : x + 3].ravel() for y in range(rows - 2) for x in range(columns - 2)]
            return np.array(points).T - np.mean(points, axis=0)[:, None]

        y, p, ridge = patches(truth), patches(probability * known), 5e-4 * np.eye(9)
        rest = y @ y.T - y @ p.T @ np.linalg.inv(p @ p.T + ridge) @ p @ y.T
        region += np.linalg.slogdet(rest + ridge)[1] / 2 / 9 / images
    return entropy / ((labels != 255).sum() + 1), region


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("region", "name"), [(True, "rmi"), (False, "bce_only")])
def test_loss_and_gradient_equal_the_reference(dtype: torch.dtype, region: bool, name: str) -> None:
    case = golden.case("rmi_loss")
    logits, labels = torch.from_numpy(case["logits"]).to(dtype), torch.from_numpy(case["labels"])
    loss, gradient = value_and_gradient(logits, labels, region)
    assert loss.dtype == gradient.dtype == dtype
    suffix = "_f64" if dtype == torch.float64 else ""
    assert loss.item() == pytest.approx(float(case[f"loss_{name}{suffix}"]), rel=1e-5)
    expected = case[f"grad_{name}"]
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


@given(
    images=st.integers(1, 2),
    classes=st.integers(1, 4),
    height=st.integers(8, 21),
    width=st.integers(8, 21),
    spread=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
@by_hypothesis
def test_loss_is_that_of_the_formulas(
    images: int, classes: int, height: int, width: int, spread: float, seed: int
) -> None:
    logits, labels = draw(images, classes, height, width, seed=seed, spread=spread)
    entropy, region = plain_rmi(logits.detach().numpy(), labels.numpy())
    assert rmi_loss(logits, labels, region=False).item() == pytest.approx(entropy, rel=1e-7)
    assert rmi_loss(logits, labels).item() == pytest.approx((entropy + region) / 2, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("region", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (11, 10)])
def test_gradient_is_that_of_finite_differences(region: bool, size: tuple[int, int]) -> None:
    logits, labels = draw(2, 2, *size, spread=1.0)
    assert torch.autograd.gradcheck(lambda x: rmi_loss(x, labels, region=region), logits)


def test_result_does_not_depend_on_the_size_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw(2, 5, 23, 19)
    whole = value_and_gradient(logits, labels)
    # Two maps at a time, then one: five classes leave an odd one.
    for values in (2 * 23 * 19, 1):
        monkeypatch.setattr(rmi, "_PART", values)
        torch.testing.assert_close(value_and_gradient(logits, labels), whole, rtol=1e-12, atol=1e-15)


def test_memory_layout_does_not_matter() -> None:
    logits, labels = draw(2, 3, 16, 20)
    expected = value_and_gradient(logits, labels)
    for other in (
        logits.detach().to(memory_format=torch.channels_last),
        logits.detach().mT.contiguous().mT,
    ):
        torch.testing.assert_close(value_and_gradient(other, labels), expected)


def test_batch_without_labels_has_no_gradient() -> None:
    logits, labels = draw(2, 3, 16, 16)
    for region, expected in ((True, 3 * ABSENT / 2), (False, 0.0)):
        loss, gradient = value_and_gradient(logits, torch.full_like(labels, 255), region)
        assert loss.item() == pytest.approx(expected)
        assert not gradient.any()


def test_image_without_labels_changes_only_the_mean_of_the_region_term() -> None:
    logits, labels = draw(2, 3, 16, 16)
    labels[1] = 255
    loss, gradient = value_and_gradient(logits, labels)
    entropy = rmi_loss(logits, labels, region=False)
    region = 2 * rmi_loss(logits[:1], labels[:1]) - entropy
    torch.testing.assert_close(loss, entropy / 2 + (region + 3 * ABSENT) / 4)
    assert gradient[0].any()
    assert not gradient[1].any()


def test_absent_class_is_learnt_to_be_absent() -> None:
    logits, labels = draw(2, 4, 16, 16)
    labels[labels == 2] = 1
    loss, gradient = value_and_gradient(logits, labels)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    known = (labels != 255).sum()
    torch.testing.assert_close(
        value_and_gradient(logits, labels, region=False)[1][:, 2],
        logits[:, 2].sigmoid() * (labels != 255) / (known + 1),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("region", [True, False])
def test_scores_of_ignored_pixels_do_not_matter(value: float, region: bool) -> None:
    logits, labels = draw(2, 3, 15, 15)
    expected = value_and_gradient(logits, labels, region)
    changed = logits.detach().masked_fill((labels == 255)[:, None], value)
    torch.testing.assert_close(value_and_gradient(changed, labels, region), expected, rtol=0, atol=0)


def test_scores_that_are_no_numbers_give_a_loss_that_is_none() -> None:
    logits, labels = draw(1, 3, 16, 16, ignored=0)
    broken = logits.detach().clone()
    broken[0, 1, 3, 3] = math.nan
    for region in (True, False):
        assert rmi_loss(broken, labels, region=region).isnan()


@pytest.mark.parametrize("scale", [1e-6, 50.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_of_any_size_give_finite_gradients(scale: float, dtype: torch.dtype) -> None:
    logits, labels = draw(2, 3, 20, 20)
    loss, gradient = value_and_gradient((logits.detach() * scale).to(dtype), labels)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_region_term_falls_as_probabilities_come_to_tell_the_labels() -> None:
    _, labels = draw(2, 4, 40, 40, ignored=0.0)
    truth = torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).double()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    terms = []
    for trust in (0.0, 0.5, 0.9, 1.0):
        logits = 30 * (trust * (2 * truth - 1) + (1 - trust) * noise)
        terms.append(2 * rmi_loss(logits, labels) - rmi_loss(logits, labels, region=False))
    assert terms == sorted(terms, reverse=True)
    # Nothing left to tell but the ridge, once for the probabilities and once for the rest.
    assert 4 * ABSENT < terms[-1] <= 4 * (ABSENT + math.log(2) / 2)


def test_large_flat_images_keep_the_matrix_definite() -> None:
    # One class everywhere and a prediction that is all but right: sums of 30,000 patches against a ridge of 5e-4.
    labels = torch.zeros(1, 512, 1024, dtype=torch.int64)
    labels[:, 256:] = 1
    truth = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    loss, gradient = value_and_gradient(30 * (truth - 0.5), labels)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_autocast_changes_nothing_for_float32_scores() -> None:
    logits, labels = draw(2, 5, 24, 32)
    exact = rmi_loss(logits.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rmi_loss(logits.float(), labels), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_scores_give_the_loss_of_the_same_scores_in_float32(dtype: torch.dtype) -> None:
    logits, labels = draw(2, 5, 24, 32)
    rough = logits.detach().to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        loss, gradient = value_and_gradient(rough, labels)
    exact, exact_gradient = value_and_gradient(rough.float(), labels)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(loss, exact)
    torch.testing.assert_close(gradient.float(), exact_gradient, rtol=1e-2, atol=1e-7)
    assert loss.item() == pytest.approx(rmi_loss(logits, labels).item(), rel=1e-2)


@pytest.mark.parametrize("size", [(7, 20), (20, 7)])
def test_region_term_needs_a_whole_patch(size: tuple[int, int]) -> None:
    logits, labels = draw(1, 3, *size)
    with pytest.raises(ValueError, match=r"needs 8x8 pixels at least, not \("):
        rmi_loss(logits, labels)
    assert rmi_loss(logits, labels, region=False).isfinite()
