from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hmsa_pipeline.models.hmsa import HMSA, OCRNet
from hmsa_pipeline.models.losses.training_loss import training_loss
from hmsa_pipeline.models.registry import build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .. import golden

by_hypothesis = settings(max_examples=15, deadline=None)
sides = st.integers(8, 70)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drop_nothing(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0


@pytest.fixture
def training(tiny: HMSA) -> HMSA:
    """A copy of the tiny network in training mode, to be changed at will; it drops nothing."""
    model = copy.deepcopy(tiny)
    drop_nothing(model)
    return model.train().requires_grad_(True)


def test_training_step_equals_the_reference(w48: HMSA) -> None:
    case = golden.case("mscale_train_loss")
    images = torch.cat([golden.normalise(golden.image(*item["build_image"])) for item in case["meta"]["images"]])
    labels = torch.from_numpy(case["labels"]).long()
    model = copy.deepcopy(w48)
    drop_nothing(model)
    model.train().requires_grad_(True)

    loss = training_loss(model(images), labels).total
    loss.backward()

    assert loss.item() == pytest.approx(float(case["loss"]), rel=1e-5)
    assert loss.item() == pytest.approx(float(case["loss_f64"]), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None] == []
    norms = {name: grad.double().norm().item() for name, grad in gradients.items() if grad is not None}
    for kind in ("", "_f64"):
        expected = dict(zip(case["grad_param_names"].tolist(), case[f"grad_norms{kind}"].tolist(), strict=True))
        assert {name: norms[name] for name in expected} == pytest.approx(expected, rel=5e-3)
        total = float(case[f"grad_total_norm{kind}"])
        assert np.linalg.norm(list(norms.values())) == pytest.approx(total, rel=5e-3)
    for name, key in (("scale_attn.conv2.weight", "scale_attn_conv2_weight"), ("ocr.cls_head.bias", "cls_head_bias")):
        expected = case[f"grad_{key}"]
        np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    for name in ("backbone.bn1.running_mean", "scale_attn.bn0.running_var"):
        expected = case[f"after_{name.replace('.', '_')}"]
        np.testing.assert_allclose(model.get_buffer(name), expected, rtol=1e-5, atol=1e-6)


@given(height=sides, width=sides, low_scale=st.sampled_from([0.25, 0.5, 0.75]))
@by_hypothesis
def test_training_scores_are_those_of_inference_at_two_scales(
    tiny: HMSA, height: int, width: int, low_scale: float
) -> None:
    images = noise(2, 3, height, width)
    with torch.no_grad():
        output = tiny(images, low_scale)
    blended, (_, low) = tiny.predict_scales(images, [low_scale, 1.0])
    torch.testing.assert_close(output.scores, blended)
    torch.testing.assert_close(output.scales[1.0], tiny.predict(images, [1.0]))
    assert list(output.scales) == [1.0, low_scale]
    expected = nn.functional.interpolate(low.scores, (height, width), mode="bilinear")
    torch.testing.assert_close(output.scales[low_scale], expected)


@given(height=sides, width=sides)
@by_hypothesis
def test_auxiliary_scores_are_blended_like_the_others(tiny: HMSA, height: int, width: int) -> None:
    images = noise(1, 3, height, width)
    model = copy.deepcopy(tiny)
    # Where both heads say the same, both blends must.
    handle = model.ocr.register_forward_hook(lambda _module, _input, out: out._replace(auxiliary=out.scores))
    with torch.no_grad():
        output = model(images)
        handle.remove()
        other = model(images)
    assert torch.equal(output.auxiliary, output.scores)
    assert other.auxiliary.shape == other.scores.shape == (1, 19, height, width)
    assert not torch.equal(other.auxiliary, other.scores)


def test_network_without_attention_trains_at_one_scale(training: HMSA) -> None:
    single = OCRNet(training.backbone, mid_channels=64, key_channels=32).eval()
    images, labels = noise(2, 3, 40, 56), torch.randint(19, (2, 40, 56))
    output = single(images)
    torch.testing.assert_close(output.scores, single.predict(images, [1.0]))
    assert output.auxiliary.shape == (2, 19, 40, 56)
    assert output.scales == {}
    terms = training_loss(output, labels)
    terms.total.backward()
    assert all(parameter.grad is not None for parameter in single.parameters())


def test_norms_see_both_scales(training: HMSA) -> None:
    training(noise(2, 3, 48, 80))
    norms = {name: module for name, module in training.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert any(name.startswith("scale_attn") for name in norms)
    assert {int(norm.num_batches_tracked) for norm in norms.values()} == {2}


def test_attention_of_the_larger_scale_is_not_trained(training: HMSA) -> None:
    recorded = []
    training.scale_attn.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    training(noise(2, 3, 48, 80))
    assert recorded == [True, False]


def test_autocast_gives_float32_near_the_full_precision_and_every_gradient(training: HMSA) -> None:
    images, labels = noise(2, 3, 48, 80), torch.randint(19, (2, 48, 80))
    exact = training_loss(copy.deepcopy(training)(images), labels).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = training(images)
        terms = training_loss(output, labels)
    terms.total.backward()
    assert {tensor.dtype for tensor in (output.scores, output.auxiliary, *output.scales.values())} == {torch.float32}
    assert terms.total.dtype == torch.float32
    assert terms.total.item() == pytest.approx(exact.item(), rel=0.02)
    gradients = {name: parameter.grad for name, parameter in training.named_parameters()}
    # Autocast caches cast weights: met first where nothing is recorded, they would stay without a gradient.
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []


@pytest.mark.parametrize("low_scale", [0.0, 1.0, 2.0, -0.5, float("nan")])
def test_low_scale_must_shrink(tiny: HMSA, low_scale: float) -> None:
    with pytest.raises(ValueError, match="low_scale must lie between 0 and 1"):
        tiny(noise(1, 3, 16, 16), low_scale)


@pytest.mark.parametrize("criterion", ["rmi", "cross_entropy", "image_weighted"])
def test_a_few_steps_bring_the_loss_down(criterion: str) -> None:
    torch.manual_seed(0)
    model = build("hrnet_tiny_ocr_mscale", num_classes=3).train()
    images, labels = noise(2, 3, 48, 80), torch.zeros(2, 48, 80, dtype=torch.int64)
    labels[:, 24:] = 1
    labels[:, :, 60:] = 2
    labels[:, :4] = 255
    images[:, 0] += labels.clamp(max=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = training_loss(model(images), labels, criterion).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.3
