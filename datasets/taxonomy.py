"""The 19 classes that every member is trained on, in train-id order.

They are the evaluation classes of Cityscapes (Cordts et al., CVPR 2016, arXiv 1604.01685), with its colours.
"""

from __future__ import annotations

CLASS_NAMES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""Train id -> name."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
"""Train id -> RGB, 0 to 255, for class maps that people look at."""

NUM_CLASSES = len(CLASS_NAMES)

IGNORE = 255
"""The id of pixels that belong to no class: neither learnt nor scored."""
