"""Instance-weighted IoU of Cityscapes: each labelled object counts as much as one of the mean size of its class.

iIoU = iTP / (iTP + FP + iFN), where the pixels of an object that are hit (iTP) or missed (iFN) count by
``mean size of the class / size of the object``, and FP are the pixels that are predicted as the class and labelled as
another one (Cordts et al., CVPR 2016, section 4.1). The mean sizes are those of Cityscapes' training images, as the
authors' evalPixelLevelSemanticLabeling.py has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

MEAN_SIZES: Mapping[str, float] = MappingProxyType(
    {
        "person": 3462.4756337644,
        "rider": 3930.4788056518,
        "car": 12794.0202738185,
        "truck": 27855.1264367816,
        "bus": 35732.1511111111,
        "train": 67583.7075812274,
        "motorcycle": 6298.7200839748,
        "bicycle": 4672.3249222261,
    }
)
"""Name of a class -> mean size of its objects in pixels."""

PER_CLASS = 1000
"""An object's id is this number times the raw id of its class, plus its own number; other pixels have a lower id."""


def instance_counts(
    label: np.ndarray, truth: np.ndarray, objects: np.ndarray, sizes: Mapping[int, float], classes: int
) -> np.ndarray:
    """Weighted pixels of objects that are hit, and missed, by class, (2, C) float64.

    Args:
        label, truth: (P,) train ids of the labelled pixels.
        objects: (P,) ids of instances, of the same pixels.
        sizes: train id of a class with instances -> mean size.
        classes: C.
    """
    found = np.zeros((2, classes))
    own = objects >= PER_CLASS
    label, truth, objects = label[own], truth[own], objects[own]
    pixels = np.bincount(objects)
    hits = np.bincount(objects[label == truth], minlength=len(pixels))
    for train, mean in sizes.items():
        of_class = np.bincount(objects[truth == train], minlength=len(pixels)) > 0
        weight = mean / pixels[of_class]
        found[0, train] = (hits[of_class] * weight).sum()
        found[1, train] = ((pixels - hits)[of_class] * weight).sum()
    return found
