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


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Logits of a network that is twice as sure as it may be: of 4,000 pixels, and what they are labelled.

    Returns:
        (P, 19) float64 and (P,) int64.
    """
    draw = np.random.default_rng(21)
    right = draw.normal(0, 2, (4000, CLASSES))
    chances = np.exp(right - right.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    truth = (chances.cumsum(1) < draw.random((4000, 1))).sum(1).clip(max=CLASSES - 1)
    return 2 * right, truth


def block_pictures() -> tuple[np.ndarray, np.ndarray]:
    """Two pictures whose classes lie in blocks of 16 x 16 pixels, so that most pixels are far from a contour.

    Returns:
        truth and label (2, 192, 256) uint8 train ids; predictions are shifted by one pixel, and by some blocks wrong.
    """
    data = pictures()
    truth, other = (data[name][:, ::4, ::4].repeat(16, 1).repeat(16, 2) for name in ("truth", "label"))
    return truth, np.roll(np.where(truth == IGNORE, 0, other), 1, 2)


SHIFT = {0: 7, 1: 8, 2: 1, 3: 11, 4: 2, 5: 5, 6: 18, 7: 12, 8: 9, 9: 22, 10: 13, 11: 4, 13: 10}
"""Train id -> SHIFT's own id; the six other classes are labelled nowhere there."""
SHIFT_ALIKE = {12: 4, 14: 10, 15: 10, 16: 10, 17: 10, 18: 10}
"""A rider counts as SHIFT's pedestrian, other vehicles as its vehicle."""


def shift_pictures(stray: bool) -> tuple[np.ndarray, np.ndarray]:
    """A picture of the 13 classes that SHIFT labels, 400 pixels of each, and predictions.

    Args:
        stray: whether all is predicted as it is labelled but for six cars, each of them taken for one of the six
            classes that SHIFT does not label; else a fifth of the pixels is taken for another of the 13.

    Returns:
        truth and label (52, 100) int64 train ids.
    """
    truth = np.repeat([*SHIFT], 400).reshape(52, 100)
    label = truth.copy()
    if stray:
        rows, columns = np.nonzero(truth == 13)
        label[rows[:6], columns[:6]] = [*SHIFT_ALIKE]
    else:
        draw = np.random.default_rng(22)
        label = np.where(draw.random(truth.shape) < 0.2, draw.choice([*SHIFT], truth.shape), truth)
    return truth, label
