"""The segmentation networks of the library transformers that can be members, and the sizes that each takes right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .body import Sizes

SEMANTIC, MASKS = "semantic", "masks"


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        head: `SEMANTIC` (logits for each pixel) or `MASKS` (classes and masks of queries).
        sizes: from its configuration and that of its processor.
        bgr: pixels are blue, green, red, unless its processor says otherwise.
        normalises: pixels are normalised, unless its processor says otherwise.
        asks_task: it wants to be told what it is asked for, as ids of a text's tokens.
    """

    head: str
    sizes: Callable[[Any, Mapping[str, Any]], Sizes]
    bgr: bool = False
    normalises: bool = True
    asks_task: bool = False


def _strides(config: Any) -> int:
    """Return the stride of a network's coarsest features, or its patch size."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple):
        patch = math.lcm(*patch)
    depths = getattr(config, "depths", None)
    if depths:
        return (patch or 4) * 2 ** (len(depths) - 1)
    return patch or 32


def _segformer(config: Any, _: Mapping[str, Any]) -> Sizes:
    return Sizes(math.prod(config.strides))


def _with_backbone(config: Any, processor: Mapping[str, Any]) -> Sizes:
    divisor = processor.get("size_divisor") or processor.get("size_divisibility") or 1
    return Sizes(math.lcm(32 if config.model_type != "upernet" else 1, _strides(config.backbone_config), divisor))


def _patches(config: Any, _: Mapping[str, Any]) -> Sizes:
    return Sizes(_strides(config))


def _one_size(config: Any, _: Mapping[str, Any]) -> Sizes:
    side = config.image_size
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return Sizes(_strides(config), fixed=(height, width))


def _dpt(config: Any, processor: Mapping[str, Any]) -> Sizes:
    if config.is_hybrid or getattr(config, "backbone_config", None) is not None:
        return _one_size(config, processor)
    # It takes other sizes whose patches make a square number, too, and lays them out in a wrong grid.
    size = processor.get("size")
    trained = {size} if isinstance(size, int) else set(size.values()) if isinstance(size, dict) else set()
    side = trained.pop() if len(trained) == 1 else config.image_size
    side = side if side and side % config.patch_size == 0 else config.image_size
    return Sizes(config.patch_size, fixed=(side, side), square=True)


def _mobilevit(config: Any, _: Mapping[str, Any]) -> Sizes:
    # It resizes features that its patches of 2x2 at the coarsest stride do not divide.
    return Sizes(math.lcm(32, config.patch_size * config.output_stride))


def _mobilenet(config: Any, _: Mapping[str, Any]) -> Sizes:
    return Sizes(math.lcm(32, config.output_stride))


def _tips(config: Any, _: Mapping[str, Any]) -> Sizes:
    # Its coarsest map has half as many rows as there are patches, rounded up, and is enlarged by whole factors.
    return Sizes(2 * _strides(config.backbone_config))


MASK2FORMER = "Mask2FormerForUniversalSegmentation"
FAMILIES: dict[str, Family] = {
    "SegformerForSemanticSegmentation": Family(SEMANTIC, _segformer),
    "UperNetForSemanticSegmentation": Family(SEMANTIC, _with_backbone),
    "BeitForSemanticSegmentation": Family(SEMANTIC, _patches),
    "Data2VecVisionForSemanticSegmentation": Family(SEMANTIC, _one_size),
    "DPTForSemanticSegmentation": Family(SEMANTIC, _dpt),
    "MobileViTForSemanticSegmentation": Family(SEMANTIC, _mobilevit, bgr=True, normalises=False),
    "MobileViTV2ForSemanticSegmentation": Family(SEMANTIC, _mobilevit, bgr=True, normalises=False),
    "MobileNetV2ForSemanticSegmentation": Family(SEMANTIC, _mobilenet),
    "Sapiens2ForSemanticSegmentation": Family(SEMANTIC, _patches),
    "Tipsv2DptForSemanticSegmentation": Family(SEMANTIC, _tips, normalises=False),
    MASK2FORMER: Family(MASKS, _with_backbone),
    "MaskFormerForInstanceSegmentation": Family(MASKS, _with_backbone),
    "OneFormerForUniversalSegmentation": Family(MASKS, _with_backbone, asks_task=True),
    "EomtForUniversalSegmentation": Family(MASKS, _one_size),
    "EomtDinov3ForUniversalSegmentation": Family(MASKS, _one_size),
}
"""Class of the library, as ``architectures`` in config.json names it -> its family."""
