"""Components of what is out of distribution, pixel by pixel, as the paper of SegmentMeIfYouCan says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hmsa_pipeline.pipeline.scoring.detection.components import LeastSizes


def flooded(marked: np.ndarray) -> list[set[tuple[int, int]]]:
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(marked), strict=True)}
    areas = []
    while left:
        area, edge = set(), [min(left)]
        left -= set(edge)
        while edge:
            y, x = edge.pop()
            area.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        areas.append(area)
    return areas


def slow_figures(pairs: list[tuple[np.ndarray, np.ndarray]], least: LeastSizes) -> dict[str, Any]:
    sious, ppvs = [], []
    for predicted, mask in pairs:
        truths = flooded(mask == 1)
        void = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask == 255), strict=True)}
        found = [area for area in flooded(predicted & (mask != 255)) if len(area) >= least.predicted]
        background = mask.size - sum(map(len, truths))
        void |= {pixel for area in truths if len(area) < least.truth for pixel in area}
        if background < least.truth:
            void |= {(y, x) for y, x in np.ndindex(mask.shape) if mask[y, x] != 1}
        truths = [area for area in truths if len(area) >= least.truth]
        found = [area - void for area in found if area - void]
        for one in truths:
            touching = [area for area in found if area & one]
            predicted_pixels = set().union(*touching) if touching else set()
            others = set().union(*(area for area in truths if area is not one))
            union = (predicted_pixels | one) - (others & predicted_pixels)
            sious.append(len(predicted_pixels & one) / len(union))
        every = set().union(*truths) if truths else set()
        ppvs += [len(area & every) / len(area) for area in found]
    scores = []
    for t in np.linspace(0.25, 0.75, 11):
        hits = sum(value >= t for value in sious)
        others = len(sious) - hits + sum(value < t for value in ppvs)
        scores.append(2 * hits / (2 * hits + others) if hits + others else math.nan)
    return {
        "siou": np.mean(sious) if sious else math.nan,
        "ppv": np.mean(ppvs) if ppvs else math.nan,
        "f1": np.mean(scores),
    }
