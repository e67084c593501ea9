"""Networks of smp as members, against the library's own forward pass."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.errors import CheckpointError, HmsaError, ManifestError
from hmsa_pipeline.models.adapters.load import load_member
from hmsa_pipeline.models.adapters.network import MemberNetwork
from hmsa_pipeline.models.adapters.settings import AdapterSettings
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

os.environ["HF_HUB_OFFLINE"] = "1"

import segmentation_models_pytorch as smp

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SMALL = {"encoder_name": "tu-mobilenetv3_small_050", "encoder_weights": None, "classes": 19}
MADE: dict[str, Any] = {
    "Unet": {"decoder_channels": (32, 16, 8, 8, 8)},
    "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "DeepLabV3Plus": {"decoder_channels": 16, "encoder_name": "mobilenet_v2"},
    "Segformer": {"decoder_segmentation_channels": 16},
}


def make(folder: Path, name: str = "FPN", **values: Any) -> Any:
    """Save a network whose pixels matter, and return it."""
    torch.manual_seed(0)
    network = getattr(smp, name)(**SMALL | MADE[name] | values)
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(2, 3, 64, 64))
    network.eval().save_pretrained(folder)
    return network


def member(folder: Path, **settings: Any) -> MemberNetwork:
    given = {"mean": MEAN, "std": STD, "classes": CLASS_NAMES} | settings
    return load_member(AdapterSettings("smp", folder, CLASS_NAMES, **given))


def picture(height: int, width: int) -> Tensor:
    blocks = torch.randint(
        0, 256, (1, 3, -(-height // 4), -(-width // 4)), generator=torch.Generator().manual_seed(3)
    )
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :height, :width].to(torch.uint8)


def belief(network: MemberNetwork, pixels: Tensor) -> Tensor:
    return network.predict(normalise(pixels), [1.0]).softmax(1)


def theirs(network: Any, pixels: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    seen = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        output = network(seen)
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", MADE)
def test_the_belief_is_that_of_the_library_and_sees_the_last_pixels(name: str, tmp_path: Path) -> None:
    network = make(tmp_path, name)
    ours = member(tmp_path)
    pixels = picture(61, 83)
    padded = functional.pad(pixels.float(), (0, 13, 0, 3), mode="replicate")
    wanted = theirs(network, padded)[..., :61, :83].softmax(1)
    torch.testing.assert_close(belief(ours, pixels), wanted, atol=2e-5, rtol=0)
    assert (wanted.amax((2, 3)) - wanted.amin((2, 3))).max() > 1e-3
    changed = pixels.clone()
    changed[..., -1, :] = 255 - changed[..., -1, :]
    changed[..., :, -1] = 255 - changed[..., :, -1]
    difference = (belief(ours, changed) - belief(ours, pixels)).abs().amax(1)[0]
    assert min(difference[-1].mean(), difference[:, -1].mean()) > 1e-4


@pytest.mark.parametrize(
    ("activation", "kind"), [("softmax2d", "probabilities"), ("sigmoid", "scores"), ("logsoftmax", "logits")]
)
def test_the_activation_says_what_the_output_is(
    activation: str, kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    network = make(tmp_path, activation=activation, aux_params={"classes": 2})
    ours, pixels = member(tmp_path), picture(64, 96)
    output = theirs(network, pixels)
    wanted = output.softmax(1) if kind == "logits" else output / output.sum(1, keepdim=True)
    assert ours.body.kind == kind
    torch.testing.assert_close(belief(ours, pixels), wanted, atol=2e-5, rtol=0)


def test_weights_of_an_encoder_are_not_asked_of_a_hub(tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, encoder_weights="imagenet")
    assert torch.isfinite(belief(member(tmp_path), picture(64, 64))).all()


def test_imagenet_is_assumed_for_encoders_of_timm_alone(tmp_path: Path) -> None:
    network = make(tmp_path)
    ours, pixels = member(tmp_path, mean=None, std=None), picture(64, 96)
    assert "ImageNet's" in ours.body.notes[0]
    wanted = theirs(network, pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).softmax(1)
    torch.testing.assert_close(belief(ours, pixels), wanted, atol=2e-5, rtol=0)
    edit(tmp_path, encoder_name="resnet18")
    with pytest.raises(ManifestError, match=r"give the 'mean' and 'std' that.*'resnet18'"):
        member(tmp_path, mean=None, std=None)


def edit(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_model_class": "Unett"}, "names the class Unett, which smp does not have; did you mean 'Unet'?"),
        ({"_model_class": None}, "names no class of smp"),
        ({"_model_class": "Unet"}, "cannot build it"),
        ({"in_channels": 4}, "takes 4 channels, where photographs have 3"),
        ({"classes": 1}, "has 1 class, where a member needs two or more"),
        ({"classes": 20}, "of another shape"),
        ({"activation": "argmax2d"}, "ends in the activation argmax2d"),
        ({"encoder_name": "resnot"}, "cannot build it"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(CheckpointError, match=message) as refused:
        member(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_decoder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("decoder.")}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"keys are missing \(first: decoder\."):
        member(tmp_path)
    with pytest.raises(HmsaError, match="have no names"):
        make(tmp_path)
        member(tmp_path, classes=None)
