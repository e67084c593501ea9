"""The small synthetic pictures that our metrics and those of peers are computed of; NumPy only."""

from __future__ import annotations

import numpy as np

CLASSES = 19
IGNORE = 255


def pictures(seed: int = 20) -> dict[str, np.ndarray]:
    """Two pictures with labels, predictions and confidences, the same for everybody.

    Three classes are predicted and never labelled, a tenth of the pixels has no label, and confidences have 64
    levels, so that ties are many.

    Returns:
        truth, label (2, 48, 64) uint8 train ids, 255 where the truth is void; confidence (2, 48, 64) uint16; odd
        (2, 48, 64) bool, what is out of distribution.
    """
    draw = np.random.default_rng(seed)
    shape = (2, 48, 64)
    truth = draw.integers(0, CLASSES - 3, shape).astype(np.uint8)
    label = np.where(draw.random(shape) < 0.7, truth, draw.integers(0, CLASSES, shape)).astype(np.uint8)
    odd = draw.random(shape) < 0.15
    sure = np.clip(draw.normal(0.55, 0.2, shape) + 0.2 * (label == truth) - 0.25 * odd, 0, 0.999)
    confidence = (np.floor(sure * 64) * 1024 + 512).astype(np.uint16)
    truth[draw.random(shape) < 0.1] = IGNORE
    return {"truth": truth, "label": label, "confidence": confidence, "odd": odd}


def pixels(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The labelled pixels of `pictures`, one after another.

    Returns:
        truth, label (P,) int64; level (P,) int64 in 0..65535; sure (P,) float64, (level + 0.5) / 65536; right and odd
        (P,) bool.
    """
    known = data["truth"] != IGNORE
    truth, label, level = (data[name][known].astype(np.int64) for name in ("truth", "label", "confidence"))
    sure = (level + 0.5) / 65536
    return {"truth": truth, "label": label, "level": level, "sure": sure, "right": truth == label,
            "odd": data["odd"][known]}  # fmt: skip
