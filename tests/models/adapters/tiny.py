"""Tiny networks of the library transformers with random weights, saved by the library itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

import torch
import transformers as hf
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES

LABELS = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: i for i, name in enumerate(CLASS_NAMES)}}


def segformer() -> tuple[Any, Any]:
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **LABELS,
    )
    return hf.SegformerForSemanticSegmentation(config), hf.SegformerImageProcessor()


def _upernet(backbone: Any) -> tuple[Any, Any]:
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, **LABELS
    )
    return hf.UperNetForSemanticSegmentation(config), hf.SegformerImageProcessor()


STAGES = ["stage1", "stage2", "stage3", "stage4"]


def upernet_swin() -> tuple[Any, Any]:
    return _upernet(
        hf.SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES)
    )


def upernet_convnext() -> tuple[Any, Any]:
    return _upernet(hf.ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=STAGES))


def upernet_dinov2() -> tuple[Any, Any]:
    return _upernet(
        hf.Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, out_features=STAGES
        )
    )


def beit() -> tuple[Any, Any]:
    config = hf.BeitConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        out_indices=[1, 2, 3, 4],
        use_relative_position_bias=True,
        pool_scales=[1, 2],
        **LABELS,
    )
    return hf.BeitForSemanticSegmentation(config), hf.BeitImageProcessor()


def data2vec() -> tuple[Any, Any]:
    config = hf.Data2VecVisionConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        out_indices=[1, 2, 3, 4],
        use_relative_position_bias=True,
        pool_scales=[1, 2],
        **LABELS,
    )
    return hf.Data2VecVisionForSemanticSegmentation(config), hf.BeitImageProcessor()


def dpt() -> tuple[Any, Any]:
    config = hf.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        **LABELS,
    )
    return hf.DPTForSemanticSegmentation(config), hf.DPTImageProcessor(size={"height": 64, "width": 64})


def mobilevit() -> tuple[Any, Any]:
    config = hf.MobileViTConfig(
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
        num_attention_heads=2,
        output_stride=16,
        aspp_out_channels=16,
        **LABELS,
    )
    return hf.MobileViTForSemanticSegmentation(config), hf.MobileViTImageProcessor()


def mobilevitv2() -> tuple[Any, Any]:
    config = hf.MobileViTV2Config(
        width_multiplier=0.25, n_attn_blocks=[1, 1, 1], output_stride=16, aspp_out_channels=16, **LABELS
    )
    return hf.MobileViTV2ForSemanticSegmentation(config), hf.MobileViTImageProcessor()


def mobilenet_v2() -> tuple[Any, Any]:
    config = hf.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, output_stride=8, **LABELS)
    return hf.MobileNetV2ForSemanticSegmentation(config), hf.MobileNetV2ImageProcessor()


def _small_swin() -> Any:
    return hf.SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES)


def mask2former() -> tuple[Any, Any]:
    config = hf.Mask2FormerConfig(
        backbone_config=_small_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        **LABELS,
    )
    return hf.Mask2FormerForUniversalSegmentation(config), hf.Mask2FormerImageProcessor()


def maskformer() -> tuple[Any, Any]:
    decoder = hf.DetrConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=6,
    )
    config = hf.MaskFormerConfig(
        backbone_config=_small_swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=16, **LABELS
    )
    return hf.MaskFormerForInstanceSegmentation(config), hf.MaskFormerImageProcessor()


def oneformer() -> tuple[Any, Any]:
    config = hf.OneFormerConfig(
        backbone_config=_small_swin(),
        num_queries=6,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        query_dec_layers=1,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=32,
        **LABELS,
    )
    # Its own processor asks a hub for a file while it is made; its numbers are those of Mask2Former's.
    return hf.OneFormerForUniversalSegmentation(config), hf.Mask2FormerImageProcessor()


def sapiens2() -> tuple[Any, Any]:
    config = hf.Sapiens2Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        num_first_full_attention_layers=1,
        num_last_full_attention_layers=1,
        image_size=64,
        head_config={"upsample_out_channels": [16, 16], "conv_out_channels": [16]},
        **LABELS,
    )
    return hf.Sapiens2ForSemanticSegmentation(config), hf.Sapiens2ImageProcessor()


def tipsv2_dpt() -> tuple[Any, Any]:
    backbone = hf.Tipsv2VisionConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = hf.Tipsv2DptConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, **LABELS
    )
    return hf.Tipsv2DptForSemanticSegmentation(config), hf.Tipsv2DptImageProcessor()


def eomt_dinov3() -> tuple[Any, Any]:
    config = hf.EomtDinov3Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        num_queries=6,
        num_blocks=2,
        num_upscale_blocks=1,
        **LABELS,
    )
    size = {"shortest_edge": 64, "longest_edge": None}
    return hf.EomtDinov3ForUniversalSegmentation(config), hf.EomtImageProcessor(do_split_image=True, size=size)


def eomt() -> tuple[Any, Any]:
    config = hf.EomtConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        num_queries=6,
        num_blocks=2,
        num_upscale_blocks=1,
        **LABELS,
    )
    size = {"shortest_edge": 64, "longest_edge": None}
    return hf.EomtForUniversalSegmentation(config), hf.EomtImageProcessor(do_split_image=True, size=size)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    made.__name__: made
    for made in (
        *(segformer, upernet_swin, upernet_convnext, upernet_dinov2, beit, data2vec, dpt, mobilevit, mobilevitv2),
        *(mobilenet_v2, sapiens2, tipsv2_dpt, mask2former, maskformer, oneformer, eomt, eomt_dinov3),
    )
}
"""Name -> a network and its processor."""


def asked(network: Any, images: int) -> dict[str, Any]:
    """What a network wants beside pixels: a OneFormer the tokens of "the task is semantic", with zeros after them."""
    if not isinstance(network, hf.OneFormerForUniversalSegmentation):
        return {}
    tokens = torch.zeros(images, 77, dtype=torch.long)
    tokens[:, :7] = torch.tensor([49406, 518, 10549, 533, 29119, 1550, 49407])
    return {"task_inputs": tokens}


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """Save a family's network, with weights so large that pixels decide its classes, and its processor."""
    torch.manual_seed(seed)
    network, processor = FAMILIES[family]()
    for part in network.eval().modules():
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, torch.nn.Embedding):
            torch.nn.init.normal_(part.weight)  # queries that differ
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None  # statistics of what follows alone
            norm.train()
        with torch.no_grad():
            network(pixel_values=torch.randn(4, 3, 64, 64), **asked(network, 4))
        network.eval()
    if family == "tipsv2_dpt":  # its decoder normalises nothing, and would be sure of everything
        with torch.no_grad():
            network.decoder.head.weight /= network(pixel_values=torch.rand(1, 3, 56, 112)).logits.std()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
