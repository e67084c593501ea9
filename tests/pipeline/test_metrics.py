"""Figures of class maps, against the same counted pixel by pixel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from hmsa_pipeline.pipeline.metrics import (
    IGNORE,
    aupr,
    auroc,
    class_iou,
    confusion,
    ece,
    errors_first,
    fpr_at_tpr,
    harmonic_mean,
    level_counts,
    mean_iou,
    reliability,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

CLASSES = 5


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of one shape; some labels are ignored, under which anything may be predicted."""
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6))
    predicted = draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1)))
    labels = draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([*range(CLASSES), IGNORE])))
    return np.where(labels == IGNORE, draw(st.sampled_from([0, 255])), predicted).astype(np.uint8), labels


def counted(predicted: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """The confusion matrix, slow and obvious."""
    matrix = [[0] * CLASSES for _ in range(CLASSES)]
    for guess, truth in zip(predicted.ravel().tolist(), labels.ravel().tolist(), strict=True):
        if truth != IGNORE:
            matrix[truth][guess] += 1
    return matrix


def overlap(matrix: list[list[int]], label: int) -> float:
    """Intersection over union of the sets of pixels that are, and that are called, ``label``."""
    both = matrix[label][label]
    either = sum(matrix[label]) + sum(row[label] for row in matrix) - both
    return both / either if either else math.nan


@settings(deadline=None)
@given(
    pair=maps(),
    kinds=st.sampled_from([(torch.uint8, torch.uint8), (torch.int64, torch.int64), (torch.int64, torch.uint8)]),
)
def test_pixels_are_counted(pair: tuple[np.ndarray, np.ndarray], kinds: tuple[torch.dtype, torch.dtype]) -> None:
    predicted, labels = pair
    matrix = confusion(
        torch.from_numpy(predicted).to(kinds[0]), torch.from_numpy(labels).to(kinds[1]), num_classes=CLASSES
    )
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == counted(predicted, labels)
    assert int(matrix.sum()) == int((labels != IGNORE).sum())


@settings(deadline=None)
@given(pair=maps())
def test_iou_is_that_of_sets_of_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, labels = pair
    known = labels != IGNORE
    found = class_iou(torch.tensor(counted(predicted, labels)))
    assert found.dtype == torch.float64
    for label in range(CLASSES):
        called, is_one = (predicted == label) & known, (labels == label) & known
        either = (called | is_one).sum()
        if either:
            assert found[label].item() == pytest.approx((called & is_one).sum() / either, rel=1e-12)
        else:
            assert math.isnan(found[label])


@settings(deadline=None)
@given(pair=maps())
def test_the_mean_is_over_classes_that_occur(pair: tuple[np.ndarray, np.ndarray]) -> None:
    matrix = counted(*pair)
    values = [value for value in (overlap(matrix, label) for label in range(CLASSES)) if not math.isnan(value)]
    found = mean_iou(torch.tensor(matrix))
    if values:
        assert found == pytest.approx(sum(values) / len(values), rel=1e-12)
        assert 0 <= found <= 1
    else:
        assert math.isnan(found)


@settings(deadline=None)
@given(pair=maps(), cut=st.integers(0, 200))
def test_counts_of_parts_add_up(pair: tuple[np.ndarray, np.ndarray], cut: int) -> None:
    predicted, labels = (torch.from_numpy(part).flatten() for part in pair)
    parts = [confusion(predicted[part], labels[part], CLASSES) for part in (slice(cut), slice(cut, None))]
    assert torch.equal(parts[0] + parts[1], confusion(predicted, labels, CLASSES))


def test_perfect_and_utterly_wrong() -> None:
    labels = torch.arange(19, dtype=torch.uint8).repeat(3)
    assert mean_iou(confusion(labels, labels)) == 1.0
    assert mean_iou(confusion((labels + 1) % 19, labels)) == 0.0


def test_a_class_that_is_only_predicted_counts_as_missed_and_one_that_is_neither_does_not_count() -> None:
    found = class_iou(confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 3))
    assert found[:2].tolist() == [0.5, 0.0]
    assert found[2].isnan()
    assert mean_iou(confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)) == 0.25


def test_nothing_but_ignored_pixels_is_no_score() -> None:
    matrix = confusion(torch.zeros(4, dtype=torch.uint8), torch.full((4,), IGNORE, dtype=torch.uint8))
    assert matrix.shape == (19, 19)
    assert not matrix.any()
    assert math.isnan(mean_iou(matrix))


def test_counts_beyond_what_float32_tells_apart() -> None:
    matrix = torch.zeros(2, 2, dtype=torch.int64)
    matrix[0, 0], matrix[0, 1], matrix[1, 1] = 2**40, 1, 2**40
    assert class_iou(matrix)[0].item() == 2**40 / (2**40 + 1) < 1


@pytest.mark.parametrize(
    ("predicted", "labels"),
    [
        (torch.tensor([19]), torch.tensor([0])),
        (torch.tensor([255]), torch.tensor([0])),
        (torch.tensor([-1]), torch.tensor([0])),
        (torch.tensor([0]), torch.tensor([19])),
        (torch.tensor([0]), torch.tensor([254])),
        (torch.tensor([0]), torch.tensor([-1])),
        # Together they would land on the place of another pair.
        (torch.tensor([-19]), torch.tensor([1])),
        (torch.tensor([20]), torch.tensor([0])),
    ],
)
def test_ids_that_are_no_class_are_refused(predicted: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="ids must be below 19"):
        confusion(predicted, labels)


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8))


# ------------------------------------------------------------------ confidences

PIXELS = st.integers(1, 60).flatmap(
    lambda count: st.tuples(
        arrays.arrays(np.bool_, count),
        # Few levels, so that many pixels tie; and the ends.
        arrays.arrays(np.uint16, count, elements=st.sampled_from([0, 1, 4369, 30000, 30001, 65534, 65535])),
    )
)


@given(PIXELS)
def test_areas_agree_with_scikit_learn(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    right, confidence = pixels
    counts = level_counts(right, confidence)
    if right.all() or not right.any():
        assert math.isnan(auroc(counts))
        assert math.isnan(fpr_at_tpr(counts))
        assert math.isnan(aupr(counts)) != right.any()
        assert math.isnan(aupr(errors_first(counts))) == right.all()
        return
    doubt = 65535 - confidence.astype(np.int64)
    assert auroc(counts) == pytest.approx(sklearn.metrics.roc_auc_score(right, confidence), abs=1e-12)
    assert aupr(counts) == pytest.approx(sklearn.metrics.average_precision_score(right, confidence), abs=1e-12)
    errors = sklearn.metrics.average_precision_score(~right, doubt)
    assert aupr(errors_first(counts)) == pytest.approx(errors, abs=1e-12)
    assert auroc(errors_first(counts)) == pytest.approx(auroc(counts), abs=1e-12)
    false, true, _ = sklearn.metrics.roc_curve(right, confidence, drop_intermediate=False)
    assert fpr_at_tpr(counts) == pytest.approx(false[np.flatnonzero(true >= 0.95)[0]], abs=1e-12)


def slow_ece(right: np.ndarray, confidence: np.ndarray) -> float:
    """Bin by bin, pixel by pixel."""
    edges = [round(65536 * i / 15) for i in range(16)]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i, c in enumerate(confidence.tolist()) if low <= c < high]
        if inside:
            sure = sum((confidence[i].item() + 0.5) / 65536 for i in inside) / len(inside)
            good = sum(right[i].item() for i in inside) / len(inside)
            total += len(inside) / len(right) * abs(sure - good)
    return total


@given(PIXELS)
def test_ece_agrees_with_a_slow_one(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    right, confidence = pixels
    assert ece(level_counts(right, confidence)) == pytest.approx(slow_ece(right, confidence), abs=1e-12)


def test_counts_add_up_over_images() -> None:
    draw = np.random.default_rng(0)
    right, confidence = draw.random(5000) < 0.7, draw.integers(0, 65536, 5000).astype(np.uint16)
    halves = level_counts(right[:1000], confidence[:1000]) + level_counts(right[1000:], confidence[1000:])
    np.testing.assert_array_equal(halves, level_counts(right.reshape(50, 100), confidence.reshape(50, 100)))
    assert halves.sum() == 5000
    assert halves[1].sum() == right.sum()
    pixels, sure, good = reliability(halves)
    assert pixels.sum() == 5000
    assert (np.abs(sure - (np.arange(15) + 0.5) / 15) < 0.01).all()
    assert (np.abs(good - 0.7) < 0.15).all()


def test_the_cuts_of_the_bins_are_the_challenges() -> None:
    """Level 4369 is the first of the second bin: 65536 / 15 is 4369.07."""
    confidence = np.array([4368, 4369], np.uint16)
    pixels, _, good = reliability(level_counts(np.array([False, True]), confidence))
    assert pixels[:2].tolist() == [1, 1]
    assert good[:2].tolist() == [0.0, 1.0]
    assert math.isnan(good[2])


def test_nothing_counted_gives_no_figure() -> None:
    nothing = level_counts(np.zeros(0, np.bool_), np.zeros(0, np.uint16))
    for figure in (auroc, aupr, fpr_at_tpr, ece):
        assert math.isnan(figure(nothing)), figure


def test_confidences_of_another_kind_are_refused() -> None:
    for right, confidence in (
        (np.zeros(3, np.bool_), np.zeros(4, np.uint16)),
        (np.zeros(3, np.bool_), np.zeros(3, np.uint8)),
        (np.zeros(3, np.uint8), np.zeros(3, np.uint16)),
    ):
        with pytest.raises(ValueError, match="bool and uint16 of one shape are needed"):
            level_counts(right, confidence)


def test_the_harmonic_mean() -> None:
    assert harmonic_mean([0.5, 1.0, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.5, 0.0]) == 0.0
    assert math.isnan(harmonic_mean([0.5, math.nan]))
    assert math.isnan(harmonic_mean([]))


def test_the_false_positive_rate_is_that_of_the_threshold_that_just_reaches_the_rate() -> None:
    counts = np.zeros((2, 6), np.int64)
    counts[1, 5], counts[0, 5] = 19, 1  # 19 of 20 positives are 0.95, exactly
    counts[1, 0], counts[0, 1] = 1, 3
    assert fpr_at_tpr(counts) == 0.25
    counts[1, 5], counts[1, 0] = 18, 2
    assert fpr_at_tpr(counts) == 1.0
