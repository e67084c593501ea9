"""Networks of the library transformers as members: their own post-processing is held against ours."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.errors import CheckpointError, ManifestError
from hmsa_pipeline.models.adapters.load import load_member
from hmsa_pipeline.models.adapters.network import MemberNetwork
from hmsa_pipeline.models.adapters.settings import AdapterSettings, View
from torch import Tensor
from torch.nn import functional

from .tiny import FAMILIES, asked, hf, save

ONE_SIZE = {"data2vec", "dpt", "eomt", "eomt_dinov3"}
MASKS = {"mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3"}
MULTIPLES = {"upernet_dinov2": 14, "beit": 16, "sapiens2": 16, "tipsv2_dpt": 28}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the folder of a family, once."""
    root = tmp_path_factory.mktemp("networks")
    return functools.cache(lambda family: save(family, root / family))


@pytest.fixture(scope="module")
def members(folders: Any) -> Any:
    """Makes the member of a family, once."""
    return functools.cache(lambda family: member(folders(family)))


def member(folder: Path, **settings: Any) -> MemberNetwork:
    return load_member(AdapterSettings("transformers", folder, CLASS_NAMES, **settings))


def picture(height: int, width: int) -> Tensor:
    """A picture (1, 3, H, W) uint8 of blocks and noise."""
    draw = torch.Generator().manual_seed(height)
    blocks = torch.randint(0, 200, (1, 3, -(-height // 8), -(-width // 8)), generator=draw)
    noise = torch.randint(0, 56, (1, 3, height, width), generator=draw)
    return (blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :height, :width] + noise).to(torch.uint8)


def belief(network: MemberNetwork, pixels: Tensor, scales: tuple[float, ...] = (1.0,)) -> Tensor:
    return network.predict(normalise(pixels), scales).softmax(1)[0]


def theirs(folder: Path, pixels: Tensor) -> tuple[Any, Any, Any]:
    """The library's network, processor and output for a picture that nothing resizes or crops."""
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    network = getattr(hf, kind).from_pretrained(folder).eval()
    switches = dict.fromkeys(("do_resize", "do_center_crop", "do_split_image", "do_pad"), False)
    known = {name: value for name, value in switches.items() if hasattr(processor, name)}
    inputs = processor(pixels[0].permute(1, 2, 0).numpy(), return_tensors="pt", **known)
    with torch.no_grad():
        return network, processor, network(pixel_values=inputs["pixel_values"], **asked(network, 1))


def fitting(family: str) -> tuple[int, int]:
    """A size that the family takes as it is."""
    if family in ONE_SIZE:
        return 64, 64
    return (56, 112) if MULTIPLES.get(family, 32) % 7 == 0 else (64, 96)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_sizes_that_fit_the_belief_is_that_of_the_library(family: str, folders: Any, members: Any) -> None:
    size = fitting(family)
    pixels = picture(*size)
    _, processor, output = theirs(folders(family), pixels)
    # The library's detour over a square is left out unless it is asked for.
    network = member(folders(family), as_library=True) if family == "mask2former" else members(family)
    ours = belief(network, pixels)
    found = None  # that of EoMT puts windows together, of which there is one here
    if family == "oneformer":  # whose processor cannot be made without a hub
        found = hf.OneFormerImageProcessor.post_process_semantic_segmentation(processor, output, [size])[0]
    elif family not in ("eomt", "eomt_dinov3"):
        found = processor.post_process_semantic_segmentation(output, target_sizes=[size])[0]
    if family in MASKS:
        masks = output.masks_queries_logits
        if family == "mask2former":
            masks = functional.interpolate(masks, (384, 384), mode="bilinear")
        scores = torch.zeros(1, 19, *masks.shape[-2:])
        for query in range(masks.shape[1]):  # the formula, query by query
            share = output.class_queries_logits[:, query].softmax(-1)[:, :19]
            scores += share[:, :, None, None] * masks[:, query : query + 1].sigmoid()
        scores = functional.interpolate(scores, size, mode="bilinear")
        wanted = (scores / scores.sum(1, keepdim=True))[0]
    else:
        wanted = functional.interpolate(output.logits, size, mode="bilinear").softmax(1)[0]
    torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=0)
    assert (ours.amax((1, 2)) - ours.amin((1, 2))).max() > 1e-3  # the pixels decide
    labels = wanted.argmax(0) if found is None else found
    assert torch.equal(ours.argmax(0), labels.long())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_row_and_column_are_seen_where_they_are(family: str, members: Any) -> None:
    network, pixels = members(family), picture(97, 139)
    changed = pixels.clone()
    changed[..., -1, :] = 255 - changed[..., -1, :]
    changed[..., :, -1] = 255 - changed[..., :, -1]
    difference = (belief(network, pixels) - belief(network, changed)).abs().amax(0)
    assert difference.shape == (97, 139)
    assert difference[-1].mean() > 1e-4
    assert difference[:, -1].mean() > 1e-4


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ONE_SIZE | MASKS])
def test_padding_is_cut_off_and_nothing_is_stretched(family: str, folders: Any, members: Any) -> None:
    multiple = MULTIPLES.get(family, 32)
    height, width = 97, 139
    down, right = (-(-side // multiple) * multiple for side in (height, width))
    padded = np.pad(picture(height, width)[0].numpy(), ((0, 0), (0, down - height), (0, right - width)), mode="edge")
    _, _, output = theirs(folders(family), torch.from_numpy(padded)[None])
    wanted = functional.interpolate(output.logits, (down, right), mode="bilinear")[0, :, :height, :width].softmax(0)
    ours = belief(members(family), picture(height, width))
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def test_channels_are_reversed_for_mobilevit_and_not_normalised(members: Any) -> None:
    described = members("mobilevit").describe(CLASS_NAMES)
    assert (described["colour"], "mean" in described) == ("BGR", False)
    described = members("segformer").describe(CLASS_NAMES)
    assert (described["colour"], described["mean"]) == ("RGB", [0.485, 0.456, 0.406])


@pytest.mark.parametrize("family", sorted(ONE_SIZE))
@pytest.mark.parametrize("view", [View(), View(longest=64), View(window=(64, 96))])
def test_networks_of_one_size_refuse_other_views(family: str, view: View, folders: Any) -> None:
    with pytest.raises(ManifestError, match=r"64x64 only|have to be") as refused:
        member(folders(family), view=view)
    assert str(refused.value).startswith(f"{folders(family)}: view: ")


def test_a_dpt_takes_windows_of_other_squares(folders: Any) -> None:
    pixels = picture(48, 48)
    _, _, output = theirs(folders("dpt"), pixels)
    wanted = functional.interpolate(output.logits, (48, 48), mode="bilinear").softmax(1)[0]
    ours = belief(member(folders("dpt"), view=View(window=(48, 48))), pixels)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)
    with pytest.raises(ManifestError, match="multiples of 16, not 40"):
        member(folders("dpt"), view=View(window=(40, 40)))


def test_windows_of_a_network_of_one_size_leave_no_seam(members: Any) -> None:
    network = members("eomt")
    ours = belief(network, picture(64, 128))
    assert network.view == View(window=(64, 64))
    steps = (ours[:, :, 1:] - ours[:, :, :-1]).abs().amax((0, 1))
    # A seam between windows would stand out among the steps that the network itself makes.
    assert steps[63] <= 2 * steps.median() + steps.max() / 2


def edit(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))


def test_an_old_folder_reads_the_same(folders: Any, tmp_path: Path) -> None:
    network = folders("segformer")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((network / name).read_bytes())
    old = {
        "feature_extractor_type": "SegformerFeatureExtractor",
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "reduce_labels": True,
        "size": 1024,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    edit(tmp_path, "config.json", torch_dtype="float16")
    pixels = picture(64, 96)
    assert torch.equal(belief(member(tmp_path), pixels), belief(member(network), pixels))
    assert member(tmp_path).body.notes == ("instead of its processor's resizing to 1024 the view decides",)


def test_weights_are_float32_whatever_the_file_holds(folders: Any, tmp_path: Path) -> None:
    network, _, _ = theirs(folders("segformer"), picture(64, 96))
    network.half().save_pretrained(tmp_path)
    processor = hf.AutoImageProcessor.from_pretrained(folders("segformer"))
    processor.save_pretrained(tmp_path)
    assert {weight.dtype for weight in member(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_rescale": "yes"}, "'do_rescale' of its processor is the text 'yes', where true or false are needed"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean' of its processor is a list, where three numbers are needed"),
        ({"image_std": [0.5, 0.5, 0]}, "where three numbers above 0 are needed"),
        ({"rescale_factor": 0}, "where a number above 0 are needed"),
    ],
)
def test_wrong_numbers_of_a_processor_are_named(
    values: dict[str, Any], message: str, tmp_path: Path, folders: Any
) -> None:
    for path in folders("segformer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path, "preprocessor_config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        member(tmp_path)


def test_pixels_that_are_not_rescaled_stay_as_they_are(tmp_path: Path, folders: Any) -> None:
    for path in folders("segformer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path, "preprocessor_config.json", do_rescale=False, do_normalize=False)
    scaling = member(tmp_path).body.scaling
    pixels = picture(64, 96)
    torch.testing.assert_close(scaling(pixels.float() / 255), pixels.float(), atol=1e-3, rtol=0)


def test_a_oneformer_is_asked_for_classes_of_pixels(folders: Any, members: Any) -> None:
    pixels = picture(64, 96)
    network, _, output = theirs(folders("oneformer"), pixels)
    scaled = members("oneformer").body.scaling(pixels / 255)
    with torch.no_grad():
        other = network(pixel_values=scaled, task_inputs=torch.ones(1, 77, dtype=torch.long))
    assert not torch.allclose(other.masks_queries_logits, output.masks_queries_logits, atol=1e-2)
    half = members("oneformer").predict(normalise(pixels).to(torch.bfloat16), [1.0]).softmax(1)[0]
    assert (half - belief(members("oneformer"), pixels)).abs().mean() < 0.02


def test_a_oneformer_in_training_is_refused(folders: Any, tmp_path: Path) -> None:
    for path in folders("oneformer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path, "config.json", is_training=True)
    with pytest.raises(CheckpointError, match="'is_training' in config"):
        member(tmp_path)


def test_the_librarys_masks_are_a_setting_of_mask2former_alone(folders: Any, members: Any) -> None:
    pixels = picture(64, 96)
    square = member(folders("mask2former"), as_library=True)
    assert not torch.allclose(belief(square, pixels), belief(members("mask2former"), pixels), atol=1e-4)
    assert square.describe(CLASS_NAMES)["postprocess"] == "library"
    assert "postprocess" not in members("mask2former").describe(CLASS_NAMES)
    with pytest.raises(ManifestError, match="changes Mask2FormerForUniversalSegmentation alone, not MaskFormer"):
        member(folders("maskformer"), as_library=True)
