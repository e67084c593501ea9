"""Reliability by predicted class, against a loop over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hmsa_pipeline.pipeline.scoring.figures.class_reliability import class_ece, count_by_class
from hmsa_pipeline.pipeline.scoring.metrics import ece, level_counts, reliability

CLASSES = 5


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    label = draw.integers(0, CLASSES - 1, (30, 40)).astype(np.uint8)  # one class is never predicted
    truth = np.where(draw.random((30, 40)) < 0.6, label, draw.integers(0, CLASSES, (30, 40))).astype(np.uint8)
    truth[draw.random((30, 40)) < 0.1] = 255
    confidence = draw.integers(0, 65536, (30, 40)).astype(np.uint16)
    confidence[0, :6] = (0, 4369, 4370, 65535, 32768, 61166)
    return label, confidence, truth


def test_counts_are_those_of_a_loop() -> None:
    label, confidence, truth = drawn(0)
    expected = np.zeros((3, CLASSES, 15))
    for one, level, known in zip(label.ravel(), confidence.ravel(), truth.ravel(), strict=True):
        if known != 255:
            sure = (int(level) + 0.5) / 65536
            expected[:, one, min(14, math.floor(sure * 15))] += (1, one == known, sure)
    found = count_by_class(label, confidence, truth, CLASSES)
    assert found == pytest.approx(expected)
    pixels = expected[0].sum(1)
    for number in range(CLASSES):
        if not pixels[number]:
            assert math.isnan(class_ece(found)[number])
            continue
        held = expected[0, number] > 0
        accuracy, sure = (expected[k, number, held] / expected[0, number, held] for k in (1, 2))
        gap = (np.abs(accuracy - sure) * expected[0, number, held]).sum() / pixels[number]
        assert class_ece(found)[number] == pytest.approx(gap)


def test_all_classes_together_are_the_reliability_of_all_pixels() -> None:
    label, confidence, truth = drawn(1)
    found = count_by_class(label, confidence, truth, CLASSES).sum(1)
    known = truth != 255
    levels = level_counts((label == truth)[known], confidence[known])
    pixels, sure, right = reliability(levels)
    assert found[0] == pytest.approx(pixels)
    assert found[1] / found[0] == pytest.approx(right)
    assert found[2] / found[0] == pytest.approx(sure)
    assert class_ece(found[:, None])[0] == pytest.approx(ece(levels))


def test_counts_of_images_add_up() -> None:
    first, second = drawn(2), drawn(3)
    both = [np.concatenate(parts) for parts in zip(first, second, strict=True)]
    assert count_by_class(*both, CLASSES) == pytest.approx(
        count_by_class(*first, CLASSES) + count_by_class(*second, CLASSES)
    )
