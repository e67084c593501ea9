from __future__ import annotations

import pytest
import torch
from hmsa_pipeline.models import ocr
from hmsa_pipeline.models.hrnet import join
from hmsa_pipeline.models.ocr import ObjectAttention, OCRHead, gather_regions


def test_regions_are_weighted_means_of_the_features() -> None:
    torch.manual_seed(0)
    features, scores = torch.randn(2, 5, 6, 7), 3 * torch.randn(2, 4, 6, 7)
    weights = scores.double().exp()
    weights /= weights.sum((2, 3), keepdim=True)
    expected = torch.einsum("nchw,nkhw->nck", features.double(), weights)
    torch.testing.assert_close(gather_regions(features, scores), expected.float().unsqueeze(-1))


def test_regions_do_not_depend_on_the_size_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    features, scores = torch.randn(1, 5, 6, 7), torch.randn(1, 4, 6, 7)
    whole = gather_regions(features, scores)
    monkeypatch.setattr(ocr, "_GATHER_PIXELS", 11)
    torch.testing.assert_close(gather_regions(features, scores), whole)


def test_regions_of_a_photograph_survive_half_precision() -> None:
    # 1 / (1536 * 2048) lies between the fifth and the sixth number of float16: 6 % off if rounded.
    features = torch.ones(1, 1, 1536, 2048, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        regions = gather_regions(features, torch.zeros_like(features))
    assert regions.dtype == torch.float32
    assert regions.item() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_attention_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    attention = ObjectAttention(channels=6, key_channels=4).eval()
    pixels, regions = torch.randn(2, 6, 3, 5), torch.randn(2, 6, 7, 1)
    query = attention.f_pixel(pixels).permute(0, 2, 3, 1)
    key, value = attention.f_object(regions)[..., 0], attention.f_down(regions)[..., 0]
    weights = (torch.einsum("nhwc,nck->nhwk", query, key) / 4**0.5).softmax(-1)
    expected = attention.f_up(torch.einsum("nhwk,nck->nchw", weights, value))
    torch.testing.assert_close(attention(pixels, regions), expected)


@torch.no_grad()
def test_head_returns_scores_of_both_kinds_and_features() -> None:
    head = OCRHead(in_channels=10, num_classes=3, mid_channels=8, key_channels=4).eval()
    out = head([torch.randn(2, 10, 5, 4)])
    assert (out.scores.shape, out.auxiliary.shape) == ((2, 3, 5, 4), (2, 3, 5, 4))
    assert out.features.shape == (2, 8, 5, 4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("size", [(8, 12), (7, 11), (1, 1)])
def test_enlarging_may_go_last(
    size: tuple[int, int], rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What inference makes of branches, float32 first on the small ones, is what training makes of them joined."""
    monkeypatch.setattr(ocr, "_ROWS_PIXELS", rows * size[1])
    torch.manual_seed(0)
    head = OCRHead(in_channels=15, num_classes=3, mid_channels=8, key_channels=4).eval().to(dtype)
    branches = [torch.randn(2, 2**i, -(-size[0] // 2**i), -(-size[1] // 2**i), dtype=dtype) for i in range(4)]
    auxiliary = head.aux_head(join(branches))
    out = head(branches)
    torch.testing.assert_close(out.auxiliary, auxiliary)
    pixels = head.conv3x3_ocr(join(branches))
    features = head.ocr_distri_head(pixels, gather_regions(pixels, auxiliary).to(dtype))
    # Rows are enlarged in float32.
    torch.testing.assert_close(out.scores, head.cls_head(features), rtol=1e-5, atol=1e-5)
