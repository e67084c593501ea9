"""What only a CUDA device can show: the published network there agrees with itself on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from hmsa_pipeline.models.hmsa import HMSA

from .. import golden

pytestmark = pytest.mark.gpu
SCALES = (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("dtype", "agreement"), [(None, 0.9995), (torch.float16, 0.995), (torch.bfloat16, 0.97)], ids=str
)
def test_precisions_agree_with_the_cpu(w48: HMSA, dtype: torch.dtype | None, agreement: float) -> None:
    images = golden.normalise(golden.image(101, 256, 512))
    expected = w48.predict(images, SCALES)
    model = copy.deepcopy(w48).cuda()
    with (
        torch.backends.cudnn.flags(allow_tf32=False),
        torch.autocast("cuda", dtype=dtype, enabled=dtype is not None),
    ):
        found = model.predict(images.cuda(), SCALES).cpu()
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= agreement
    if dtype is None:
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
