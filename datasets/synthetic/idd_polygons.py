"""Annotations as IDD's authors write them for each image: named polygons, painted one over the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .regions import Corners, to_polygons

_BACKGROUND = "unlabeled"
# Names that may end in "group" for several of their kind, which the list of labels does not know.
_MAY_BE_GROUPS = ("car", "person", "bicycle", "motorcycle")


def describe_polygons(raw: NDArray[np.uint8], names: Mapping[int, str]) -> dict[str, Any]:
    """The content of a polygon file, which painted in its order gives the raw ids ``raw`` (H, W).

    Like real ones it holds what must not be painted, an object that was deleted and one of two corners, and one
    whose name is that of its class with "group" behind it, where there is anything of such a class.
    """
    height, width = raw.shape
    background = next(number for number, called in names.items() if called == _BACKGROUND)
    objects = [_object(names[label], corners) for label, corners in to_polygons(raw, background)]
    group = next((item for item in objects if item["label"] in _MAY_BE_GROUPS), None)
    if group:
        group["label"] += "group"
    middle = [(width // 4, height // 4), (width * 3 // 4, height // 4), (width // 2, height * 3 // 4)]
    objects.append(_object("bus", middle, deleted=1))
    objects.append(_object("pole", [(width // 2, 1), (width // 2, height - 2)]))
    for number, item in enumerate(objects):
        item["id"] = number
    return {"imgHeight": height, "imgWidth": width, "objects": objects}


def _object(label: str, corners: Corners, deleted: int = 0) -> dict[str, Any]:
    return {"id": 0, "label": label, "deleted": deleted, "verified": 0, "draw": True, "polygon": corners}
