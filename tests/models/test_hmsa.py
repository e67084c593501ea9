from __future__ import annotations

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hmsa_pipeline.models.hmsa import HMSA, OCRNet, ScaleOutput, blend, scale_images
from hmsa_pipeline.models.ocr import OCROutput
from hmsa_pipeline.models.registry import build
from hypothesis import given, settings
from hypothesis import strategies as st

sides = st.integers(1, 70)
scale_lists = st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.25, 1.5, 2.0]), unique=True, max_size=3).flatmap(
    lambda others: st.permutations([1.0, *others])
)
by_hypothesis = settings(max_examples=25, deadline=None)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def single(tiny: HMSA) -> OCRNet:
    """The tiny network without its scale attention."""
    return OCRNet(tiny.backbone, mid_channels=64, key_channels=32).eval().requires_grad_(False)


@given(height=sides, width=sides, scales=scale_lists, flip=st.booleans())
@by_hypothesis
def test_any_size_and_scales_give_logits_of_the_image(
    tiny: HMSA, height: int, width: int, scales: list[float], flip: bool
) -> None:
    logits = tiny.predict(noise(2, 3, height, width), scales, flip)
    assert logits.shape == (2, 19, height, width)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert logits.isfinite().all()


@given(height=sides, width=sides, scales=scale_lists, flip=st.booleans())
@by_hypothesis
def test_scales_gathered_elsewhere_give_the_same(
    tiny: HMSA, single: OCRNet, height: int, width: int, scales: list[float], flip: bool
) -> None:
    images = noise(2, 3, height, width)
    for model in (tiny, single):
        gathered = model.predict(images, scales, flip, gather=torch.device("cpu"))
        torch.testing.assert_close(gathered, model.predict(images, scales, flip), rtol=0, atol=0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("attentive", [True, False])
def test_nothing_of_a_scale_is_kept_while_the_next_one_runs(
    tiny: HMSA, single: OCRNet, attentive: bool, flip: bool
) -> None:
    model = tiny if attentive else single
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def remember(_module: object, _inputs: object, output: OCROutput) -> None:
        made.extend(weakref.ref(tensor) for tensor in output)

    hooks = [
        model.ocr.register_forward_hook(remember),
        model.backbone.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in made))),
    ]
    try:
        model.predict(noise(1, 3, 32, 48), [0.5, 1.0, 2.0], flip, gather=torch.device("cpu"))
    finally:
        for hook in hooks:
            hook.remove()
    assert made
    assert alive == [0] * (6 if flip else 3)


@given(scales=scale_lists, data=st.data())
@by_hypothesis
def test_order_of_scales_does_not_matter(tiny: HMSA, scales: list[float], data: st.DataObject) -> None:
    images = noise(1, 3, 33, 50)
    other = data.draw(st.permutations(scales))
    assert torch.equal(tiny.predict(images, scales), tiny.predict(images, other))


@given(height=sides, width=sides, scales=scale_lists)
@by_hypothesis
def test_flip_averaging_commutes_with_mirroring(tiny: HMSA, height: int, width: int, scales: list[float]) -> None:
    images = noise(1, 3, height, width)
    mirrored = tiny.predict(images.flip(-1), scales, flip=True)
    torch.testing.assert_close(mirrored, tiny.predict(images, scales, flip=True).flip(-1))


@given(side=st.integers(1, 10_000), scale=st.floats(0.1, 4))
@by_hypothesis
def test_scaled_sizes_are_those_of_torch(side: int, scale: float) -> None:
    image = torch.zeros(1, 1, 1, 1).expand(1, 1, 1, side)
    scaled = scale_images(image, scale)
    assert scaled.shape[-1] == max(1, math.floor(side * scale))
    if side * scale >= 1 and scale >= 1:
        expected = F.interpolate(image, scale_factor=scale, mode="bilinear", recompute_scale_factor=True)
        assert scaled.shape == expected.shape


def test_images_of_a_batch_do_not_touch_one_another(tiny: HMSA) -> None:
    images = noise(3, 3, 40, 56)
    together = tiny.predict(images, [0.5, 1.0])
    apart = torch.cat([tiny.predict(image[None], [0.5, 1.0]) for image in images])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_autocast_gives_float32_close_to_the_full_precision(tiny: HMSA) -> None:
    images = noise(1, 3, 64, 96)
    exact = tiny.predict(images, [0.5, 1.0, 2.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, outputs = tiny.predict_scales(images, [0.5, 1.0, 2.0])
        averaged = build("hrnet_tiny_ocr_mscale").predict(images, [1.0])
    assert {rough.dtype, averaged.dtype} == {torch.float32}
    assert {out.scores.dtype for out in outputs} == {torch.float32}
    assert (rough.argmax(1) == exact.argmax(1)).float().mean() > 0.9
    assert not torch.equal(rough, exact)


def test_only_scales_that_need_it_compute_attention(tiny: HMSA) -> None:
    calls = []
    hook = tiny.scale_attn.register_forward_hook(lambda *_: calls.append(1))
    try:
        for scales, expected in (([1.0], 0), ([0.5, 1.0, 2.0], 2)):
            calls.clear()
            tiny.predict(noise(1, 3, 16, 16), scales)
            assert len(calls) == expected
    finally:
        hook.remove()


def test_predict_scales_is_predict_with_its_parts(tiny: HMSA) -> None:
    images = noise(1, 3, 31, 45)
    logits, outputs = tiny.predict_scales(images, [1.0, 0.5, 1.5])
    assert torch.equal(logits, tiny.predict(images, [1.0, 0.5, 1.5]))
    assert [out.scale for out in outputs] == [1.5, 1.0, 0.5]
    for (_, scores, attention), size in zip(outputs, [(46, 67), (31, 45), (15, 22)], strict=True):
        assert attention is not None
        assert scores.shape == (1, 19, *size)
        assert attention.shape == (1, 1, *size)
        assert 0 <= attention.min() <= attention.max() <= 1


def outputs_with(attention: dict[float, float]) -> list[ScaleOutput]:
    return [
        ScaleOutput(
            scale,
            noise(1, 3, int(8 * scale), int(12 * scale), seed=int(8 * scale)),
            torch.full((1, 1, int(8 * scale), int(12 * scale)), attention[scale]),
        )
        for scale in sorted(attention, reverse=True)
    ]


@pytest.mark.parametrize("trusted", [0.5, 1.0, 1.5])
def test_full_attention_to_one_scale_returns_that_scale(trusted: float) -> None:
    outputs = outputs_with({scale: float(scale == trusted) for scale in (0.5, 1.0, 1.5, 2.0)})
    own = next(out.scores for out in outputs if out.scale == trusted)
    expected = F.interpolate(own, (8, 12), mode="bilinear")
    torch.testing.assert_close(blend(outputs), expected)


@given(share=st.floats(0, 1), scale=st.sampled_from([0.5, 1.0]))
@by_hypothesis
def test_attention_is_the_share_of_the_smaller_scale(share: float, scale: float) -> None:
    larger = 2 * scale
    outputs = outputs_with({scale: share, larger: 0.123})
    size = (8, 12)
    small, large = (F.interpolate(o.scores, size, mode="bilinear") for o in reversed(outputs))
    torch.testing.assert_close(blend(outputs), share * small + (1 - share) * large)


def test_network_without_attention_averages_its_scales(single: OCRNet) -> None:
    images = noise(1, 3, 30, 50)

    def scores(size: tuple[int, int]) -> torch.Tensor:
        scaled = F.interpolate(images, size, mode="bilinear")
        return F.interpolate(single.ocr(single.backbone(scaled)).scores, (30, 50), mode="bilinear")

    expected = (scores((15, 25)) + scores((30, 50)) + scores((60, 100))) / 3
    torch.testing.assert_close(single.predict(images, [2.0, 0.5, 1.0]), expected)
    mirrored = single.predict(images.flip(-1), [1.0]).flip(-1)
    torch.testing.assert_close(
        single.predict(images, [1.0], flip=True), (single.predict(images, [1.0]) + mirrored) / 2
    )


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([], "must contain 1.0"),
        ([0.5, 2.0], "must contain 1.0"),
        ([1.0, 0.0], "positive numbers, not 0.0"),
        ([1.0, -0.5], "positive numbers, not -0.5"),
        ([1.0, math.nan], "positive numbers, not nan"),
        ([math.inf, 1.0], "positive numbers, not inf"),
        ([1.0, 0.5, 1.0], "differ"),
    ],
)
def test_wrong_scales_are_refused(tiny: HMSA, single: OCRNet, scales: list[float], message: str) -> None:
    for model in (tiny, single):
        with pytest.raises(ValueError, match=message):
            model.predict(noise(1, 3, 8, 8), scales)
    with pytest.raises(ValueError, match=message):
        tiny.predict_scales(noise(1, 3, 8, 8), scales)


def test_training_mode_is_a_mistake() -> None:
    model = build("hrnet_tiny_ocr_mscale").train()
    with pytest.raises(AssertionError, match="eval"):
        model.predict(noise(1, 3, 8, 8), [1.0])


@pytest.mark.parametrize("seed", range(3))
def test_fresh_network_tells_pixels_apart(seed: int) -> None:
    torch.manual_seed(seed)
    model = build("hrnet_tiny_ocr_mscale")
    images = F.interpolate(noise(1, 3, 8, 16), (64, 128), mode="bicubic")
    labels = model.predict(images, [0.5, 1.0]).argmax(1)
    assert len(labels.unique()) >= 4
    assert labels.flatten().bincount().max() < 0.9 * labels.numel()
