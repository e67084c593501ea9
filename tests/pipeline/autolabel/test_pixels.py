"""Borders of classes, votes and counts of one image, against looking at every pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.autolabel.pixels import Answer, LabelCounts, count_votes, decide, near_border


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 23)])
def test_borders_are_those_of_every_window(distance: int, shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    label = draw.integers(0, 3, (shape[0] // 4 + 1, shape[1] // 4 + 1)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    label = label[: shape[0], : shape[1]]
    expected = np.zeros(shape, bool)
    for y, x in np.ndindex(shape):
        window = label[max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1]
        expected[y, x] = (window != label[y, x]).any()
    np.testing.assert_array_equal(near_border(label, distance), expected)


def test_a_member_agrees_where_no_class_is_higher() -> None:
    logits = [
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]).half(),
        torch.tensor([[0.0, 0.0, 0.0], [9.0, -1.0, 0.0]]),
    ]
    label = torch.tensor([0, 0, 1], dtype=torch.uint8)
    # A tie is agreement: (first member, first pixel) and (second, third).
    assert count_votes(label, logits).tolist() == [1, 1, 1]


ANSWER = Answer(
    np.array([[0, 0, 1, 1, 2, 2]], np.uint8),
    np.array([[60000, 30000, 60000, 50000, 65535, 10]], np.uint16),
    np.array([[True, True, True, True, True, False]]),
)
LEVELS = (50000, 50000, 65536)


def test_what_is_sure_is_kept_and_counted() -> None:
    labels, confidence, counts = decide(ANSWER, LEVELS, None, None)
    assert labels.tolist() == [[0, 255, 1, 1, 255, 255]]
    assert confidence.tolist() == [[234, 117, 234, 195, 255, 0]]
    assert counts == LabelCounts(
        predicted=(2, 2, 2),
        candidates=(2, 2, 1),
        kept=(1, 2, 0),
        levels=(60000, 110000, 0),
        best=(60000, 60000, 65535),
        coarse=(0, 0, 0),
    )
    assert LabelCounts.from_text(counts.as_text()) == counts
    assert counts + LabelCounts.zero(3) == counts
    assert (counts + counts).kept == (2, 4, 0) and (counts + counts).best == counts.best


@pytest.mark.parametrize(
    ("rule", "labels", "own"),
    [("keep", [[0, 0, 2, 1, 1, 255]], (2, 1, 1)), ("drop", [[0, 0, 255, 1, 1, 255]], (2, 1, 0))],
)
def test_the_datasets_own_labels_come_first(rule: str, labels: list[list[int]], own: tuple[int, ...]) -> None:
    # Both agree; the teacher is unsure; they contradict each other; nothing is known; the teacher's class has no
    # threshold; nothing is known.
    coarse = np.array([[0, 0, 2, 255, 1, 255]], np.uint8)
    found, confidence, counts = decide(ANSWER, LEVELS, coarse, rule)
    assert found.tolist() == labels
    assert counts.coarse == own
    assert counts.kept == (0, 1, 0)
    assert (confidence[0] == 255).tolist() == [True, True, rule == "keep", False, True, False]
