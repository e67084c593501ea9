"""Backbones of timm with linear heads, against timm's own features and the head written out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.errors import CheckpointError, HmsaError, ManifestError
from hmsa_pipeline.models.adapters.load import load_member
from hmsa_pipeline.models.adapters.network import MemberNetwork
from hmsa_pipeline.models.adapters.settings import AdapterSettings, View
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

os.environ["HF_HUB_OFFLINE"] = "1"

import timm

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
Tensors = dict[str, Tensor]


def member(path: Path, backbone: str = "test_vit", **settings: Any) -> MemberNetwork:
    given = {"classes": CLASS_NAMES, "mean": MEAN, "std": STD} | settings
    return load_member(AdapterSettings("timm_linear", path, CLASS_NAMES, backbone=backbone, **given))


def trunk(name: str = "test_vit", **options: Any) -> Any:
    torch.manual_seed(1)
    network = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, torch.nn.LayerNorm):  # as different from none as a trained one
                part.weight.uniform_(0.5, 2)
                part.bias.normal_()
    return network


def picture(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def seen(pixels: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def linear(width: int, classes: int = 19) -> tuple[Tensor, Tensor]:
    return torch.randn(classes, width) * 0.1, torch.randn(classes)


def norm_before(width: int) -> Tensors:
    return {
        "weight": torch.rand(width) + 0.5,
        "bias": torch.randn(width),
        "running_mean": torch.randn(width),
        "running_var": torch.rand(width) + 0.5,
        "num_batches_tracked": torch.tensor(7),
    }


def batch_normed(values: Tensor, norm: Tensors) -> Tensor:
    scaled = (values - norm["running_mean"][:, None, None]) / (norm["running_var"][:, None, None] + 1e-5).sqrt()
    return scaled * norm["weight"][:, None, None] + norm["bias"][:, None, None]


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def tokens_as_map(network: Any, pixels: Tensor, patch: int = 16) -> Tensor:
    """The last layer's tokens of patches, with the final norm, as a map."""
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    tokens = network.forward_features(pixels)[:, network.num_prefix_tokens :]
    return tokens.transpose(1, 2).reshape(len(pixels), -1, rows, columns)


Reference = Callable[[Tensor], Tensor]


def dinov2_one_layer(path: Path) -> tuple[Reference, dict[str, Any]]:
    network, norm, (weight, bias) = trunk(dynamic_img_size=True), norm_before(64), linear(64)
    head = {"conv_seg.weight": weight[..., None, None], "conv_seg.bias": bias, **prefixed("bn.", norm)}
    torch.save({"state_dict": prefixed("backbone.", network.state_dict()) | prefixed("decode_head.", head)}, path)

    def forward(pixels: Tensor) -> Tensor:
        maps = batch_normed(tokens_as_map(network, pixels), norm)
        return functional.conv2d(maps, weight[..., None, None], bias)

    return forward, {}


def dinov2_four_layers(path: Path) -> tuple[Reference, dict[str, Any]]:
    network, norm, (weight, bias) = trunk(dynamic_img_size=True), norm_before(256), linear(256)
    head = {"conv_seg.weight": weight[..., None, None], "conv_seg.bias": bias, **prefixed("bn.", norm)}
    torch.save(prefixed("backbone.", network.state_dict()) | prefixed("decode_head.", head), path)

    def forward(pixels: Tensor) -> Tensor:
        maps = []
        for layer in (1, 2, 4, 5):
            cut = trunk(dynamic_img_size=True)
            cut.blocks = cut.blocks[: layer + 1]
            maps.append(tokens_as_map(cut, pixels))
        return functional.conv2d(batch_normed(torch.cat(maps, 1), norm), weight[..., None, None], bias)

    return forward, {"layers": (1, 2, 4, 5)}


def dinov2_with_its_own_names(path: Path) -> tuple[Reference, dict[str, Any]]:
    """Two files in a folder; with registers, there is a position for the class, which timm has added up."""
    name = "vit_small_patch14_reg4_dinov2"
    network = trunk(name, dynamic_img_size=True, img_size=70)
    norm, (weight, bias) = norm_before(384), linear(384)
    own: Tensors = dict(network.state_dict()) | {"mask_token": torch.zeros(1, 384)}
    own["register_tokens"] = own.pop("reg_token")
    first = torch.randn(1, 1, 384)
    own["cls_token"] = own["cls_token"] - first
    own["pos_embed"] = torch.cat([first, own["pos_embed"]], 1)
    head = {"conv_seg.weight": weight[..., None, None], "conv_seg.bias": bias, **prefixed("bn.", norm)}
    path.mkdir()
    torch.save(own, path / "backbone.pth")
    torch.save({"meta": {"epoch": 3}, "state_dict": prefixed("decode_head.", head)}, path / "head.pth")

    def forward(pixels: Tensor) -> Tensor:
        maps = batch_normed(tokens_as_map(network, pixels, 14), norm)
        return functional.conv2d(maps, weight[..., None, None], bias)

    return forward, {"backbone": name}


def layer_norm_and_linear(path: Path) -> tuple[Reference, dict[str, Any]]:
    """The trunk's norm is off, its patch of 8 and positions of 5x5 are as saved."""
    network, (weight, bias) = trunk(patch_size=8, img_size=40, dynamic_img_size=True), linear(64)
    network.norm = torch.nn.Identity()
    scale, shift = torch.rand(64) + 0.5, torch.randn(64)
    head = {"head.0.weight": scale, "head.0.bias": shift, "head.1.weight": weight, "head.1.bias": bias}
    state = prefixed("network.", prefixed("encoder.", network.state_dict()) | head)
    torch.save({"state_dict": state, "epoch": 1, "optimizer_states": [{"state": {}}]}, path)

    def forward(pixels: Tensor) -> Tensor:
        tokens = network.forward_features(pixels)[:, network.num_prefix_tokens :]
        logits = functional.layer_norm(tokens, (64,), scale, shift) @ weight.T + bias
        return logits.transpose(1, 2).reshape(len(pixels), 19, pixels.shape[-2] // 8, pixels.shape[-1] // 8)

    return forward, {"view": View()}


def plain_without_norm(path: Path) -> tuple[Reference, dict[str, Any]]:
    """Saved by features_only of timm, whose maps have no final norm."""
    network, (weight, bias) = timm.create_model("test_vit", features_only=True, dynamic_img_size=True), linear(64)
    state = prefixed("backbone.", network.state_dict()) | {"head.weight": weight, "head.bias": bias}
    torch.save(state, path)
    return lambda pixels: functional.conv2d(network.eval()(pixels)[-1], weight[..., None, None], bias), {}


def plain_convnext(path: Path) -> tuple[Reference, dict[str, Any]]:
    """Two maps of unlike sizes; features_only calls its stages by other names."""
    torch.manual_seed(2)
    network = timm.create_model("test_convnext", features_only=True, out_indices=(2, 3)).eval()
    widths = network.feature_info.channels()
    weight, _ = linear(sum(widths))
    torch.save(prefixed("backbone.", network.state_dict()) | {"classifier.weight": weight}, path)

    def forward(pixels: Tensor) -> Tensor:
        large, small = network(pixels)
        small = functional.interpolate(small, large.shape[-2:], mode="bilinear")
        return functional.conv2d(torch.cat([large, small], 1), weight[..., None, None])

    return forward, {"backbone": "test_convnext", "layers": (2, 3)}


LAYOUTS = {
    "dinov2, one layer": (dinov2_one_layer, 16),
    "dinov2, four layers": (dinov2_four_layers, 16),
    "dinov2, its own names": (dinov2_with_its_own_names, 14),
    "layer norm and linear": (layer_norm_and_linear, 8),
    "plain, without norm": (plain_without_norm, 16),
    "plain, convnext": (plain_convnext, 32),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_belief_is_the_library_s_and_sees_the_last_pixels(name: str, tmp_path: Path) -> None:
    make, step = LAYOUTS[name]
    torch.manual_seed(0)
    forward, settings = make(tmp_path / "weights.pth")
    network = member(tmp_path / "weights.pth", **settings)
    for size in ((2 * step, 4 * step), (61, 83)):
        pixels = picture(*size)
        down, right = (-side % step for side in size)
        padded = functional.pad(pixels.float(), (0, right, 0, down), mode="replicate")
        with torch.no_grad():
            logits = forward(seen(padded))
        wanted = functional.interpolate(logits, padded.shape[-2:], mode="bilinear")[..., : size[0], : size[1]]
        found = network.predict(normalise(pixels), [1.0])
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
        assert torch.equal(found.argmax(1), wanted.argmax(1))
        assert wanted.std((2, 3)).max() > 0.05
    for place in (-1, slice(None)), (slice(None), -1):
        changed = pixels.clone()
        changed[..., place[0], place[1]] = 255 - changed[..., place[0], place[1]]
        difference = (network.predict(normalise(changed), [1.0]) - found).softmax(1) - 1 / 19
        assert difference[..., place[0], place[1]].abs().mean() > 1e-4


def test_windows_of_the_trained_size_are_usual_for_layer_norm_and_linear(tmp_path: Path) -> None:
    layer_norm_and_linear(tmp_path / "a.ckpt")
    assert member(tmp_path / "a.ckpt").view.as_json() == {"window": [40, 40], "stride": [30, 30]}
    assert member(tmp_path / "a.ckpt", view=View()).view.as_json() == "whole"


def test_positions_of_an_oblong_need_the_size_they_were_trained_with(tmp_path: Path) -> None:
    network, (weight, bias) = trunk(img_size=(32, 96), dynamic_img_size=True), linear(64)
    path = tmp_path / "weights.safetensors"
    save_file(prefixed("trunk.", network.state_dict()) | {"head.weight": weight, "head.bias": bias}, path)
    with pytest.raises(
        ManifestError, match=r"positions of 12 patches are no square; .* 'view: \{window: \[h, w\]\}'"
    ):
        member(path)
    pixels = picture(32, 96)
    with torch.no_grad():
        logits = functional.conv2d(tokens_as_map(network, seen(pixels)), weight[..., None, None], bias)
    found = member(path, view=View((32, 96))).predict(normalise(pixels), [1.0])
    wanted = functional.interpolate(logits, (32, 96), mode="bilinear")
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_norm_false_leaves_out_a_norm_that_is_there(tmp_path: Path) -> None:
    network, (weight, bias) = trunk(dynamic_img_size=True), linear(64)
    path, pixels = tmp_path / "weights.pth", picture(32, 48)
    torch.save(dict(network.state_dict()) | {"head.weight": weight, "head.bias": bias}, path)
    for norm in (True, False):
        network.norm = network.norm if norm else torch.nn.Identity()
        with torch.no_grad():
            logits = functional.conv2d(tokens_as_map(network, seen(pixels)), weight[..., None, None], bias)
        wanted = functional.interpolate(logits, (32, 48), mode="bilinear")
        found = member(path, norm=None if norm else False)
        torch.testing.assert_close(found.predict(normalise(pixels), [1.0]), wanted, atol=1e-3, rtol=0)
        assert found.describe(CLASS_NAMES)["norm"] is norm


def test_mean_and_deviation_are_the_tag_s_the_file_s_or_the_manifest_s(tmp_path: Path) -> None:
    path, (weight, bias) = tmp_path / "weights.pth", linear(64)
    state = prefixed("network.encoder.", trunk().state_dict()) | {"head.weight": weight, "head.bias": bias}
    torch.save(state, path)
    given = member(path, mean=None, std=None, backbone="test_vit.r160_in1k")
    assert given.body.scaling.as_json()["mean"] == [0.5] * 3 and not given.body.notes
    (note,) = member(path, mean=None, std=None).body.notes
    assert "are those of the tag 'r160_in1k'; name yours after a dot" in note
    numbers = {"pixel_mean": torch.tensor([123.0, 116.0, 103.0]), "pixel_std": torch.tensor([58.0, 57.0, 57.0])}
    torch.save(state | {f"network.{key}": value.reshape(1, 3, 1, 1) for key, value in numbers.items()}, path)
    found = member(path, mean=None, std=None, backbone="test_vit.r160_in1k").body.scaling.as_json()
    assert found["mean"] == pytest.approx([123 / 255, 116 / 255, 103 / 255])
    assert member(path).body.scaling.as_json()["mean"] == list(MEAN)


class Runs:
    """What a pickle can ask for."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


def edited(path: Path, change: Callable[[Tensors], object]) -> None:
    state = prefixed("backbone.", trunk().state_dict())
    weight, bias = linear(64)
    state |= {"head.weight": weight, "head.bias": bias}
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda s: s.pop("backbone.blocks.3.norm1.weight"), {}, r"keys are missing \(first: blocks.3.norm1.weight\)"),
        (lambda s: s.pop("backbone.patch_embed.proj.weight"), {}, "holds no backbone: no key ends in"),
        (lambda s: s.update({"backbone.what": torch.zeros(2)}), {}, r"1 unexpected \(first: what\)"),
        (lambda s: s.update({"ema.patch_embed.proj.weight": torch.zeros(2)}), {}, "the backbone more than once"),
        (lambda s: s.update({"aux.weight": torch.zeros(3, 64)}), {}, "2 linear layers beside the backbone"),
        (lambda s: s.update({"bn.weight": torch.zeros(63)}), {}, r"weight is \(63,\), not \(64,\)"),
        (lambda s: s.update({"head.weight": torch.zeros(19, 64, 3, 3)}), {}, "0 linear layers beside the backbone"),
        (lambda s: s.update({"head.weight": torch.zeros(19, 63)}), {}, "takes 63 channels, which are no multiple of"),
        (lambda s: s.update({"head.bias": torch.full((19,), torch.nan)}), {}, "holds NaN"),
        (lambda s: s.update(run=Runs()), {}, "asks for"),
        (lambda s: [s.pop("head.weight"), s.pop("head.bias")], {}, "holds a backbone and no head"),
        (lambda s: None, {"layers": (6,)}, "layers: there is no 6, the backbone has 0 to 5"),
        (lambda s: None, {"layers": (4, 5)}, r"layers: \[4, 5\] have 128 channels, its head takes 64"),
        (lambda s: [s.pop(f"backbone.norm.{k}") for k in ("weight", "bias")], {"norm": True}, "remove it"),
        (lambda s: None, {"backbone": "test_vitt"}, "knows no 'test_vitt'; did you mean 'test_vit"),
        (lambda s: None, {"backbone": "test_vit.imagenet"}, "knows no tag 'imagenet' of test_vit"),
        (lambda s: None, {"backbone": "hf-hub:timm/test_vit.r160_in1k"}, "names on a hub are not fetched"),
        (lambda s: None, {"backbone": "test_vit2"}, "keys are missing"),
        (lambda s: None, {"classes": None}, "its 19 classes have no names"),
        (lambda s: None, {"classes": CLASS_NAMES[:18]}, "names 18 classes, the network has 19"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, settings: Any, message: str, tmp_path: Path) -> None:
    edited(tmp_path / "a.pth", change)
    with pytest.raises(HmsaError, match=message) as refused:
        member(tmp_path / "a.pth", **settings)
    assert len(str(refused.value).splitlines()) == 1


def test_files_that_are_not_there_or_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names on a hub are not fetched"):
        member(tmp_path / "owner/vit")
    with pytest.raises(CheckpointError, match="holds no weights"):
        member(tmp_path)
    edited(tmp_path / "a.pth", lambda state: None)
    edited(tmp_path / "b.pth", lambda state: None)
    with pytest.raises(CheckpointError, match="holds the backbone in several files"):
        member(tmp_path)
