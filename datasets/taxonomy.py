"""The 19 classes that every member is trained on, in train-id order.

They are the evaluation classes of Cityscapes (Cordts et al., CVPR 2016, arXiv 1604.01685), with its colours.
"""

from __future__ import annotations

_CLASSES: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

CLASS_NAMES: tuple[str, ...] = tuple(_CLASSES)
"""Train id -> name."""

PALETTE: tuple[tuple[int, int, int], ...] = tuple(_CLASSES.values())
"""Train id -> RGB, 0 to 255, for class maps that people look at."""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
"""Category -> its classes, as Cityscapes groups them."""

NUM_CLASSES = len(CLASS_NAMES)

IGNORE = 255
"""The id of pixels that belong to no class: neither learnt nor scored."""
