from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hmsa_pipeline.errors import CheckpointError
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.partial_weights import check_initial, load_initial
from hmsa_pipeline.models.registry import build
from torch import Tensor

TINY = "hrnet_tiny_ocr_mscale"
CLASS_LAYERS = ("ocr.cls_head", "ocr.aux_head.2")


def weights(seed: int, num_classes: int = 19) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build(TINY, num_classes).state_dict()


def load(path: Path, **options: object) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Weights of a network before, after, and the keys that are said to have been kept."""
    torch.manual_seed(1)
    model = build(TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = load_initial(model, path, TINY, **options)  # type: ignore[arg-type]
    check_initial(path, TINY, **options)  # type: ignore[arg-type]
    return before, model.state_dict(), kept


def refusal(path: Path, **options: object) -> str:
    """What both the check and the loading say."""
    with pytest.raises(CheckpointError) as checked:
        check_initial(path, TINY, **options)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError) as loaded:
        load_initial(build(TINY), path, TINY, **options)  # type: ignore[arg-type]
    assert str(checked.value) == str(loaded.value)
    return str(loaded.value)


def test_class_layers_of_another_class_count_start_afresh(tmp_path: Path) -> None:
    file = weights(0, num_classes=65)
    save_checkpoint(tmp_path / "vistas.pth", file, arch=TINY, num_classes=65)
    before, after, kept = load(tmp_path / "vistas.pth", fresh=CLASS_LAYERS)
    assert kept == ["ocr.cls_head.weight", "ocr.cls_head.bias", "ocr.aux_head.2.weight", "ocr.aux_head.2.bias"]
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in kept else file[key]), key


def test_attention_that_the_file_lacks_starts_afresh(tmp_path: Path) -> None:
    file = {key: value for key, value in weights(0).items() if not key.startswith("scale_attn.")}
    save_checkpoint(tmp_path / "chicken.pth", file, arch=TINY)
    _, after, kept = load(tmp_path / "chicken.pth", fresh=["scale_attn"])
    assert kept == [key for key in after if key.startswith("scale_attn.")]


def test_a_trunk_saved_alone_goes_under_the_backbone(tmp_path: Path) -> None:
    everything = weights(0)
    trunk = {k.removeprefix("backbone."): v for k, v in everything.items() if k.startswith("backbone.")}
    torch.save(trunk | {"classifier.weight": torch.zeros(1000, 8)}, tmp_path / "imagenet.pth")
    before, after, kept = load(
        tmp_path / "imagenet.pth",
        fresh=["ocr", "scale_attn"],
        unused=["backbone.classifier"],
        prefix="backbone.",
    )
    assert {key.split(".")[0] for key in kept} == {"ocr", "scale_attn"}
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in kept else everything[key])


def test_nothing_fresh_means_strict(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pth", weights(0), arch=TINY)
    assert load(tmp_path / "whole.pth")[2] == []
    save_checkpoint(tmp_path / "other.pth", weights(0, num_classes=65), arch=TINY)
    message = refusal(tmp_path / "other.pth", fresh=["ocr.cls_head"])
    assert "2 of another shape (first: ocr.aux_head.2.weight is (65, 120, 1, 1), not (19, 120, 1, 1)" in message


def test_a_layer_that_does_not_exist_is_named_with_the_nearest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pth", weights(0), arch=TINY)
    message = refusal(tmp_path / "whole.pth", fresh=["ocr.cls_hed"])
    assert message == f"'{TINY}': has no layer 'ocr.cls_hed'; did you mean 'ocr.cls_head'?"
    # A layer is whole steps of the name: no key lies below 'ocr.cls'.
    assert "has no layer 'ocr.cls';" in refusal(tmp_path / "whole.pth", fresh=["ocr.cls"])
    message = refusal(tmp_path / "whole.pth", unused=["classifier"])
    assert message.startswith(f"{tmp_path / 'whole.pth'}: has no layer 'classifier'")


def test_a_refused_file_changes_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pth", weights(0, num_classes=65), arch=TINY)
    model = build(TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_initial(model, tmp_path / "other.pth", TINY)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
