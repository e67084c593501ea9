"""The published network at its full size, from a checkpoint in the published layout to stored logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.hmsa import OCRNet
from hmsa_pipeline.models.prepare_inference import prepare_for_inference
from hmsa_pipeline.models.registry import build

from .. import golden
from .bench import Bench, attributes, picture, stored

ARCH = "hrnet_ocr_mscale"
SCALES = [0.5, 1.0, 2.0]


@pytest.fixture
def network() -> OCRNet:
    model = build(ARCH)
    model.load_state_dict(golden.weights({key: tuple(value.shape) for key, value in model.state_dict().items()}))
    return model


@pytest.fixture
def checkpoint(network: OCRNet, tmp_path: Path) -> Iterator[Path]:
    """Its 290 MB are removed at once, where pytest would keep them of its last three runs."""
    path = tmp_path / "published.pth"
    save_checkpoint(path, network, arch=ARCH, epoch=175, mean_iu=0.86)
    yield path
    path.unlink()


def test_stored_logits_are_the_forward_pass_rounded_to_float16(
    network: OCRNet, checkpoint: Path, tmp_path: Path
) -> None:
    tree = {
        "version": 1,
        "inference": {"scales": SCALES, "precision": "fp32"},
        "models": [{"name": "w48", "arch": ARCH, "checkpoint": str(checkpoint)}],
        "datasets": [{"name": "street", "type": "folder", "root": "photos"}],
    }
    bench = Bench(tmp_path, tree)
    bench.photo("a.png", 64, 96)
    result = bench.save().run("dump", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    images = golden.normalise(picture(0, 64, 96)).contiguous(memory_format=torch.channels_last)
    direct = prepare_for_inference(copy.deepcopy(network)).predict(images, SCALES)[0].half().numpy()
    found = stored(bench.store("street", "w48"))["a.png"]
    np.testing.assert_array_equal(found, direct)
    assert len(np.unique(found.argmax(0))) > 5
    assert attributes(bench.store("street", "w48"))["checkpoint"] == "published.pth"
