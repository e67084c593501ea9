from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hmsa_pipeline.errors import HmsaError, ManifestError
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.registry import ARCHITECTURES, build


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_built_in_evaluation_mode(arch: str) -> None:
    with torch.device("meta"):
        model = build(arch, num_classes=7)
    assert not any(module.training for module in model.modules())
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.ocr.cls_head.out_channels == 7
    assert isinstance(model, HMSA) == arch.endswith("_mscale")


def test_tiny_network_is_tiny() -> None:
    assert sum(p.numel() for p in build("hrnet_tiny_ocr_mscale").parameters()) < 500_000


def test_equal_seeds_build_equal_networks() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build("hrnet_tiny_ocr_mscale").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", ["hrnet_ocr_mscal", "HRNet_OCR_mscale"])
def test_unknown_architecture_names_the_nearest(name: str) -> None:
    with pytest.raises(ManifestError, match=r"did you mean 'hrnet_ocr_mscale'\?") as caught:
        build(name)
    assert isinstance(caught.value, HmsaError)


def test_names_are_known_without_torch() -> None:
    code = "import sys, hmsa_pipeline.models.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
